package result

import (
	"errors"
	"maps"
	"slices"
	"strings"
)

// Pool makes one run of several that measured the same: each becomes one round of every series that all of them have.
// Rounds of one run share what the machine did meanwhile; runs at different times do not, so that what comes of
// comparing pools is surer. What the runs say differently of their machines and commits, the pool says in turn.
func Pool(runs ...*Run) (*Run, error) {
	if len(runs) == 0 {
		return nil, errors.New("result: pool: no runs")
	}
	first := runs[0]
	if len(runs) == 1 {
		return first, nil
	}
	pool := &Run{
		Schema: Schema, Began: first.Began, Machine: map[string]string{},
		Suite:  all(runs, func(r *Run) string { return r.Suite }),
		Commit: all(runs, func(r *Run) string { return r.Commit }),
	}
	for _, r := range runs {
		pool.Seconds += r.Seconds
		for key := range r.Machine {
			pool.Machine[key] = all(runs, func(r *Run) string { return r.Machine[key] })
		}
	}
	for _, s := range first.Series {
		if pooled := poolSeries(runs, s); pooled != nil {
			pool.Series = append(pool.Series, pooled)
		}
	}
	return pool, nil
}

// all are the different things that runs say, one after the other.
func all(runs []*Run, say func(*Run) string) string {
	said := map[string]bool{}
	for _, r := range runs {
		said[say(r)] = true
	}
	return strings.Join(slices.Sorted(maps.Keys(said)), " | ")
}

// poolSeries makes each run's rounds of a series one; nil if a run does not have it, or measured something else.
func poolSeries(runs []*Run, like *Series) *Series {
	pooled := &Series{Name: like.Name, Labels: like.Labels, Measure: like.Measure, Control: like.Control}
	if like.Histogram != nil {
		pooled.Histogram = NewHistogram()
	}
	for _, r := range runs {
		s := r.Find(like.Key())
		if s == nil || s.Measure != like.Measure || (s.Histogram == nil) != (like.Histogram == nil) {
			return nil
		}
		if s.Histogram != nil {
			pooled.Histogram.Merge(s.Histogram)
		}
		middle := func(of func(Round) float64) float64 {
			values := make([]float64, len(s.Rounds))
			for i, round := range s.Rounds {
				values[i] = of(round)
			}
			return Median(values)
		}
		one := Round{
			Mean: middle(func(r Round) float64 { return r.Mean }), P50: middle(func(r Round) float64 { return r.P50 }),
			P90: middle(func(r Round) float64 { return r.P90 }), P99: middle(func(r Round) float64 { return r.P99 }),
		}
		for _, round := range s.Rounds {
			one.Count += round.Count
		}
		pooled.Rounds = append(pooled.Rounds, one)
	}
	pooled.summarize()
	return pooled
}
