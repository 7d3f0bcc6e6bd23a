// Command soak runs the coherence protocol's simulator for as long as wanted: one random cluster after the other, each
// drawn from a seed, on all cores. It ends after its time or at Ctrl-C with a summary and with what each kind of
// transaction cost in messages and hops; with status 1 if a run violated an invariant.
//
//	go run ./tools/soak --duration 10m
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"time"

	"github.com/alecthomas/kong"
	"golang.org/x/sys/unix"
)

type cli struct {
	Duration   time.Duration `default:"1m" help:"How long to go on."`
	Seed       uint64        `help:"First seed; not given: one from the clock, so that each soak is another."`
	Seeds      uint64        `help:"How many seeds at most; 0: as many as there is time for."`
	Jobs       int           `help:"Runs at the same time; 0: one for each core."`
	Violations int           `default:"10" help:"End after so many violations."`
	JSON       bool          `help:"Print the summary as JSON."`
}

// progressEvery is how often somebody at a terminal is told how far it has come.
const progressEvery = 5 * time.Second

func main() {
	var c cli
	kong.Parse(&c, kong.Name("soak"), kong.Description("Run random clusters of the simulator, and count what goes wrong."))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if c.Seed == 0 {
		c.Seed = uint64(time.Now().Unix()) << 20 // apart from those of any other second
	}
	if c.Jobs <= 0 {
		c.Jobs = runtime.NumCPU()
	}
	s := soak{first: c.Seed, seeds: c.Seeds, most: c.Violations, run: simulate, notes: os.Stderr}
	if _, err := unix.IoctlGetTermios(int(os.Stderr.Fd()), unix.TCGETS); err == nil {
		s.every = progressEvery
	}
	sum := s.during(ctx, c.Duration, c.Jobs)
	if err := sum.write(os.Stdout, c.JSON); err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(2)
	}
	if len(sum.Violations) > 0 {
		os.Exit(1)
	}
}

// write prints the summary, for people or for programs.
func (s *summary) write(w io.Writer, asJSON bool) error {
	if asJSON {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(s)
	}
	for _, v := range s.Violations {
		fmt.Fprintf(w, "seed %d: %s\n  replay: %s\n", v.Seed, v.Error, v.Replay)
	}
	if err := s.Kinds.Write(w); err != nil {
		return err
	}
	fmt.Fprintf(w, "%d clusters of more than 16 nodes; %d failures of nodes or links; %d accesses judged by porcupine, "+
		"no verdict on %d pages; %d litmus rounds, of which %d take store buffers\n",
		s.Large, s.Failures, s.Judged, s.Unjudged, s.Litmus, s.Relaxed)
	_, err := fmt.Fprintf(w, "%d seeds from %d, %d operations checked, %d faults, %d events, %d violations in %.1f s: %.0f operations a second\n",
		s.Seeds, s.First, s.Operations, s.Faults, s.Events, len(s.Violations), s.Seconds, s.Rate)
	return err
}
