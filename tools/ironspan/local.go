package main

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"ironspan/engine/cluster"
	"ironspan/engine/spec"
)

// localNodes are the node processes of run --local. They die with this process: the kernel kills them when the
// thread that started them ends, so that thread waits here until stop.
type localNodes struct {
	client *cluster.Identity
	procs  []*exec.Cmd
	exited []chan struct{} // closed when the process has ended
	logs   sync.WaitGroup
	over   chan struct{} // closed by stop, lets the thread go
	once   sync.Once
}

// startLocal starts a node process for each of the spec's nodes, on loopback ports, with certificates that exist
// in memory only, and sets the nodes' addresses.
func startLocal(sp *spec.Spec, stderr io.Writer, verbose bool) (*localNodes, error) {
	ca, err := cluster.NewAuthority(24 * time.Hour)
	if err != nil {
		return nil, err
	}
	l := &localNodes{over: make(chan struct{})}
	if l.client, err = ca.IssueClient("run", 24*time.Hour); err != nil {
		return nil, err
	}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		err := l.start(sp, ca, stderr, verbose)
		started <- err
		<-l.over
	}()
	if err := <-started; err != nil {
		l.stop()
		return nil, err
	}
	return l, nil
}

func (l *localNodes) clientTLS(name string) *tls.Config {
	return l.client.ClientTLS(name, cluster.ALPNControl)
}

func (l *localNodes) start(sp *spec.Spec, ca *cluster.Authority, stderr io.Writer, verbose bool) error {
	for i := range sp.Nodes {
		n := &sp.Nodes[i]
		id, err := ca.IssueNode(cluster.Subject{Name: n.Name}, 24*time.Hour)
		if err != nil {
			return err
		}
		addr, err := l.spawn(id, fmt.Sprintf("node %d: ", i), stderr, verbose)
		if err != nil {
			return fmt.Errorf("local node %d: %w", i, err)
		}
		n.Addr = addr
	}
	return nil
}

// spawn starts one node process on a port of its own and returns the address.
func (l *localNodes) spawn(id *cluster.Identity, prefix string, stderr io.Writer, verbose bool) (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer ln.Close()
	lf, err := ln.(*net.TCPListener).File()
	if err != nil {
		return "", err
	}
	defer lf.Close()
	secret, err := json.Marshal(id)
	if err != nil {
		return "", err
	}
	pr, pw, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer pr.Close()
	defer pw.Close()
	if _, err := pw.Write(secret); err != nil { // some KiB: a pipe takes 64
		return "", err
	}
	level := "warn"
	if verbose {
		level = "debug"
	}
	cmd := exec.Command("/proc/self/exe", "node", "--inherit", "--log-level", level)
	cmd.Args[0] = os.Args[0]
	cmd.ExtraFiles = []*os.File{lf, pr} // fdListener, fdIdentity
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGKILL,
		Setpgid:   true, // Ctrl-C is for this process, which stops its nodes in order
	}
	out, err := cmd.StderrPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	exited := make(chan struct{})
	l.procs, l.exited = append(l.procs, cmd), append(l.exited, exited)
	l.logs.Go(func() {
		forward(stderr, prefix, out)
		_ = cmd.Wait() // its end is seen by the control plane, which says more
		close(exited)
	})
	return ln.Addr().String(), nil
}

// forward copies lines with a prefix.
func forward(w io.Writer, prefix string, r io.Reader) {
	br := bufio.NewReader(r)
	for {
		line, err := br.ReadString('\n')
		if line != "" {
			if line[len(line)-1] != '\n' {
				line += "\n"
			}
			_, _ = io.WriteString(w, prefix+line) // a log that nobody reads is lost
		}
		if err != nil {
			return
		}
	}
}

// stop ends all node processes and waits for them.
func (l *localNodes) stop() {
	l.once.Do(func() {
		for _, p := range l.procs {
			_ = p.Process.Signal(syscall.SIGTERM) // it may have ended, or have been stopped
			_ = p.Process.Signal(syscall.SIGCONT)
		}
		patience := time.After(10 * time.Second)
		for i, p := range l.procs {
			select {
			case <-l.exited[i]:
			case <-patience:
				_ = p.Process.Kill()
				<-l.exited[i]
				patience = time.After(0)
			}
		}
		l.logs.Wait()
		close(l.over)
	})
}
