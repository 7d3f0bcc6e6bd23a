package engine

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

// TestDilatedClock: the guest is told about the frequency that was asked for, Linux's arithmetic in 32 bits leaves
// enough to set a timer with, and stretch makes up for what it lost.
func TestDilatedClock(t *testing.T) {
	const giga = 1_000_000 // kHz
	for _, c := range []struct {
		khz  uint64
		by   float64
		want uint32
		wrap bool
	}{
		{2_445_404, 1, 2_445_404, false},
		{3 * giga, 10, 30 * giga, false},
		{34_359_738, 1, 34_359_738, false}, // the last that fits
		{34_359_739, 1, 34_359_738, false}, // one tick more wraps: lower by one
		{3 * giga, 12, 34_359_738, false},  // 36 GHz would leave 205 MHz of it
		{3 * giga, 20, 60 * giga, true},    // 60 GHz leaves more than half
		{3 * giga, 25, 68_719_476, true},   // 75 GHz leaves 785 MHz
		{3 * giga, 30, 90 * giga, true},    // 90 GHz leaves more than half again
		{2_445_404, 1e9, 4294967295, true}, // bounded by the 32 bits of kHz
		{2_445_404, 0.5, 1_222_702, false}, // a slower clock is possible, too
	} {
		got := dilated(c.khz, c.by)
		if got != c.want {
			t.Errorf("%d kHz by %g: %d, want %d", c.khz, c.by, got, c.want)
		}
		r := stretch(got)
		if r.Num != uint64(got)*perKHz || r.Den != uint64(uint32(r.Num)) || (r.Num != r.Den) != c.wrap {
			t.Errorf("%d kHz by %g: ratio %d/%d", c.khz, c.by, r.Num, r.Den)
		}
	}
}

func TestDilatedClockLeavesTimers(t *testing.T) {
	const giga = 1_000_000 // kHz
	rapid.Check(t, func(t *rapid.T) {
		khz := rapid.Uint64Range(1000, 6*giga).Draw(t, "khz")
		by := rapid.Float64Range(0.5, 500).Draw(t, "by")
		got := dilated(khz, by)
		asked := min(float64(khz)*by, math.MaxUint32)
		r := stretch(got)
		if float64(got) > asked || float64(got) < asked/2 {
			t.Fatalf("%d for %g", got, asked)
		}
		if r.Den == 0 || r.Num != r.Den && r.Den < 1<<31 {
			t.Fatalf("%d kHz: ratio %d/%d", got, r.Num, r.Den)
		}
	})
}
