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
	Large      uint64      `json:"large_clusters"` // of more than 16 nodes
	Failures   uint64      `json:"failures"`       // runs that ended because something was lost
	Judged     uint64      `json:"accesses_judged_by_porcupine"`
	Unjudged   uint64      `json:"pages_without_verdict"` // since porcupine ran out of time
	Litmus     uint64      `json:"litmus_rounds"`
	Relaxed    uint64      `json:"litmus_rounds_that_take_store_buffers"`
	Seconds    float64     `json:"seconds"`
	Rate       float64     `json:"operations_per_second"`
	Violations []violation `json:"violations"`
	Kinds      sim.Kinds   `json:"transactions"`
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
	notes        io.Writer     // of violations, when they happen
	every        time.Duration // how often to say how far it has come; 0: never

	mu   sync.Mutex // guards what follows
	next uint64     // seeds handed out
	sum  summary
}

// during runs seeds for a while. Runs that have begun are finished, which takes a second at most.
func (s *soak) during(ctx context.Context, d time.Duration, jobs int) summary {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	began := time.Now()
	s.sum = summary{First: s.first, Violations: []violation{}, Kinds: sim.Kinds{}}
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
	end := s.tell(began)
	workers.Wait()
	end()
	s.sum.Seconds = time.Since(began).Seconds()
	s.sum.Rate = float64(s.sum.Operations) / s.sum.Seconds
	slices.SortFunc(s.sum.Violations, func(a, b violation) int { return cmp.Compare(a.Seed, b.Seed) })
	return s.sum
}

// tell says now and then how far it has come, until the function that it returns is called.
func (s *soak) tell(began time.Time) (end func()) {
	if s.every == 0 {
		return func() {}
	}
	done := make(chan struct{})
	var teller sync.WaitGroup
	teller.Go(func() {
		tick := time.NewTicker(s.every)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			s.mu.Lock()
			fmt.Fprintf(s.notes, "%4.0f s: %d seeds, %d operations, %d failures, %d violations\n",
				time.Since(began).Seconds(), s.sum.Seeds, s.sum.Operations, s.sum.Failures, len(s.sum.Violations))
			s.mu.Unlock()
		}
	})
	return func() { close(done); teller.Wait() }
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
		s.sum.add(r)
	}
	if err != nil {
		v := violation{seed, err.Error(), fmt.Sprintf("go test ./engine/sim -run 'TestSim$' -seed %d", seed)}
		s.sum.Violations = append(s.sum.Violations, v)
		fmt.Fprintf(s.notes, "seed %d: %s\n  replay: %s\n", v.Seed, v.Error, v.Replay)
	}
}

// add counts a run.
func (s *summary) add(r *sim.Result) {
	s.Faults += uint64(r.Faults)
	s.Events += uint64(r.Events)
	for _, node := range r.Ops {
		for _, done := range node {
			s.Operations += uint64(done)
		}
	}
	if len(r.Ops) > 16 {
		s.Large++
	}
	if r.Failed {
		s.Failures++
	}
	s.Judged += uint64(r.Histories.Accesses)
	s.Unjudged += uint64(r.Histories.Unknown)
	if r.Outcomes != nil {
		s.Litmus += uint64(r.Outcomes.Rounds)
		s.Relaxed += uint64(r.Outcomes.Relaxed)
	}
	s.Kinds = s.Kinds.Add(r.Kinds)
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
