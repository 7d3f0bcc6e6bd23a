package result

import "slices"

// Measure is a unit, and which way is better.
type Measure struct {
	Unit   string `json:"unit"`   // ns, B/s, 1/s, B, 1
	Better string `json:"better"` // Lower or Higher
}

// The two ways to be better.
const (
	Lower  = "lower"
	Higher = "higher"
)

// What benchmarks measure.
var (
	Latency   = Measure{"ns", Lower}
	Bandwidth = Measure{"B/s", Higher}
	Rate      = Measure{"1/s", Higher}
	Count     = Measure{"1", Lower}  // faults or allocations for each operation, say
	Share     = Measure{"1", Higher} // a part of a whole, from 0 to 1
	Bytes     = Measure{"B", Lower}
)

// Series is all that was measured of one thing under one set of labels.
type Series struct {
	Name   string `json:"name"` // parts with slashes between, as in fault/read/clean-at-home
	Labels Labels `json:"labels,omitempty"`
	Measure
	// Control: nothing of Ironspan is in it, as in the raw device's or another system's figures. Comparisons take it
	// for a sign of whether the machine is as it was.
	Control bool `json:"control,omitempty"`
	Summary
	// Rounds are the observations for ratios and comparisons.
	Rounds []Round `json:"rounds"`
	// Histogram has the samples of all rounds; nil if a round is one number.
	Histogram *Histogram `json:"histogram,omitempty"`
	// Stages are the parts that a sample is made of, in the order in which they happen.
	Stages []Stage `json:"stages,omitempty"`
}

// Summary is the distribution of a series' samples; where a round is one number, of those numbers.
type Summary struct {
	Count int64   `json:"count"`
	Min   float64 `json:"min"`
	P50   float64 `json:"p50"`
	P90   float64 `json:"p90"`
	P99   float64 `json:"p99"`
	P999  float64 `json:"p99_9"`
	Max   float64 `json:"max"`
}

// Round is one turn of a series. Where it is one number, all its statistics are that number.
type Round struct {
	Count int64   `json:"count"`
	Mean  float64 `json:"mean"`
	P50   float64 `json:"p50"`
	P90   float64 `json:"p90"`
	P99   float64 `json:"p99"`
}

// Stage is a part of a series' samples, in nanoseconds of each. Count is smaller than the series', where not every
// sample went through the stage; mean and quantiles are of those that did.
type Stage struct {
	Name   string  `json:"name"`
	Count  int64   `json:"count"`
	MeanNs float64 `json:"mean_ns"`
	P50Ns  float64 `json:"p50_ns"`
	P99Ns  float64 `json:"p99_ns"`
}

// StageOf is the stage with the durations of a histogram.
func StageOf(name string, h *Histogram) Stage {
	s := h.summary()
	return Stage{Name: name, Count: s.Count, MeanNs: h.Mean(), P50Ns: s.P50, P99Ns: s.P99}
}

// Typical is how much of a typical sample of the series the stage takes, in nanoseconds: its median, weighed by the
// share of samples that went through it. Means would add up better, but a few samples that waited for a CPU would be
// most of them.
func (stage Stage) Typical(s *Series) float64 {
	if s.Count == 0 {
		return 0
	}
	return stage.P50Ns * min(float64(stage.Count)/float64(s.Count), 1)
}

// Key names the series within a run.
func (s *Series) Key() string { return Key(s.Name, s.Labels) }

// Medians are those of the rounds, in the order in which they were measured.
func (s *Series) Medians() []float64 {
	medians := make([]float64, len(s.Rounds))
	for i, round := range s.Rounds {
		medians[i] = round.P50
	}
	return medians
}

// summarize brings the summary up to date with the samples, or with the rounds where there are none.
func (s *Series) summarize() {
	if s.Histogram != nil {
		s.Summary = s.Histogram.summary()
		return
	}
	sorted := s.Medians()
	slices.Sort(sorted)
	at := func(q float64) float64 { return quantile(sorted, q) }
	s.Summary = Summary{
		Count: int64(len(sorted)), Min: at(0), P50: at(0.5), P90: at(0.9), P99: at(0.99), P999: at(0.999), Max: at(1),
	}
}

// Median is the middle of values, or halfway between the two in the middle; 0 if there are none.
func Median(values []float64) float64 {
	return quantile(slices.Sorted(slices.Values(values)), 0.5)
}

// quantile interpolates between the two values around q, the first being at 0 and the last at 1.
func quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	at := q * float64(len(sorted)-1)
	i := min(int(at), len(sorted)-1)
	if part := at - float64(i); part > 0 {
		return sorted[i]*(1-part) + sorted[i+1]*part
	}
	return sorted[i]
}
