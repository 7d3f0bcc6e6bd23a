package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"ironspan/fastpath"
	"ironspan/perf/internal/micro"
	"ironspan/perf/internal/peers"
	"ironspan/perf/internal/result"
	"ironspan/perf/internal/servers"
)

// insideCmd are the commands that this program runs in servers, itself: their answers are JSON.
type insideCmd struct {
	peers.Commands

	MicroServe microServeCmd `cmd:"" help:"Have a part in another server's microbenchmarks."`
	MicroLead  microLeadCmd  `cmd:"" help:"Run microbenchmarks on this server and others."`
}

// AfterApply has the raw device and the peers' programs measured with the runtime that nodes have.
func (insideCmd) AfterApply() error {
	fastpath.PrepareRuntime(1)
	return nil
}

type microServeCmd struct {
	Addr  string `arg:"" help:"Address and port to listen on."`
	Token string `arg:"" help:"What the leader has to know."`
}

// Run serves until its input ends.
func (c *microServeCmd) Run(ctx context.Context, stdout io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	return micro.Serve(ctx, c.Addr, c.Token, func() { fmt.Fprintln(stdout, servers.Ready) })
}

type microLeadCmd struct {
	suiteFlags
	Token string   `help:"What the servers expect." required:""`
	Scale string   `help:"How long benchmarks go on." required:""`
	Addrs []string `arg:"" help:"Addresses and ports of the servers."`
}

// Run measures a round for each line of its input, says when it is ready for one, and prints the result when the last is
// done and the input has ended.
func (c *microLeadCmd) Run(ctx context.Context, stdout io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	scale, err := micro.ScaleNamed(c.Scale)
	if err != nil {
		return err
	}
	leader, err := micro.Lead(ctx, c.Addrs, c.Token, c.Scale)
	if err != nil {
		return err
	}
	defer leader.Close()
	run := result.New("lab", "")
	lines := make(chan error) // nil for each line
	go func() {
		in := bufio.NewReader(os.Stdin)
		for {
			_, err := in.ReadString('\n')
			lines <- err
		}
	}()
	line := func(ctx context.Context) error {
		fmt.Fprintln(stdout, servers.Ready)
		select {
		case err := <-lines:
			return err
		case <-ctx.Done(): // the reader may go on waiting: no close ends that
			return ctx.Err()
		}
	}
	err = micro.Measure(ctx, run, leader, micro.Options{
		Scale: scale, Rounds: c.rounds(labRounds), Only: c.Only, Seed: c.Seed, Say: say,
		Before: func(ctx context.Context) error {
			err := line(ctx)
			if err != nil { // whoever asked has left
				cancel()
			}
			return err
		},
	})
	if err != nil {
		return err
	}
	run.Ended()
	if err := line(ctx); !errors.Is(err, io.EOF) {
		return fmt.Errorf("after the last round: %w", cmp.Or(err, errors.New("one more was asked for")))
	}
	return json.NewEncoder(stdout).Encode(run)
}
