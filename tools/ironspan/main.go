// Command ironspan runs virtual machines that span servers: `ironspan node` on each server, `ironspan run` from
// anywhere. `ironspan doctor` says whether a server is fit for it, `ironspan cert` makes the certificates that
// servers know each other by.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/alecthomas/kong"
)

// Exit statuses, for scripts. `ironspan run --help` lists them.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2 // bad command line or spec
	exitGuest       = 3 // the guest was reset or crashed
	exitNodeLost    = 4
	exitRefused     = 5
	exitTimeout     = 6
	exitInterrupted = 130
)

// cli is the whole command line.
type cli struct {
	Node    nodeCmd    `cmd:"" help:"Be a node: offer this server's CPUs and memory to VMs."`
	Run     runCmd     `cmd:"" help:"Run a VM over nodes, or over node processes on this host."`
	Top     topCmd     `cmd:"" help:"Watch what a VM does on its nodes."`
	Doctor  doctorCmd  `cmd:"" help:"Say whether this server is fit to be a node, and mend it."`
	Cert    certCmd    `cmd:"" help:"Make, show and renew the cluster's certificates."`
	Version versionCmd `cmd:"" help:"Show which ironspan this is."`
}

const description = `Ironspan runs one virtual machine over several servers: an unmodified guest sees one
multiprocessor, whose CPUs and memory come from all of them and whose memory is kept coherent by RDMA.

On one machine, with nothing to prepare:

    ironspan run --local 2 vm.yaml

On servers: make certificates (ironspan cert init), start ironspan node on each, then
ironspan run vm.yaml from anywhere that has the client's certificate.`

// exitError is an error with its exit status.
type exitError struct {
	status int
	err    error // nil: nothing to say
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

func fail(status int, format string, args ...any) error {
	return &exitError{status, fmt.Errorf(format, args...)}
}

// stop is the panic by which kong's exit leaves the parser.
type stop int

func main() { os.Exit(realMain(os.Args[1:], os.Stdout, os.Stderr)) }

// realMain is main without the process around it.
func realMain(args []string, stdout, stderr io.Writer) (status int) {
	defer func() {
		if r := recover(); r != nil {
			s, ok := r.(stop)
			if !ok {
				panic(r)
			}
			status = int(s)
		}
	}()
	var c cli
	parser, err := kong.New(&c,
		kong.Name("ironspan"),
		kong.Description(description),
		kong.Writers(stdout, stderr),
		kong.Exit(func(s int) { panic(stop(s)) }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}),
		kong.Vars{"certs": defaultCertDir()},
	)
	if err != nil {
		fmt.Fprintln(stderr, "ironspan:", err)
		return exitFailed
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	ctx, err := parser.Parse(args)
	if err != nil {
		explain(stderr, err)
		return exitUsage
	}
	ctx.BindTo(stdout, (*io.Writer)(nil))
	ctx.Bind(&console{out: stdout, err: stderr})
	return report(stderr, ctx.Run())
}

// explain says what is wrong with the command line and where to read on.
func explain(w io.Writer, err error) {
	fmt.Fprintln(w, "ironspan:", err)
	help := "ironspan --help"
	var p *kong.ParseError
	if errors.As(err, &p) && p.Context != nil {
		if cmd := p.Context.Selected(); cmd != nil {
			help = cmd.FullPath() + " --help"
		}
	}
	fmt.Fprintf(w, "see: %s\n", help)
}

// report prints a command's error and returns its exit status.
func report(w io.Writer, err error) int {
	var e *exitError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &e):
		if e.err != nil {
			fmt.Fprintln(w, "ironspan:", e.err)
		}
		return e.status
	}
	fmt.Fprintln(w, "ironspan:", err)
	return exitFailed
}

// console is where a command writes.
type console struct{ out, err io.Writer }
