package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"ironspan/engine"
	"ironspan/engine/cluster"
	"ironspan/engine/control"
)

type nodeCmd struct {
	Listen    string        `default:":7440" placeholder:"HOST:PORT" help:"Where clients and other nodes reach this one (default :7440)."`
	CertDir   string        `default:"${certs}" placeholder:"DIR" help:"Directory with ca.pem and node-NAME.pem (default ${certs})."`
	Name      string        `placeholder:"NAME" help:"Which node this is; needed if there are several node-*.pem."`
	State     string        `placeholder:"DIR" help:"Where boot images wait while a VM is prepared, in files without a name (default: the system's directory for temporary files)."`
	Lost      time.Duration `default:"15s" help:"Silence after which a client counts as gone and its VM is stopped."`
	Metrics   string        `placeholder:"HOST:PORT" help:"Answer Prometheus there, at /metrics, without TLS: choose an address that only it reaches (default: not at all)."`
	LogLevel  slog.Level    `default:"info" help:"What to log: debug, info, warn or error."`
	LogFormat string        `enum:"text,json" default:"text" help:"How to log: text or json, to standard error."`

	Inherit bool `hidden:"" help:"Be a node of run --local: listener and identity come as descriptors 3 and 4."`
}

func (nodeCmd) Help() string {
	return `Waits for ironspan run to bring a VM, takes part in it, and waits for the next. One VM at a time.
When the client vanishes or another node is lost, the VM's share here is stopped and released.

The port carries the control plane and the nodes' meeting, both in mutual TLS with the cluster's
certificates (ironspan cert init). Guest memory and interrupts travel over RDMA or shared memory.

SIGINT and SIGTERM stop a running VM, tell the other nodes, and end the daemon; a second one ends it
at once. Needs /dev/kvm, userfaultfd, and for fabric: verbs an RDMA device; ironspan doctor tells.`
}

func (n *nodeCmd) Run(con *console) error {
	var h slog.Handler = slog.NewTextHandler(con.err, &slog.HandlerOptions{Level: n.LogLevel})
	if n.LogFormat == "json" {
		h = slog.NewJSONHandler(con.err, &slog.HandlerOptions{Level: n.LogLevel})
	}
	log := slog.New(h)
	slog.SetDefault(log)
	if n.Lost < time.Second {
		return fail(exitUsage, "--lost is %v: at least a second", n.Lost)
	}

	ln, id, err := n.open()
	if err != nil {
		return err
	}
	l, err := cluster.NewListener(ln, id, cluster.ListenerOptions{Log: log})
	if err != nil {
		ln.Close()
		return err
	}
	defer l.Close()
	srv := control.NewServer(newMachine(engine.Options{Listener: l, Log: log}), control.ServerOptions{
		Name:      id.Name(),
		Version:   build().Version,
		Covers:    id.Covers,
		Authorize: func(s *tls.ConnectionState) error { return cluster.RequireRole(s, cluster.RoleClient) },
		Dir:       n.State,
		Lost:      n.Lost,
		Log:       log,
	})
	if n.Metrics != "" {
		stop, err := serveMetrics(n.Metrics, srv.Report, log)
		if err != nil {
			return err
		}
		defer stop()
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l.Control()) }()
	log.Info("node: ready", "name", id.Name(), "addr", l.Addr().String(), "version", build().Version)

	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	stop() // a second signal ends the process
	log.Info("node: shutting down")
	sctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return srv.Shutdown(sctx)
}

// open opens the port and loads the identity, from files or from what run --local left open.
func (n *nodeCmd) open() (net.Listener, *cluster.Identity, error) {
	if n.Inherit {
		return inherit()
	}
	if n.State != "" {
		if st, err := os.Stat(n.State); err != nil || !st.IsDir() {
			return nil, nil, fail(exitUsage, "--state %s is no directory", n.State)
		}
	}
	id, err := cluster.CertDir(n.CertDir).Node(n.Name)
	if err != nil {
		return nil, nil, err
	}
	if c := id.Certificate(); time.Now().After(c.NotAfter) {
		return nil, nil, fmt.Errorf("the certificate of %s expired on %s: renew it with `ironspan cert renew`", id.Name(), c.NotAfter.Format(time.DateOnly))
	}
	ln, err := net.Listen("tcp", n.Listen)
	var addr *net.AddrError
	if errors.As(err, &addr) {
		return nil, nil, fail(exitUsage, "--listen %s: %w", n.Listen, err)
	}
	return ln, id, err
}

// Descriptors that run --local hands to a node process.
const (
	fdListener = 3
	fdIdentity = 4
)

func inherit() (net.Listener, *cluster.Identity, error) {
	f := os.NewFile(fdListener, "listener")
	ln, err := net.FileListener(f)
	if err != nil {
		return nil, nil, fmt.Errorf("--inherit is for run --local: %w", err)
	}
	f.Close()
	pipe := os.NewFile(fdIdentity, "identity")
	defer pipe.Close()
	b, err := io.ReadAll(io.LimitReader(pipe, 1<<20))
	if err != nil {
		ln.Close()
		return nil, nil, fmt.Errorf("--inherit is for run --local: %w", err)
	}
	id := new(cluster.Identity)
	if err := json.Unmarshal(b, id); err != nil {
		ln.Close()
		return nil, nil, err
	}
	return ln, id, nil
}
