package litmus

import (
	"strings"
	"testing"
)

func TestJudge(t *testing.T) {
	s := shapeNamed(t, "MP")
	var j Judge
	round := func(split Split, flag, data Value) error {
		o := Outcome{Mem: [MaxVars]Value{X: Both(1), Y: Both(1)}}
		o.Regs[1][0], o.Regs[1][1] = flag, data
		return j.Round(s, split, o)
	}
	for _, c := range []struct {
		split      Split
		flag, data Value
		forbidden  bool
	}{
		{Split{}, Both(0), Both(0), false},
		{Split{}, Both(1), Both(1), false},
		{Split{Z: true}, Both(0), Both(1), false}, // interleaved; and z is no variable of this shape
		{Split{}, Both(1), Both(0), true},
		{Split{X: true}, Both(0), Value{1, 0}, false},
		{Split{}, Both(0), Value{1, 0}, true},
	} {
		if err := round(c.split, c.flag, c.data); (err != nil) != c.forbidden {
			t.Errorf("flag %v, data %v, split %v: %v", c.flag, c.data, c.split, err)
		}
	}
	all := j.Tallies()
	if len(all) != 2 || all[0].Name() != "MP" || all[1].Name() != "MP split" {
		t.Fatalf("tallies %v", all)
	}
	if got := *all[0]; got.Rounds != 5 || got.Interleaved != 3 || got.Outcomes() != 5 || got.Allowed() != 3 {
		t.Errorf("%s: %+v", got.Name(), got)
	}
	if h := all[1].Histogram(); !strings.HasPrefix(h, "1 x 1:r0=0 1:r1=1|0 ") {
		t.Error(h)
	}
	if shapes, rounds, outcomes, interleaved := j.Sum(); shapes != 1 || rounds != 6 || outcomes != 6 || interleaved != 4 {
		t.Error(shapes, rounds, outcomes, interleaved)
	}
}
