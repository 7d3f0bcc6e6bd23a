package peers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	nbdPort   = 10809
	nbdExport = "swap"
	nbdDevice = "/dev/nbd0"
)

// nbdServe runs nbd-server at addr over a file of so many bytes in memory.
func nbdServe(ctx context.Context, program []string, addr string, bytes int64, serve func()) (err error) {
	undo := &undo{}
	defer func() { err = undo.all(err) }()
	dir, err := os.MkdirTemp("/dev/shm", "ironspan-perf-")
	if err != nil {
		return fmt.Errorf("peers: nbd: %w", err)
	}
	undo.add(func() error { return os.RemoveAll(dir) })
	disk, config := filepath.Join(dir, "disk"), filepath.Join(dir, "config")
	text := fmt.Sprintf("[generic]\nlistenaddr = %s\nport = %d\n[%s]\nexportname = %s\n", addr, nbdPort, nbdExport, disk)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return fmt.Errorf("peers: nbd: %w", err)
	}
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		return fmt.Errorf("peers: nbd: %w", err)
	}
	if err := os.Truncate(disk, bytes); err != nil {
		return fmt.Errorf("peers: nbd: %w", err)
	}
	child, err := startChild(exec.Command(program[0], append(program[1:], "-C", config, "-d")...))
	if err != nil {
		return fmt.Errorf("peers: nbd-server: %w", err)
	}
	undo.add(child.stop)
	if err := child.listens(ctx, nbdPort); err != nil {
		return fmt.Errorf("peers: nbd-server: %w", err)
	}
	serve()
	select {
	case <-child.ended: // it does when its one client has left
		if child.err != nil {
			return fmt.Errorf("peers: nbd-server: %w", child.err)
		}
	default:
	}
	return ctx.Err()
}

// nbdConnect attaches what nbdServe offers at addr and returns the block device.
func nbdConnect(ctx context.Context, program []string, addr string, undo *undo) (string, error) {
	client := func(ctx context.Context, words ...string) error {
		return run(ctx, append(append([]string{}, program...), words...)...)
	}
	// With a timeout, a server that has gone is an error of the program over it, and not a program that never ends.
	err := client(ctx, addr, strconv.Itoa(nbdPort), nbdDevice, "-N", nbdExport, "-b", strconv.Itoa(pageSize), "-swap", "-timeout", "20")
	if err != nil {
		return "", err
	}
	undo.add(func() error { return client(context.WithoutCancel(ctx), "-d", nbdDevice) })
	return nbdDevice, awaitNode(ctx, nbdDevice)
}

// child is a process of ours that ends with us.
type child struct {
	cmd   *exec.Cmd
	ended chan struct{}
	err   error // once ended
}

func startChild(cmd *exec.Cmd) (*child, error) {
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &child{cmd: cmd, ended: make(chan struct{})}
	go func() {
		c.err = cmd.Wait()
		close(c.ended)
	}()
	return c, nil
}

// listens waits until somebody does at a port, without a connection: a server that does not fork serves just one.
func (c *child) listens(ctx context.Context, port int) error {
	for deadline := time.Now().Add(20 * time.Second); ; {
		sockets, err := os.ReadFile("/proc/net/tcp")
		if err != nil {
			return err
		}
		if listening(string(sockets), port) {
			return nil
		}
		select {
		case <-c.ended:
			return fmt.Errorf("it ended: %v", c.err)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return errors.New("it does not listen")
		}
	}
}

// listening reads proc(5)'s net/tcp: the second column is address and port in hexadecimal, the fourth the state.
func listening(sockets string, port int) bool {
	const listen = "0A"
	for line := range strings.Lines(sockets) {
		f := strings.Fields(line)
		if len(f) > 3 && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", port)) && f[3] == listen {
			return true
		}
	}
	return false
}

// stop ends the child, which has a moment for it.
func (c *child) stop() error {
	c.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-c.ended:
	case <-time.After(3 * time.Second):
		c.cmd.Process.Kill()
		<-c.ended
	}
	return nil
}
