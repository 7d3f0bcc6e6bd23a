package fastpath

import (
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"ironspan/engine/wire"
)

func TestBuckets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := rapid.Uint64Range(0, 1<<maxBits-1).Draw(t, "v")
		b := bucketOf(v)
		top := bucketTop(b)
		if v > top || b > 0 && v <= bucketTop(b-1) {
			t.Fatalf("%d is in bucket %d, which ends at %d", v, b, top)
		}
		if float64(top-v) > float64(v)/subBuckets {
			t.Fatalf("%d is reported as %d", v, top)
		}
	})
	if b := bucketOf(1 << 63); b != numBuckets-1 {
		t.Errorf("a huge value is in bucket %d", b)
	}
}

func TestHistogram(t *testing.T) {
	var h, g Histogram
	var all []uint64
	for i := range 10000 {
		v := uint64(rand.ExpFloat64() * 50000)
		all = append(all, v)
		if i%2 == 0 {
			h.Record(int64(v))
		} else {
			g.Record(int64(v))
		}
	}
	g.Record(-5)
	all = append(all, 0)
	slices.Sort(all)
	s := h.Snapshot()
	s.Merge(g.Snapshot())
	hdr := s.HDR()
	if s.Count != 10001 || s.Max != all[10000] || hdr.TotalCount() != 10001 {
		t.Fatalf("count %d, max %d, HDR count %d", s.Count, s.Max, hdr.TotalCount())
	}
	for _, q := range []float64{0.5, 0.9, 0.99, 0.999} {
		want := float64(all[int(q*10001)])
		for name, got := range map[string]float64{"own": float64(s.Quantile(q)), "HDR": float64(hdr.ValueAtQuantile(q * 100))} {
			if got < want*0.95 || got > want*1.05 {
				t.Errorf("%s: quantile %v is %v, want %v", name, q, got, want)
			}
		}
	}
	var empty Histogram
	e := empty.Snapshot()
	if e.Quantile(0.5) != 0 || e.Mean() != 0 {
		t.Error("an empty histogram has a median")
	}
}

// TestPending compares the table with a map.
func TestPending(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := newPending(32)
		want := map[wire.PFN]int64{}
		for now := range int64(rapid.IntRange(0, 500).Draw(t, "steps")) {
			page := wire.PFN(rapid.Uint64Range(0, 60).Draw(t, "page"))
			start, there := want[page]
			if rapid.Bool().Draw(t, "begin") && len(want) < 32 {
				p.begin(page, now)
				if !there {
					want[page] = now
				}
				continue
			}
			got, ok := p.end(page)
			if ok != there || ok && got.start != start {
				t.Fatalf("page %d: %d %t, want %d %t", page, got, ok, start, there)
			}
			delete(want, page)
		}
		if p.n != len(want) {
			t.Fatalf("%d pages, want %d", p.n, len(want))
		}
	})
	p := newPending(4)
	for page := range wire.PFN(1000) {
		p.begin(page, 1)
	}
	if p.n > len(p.slots)/2 {
		t.Errorf("%d pages in %d places", p.n, len(p.slots))
	}
}

func TestIsZero(t *testing.T) {
	page := make([]byte, wire.PageSize)
	if !isZero(page) {
		t.Error("zeros are not")
	}
	for i := range page {
		page[i] = 1
		if isZero(page) {
			t.Fatalf("byte %d was not seen", i)
		}
		page[i] = 0
	}
}

func BenchmarkIsZero(b *testing.B) {
	page := make([]byte, wire.PageSize)
	for b.Loop() {
		isZero(page)
	}
}
