package compare

import (
	"fmt"
	"math"
	"math/bits"
	"math/rand/v2"
	"strings"
	"testing"

	"ironspan/perf/internal/result"
)

// made is a run of n series with rounds that scatter by 3 %, of which those with an index in factor are so much larger.
func made(draw *rand.Rand, n, rounds int, factor map[int]float64) *result.Run {
	r := &result.Run{Schema: result.Schema, Suite: "host"}
	for i := range n {
		f := factor[i]
		if f == 0 {
			f = 1
		}
		measure := result.Latency
		if i%2 == 1 {
			measure = result.Bandwidth
		}
		rec := r.Record(fmt.Sprintf("s/%d", i), measure, nil)
		for range rounds {
			rec.Value(1000 * float64(i+1) * f * math.Exp(0.03*draw.NormFloat64()))
		}
	}
	return r
}

func compared(t *testing.T, old, new *result.Run) *Report {
	t.Helper()
	report, err := Runs(old, new, 0.05)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// Where nothing changed, the share of comparisons that name anything is alpha at most: 100 comparisons of 20 series.
func TestNoFalseAlarms(t *testing.T) {
	const seed, trials = 7, 100
	draw := rand.New(rand.NewPCG(seed, 0))
	alarms := 0
	for range trials {
		r := compared(t, made(draw, 20, 8, nil), made(draw, 20, 8, nil))
		if len(r.With(Regression))+len(r.With(Improvement)) > 0 {
			alarms++
		}
	}
	// With probability 0.05, more than 11 of 100 are three deviations off.
	t.Logf("%d of %d", alarms, trials)
	if alarms > 11 {
		t.Errorf("seed %d: %d of %d comparisons name something", seed, alarms, trials)
	}
}

// A shift by three times the scatter is found among 20 series, in the right direction, and its size, too.
func TestFindsShifts(t *testing.T) {
	const seed, trials = 11, 20
	draw := rand.New(rand.NewPCG(seed, 0))
	found, covered := map[Outcome]int{}, 0
	factor := map[int]float64{4: 1.1, 5: 1.1, 8: 0.9, 9: 0.9} // even: latencies, odd: bandwidths
	want := map[string]Outcome{"s/4": Regression, "s/5": Improvement, "s/8": Improvement, "s/9": Regression}
	for range trials {
		for _, c := range compared(t, made(draw, 20, 10, nil), made(draw, 20, 10, factor)).Changes {
			if c.Outcome != want[c.Series] {
				continue
			}
			found[c.Outcome]++
			truth := 0.1
			if c.New < c.Old {
				truth = -0.1
			}
			if c.Low <= truth && truth <= c.High {
				covered++
			}
		}
	}
	if found[Regression] < 2*trials-2 || found[Improvement] < 2*trials-2 {
		t.Errorf("seed %d: of %d each, %v were found", seed, 2*trials, found)
	}
	if covered < 4*trials*9/10 {
		t.Errorf("seed %d: %d of %v intervals have the true shift in them", seed, covered, found)
	}
}

// The p value is the share of all ways to deal the rounds to two runs that are as far apart, ties or not.
func TestPValueIsExact(t *testing.T) {
	for _, test := range []struct{ old, new []float64 }{
		{[]float64{1, 2, 3, 4, 5}, []float64{6, 7, 8, 9, 10}},
		{[]float64{1, 3, 5, 7, 9}, []float64{2, 4, 6, 8, 10}},
		{[]float64{1, 1, 2, 2, 3}, []float64{2, 3, 3, 4, 4}},
		{[]float64{1, 1, 1, 1, 2}, []float64{1, 1, 2, 2, 2}},
		{[]float64{0, 0, 0, 0, 0}, []float64{0, 0, 0, 0, 0}},
		{[]float64{5, 5, 5, 5}, []float64{6, 6, 6, 6}},
	} {
		got, want := pValue(test.old, test.new), permuted(test.old, test.new)
		if math.Abs(got-want) > 1e-9 {
			t.Errorf("%v, %v: p %v, want %v", test.old, test.new, got, want)
		}
	}
}

// permuted deals in all ways.
func permuted(old, new []float64) float64 {
	all := append(append([]float64{}, old...), new...)
	distance := func(deal uint) float64 {
		u := 0.0
		for i, a := range all {
			for j, b := range all {
				if deal>>i&1 == 1 || deal>>j&1 == 0 {
					continue
				}
				switch {
				case a > b:
					u++
				case a == b:
					u += 0.5
				}
			}
		}
		return math.Abs(u - float64(len(old)*len(new))/2)
	}
	var ways, far float64
	seen := distance(1<<len(all) - 1<<len(old))
	for deal := range uint(1) << len(all) {
		if bits.OnesCount(deal) != len(new) {
			continue
		}
		ways++
		if distance(deal) >= seen {
			far++
		}
	}
	return far / ways
}

func TestShift(t *testing.T) {
	old, new := []float64{1, 2, 3, 4, 5, 6}, []float64{11, 12, 13, 14, 15, 16}
	estimate, low, high := shift(old, new, 0.05)
	// Tables give 5 for P(U <= 5) = 0.0206, so the interval goes from the sixth difference to the sixth from the end.
	if estimate != 10 || low != 7 || high != 13 {
		t.Errorf("%v, %v to %v", estimate, low, high)
	}
}

// The exact interval and that of large samples meet where one takes over.
func TestIntervalsMeet(t *testing.T) {
	exact := outsideInterval(exactInterval, exactInterval, 0.05)
	large := outsideInterval(exactInterval+1, exactInterval, 0.05)
	if large < exact || large > exact+12 {
		t.Errorf("%d outside with %d rounds, %d with one more on one side", exact, exactInterval, large)
	}
}

func TestAdjust(t *testing.T) {
	got := adjust([]float64{0.01, 0.04, 0.03, 0.5})
	for i, want := range []float64{0.04, 0.16 / 3, 0.16 / 3, 0.5} {
		if math.Abs(got[i]-want) > 1e-12 {
			t.Errorf("%v", got)
		}
	}
	if len(adjust(nil)) != 0 {
		t.Error("something out of nothing")
	}
}

func TestLeastP(t *testing.T) {
	for _, test := range []struct {
		n, m int
		want float64
	}{{1, 1, 1}, {3, 3, 0.1}, {4, 4, 2.0 / 70}, {5, 5, 2.0 / 252}, {3, 10, 2.0 / 286}} {
		if got := leastP(test.n, test.m); math.Abs(got-test.want) > 1e-9 {
			t.Errorf("%d and %d rounds: %v, want %v", test.n, test.m, got, test.want)
		}
	}
	if got := roundsFor(0.05); got != 4 {
		t.Errorf("%d rounds for 0.05", got)
	}
}

func rounds(r *result.Run, name string, m result.Measure, values ...float64) *result.Recorder {
	rec := r.Record(name, m, nil)
	for _, v := range values {
		rec.Value(v)
	}
	return rec
}

func TestOutcomes(t *testing.T) {
	old, new := result.New("host", "a"), result.New("host", "b")
	for _, s := range []struct {
		name     string
		measure  result.Measure
		old, new []float64
	}{
		{"few", result.Latency, []float64{1, 2, 3}, []float64{7, 8, 9}},
		{"equal", result.Count, []float64{0, 0, 0, 0, 0}, []float64{0, 0, 0, 0, 0}},
		{"from zero", result.Count, []float64{0, 0, 0, 0, 0, 0}, []float64{1, 1, 1, 1, 1, 1}},
		{"rounding", result.Latency, []float64{9000, 9000, 9000, 9000, 9000}, []float64{9004, 9004, 9004, 9004, 9004}},
		{"worse", result.Latency, []float64{10, 11, 12, 11, 10, 11}, []float64{15, 16, 17, 15, 16, 17}},
		{"less", result.Bandwidth, []float64{10, 11, 12, 11, 10, 11}, []float64{5, 6, 7, 5, 6, 7}},
		{"better", result.Bandwidth, []float64{10, 11, 12, 11, 10, 11}, []float64{15, 16, 17, 15, 16, 17}},
		{"raw", result.Latency, []float64{10, 11, 12, 11, 10, 11}, []float64{15, 16, 17, 15, 16, 17}},
	} {
		a, b := rounds(old, s.name, s.measure, s.old...), rounds(new, s.name, s.measure, s.new...)
		if s.name == "raw" {
			a.Control()
			b.Control()
		}
	}
	rounds(old, "gone", result.Latency, 1)
	rounds(new, "added", result.Latency, 1)
	rounds(old, "other", result.Latency, 1)
	rounds(new, "other", result.Bandwidth, 1)
	old.Judge(result.Ratio{Name: "few", Numerator: []string{"few"}, Bound: 5})
	new.Judge(result.Ratio{Name: "few", Numerator: []string{"few"}, Bound: 5})
	old.Machine = map[string]string{"kernel": "6.1", "cpu": "x"}
	new.Machine = map[string]string{"kernel": "6.12", "cpu": "x", "fabric": "shm"}

	r := compared(t, old, new)
	want := map[string]Outcome{
		"few": TooFewRounds, "equal": Unchanged, "from zero": Regression, "rounding": Unchanged, "worse": Regression,
		"less": Regression, "better": Improvement, "raw": Moved,
	}
	for _, c := range r.Changes {
		if c.Outcome != want[c.Series] {
			t.Errorf("%s: %s, want %s: %+v", c.Series, c.Outcome, want[c.Series], c)
		}
		delete(want, c.Series)
	}
	if len(want) > 0 {
		t.Errorf("not compared: %v", want)
	}
	var text strings.Builder
	if err := r.Text(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"regressions:", "from zero", "+1", "improvements:", "controls that moved", "few: met at 2, now missed at 8",
		"fabric: not known, shm", "kernel: 6.1, 6.12", "only in the old run:\n  gone", "only in the new run:\n  added",
		"not comparable", "too few rounds to tell anything: 1", "takes 6 rounds",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, text.String())
		}
	}
}

// The tail is compared where rounds have samples for it, by itself.
func TestTails(t *testing.T) {
	draw := rand.New(rand.NewPCG(3, 0))
	with := func(tail int64) *result.Run {
		r := result.New("host", "x")
		rec := r.Record("fault", result.Latency, nil)
		for range 8 {
			for i := range 1000 {
				v := 2000 + draw.Int64N(100)
				if i%50 == 0 {
					v = tail + draw.Int64N(100)
				}
				rec.Add(v)
			}
			rec.End()
		}
		return r
	}
	r := compared(t, with(3000), with(9000))
	if len(r.Changes) != 2 || r.Changes[0].Outcome != Unchanged || r.Changes[1].Outcome != Regression || r.Changes[1].Statistic != "p99" {
		t.Errorf("%+v", r.Changes)
	}
}

func TestAlphaIsAProbability(t *testing.T) {
	for _, alpha := range []float64{0, 1, -1, 5, math.NaN()} {
		if _, err := Runs(&result.Run{}, &result.Run{}, alpha); err == nil {
			t.Errorf("alpha %v is accepted", alpha)
		}
	}
}
