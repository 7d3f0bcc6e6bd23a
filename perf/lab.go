package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"ironspan/perf/internal/micro"
	"ironspan/perf/internal/peers"
	"ironspan/perf/internal/result"
	"ironspan/perf/internal/servers"
)

const labRounds = 4

type labCmd struct {
	suiteFlags
	Out     string   `help:"File for the result." default:"build/bench/lab.json" type:"path" placeholder:"FILE"`
	Steps   []string `help:"What to do, of ${enum}; default: all." enum:"micro,peers" placeholder:"NAME,..."`
	Servers int      `help:"Servers of the lab; nodes go round them." default:"2" placeholder:"N"`
	Vcpus   int      `help:"vCPUs of each server; default: its share of this machine's cores." name:"server-vcpus" placeholder:"N"`
	Lab     string   `help:"The lab's program; default: lab beside this one." type:"path" placeholder:"FILE"`
	Up      []string `help:"A further flag of lab up, as --up=--lab-kernel=6.1." placeholder:"FLAG" sep:"none"`
}

// step is a part of what is measured in a lab. What it finds goes into the run.
type step struct {
	name string
	run  func(context.Context, *labRun) error
}

// labSteps are all of them, in their order. The raw device and the peers have their rounds before and after the
// microbenchmarks, so that a machine that changes its pace does not change what they stand to each other as.
var labSteps = []step{
	{"peers", func(ctx context.Context, r *labRun) error { return peersStep(ctx, r, r.rounds(labRounds)/2) }},
	{"micro", microStep},
	{"peers", func(ctx context.Context, r *labRun) error {
		return peersStep(ctx, r, r.rounds(labRounds)-r.rounds(labRounds)/2)
	}},
}

// labRun is a lab that is up, and the run that is measured in it.
type labRun struct {
	*labCmd
	lab servers.Lab
	run *result.Run
}

// downWithin is how long a lab may take to end.
const downWithin = time.Minute

// Run brings up a lab, measures in it, and brings it down.
func (c *labCmd) Run(ctx context.Context, stdout io.Writer) (err error) {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("where is this program: %w", err)
	}
	if c.Lab == "" {
		c.Lab = filepath.Join(filepath.Dir(self), "lab")
	}
	if c.Servers < 2 {
		return &exitError{exitUsage, errors.New("a lab with fewer than two servers has nothing between them to measure")}
	}
	if c.Vcpus == 0 {
		// Where servers are emulated, one more than that takes turns with the others, and messages wait for whose turn it is.
		c.Vcpus = max(1, runtime.NumCPU()/c.Servers)
	}
	r := &labRun{
		labCmd: c, run: result.New("lab", ""),
		lab: servers.Lab{Command: c.Lab, Name: "perf-" + strconv.Itoa(os.Getpid()), Self: self},
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), downWithin)
		defer cancel()
		err = errors.Join(err, r.lab.Down(ctx))
	}()
	up := append([]string{"--server-vcpus", strconv.Itoa(c.Vcpus)}, c.Up...)
	if err := r.lab.Up(ctx, c.Servers, os.Stderr, up...); err != nil {
		return err
	}
	for _, s := range labSteps {
		if !c.wants(s.name) {
			continue
		}
		say("== %s", s.name)
		if err := s.run(ctx, r); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			say("%s: %v", s.name, err)
			r.run.Miss(s.name, err)
		}
	}
	if len(c.Only) == 0 && c.wants("micro") {
		scale, _ := c.scale()
		micro.Judge(r.run, scale)
		peers.Judge(r.run)
	}
	return finish(stdout, r.run, c.Out)
}

func (c *labCmd) wants(step string) bool {
	for _, name := range c.Steps {
		if name == step {
			return true
		}
	}
	return len(c.Steps) == 0
}

func (c *labCmd) scale() (micro.Scale, string) {
	if c.Quick {
		return micro.LabQuick, "lab-quick"
	}
	return micro.Lab, "lab"
}

// microPort is where servers listen for the one that leads.
const microPort = "4560"

// microStep runs the microbenchmarks between the servers.
func microStep(ctx context.Context, r *labRun) error {
	secret := make([]byte, 16)
	rand.Read(secret)
	token := hex.EncodeToString(secret)
	_, scale := r.scale()
	words := []string{"micro-lead", "--token", token, "--scale", scale, "--rounds", strconv.Itoa(r.rounds(labRounds)),
		"--seed", strconv.FormatUint(r.Seed, 10)}
	for _, pattern := range r.Only {
		words = append(words, "--only", pattern)
	}
	for server := 1; server < r.Servers; server++ {
		addr, err := r.lab.Addr(ctx, server)
		if err != nil {
			return err
		}
		addr = net.JoinHostPort(addr, microPort)
		serving, err := r.lab.Serve(ctx, server, "micro-serve", addr, token)
		if err != nil {
			return err
		}
		defer serving.End() // it has nothing to say
		words = append(words, addr)
	}
	out, err := r.lab.Watch(ctx, os.Stderr, 0, words...)
	if err != nil {
		return err
	}
	measured, err := result.Decode(out)
	if err != nil {
		return err
	}
	r.run.Machine["fabric"] = measured.Machine["fabric"]
	return r.run.Merge("server", measured)
}

// peersStep measures the raw device, and what a user would pick instead.
func peersStep(ctx context.Context, r *labRun, rounds int) error {
	parts := peers.Parts(r.run, r.lab)
	done := 0
	for i, p := range parts {
		parts[i].Round = func(ctx context.Context, round int) error {
			from := time.Now()
			err := p.Round(ctx, round)
			done++
			switch {
			case ctx.Err() != nil:
			case err != nil:
				say("round %d, %s: %v", round+1, p.Name, err)
			default:
				say("round %d, %3d of %d: %s, %.2f s", round+1, done, rounds*len(parts), p.Name, time.Since(from).Seconds())
			}
			return err
		}
	}
	return r.run.Interleave(ctx, rounds, r.Seed, parts...)
}
