package fastpath

import "testing"

// The faster way is taken, but now and then, and so that a change is noticed.
func TestWays(t *testing.T) {
	var w ways
	polled := func(fetches int, asleep, polling int64) (n int) {
		for range fetches {
			if w.begin(); w.polls {
				n++
				w.end(polling)
			} else {
				w.end(asleep)
			}
		}
		return n
	}
	const fetches = 100 * tryOther
	for _, c := range []struct {
		what            string
		asleep, polling int64
		min, max        int
	}{
		{"polling is faster", 20e3, 5e3, fetches * 9 / 10, fetches - fetches/tryOther},
		{"sleep is faster", 1.5e6, 2.3e6, fetches / tryOther, fetches / 10},
		{"polling is faster again", 1.5e6, 1.3e6, fetches / 2, fetches - fetches/tryOther},
	} {
		if n := polled(fetches, c.asleep, c.polling); n < c.min || n > c.max {
			t.Errorf("%s: %d of %d polled for, want %d to %d", c.what, n, fetches, c.min, c.max)
		}
	}
}
