package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"ironspan/engine/mininode"
	"ironspan/perf/internal/micro"
	"ironspan/perf/internal/plots"
	"ironspan/perf/internal/result"
	"ironspan/perf/internal/show"
)

// suiteFlags are those of a run of the microbenchmarks.
type suiteFlags struct {
	Quick  bool     `help:"Few samples, for a look."`
	Only   []string `help:"Benchmarks whose names, or the folders in which they lie, match a pattern: fault/read, ipi, 'fault/*'. May be given again." placeholder:"PATTERN" sep:"none"`
	Rounds int      `help:"Rounds; 0: 5 on the host, 4 in the lab, 2 if quick." placeholder:"N"`
	Seed   uint64   `help:"Of the order in which benchmarks have their turns." default:"1"`
}

type hostCmd struct {
	suiteFlags
	Out string `help:"File for the result." default:"build/bench/host.json" type:"path" placeholder:"FILE"`
}

const (
	hostRounds  = 5
	quickRounds = 2
)

// Run measures on this host.
func (c *hostCmd) Run(ctx context.Context, stdout io.Writer) error {
	if err := mininode.Probe(); err != nil {
		return fmt.Errorf("this host cannot run mini-guests: %w", err)
	}
	scale := micro.Host
	if c.Quick {
		scale = micro.HostQuick
	}
	run := result.New("host", "")
	err := micro.Measure(ctx, run, micro.Local{}, micro.Options{
		Scale: scale, Rounds: c.rounds(hostRounds), Only: c.Only, Seed: c.Seed, Say: say,
	})
	if err != nil {
		return err
	}
	if len(c.Only) == 0 {
		micro.Judge(run, scale)
	}
	return finish(stdout, run, c.Out)
}

func (c *suiteFlags) rounds(usual int) int {
	switch {
	case c.Rounds > 0:
		return c.Rounds
	case c.Quick:
		return quickRounds
	}
	return usual
}

// finish writes a run to its file, draws it beside that, and shows it.
func finish(stdout io.Writer, run *result.Run, file string) error {
	run.Ended()
	if err := run.Write(file); err != nil {
		return err
	}
	drawn, err := plots.Draw(run, beside(file))
	if err != nil {
		return err
	}
	if err := show.Run(stdout, run); err != nil {
		return err
	}
	say("wrote %s, and %d plots to %s", file, len(drawn), beside(file))
	return nil
}

// say writes a line of progress.
func say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
