// Package servers runs programs in the servers of a lab, by the lab's own command. Programs of this machine run there
// as they are, for servers see its files.
package servers

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Lab is a lab that is up.
type Lab struct {
	Command string // bin/lab
	Name    string // of the lab
	Self    string // this program, as a path
}

// Inside is the command of this program below which are those that it runs in servers.
const Inside = "inside"

// grace is how long a command that is told to end may take to clean up.
const grace = 20 * time.Second

// command is `lab WORDS...`. Its end by the context is an interrupt that reaches the process in the server.
func (l Lab) command(ctx context.Context, words ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, l.Command, append([]string{"--name", l.Name}, words...)...)
	// Its own group: Ctrl-C is this process's to handle.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	cmd.WaitDelay = grace
	return cmd
}

// output runs a command of the lab and returns what it wrote.
func (l Lab) output(ctx context.Context, words ...string) ([]byte, error) {
	cmd := l.command(ctx, words...)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return out.Bytes(), failure(err, complaint.String()+out.String())
	}
	return out.Bytes(), nil
}

// failure is an error with the end of what the process said.
func failure(err error, said string) error {
	const lines, width = 4, 300
	var last []string
	for line := range strings.Lines(said) {
		if line = strings.TrimSpace(line); line != "" {
			last = append(last, line[:min(len(line), width)])
		}
	}
	if len(last) == 0 {
		return err
	}
	return fmt.Errorf("%w: %s", err, strings.Join(last[max(0, len(last)-lines):], "; "))
}

// Addr is the address of a server on the wire.
func (l Lab) Addr(ctx context.Context, server int) (string, error) {
	out, err := l.output(ctx, "status", "--json")
	if err != nil {
		return "", fmt.Errorf("servers: lab status: %w", err)
	}
	var status struct {
		Servers []struct {
			Addr  string `json:"addr"`
			State string `json:"state"`
		} `json:"servers"`
	}
	if err := json.Unmarshal(out, &status); err != nil {
		return "", fmt.Errorf("servers: lab status: %w", err)
	}
	if server >= len(status.Servers) {
		return "", fmt.Errorf("servers: lab %s has no server %d: bring it up with --servers %d", l.Name, server, server+1)
	}
	if s := status.Servers[server]; s.State != "up" {
		return "", fmt.Errorf("servers: server %d is %s", server, s.State)
	}
	return status.Servers[server].Addr, nil
}

// Modprobe loads modules, each with its parameters behind it, and what they need. The error says what a kernel lacks.
func (l Lab) Modprobe(ctx context.Context, server int, words ...string) error {
	if _, err := l.output(ctx, append([]string{"modprobe", strconv.Itoa(server)}, words...)...); err != nil {
		return fmt.Errorf("servers: modprobe %s in server %d: %w", words[0], server, err)
	}
	return nil
}

// Program returns the words that run a program of the distribution in a server.
func (l Lab) Program(ctx context.Context, name string) ([]string, error) {
	out, err := l.output(ctx, "program", name)
	if err != nil {
		return nil, fmt.Errorf("servers: program %s: %w", name, err)
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n"), nil
}

// Run runs a command in a server and returns its standard output; the error has the end of what it said.
func (l Lab) Run(ctx context.Context, server int, words ...string) ([]byte, error) {
	out, err := l.output(ctx, append([]string{"exec", strconv.Itoa(server), "--"}, words...)...)
	if err != nil {
		return out, fmt.Errorf("servers: server %d: %s: %w", server, words[0], err)
	}
	return out, nil
}

// Ask runs a command of this program's own in a server and decodes the JSON it prints.
func (l Lab) Ask(ctx context.Context, into any, server int, words ...string) error {
	out, err := l.output(ctx, append([]string{"exec", strconv.Itoa(server), "--"}, l.inside(words)...)...)
	if err != nil {
		return fmt.Errorf("servers: server %d: %s: %w", server, words[0], err)
	}
	return decode(out, into, words[0])
}

func (l Lab) inside(words []string) []string { return append([]string{l.Self, Inside}, words...) }

func decode(out []byte, into any, what string) error {
	if err := json.Unmarshal(out, into); err != nil {
		return fmt.Errorf("servers: %s: its answer: %w", what, err)
	}
	return nil
}

// Ready is the line by which a process says that it serves, or that it has done a step.
const Ready = "ready"

// Process runs in a server until its standard input ends. The end of a context does not end it, for others may depend on
// it that have to undo something first: whoever started it calls End.
type Process struct {
	what      string
	cmd       *exec.Cmd
	stdin     io.WriteCloser
	out       *bufio.Reader
	complaint bytes.Buffer
	ended     bool
}

// Serve starts a command of this program's own in a server and returns when it says that it is ready.
func (l Lab) Serve(ctx context.Context, server int, words ...string) (*Process, error) {
	return l.ServeLoud(ctx, io.Discard, server, words...)
}

// ServeLoud is Serve with what the command says on standard error going to progress as well.
func (l Lab) ServeLoud(ctx context.Context, progress io.Writer, server int, words ...string) (*Process, error) {
	p, err := l.start(ctx, progress, server, words[0], l.inside(words))
	if err != nil {
		return nil, err
	}
	if err := p.ready(ctx); err != nil {
		return nil, err
	}
	return p, nil
}

// Step has a process that reads its input do what it does for one line of that, and returns when it is ready again. After
// an error the process has ended.
func (p *Process) Step(ctx context.Context) error {
	if p.ended {
		return fmt.Errorf("servers: %s: it has ended", p.what)
	}
	if _, err := io.WriteString(p.stdin, "\n"); err != nil {
		_, end := p.End()
		return errors.Join(fmt.Errorf("servers: %s: %w", p.what, err), end)
	}
	return p.ready(ctx)
}

// ready waits for the process to say that it is; if it does not, it ends it.
func (p *Process) ready(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { p.Interrupt() })
	line, err := p.out.ReadString('\n')
	if stop() && err == nil && strings.TrimSpace(line) == Ready {
		return nil
	}
	if _, end := p.End(); end != nil {
		return end
	}
	return fmt.Errorf("servers: %s: it said %q where %q was due", p.what, line, Ready)
}

// Start starts a command in a server.
func (l Lab) Start(ctx context.Context, server int, words ...string) (*Process, error) {
	return l.start(ctx, io.Discard, server, words[0], words)
}

func (l Lab) start(ctx context.Context, progress io.Writer, server int, what string, words []string) (*Process, error) {
	p := &Process{what: fmt.Sprintf("server %d: %s", server, what)}
	p.cmd = l.command(context.WithoutCancel(ctx), append([]string{"exec", strconv.Itoa(server), "--"}, words...)...)
	p.cmd.Stderr = io.MultiWriter(&p.complaint, progress)
	stdout, err := p.cmd.StdoutPipe()
	if err == nil {
		p.stdin, err = p.cmd.StdinPipe()
	}
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("servers: %s: %w", p.what, err)
	}
	p.out = bufio.NewReader(stdout)
	return p, nil
}

// End ends the process by the end of its input and returns what it wrote since it was ready. One that takes no notice is
// interrupted, and then killed. Once is enough; further calls do nothing.
func (p *Process) End() ([]byte, error) {
	if p.ended {
		return nil, nil
	}
	p.ended = true
	p.stdin.Close()
	defer time.AfterFunc(grace, func() { p.Interrupt() }).Stop()
	defer time.AfterFunc(2*grace, func() { p.cmd.Process.Kill() }).Stop()
	out, rerr := io.ReadAll(p.out)
	if err := p.cmd.Wait(); err != nil {
		return out, fmt.Errorf("servers: %s: %w", p.what, failure(err, p.complaint.String()+string(out)))
	}
	return out, rerr
}

// Answer ends the process and decodes the JSON it prints.
func (p *Process) Answer(into any) error {
	out, err := p.End()
	if err != nil {
		return err
	}
	return decode(out, into, p.what)
}

// Interrupt ends a process that does not look at its input.
func (p *Process) Interrupt() error {
	if err := p.cmd.Process.Signal(syscall.SIGINT); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("servers: %s: %w", p.what, err)
	}
	return nil
}
