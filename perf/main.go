// Command perf measures Ironspan, keeps the results in files, shows them and compares them. `make bench` and
// `make bench-lab` run it.
//
//	perf compare build/bench/old.json build/bench/host.json
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"

	"github.com/alecthomas/kong"
	"golang.org/x/sys/unix"
)

// Exit statuses, for scripts.
const (
	exitOK     = 0
	exitFailed = 1 // a comparison has regressions, or a benchmark failed
	exitUsage  = 2 // bad command line, or a file that is no result
)

// cli is the whole command line.
type cli struct {
	Host    hostCmd    `cmd:"" help:"Measure on this host: mini-guests on /dev/kvm, nodes over shared memory."`
	Lab     labCmd     `cmd:"" help:"Measure in servers of the lab: the same over verbs."`
	Show    showCmd    `cmd:"" help:"Show a result as tables."`
	Plot    plotCmd    `cmd:"" help:"Draw a result, as SVG and PNG."`
	Compare compareCmd `cmd:"" help:"Name what changed between two results by more than noise."`
	Inside  insideCmd  `cmd:"" hidden:""`
}

const description = `Measure Ironspan, and judge what was measured.

Results are JSON files in build/bench. A series in them is one thing measured in several rounds, which took turns
with those of the other series beside it.`

// exitError is an error with its exit status; a nil err says nothing.
type exitError struct {
	status int
	err    error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// stop is the panic by which kong's exit leaves the parser.
type stop int

func main() {
	ctx, end := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer end()
	os.Exit(realMain(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// realMain is main without the process around it.
func realMain(ctx context.Context, args []string, stdout, stderr io.Writer) (status int) {
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
		kong.Name("perf"),
		kong.Description(description),
		kong.Writers(stdout, stderr),
		kong.Exit(func(s int) { panic(stop(s)) }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}),
		kong.BindTo(ctx, (*context.Context)(nil)),
		kong.BindTo(stdout, (*io.Writer)(nil)),
	)
	if err != nil {
		fmt.Fprintln(stderr, "perf:", err)
		return exitFailed
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	command, err := parser.Parse(args)
	if err != nil {
		fmt.Fprintf(stderr, "perf: %v\nsee: perf --help\n", err)
		return exitUsage
	}
	return report(stderr, command.Run())
}

// report prints a command's error and returns its exit status.
func report(w io.Writer, err error) int {
	if err == nil {
		return exitOK
	}
	var e *exitError
	if !errors.As(err, &e) {
		fmt.Fprintln(w, "perf:", err)
		return exitFailed
	}
	if e.err != nil {
		fmt.Fprintln(w, "perf:", e.err)
	}
	return e.status
}
