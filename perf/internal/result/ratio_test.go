package result

import (
	"errors"
	"strings"
	"testing"
)

func rounds(r *Run, name string, values ...float64) {
	for _, v := range values {
		r.Record(name, Latency, nil).Value(v)
	}
}

func TestJudge(t *testing.T) {
	r := New("host", "x")
	rounds(r, "ours", 10, 11, 12, 11, 10, 11, 12, 11)
	rounds(r, "raw", 4, 4.4, 4.8, 4.4, 4, 4.4, 4.8, 4.4) // moves with ours
	rounds(r, "floor", 5, 5.5, 6, 5.5, 5, 5.5, 6, 5.5)
	rounds(r, "other", 20, 30, 26, 21, 22, 30)
	rounds(r, "none", 0, 0, 0)
	r.Miss("peer", errors.New("no module"))
	r.Miss("scan{prefetch=1}", errors.New("no time"))
	for _, test := range []struct {
		ratio    Ratio
		value    float64
		verdict  Verdict
		doubtful bool
		reason   string
	}{
		{Ratio{Name: "sum", Numerator: []string{"ours"}, Denominator: []string{"raw", "floor"}, Bound: 1.25}, 11 / 9.9, Met, false, ""},
		{Ratio{Name: "missed", Numerator: []string{"ours"}, Denominator: []string{"raw"}, Bound: 1.6}, 2.5, Missed, false, ""},
		{Ratio{Name: "faster", Numerator: []string{"other"}, Denominator: []string{"ours"}, Bound: 1.5, AtLeast: true}, 24.0 / 11, Met, false, ""},
		{Ratio{Name: "doubtful", Numerator: []string{"other"}, Denominator: []string{"ours"}, Bound: 2.2, AtLeast: true}, 24.0 / 11, Missed, true, ""},
		{Ratio{Name: "alone", Numerator: []string{"none"}}, 0, Met, false, ""},
		{Ratio{Name: "absent", Numerator: []string{"never"}}, 0, NotMeasured, false, "no series never"},
		{Ratio{Name: "peer", Numerator: []string{"ours"}, Denominator: []string{"peer/read{size=1}"}}, 0, NotMeasured, false, "no module"},
		{Ratio{Name: "labels", Numerator: []string{"scan{fabric=shm,prefetch=1}"}}, 0, NotMeasured, false, "no time"},
		{Ratio{Name: "other labels", Numerator: []string{"scan{fabric=shm,prefetch=2}"}}, 0, NotMeasured, false, "no series scan"},
		{Ratio{Name: "nothing"}, 0, NotMeasured, false, "no series"},
		{Ratio{Name: "by zero", Numerator: []string{"ours"}, Denominator: []string{"none"}}, 0, NotMeasured, false, "zero"},
	} {
		t.Run(test.ratio.Name, func(t *testing.T) {
			got := r.Judge(test.ratio)
			if d := got.Value - test.value; d*d > 1e-12 || got.Verdict != test.verdict || got.Doubtful != test.doubtful ||
				!strings.Contains(got.Reason, test.reason) || got.Low > got.Value || got.High < got.Value {
				t.Errorf("%+v", got)
			}
		})
	}
	if err := r.check(); err != nil {
		t.Error(err)
	}
}

// What hits a round as a whole does not widen the interval.
func TestRoundsArePaired(t *testing.T) {
	r := New("host", "x")
	rounds(r, "a", 10, 20, 40, 80, 160)
	rounds(r, "b", 5, 10, 20, 40, 80)
	if got := r.Judge(Ratio{Numerator: []string{"a"}, Denominator: []string{"b"}, Bound: 2}); got.Low != 2 || got.High != 2 {
		t.Errorf("%+v", got)
	}
}
