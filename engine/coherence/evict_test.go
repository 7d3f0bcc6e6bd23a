package coherence

import (
	"slices"
	"testing"

	"ironspan/engine/wire"
)

// TestClock follows the hand: pages go in its order, below the high-water mark and down to the low one, but for those
// that were upgraded since it passed.
func TestClock(t *testing.T) {
	agents := [2]*Agent{}
	for n := range agents {
		a, err := New(Config{
			Self: wire.NodeID(n), Homes: []Range{{0, 128}, {128, 256}}, Shards: 1, Epoch: 1, Slots: 32, Cache: 32,
		})
		if err != nil {
			t.Fatal(err)
		}
		agents[n] = a
	}
	a := agents[1]
	if a.cache.high != 30 || a.cache.low != 28 {
		t.Fatalf("marks at %d and %d", a.cache.high, a.cache.low)
	}
	fetch := func(page wire.PFN, write bool) {
		t.Helper()
		if s := a.Fault(0, page, write); s != OK {
			t.Fatal(s)
		}
		deliver(t, agents[:], 0)
		if a.Next() == 0 { // the hand rests for no time
			a.Tick(0)
			deliver(t, agents[:], 0)
		}
	}
	var gone []wire.PFN
	expect := func(what string, pages ...wire.PFN) {
		t.Helper()
		gone = gone[:0]
		for p := range wire.PFN(40) {
			if a.Mode(p) == wire.None && a.pages[p].since == 1 {
				gone = append(gone, p)
				a.pages[p].since = 0
			}
			if a.Mode(p) != wire.None {
				a.pages[p].since = 1 // no tenure here, so it is free to mark what was held
			}
		}
		if !slices.Equal(gone, pages) {
			t.Errorf("%s: %v were parked, want %v", what, gone, pages)
		}
	}
	for p := range wire.PFN(29) {
		fetch(p, p == 1)
	}
	expect("below the mark")
	fetch(29, false)
	expect("at the mark, all were spared once", 0, 1, 2)
	if s := a.Stats(); s.Cached != 27 || s.CachedMost != 30 || s.EvictionsClean != 2 || s.EvictionsDirty != 1 {
		t.Errorf("%d cached, %d at most, %d evicted clean, %d dirty", s.Cached, s.CachedMost, s.EvictionsClean, s.EvictionsDirty)
	}
	fetch(4, true) // upgraded
	fetch(30, false)
	fetch(31, false)
	expect("below the mark again")
	fetch(32, false)
	expect("the upgraded one is spared", 3, 5, 6)
	for p := range wire.PFN(3) {
		fetch(p, false)
	}
	expect("what comes back behind the hand is for the next round", 7, 8, 9)
}

// BenchmarkSweep is BenchmarkFetch over more pages than may be cached: each fault makes another page go.
func BenchmarkSweep(b *testing.B) {
	agents := [2]*Agent{}
	for n := range agents {
		a, err := New(Config{
			Self: wire.NodeID(n), Homes: []Range{{0, 1024}, {1024, 2048}}, Shards: 1, Epoch: 1, Slots: 8, Cache: 256,
		})
		if err != nil {
			b.Fatal(err)
		}
		agents[n] = a
	}
	b.ReportAllocs()
	start := cpuTime(b)
	for i := 0; b.Loop(); i++ {
		agents[1].Fault(int64(i), wire.PFN(i%1024), true)
		deliver(b, agents[:], int64(i))
	}
	reportCPU(b, start)
}
