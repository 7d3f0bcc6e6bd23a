package micro

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"ironspan/perf/internal/result"
)

// Options of a run of the suite.
type Options struct {
	Scale  Scale
	Rounds int
	Only   []string                    // patterns as of path.Match, of names or of what they begin with; none: all
	Seed   uint64                      // of the order
	Before func(context.Context) error // called before each round, if it is not nil; an error is the first benchmark's
	Say    func(format string, args ...any)
}

// Pick are the benchmarks that one of the patterns selects, each of which has to select one; without patterns all.
func Pick(all []*Bench, patterns []string) ([]*Bench, error) {
	if len(patterns) == 0 {
		return all, nil
	}
	wanted := make([]bool, len(all))
	for _, pattern := range patterns {
		some := false
		for i, b := range all {
			found, err := matches(b.Name, pattern)
			if err != nil {
				return nil, fmt.Errorf("micro: pattern %q: %w", pattern, err)
			}
			wanted[i] = wanted[i] || found
			some = some || found
		}
		if !some {
			return nil, fmt.Errorf("micro: no benchmark is called %q", pattern)
		}
	}
	var picked []*Bench
	for i, b := range all {
		if wanted[i] {
			picked = append(picked, b)
		}
	}
	return picked, nil
}

// matches: the pattern takes in the name, without its labels, or some of the folders that it lies in.
func matches(name, pattern string) (bool, error) {
	if name == pattern {
		return true, nil
	}
	name, _, _ = strings.Cut(name, "{")
	for ; ; name = path.Dir(name) {
		found, err := path.Match(pattern, name)
		if found || err != nil {
			return found, err
		}
		if !strings.Contains(name, "/") {
			return false, nil
		}
	}
}

// Measure runs the benchmarks in rounds, in each of which every one has a turn, and takes the outcomes into the run.
func Measure(ctx context.Context, run *result.Run, runner Runner, o Options) error {
	benches, err := Pick(Catalogue(o.Scale), o.Only)
	if err != nil {
		return err
	}
	r := &Round{run: run, stages: map[string]*stages{}, order: map[string]int{}}
	run.Machine["fabric"] = runner.Fabric()
	var parts []result.Part
	turns, done, begun := 0, 0, 0
	began := time.Now()
	for i, b := range benches {
		if b.Needs != nil {
			if err := b.Needs(); err != nil {
				run.Miss(b.Name, err)
				o.Say("%s: %v", b.Name, err)
				continue
			}
		}
		turns += o.Rounds
		parts = append(parts, result.Part{Name: b.Name, Round: func(ctx context.Context, round int) error {
			if o.Before != nil && round == begun {
				if err := o.Before(ctx); err != nil {
					return err
				}
				begun++
			}
			from := time.Now()
			r.turn = i
			err := r.measure(ctx, runner, b)
			done++
			switch {
			case ctx.Err() != nil:
			case err != nil:
				o.Say("round %d, %s: %v", round+1, b.Name, err)
			default:
				o.Say("round %d, %3d of %d, %.1f s in all: %s, %.2f s", round+1, done, turns, time.Since(began).Seconds(), b.Name,
					time.Since(from).Seconds())
			}
			return err
		}})
	}
	err = run.Interleave(ctx, o.Rounds, o.Seed, parts...)
	slices.SortStableFunc(run.Series, func(a, b *result.Series) int { return r.order[a.Key()] - r.order[b.Key()] })
	return err
}

// measure is one round of one benchmark.
func (r *Round) measure(ctx context.Context, runner Runner, b *Bench) error {
	r.fabric = runner.Fabric()
	if b.Alone {
		runner, r.fabric = Local{}, ""
	}
	o, err := runner.Run(ctx, b)
	if err != nil {
		return err
	}
	return b.Record(r, o)
}
