package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"ironspan/engine/cluster"
	"ironspan/engine/control"
	"ironspan/engine/spec"
)

type runCmd struct {
	Spec    string        `arg:"" placeholder:"SPEC.yaml" help:"The VM's description."`
	Local   int           `placeholder:"N" help:"Run on N node processes on this host over shared memory, instead of the spec's nodes. Needs no certificates and no RDMA."`
	CertDir string        `default:"${certs}" placeholder:"DIR" help:"Directory with ca.pem and client.pem (default ${certs})."`
	Report  string        `placeholder:"FILE" help:"Write what was counted to this file as JSON when the VM has ended."`
	Timeout time.Duration `placeholder:"DURATION" help:"Stop the VM after this time, counted from the beginning."`
	Append  string        `placeholder:"TEXT" help:"Add to the guest's command line."`
	Poll    string        `enum:"spec,auto,busy,adaptive,event" default:"spec" help:"How threads that serve memory wait for work, whatever the spec says: busy (poll), adaptive (poll, then sleep), event (sleep at once, and idle cores as deep as they like), auto (what the cores allow)."`
	NoInput bool          `help:"Do not pass standard input to the guest's console."`
	JSON    bool          `help:"Write progress to standard error as JSON, one event a line."`
	Verbose bool          `short:"v" help:"Show the log of --local's node processes."`
}

func (runCmd) Help() string {
	return `The guest's console is standard output and, if it is a terminal, standard input in raw mode: Ctrl-]
ends the VM, everything else goes to the guest. Progress is on standard error.

The VM is the command's: when it ends, is interrupted, or dies, the nodes stop the VM and clean up.

A VM that loses a node ends. What is left of its nodes is asked for the pages whose only current copy was
at the lost one: how many, and of which node's memory, is said at the end; --report has all ranges of
guest-physical addresses, under "losses".

Exit status:
    0  the guest powered off by itself
    1  a node or ironspan failed
    2  the command line or the spec is wrong
    3  the guest was reset or crashed
    4  a node was lost, or two lost each other; the message says which, and what of the guest's memory was
       lost with them
    5  a node is out of reach, refused, or lacks something
    6  --timeout
  130  interrupted

A spec, with everything that has a default left out:

    kernel: vmlinuz
    initrd: initrd.img
    append: console=ttyS0
    nodes:
      - {addr: "server-a:7440", vcpus: 2, memory: 4GiB}
      - {addr: "server-b:7440", vcpus: 2, memory: 4GiB}

With --local N the list of nodes may be left out (N nodes with one vCPU and 512MiB each); if it is
there, it gives the sizes.`
}

var (
	errTimeout     = errors.New("--timeout")
	errInterrupted = errors.New("interrupted")
)

func (c *runCmd) Run(con *console) error {
	sp, err := c.load()
	if err != nil {
		return &exitError{exitUsage, err}
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	defer c.signals(cancel)()
	if c.Timeout > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeoutCause(ctx, c.Timeout, fmt.Errorf("%w: the VM was stopped after %v", errTimeout, c.Timeout))
		defer stop()
	}

	term := openTerminal(os.Stdin)
	defer term.restore()
	stderr := &lineWriter{w: con.err}
	if f, ok := con.err.(*os.File); ok && openTerminal(f).isTTY {
		stderr.cr = term.raw
	}
	show := newProgress(stderr, c.JSON)

	opts := control.RunOptions{Events: show.event, Out: con.out}
	if !c.NoInput {
		opts.In = term.input(func() { cancel(errInterrupted) })
		opts.Started = func(*spec.Plan) { term.enterRaw(stderr) }
	}
	if c.Local > 0 {
		nodes, err := startLocal(sp, stderr, c.Verbose)
		if err != nil {
			return err
		}
		defer nodes.stop()
		opts.TLS = nodes.clientTLS
	} else {
		id, err := cluster.CertDir(c.CertDir).Client()
		if err != nil {
			return &exitError{exitRefused, err}
		}
		opts.TLS = func(name string) *tls.Config { return id.ClientTLS(name, cluster.ALPNControl) }
	}

	rep, err := control.Run(ctx, sp, opts)
	term.restore()
	if rep != nil && rep.Losses != nil {
		fmt.Fprintln(stderr, "ironspan:", rep.Losses)
	}
	if rep != nil && c.Report != "" {
		if werr := writeReport(c.Report, rep); werr != nil && err == nil {
			return fmt.Errorf("report: %w", werr)
		}
	}
	return c.verdict(ctx, rep, err)
}

// load reads the spec and makes it what the flags say.
func (c *runCmd) load() (*spec.Spec, error) {
	if c.Local < 0 || c.Timeout < 0 {
		return nil, errors.New("--local and --timeout are not negative")
	}
	if c.Report != "" {
		if st, err := os.Stat(filepath.Dir(c.Report)); err != nil || !st.IsDir() {
			return nil, fmt.Errorf("--report: %s is no directory", filepath.Dir(c.Report))
		}
	}
	sp, err := spec.Load(c.Spec)
	if err != nil {
		return nil, err
	}
	if c.Append != "" {
		if sp.Append = strings.TrimSpace(sp.Append + " " + c.Append); len(sp.Append) > spec.MaxAppend {
			return nil, fmt.Errorf("--append: the command line has %d bytes, %d are allowed", len(sp.Append), spec.MaxAppend)
		}
	}
	if c.Poll != "spec" {
		sp.Poll = spec.Poll(c.Poll)
	}
	if err := sp.CheckImages(); err != nil {
		return nil, err
	}
	if c.Local > 0 {
		return sp, sp.Local(c.Local)
	}
	return sp, sp.CheckCluster()
}

// signals cancels on the first signal and leaves the second to end the process. It returns what undoes that.
func (c *runCmd) signals(cancel context.CancelCauseFunc) func() {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	done := make(chan struct{})
	go func() {
		select {
		case s := <-ch:
			cancel(fmt.Errorf("%w by %v", errInterrupted, s))
			signal.Stop(ch) // nodes and local processes notice when this one dies
		case <-done:
		}
	}()
	return func() {
		signal.Stop(ch)
		close(done)
	}
}

// verdict turns how the VM ended into the command's error.
func (c *runCmd) verdict(ctx context.Context, rep *control.RunReport, err error) error {
	if err == nil && rep.Outcome.Kind != control.Stopped {
		o := rep.Outcome
		switch o.Kind {
		case control.PoweredOff:
			return nil
		case control.GuestReset:
			return fail(exitGuest, "the guest was reset%s", because(o.Reason))
		case control.GuestCrash:
			return fail(exitGuest, "the guest crashed%s", because(o.Reason))
		case control.NodeLost:
			if o.Lost == nil {
				return fail(exitNodeLost, "a node was lost%s", because(o.Reason))
			}
			return fail(exitNodeLost, "node %d was lost%s", *o.Lost, because(o.Reason))
		case control.LinkLost:
			return fail(exitNodeLost, "nodes %d and %d lost each other%s", o.Link[0], o.Link[1], because(o.Reason))
		}
		return fail(exitFailed, "the VM failed%s", because(o.Reason))
	}
	if err == nil {
		err = errors.New("the VM was stopped" + because(rep.Outcome.Reason))
	}
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errTimeout):
		return &exitError{exitTimeout, cause}
	case errors.Is(cause, errInterrupted):
		return &exitError{exitInterrupted, cause}
	case errors.Is(err, control.ErrRefused):
		return &exitError{exitRefused, err}
	}
	var gone *control.Unreachable
	if errors.As(err, &gone) { // it had taken the VM
		return &exitError{exitNodeLost, err}
	}
	return err
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

// writeReport writes the report whole or not at all.
func writeReport(path string, rep *control.RunReport) error {
	b, err := json.MarshalIndent(rep, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".report-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails after the rename, as it should
	if _, err = f.Write(append(b, '\n')); err == nil {
		err = f.Chmod(0o644)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	return err
}
