package compare

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"

	"ironspan/perf/internal/result"
)

// Report is what a comparison found.
type Report struct {
	Alpha   float64  `json:"alpha"`
	Doubts  []string `json:"doubts,omitempty"` // why differences may be of other causes than the code
	Changes []Change `json:"changes"`          // of every series that both have, in the order of the new run
	// Keys of series that only one of the runs has, and what else is not compared.
	Gone         []string `json:"gone,omitempty"`
	Added        []string `json:"added,omitempty"`
	Incomparable []string `json:"incomparable,omitempty"`
	Verdicts     []string `json:"verdicts,omitempty"` // ratios that were met and are missed, or the other way
	// Rounds that would let the report name a series that alone has changed; 0 if there are enough.
	RoundsNeeded int `json:"rounds_needed,omitempty"`
}

// Change is how one statistic of a series' rounds differs between the runs.
type Change struct {
	Series    string `json:"series"`
	Statistic string `json:"statistic"` // p50, p99
	result.Measure
	Control   bool    `json:"control,omitempty"`
	Old       float64 `json:"old"` // median over the rounds
	New       float64 `json:"new"`
	OldRounds int     `json:"old_rounds"`
	NewRounds int     `json:"new_rounds"`
	// Shift is by how much the new is larger: a share of the old if Relative, otherwise in the unit. Low and High are
	// its interval of confidence 1 - alpha, for this series by itself.
	Shift    float64 `json:"shift"`
	Low      float64 `json:"low"`
	High     float64 `json:"high"`
	Relative bool    `json:"relative"`
	P        float64 `json:"p"`
	Adjusted float64 `json:"p_adjusted"` // for the number of series
	Outcome  Outcome `json:"outcome"`
}

// Outcome is what a change is taken for.
type Outcome string

// The outcomes.
const (
	Unchanged    Outcome = "unchanged" // or too little to tell from noise
	Regression   Outcome = "regression"
	Improvement  Outcome = "improvement"
	Moved        Outcome = "moved"          // a control, which no change of ours should move
	TooFewRounds Outcome = "too few rounds" // to tell anything at alpha
)

// resolution is the relative width of a histogram's counters: differences below are of rounding.
const resolution = 1.0 / 1024

// tailSamples is how many samples a round needs for its 99th percentile to be compared.
const tailSamples = 200

// Runs compares two runs at alpha, a probability: 0.05, say.
func Runs(old, new *result.Run, alpha float64) (*Report, error) {
	if !(alpha > 0 && alpha < 1) {
		return nil, fmt.Errorf("compare: alpha is %v, not between 0 and 1", alpha)
	}
	r := &Report{Alpha: alpha, Doubts: doubts(old, new), Verdicts: verdicts(old, new)}
	for _, s := range new.Series {
		before := old.Find(s.Key())
		switch {
		case before == nil:
			r.Added = append(r.Added, s.Key())
		case before.Measure != s.Measure || (before.Histogram == nil) != (s.Histogram == nil):
			r.Incomparable = append(r.Incomparable, s.Key())
		default:
			r.add(before, s)
		}
	}
	for _, s := range old.Series {
		if new.Find(s.Key()) == nil {
			r.Gone = append(r.Gone, s.Key())
		}
	}
	r.judge()
	return r, nil
}

// add compares what two series have in common.
func (r *Report) add(old, new *result.Series) {
	r.Changes = append(r.Changes, r.change("p50", old, new, func(round result.Round) float64 { return round.P50 }))
	if hasTail(old) && hasTail(new) {
		r.Changes = append(r.Changes, r.change("p99", old, new, func(round result.Round) float64 { return round.P99 }))
	}
}

// hasTail: all rounds have samples enough.
func hasTail(s *result.Series) bool {
	return !slices.ContainsFunc(s.Rounds, func(round result.Round) bool { return round.Count < tailSamples })
}

func (r *Report) change(statistic string, old, new *result.Series, of func(result.Round) float64) Change {
	before, after := values(old, of), values(new, of)
	c := Change{
		Series: new.Key(), Statistic: statistic, Measure: new.Measure, Control: old.Control || new.Control,
		Old: result.Median(before), New: result.Median(after), OldRounds: len(before), NewRounds: len(after),
		P: pValue(before, after),
	}
	if c.Relative = slices.Min(before) > 0 && slices.Min(after) > 0; c.Relative {
		logs(before)
		logs(after)
	}
	c.Shift, c.Low, c.High = shift(before, after, r.Alpha)
	if c.Relative {
		c.Shift, c.Low, c.High = math.Expm1(c.Shift), math.Expm1(c.Low), math.Expm1(c.High)
	}
	return c
}

func values(s *result.Series, of func(result.Round) float64) []float64 {
	all := make([]float64, len(s.Rounds))
	for i, round := range s.Rounds {
		all[i] = of(round)
	}
	return all
}

func logs(values []float64) {
	for i, v := range values {
		values[i] = math.Log(v)
	}
}

// judge gives each change its outcome. Series with too few rounds are no tests, and do not count as such.
func (r *Report) judge() {
	var tested []*Change
	var p []float64
	for i := range r.Changes {
		c := &r.Changes[i]
		c.Outcome, c.Adjusted = Unchanged, 1
		if leastP(c.OldRounds, c.NewRounds) > r.Alpha {
			c.Outcome = TooFewRounds
			continue
		}
		tested, p = append(tested, c), append(p, c.P)
	}
	for i, adjusted := range adjust(p) {
		c := tested[i]
		c.Adjusted = adjusted
		if adjusted <= r.Alpha && !(c.Relative && math.Abs(c.Shift) < resolution) && c.Shift != 0 {
			c.Outcome = c.direction()
		}
		if leastP(c.OldRounds, c.NewRounds) > r.Alpha/float64(len(p)) {
			r.RoundsNeeded = roundsFor(r.Alpha / float64(len(p)))
		}
	}
	if len(tested) < len(r.Changes) {
		r.RoundsNeeded = max(r.RoundsNeeded, roundsFor(r.Alpha/float64(len(r.Changes))))
	}
}

func (c *Change) direction() Outcome {
	switch {
	case c.Control:
		return Moved
	case (c.Shift > 0) == (c.Better == result.Lower):
		return Regression
	}
	return Improvement
}

// With returns the changes of an outcome, the largest first.
func (r *Report) With(o Outcome) []Change {
	var found []Change
	for _, c := range r.Changes {
		if c.Outcome == o {
			found = append(found, c)
		}
	}
	slices.SortStableFunc(found, func(a, b Change) int { return cmp.Compare(math.Abs(b.Shift), math.Abs(a.Shift)) })
	return found
}

// doubts are the differences between the runs that are none of the code.
func doubts(old, new *result.Run) []string {
	var found []string
	if old.Suite != new.Suite {
		found = append(found, fmt.Sprintf("suite: %s, %s", old.Suite, new.Suite))
	}
	keys := maps.Clone(old.Machine)
	if keys == nil {
		keys = map[string]string{}
	}
	maps.Copy(keys, new.Machine)
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		if a, b := old.Machine[key], new.Machine[key]; a != b {
			found = append(found, fmt.Sprintf("%s: %s, %s", key, orNone(a), orNone(b)))
		}
	}
	return found
}

func orNone(value string) string {
	if value == "" {
		return "not known"
	}
	return value
}

// verdicts are the ratios whose verdict has changed.
func verdicts(old, new *result.Run) []string {
	before := map[string]*result.Ratio{}
	for _, ratio := range old.Ratios {
		before[ratio.Name] = ratio
	}
	var found []string
	for _, ratio := range new.Ratios {
		if was := before[ratio.Name]; was != nil && was.Verdict != ratio.Verdict {
			found = append(found, fmt.Sprintf("%s: %s, now %s", ratio.Name, was.Describe(), ratio.Describe()))
		}
	}
	return found
}
