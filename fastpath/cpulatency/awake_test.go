package cpulatency

import "testing"

func TestPolicy(t *testing.T) {
	var p policy
	var wakes uint64
	look := func(more uint64, want bool) {
		t.Helper()
		wakes += more
		if got := p.look(wakes); got != want {
			t.Errorf("%d more: %t, want %t", more, got, want)
		}
	}
	look(0, false)
	look(busyWakes-1, false)
	look(busyWakes, true)
	for range restPeriods - 1 {
		look(busyWakes-1, true)
	}
	look(0, false)
	look(1000, true)
	look(0, true)
	look(busyWakes, true)
	for range restPeriods - 1 {
		look(0, true)
	}
	look(0, false)
}
