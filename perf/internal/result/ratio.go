package result

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
)

// Ratio is one figure that a run has to show: something measured, over something else measured beside it, held against
// a bound.
type Ratio struct {
	Name string `json:"name"`
	// The keys of the series whose medians are added up above and below the line. None below: over 1.
	Numerator   []string `json:"numerator,omitempty"`
	Denominator []string `json:"denominator,omitempty"`
	Bound       float64  `json:"bound"`
	AtLeast     bool     `json:"at_least,omitempty"` // the bound is a lower one
	// Value is the ratio of the medians of the rounds' medians. Low and High are its 95 % confidence interval, by
	// bootstrap over the rounds.
	Value float64 `json:"value"`
	Low   float64 `json:"low"`
	High  float64 `json:"high"`
	// Verdict holds the value against the bound. Doubtful: the bound lies within the interval, so that another run may
	// well come to the other verdict.
	Verdict  Verdict `json:"verdict"`
	Doubtful bool    `json:"doubtful,omitempty"`
	// Reason says why there is no verdict, or what is known of why a bound was missed.
	Reason string `json:"reason,omitempty"`
}

// Verdict is what comes of a ratio.
type Verdict string

// The verdicts.
const (
	Met         Verdict = "met"
	Missed      Verdict = "missed"
	NotMeasured Verdict = "not measured"
)

// Resamples of the bootstrap, and the share of them on each side of a 95 % interval.
const (
	resamples = 2000
	tail      = 0.025
)

// Judge computes a ratio from the run's series and adds it to the run. Of the ratio, the name, the keys and the bound
// have to be set. Where a series is absent there is no verdict, and the reason is what Missing says of it.
func (r *Run) Judge(ratio Ratio) *Ratio {
	r.Ratios = append(r.Ratios, &ratio)
	above, reason := r.sides(ratio.Numerator)
	below, other := r.sides(ratio.Denominator)
	if reason == "" {
		reason = other
	}
	if reason == "" && len(above) == 0 {
		reason = "no series above the line"
	}
	if reason != "" {
		ratio.Verdict, ratio.Reason = NotMeasured, reason
		return &ratio
	}
	ratio.compute(above, below)
	if !finite(ratio.Value, ratio.Low, ratio.High) {
		ratio.Value, ratio.Low, ratio.High, ratio.Doubtful = 0, 0, 0, false
		ratio.Verdict, ratio.Reason = NotMeasured, "the series below the line have rounds of zero"
	}
	return &ratio
}

// NotMeasured adds a ratio that cannot be had here, and says why.
func (r *Run) NotMeasured(ratio Ratio, reason string) {
	ratio.Verdict, ratio.Reason = NotMeasured, reason
	r.Ratios = append(r.Ratios, &ratio)
}

// sides finds the medians of all rounds of each series, or says why one is absent.
func (r *Run) sides(keys []string) (medians [][]float64, reason string) {
	for _, key := range keys {
		s := r.Find(key)
		if s == nil {
			return nil, r.whyMissing(key)
		}
		medians = append(medians, s.Medians())
	}
	return medians, ""
}

// whyMissing is the reason why a series is absent. What is missing may be named with some of the series' labels, or
// with the first parts of its name only.
func (r *Run) whyMissing(key string) string {
	name, labels := split(key)
	for _, m := range r.Missing {
		missing, with := split(m.Name)
		stranger := func(label string) bool { return !slices.Contains(labels, label) }
		if below(name, missing) && !slices.ContainsFunc(with, stranger) {
			return m.Reason
		}
	}
	return fmt.Sprintf("no series %s in this run", key)
}

// split takes a key apart, into the name and the labels with their values.
func split(key string) (name string, labels []string) {
	name, rest, found := strings.Cut(key, "{")
	if found {
		labels = strings.Split(strings.TrimSuffix(rest, "}"), ",")
	}
	return name, labels
}

// compute fills in value, interval and verdict.
func (ratio *Ratio) compute(above, below [][]float64) {
	of := func(pick func([]float64) []float64) float64 {
		denominator := 1.0
		if len(below) > 0 {
			denominator = sum(below, pick)
		}
		return sum(above, pick) / denominator
	}
	ratio.Value = of(func(all []float64) []float64 { return all })
	values := make([]float64, resamples)
	for i := range values {
		// Rounds of all series were interleaved: the same rounds of each are drawn together, as far as all have them,
		// so that what hit a round as a whole cancels out.
		seed := uint64(i)
		values[i] = of(func(all []float64) []float64 { return resample(all, seed) })
	}
	slices.Sort(values)
	ratio.Low, ratio.High = quantile(values, tail), quantile(values, 1-tail)
	ratio.Verdict = Missed
	if ratio.met(ratio.Value) {
		ratio.Verdict = Met
	}
	ratio.Doubtful = ratio.met(ratio.Low) != ratio.met(ratio.High)
}

// Describe is the verdict with the value, as in "missed at 1.9".
func (ratio *Ratio) Describe() string {
	if ratio.Verdict == NotMeasured {
		return string(NotMeasured)
	}
	return fmt.Sprintf("%s at %s", ratio.Verdict, digits(ratio.Value))
}

// OfBound is the value and its interval as a multiple of the bound, or the other way round where the bound is a lower
// one: up to 1, it is met. Bound and interval have to be positive.
func (ratio *Ratio) OfBound() (low, value, high float64) {
	if ratio.AtLeast {
		return ratio.Bound / ratio.High, ratio.Bound / ratio.Value, ratio.Bound / ratio.Low
	}
	return ratio.Low / ratio.Bound, ratio.Value / ratio.Bound, ratio.High / ratio.Bound
}

func (ratio *Ratio) met(value float64) bool {
	if ratio.AtLeast {
		return value >= ratio.Bound
	}
	return value <= ratio.Bound
}

// sum adds up the medians of what is picked of each series.
func sum(series [][]float64, pick func([]float64) []float64) float64 {
	total := 0.0
	for _, medians := range series {
		total += Median(pick(medians))
	}
	return total
}

// resample draws as many values as there are, with repetition. Series of one length are drawn alike by one seed.
func resample(all []float64, seed uint64) []float64 {
	draw := rand.New(rand.NewPCG(seed, uint64(len(all))))
	drawn := make([]float64, len(all))
	for i := range drawn {
		drawn[i] = all[draw.IntN(len(all))]
	}
	return drawn
}
