package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"ironspan/engine/sim"
)

// summary is what a soak went through. Seconds are of the wall clock; a violated run counts as far as it came.
type summary struct {
	First      uint64      `json:"first_seed"`
	Seeds      uint64      `json:"seeds"`
	Operations uint64      `json:"operations"`
	Faults     uint64      `json:"faults"`
	Events     uint64      `json:"events"`
	Seconds    float64     `json:"seconds"`
	Rate       float64     `json:"operations_per_second"`
	Violations []violation `json:"violations"`
}

// violation is a run that broke an invariant.
type violation struct {
	Seed   uint64 `json:"seed"`
	Error  string `json:"error"`
	Replay string `json:"replay"` // command
}

// soak hands out seeds to workers.
type soak struct {
	first, seeds uint64 // seeds 0: no limit
	most         int    // violations to end after
	run          func(seed uint64) (*sim.Result, error)
	notes        io.Writer // of violations, when they happen

	mu   sync.Mutex // guards what follows
	next uint64     // seeds handed out
	sum  summary
}

// during runs seeds for a while. Runs that have begun are finished, which takes a second at most.
func (s *soak) during(ctx context.Context, d time.Duration, jobs int) summary {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	began := time.Now()
	s.sum = summary{First: s.first, Violations: []violation{}}
	var workers sync.WaitGroup
	for range jobs {
		workers.Go(func() {
			for {
				seed, more := s.take(ctx)
				if !more {
					return
				}
				r, err := s.run(seed)
				s.note(seed, r, err)
			}
		})
	}
	workers.Wait()
	s.sum.Seconds = time.Since(began).Seconds()
	s.sum.Rate = float64(s.sum.Operations) / s.sum.Seconds
	slices.SortFunc(s.sum.Violations, func(a, b violation) int { return cmp.Compare(a.Seed, b.Seed) })
	return s.sum
}

// take is the next seed, if there is to be one.
func (s *soak) take(ctx context.Context) (seed uint64, more bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ctx.Err() != nil || s.seeds != 0 && s.next == s.seeds || len(s.sum.Violations) >= s.most {
		return 0, false
	}
	s.next++
	return s.first + s.next - 1, true
}

// note takes down how a seed's run went.
func (s *soak) note(seed uint64, r *sim.Result, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sum.Seeds++
	if r != nil {
		s.sum.Faults += uint64(r.Faults)
		s.sum.Events += uint64(r.Events)
		for _, node := range r.Ops {
			for _, done := range node {
				s.sum.Operations += uint64(done)
			}
		}
	}
	if err != nil {
		v := violation{seed, err.Error(), fmt.Sprintf("go test ./engine/sim -run 'TestSim$' -seed %d", seed)}
		s.sum.Violations = append(s.sum.Violations, v)
		fmt.Fprintf(s.notes, "seed %d: %s\n  replay: %s\n", v.Seed, v.Error, v.Replay)
	}
}

// simulate is a seed's run. The protocol panics where an invariant of its own breaks: a violation, too.
func simulate(seed uint64) (r *sim.Result, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return sim.Run(sim.Random(seed))
}
