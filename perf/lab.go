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
	if err := r.measure(ctx); err != nil {
		return err
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

// measure has all that is wanted done in rounds: in each, the microbenchmarks and everything that they are held against
// have a turn, so that a machine that changes its pace does not change what they stand to each other as.
func (r *labRun) measure(ctx context.Context) error {
	rounds := r.rounds(labRounds)
	var parts []result.Part
	if r.wants("peers") {
		parts = peers.Parts(r.run, r.lab)
	}
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
	if !r.wants("micro") {
		return r.run.Interleave(ctx, rounds, r.Seed, parts...)
	}
	m := &microPart{labRun: r}
	defer m.end()
	err := r.run.Interleave(ctx, rounds, r.Seed, append(parts, result.Part{Name: "micro", Round: m.round})...)
	if err != nil {
		return err
	}
	if err := m.collect(); err != nil {
		r.run.Miss("micro", err)
		say("micro: %v", err)
	}
	return nil
}

// microPart are the microbenchmarks between the servers. One program leads them, from the first round to the last.
type microPart struct {
	*labRun
	lead    *servers.Process
	serving []*servers.Process
	err     error // that ended it
}

// round is one of all microbenchmarks.
func (m *microPart) round(ctx context.Context, round int) error {
	if m.err != nil {
		return m.err
	}
	say("== round %d of the microbenchmarks", round+1)
	if m.lead == nil {
		m.err = m.start(ctx)
	}
	if m.err == nil {
		m.err = m.lead.Step(ctx)
	}
	return m.err
}

func (m *microPart) start(ctx context.Context) error {
	secret := make([]byte, 16)
	rand.Read(secret)
	token := hex.EncodeToString(secret)
	_, scale := m.scale()
	words := []string{"micro-lead", "--token", token, "--scale", scale, "--rounds", strconv.Itoa(m.rounds(labRounds)),
		"--seed", strconv.FormatUint(m.Seed, 10)}
	for _, pattern := range m.Only {
		words = append(words, "--only", pattern)
	}
	for server := 1; server < m.Servers; server++ {
		addr, err := m.lab.Addr(ctx, server)
		if err != nil {
			return err
		}
		addr = net.JoinHostPort(addr, microPort)
		serving, err := m.lab.Serve(ctx, server, "micro-serve", addr, token)
		if err != nil {
			return err
		}
		m.serving = append(m.serving, serving)
		words = append(words, addr)
	}
	var err error
	m.lead, err = m.lab.ServeLoud(ctx, os.Stderr, 0, words...)
	return err
}

// collect takes in what was measured.
func (m *microPart) collect() error {
	if m.lead == nil || m.err != nil {
		return nil // the run knows why
	}
	out, err := m.lead.End()
	if err != nil {
		return err
	}
	measured, err := result.Decode(out)
	if err != nil {
		return err
	}
	m.run.Machine["fabric"] = measured.Machine["fabric"]
	return m.run.Merge("server", measured)
}

// end ends the programs, which have nothing more to say.
func (m *microPart) end() {
	if m.lead != nil {
		m.lead.End()
	}
	for _, p := range m.serving {
		p.End()
	}
}
