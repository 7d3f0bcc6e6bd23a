package result

import (
	"fmt"
	"maps"
)

// Recorder measures one series, round after round.
type Recorder struct {
	run    *Run
	series *Series
	round  *Histogram // samples since Begin
	listed bool       // the series is in the run
}

// Record returns the recorder of a series, the same each time. The series joins the run with its first round.
// It panics if the series is measured in another way already.
func (r *Run) Record(name string, m Measure, labels Labels) *Recorder {
	key := Key(name, labels)
	if rec := r.recorders[key]; rec != nil {
		if rec.series.Measure != m {
			panic(fmt.Sprintf("result: %s is in %v and now in %v", key, rec.series.Measure, m))
		}
		return rec
	}
	if r.recorders == nil {
		r.recorders = map[string]*Recorder{}
	}
	rec := &Recorder{run: r, series: &Series{Name: name, Labels: maps.Clone(labels), Measure: m}, round: NewHistogram()}
	r.recorders[key] = rec
	return rec
}

// Control marks the series as one that has nothing of Ironspan in it, and returns the recorder.
func (rec *Recorder) Control() *Recorder {
	rec.series.Control = true
	return rec
}

// Begin begins a round anew: what was added since the last End is forgotten, as a warm-up's samples are.
func (rec *Recorder) Begin() { rec.round.Reset() }

// Add takes in a sample, a duration in nanoseconds mostly. Negative ones count as 0, and those beyond 18 minutes as
// that. It does not allocate.
func (rec *Recorder) Add(v int64) { rec.round.Add(v) }

// Merge takes in samples that another thread has gathered in this round.
func (rec *Recorder) Merge(h *Histogram) { rec.round.Merge(h) }

// End ends a round. One without samples leaves nothing behind.
func (rec *Recorder) End() {
	h := rec.round
	if h.Count() == 0 {
		return
	}
	s := h.summary()
	if rec.series.Histogram == nil {
		rec.series.Histogram = NewHistogram()
	}
	rec.series.Histogram.Merge(h)
	rec.add(Round{Count: s.Count, Mean: h.Mean(), P50: s.P50, P90: s.P90, P99: s.P99})
	h.Reset()
}

// Value is a round that is one number: a bandwidth, a share, a mean. A series has either such rounds or samples.
func (rec *Recorder) Value(v float64) { rec.add(Round{Count: 1, Mean: v, P50: v, P90: v, P99: v}) }

func (rec *Recorder) add(round Round) {
	rec.series.Rounds = append(rec.series.Rounds, round)
	rec.series.summarize()
	if !rec.listed {
		rec.run.Series = append(rec.run.Series, rec.series)
		rec.listed = true
	}
}

// Stages says what the series' samples are made of, in the order in which it happens.
func (rec *Recorder) Stages(stages ...Stage) { rec.series.Stages = stages }

// Series is what was measured so far.
func (rec *Recorder) Series() *Series { return rec.series }

// Key names the series, for Judge.
func (rec *Recorder) Key() string { return rec.series.Key() }
