package coherence

import (
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

// trace is what becomes of a guest's accesses: one that finds neither its page nor a request for it is a fault.
type trace struct {
	streams
	here                       map[uint32]bool // true: asked for ahead and not used yet
	faults, ahead, wasted, all int
}

const traceMost = 64

func runTrace(accesses []uint32) *trace {
	t := &trace{here: map[uint32]bool{}}
	for _, i := range accesses {
		t.all++
		if _, ok := t.here[i]; ok {
			t.here[i] = false
			continue
		}
		t.faults++
		t.here[i] = false
		ahead, stride := t.advance(i, false, traceMost)
		for n := range int64(ahead) {
			j := int64(i) + (n+1)*int64(stride)
			if j < 0 {
				break
			}
			if _, ok := t.here[uint32(j)]; !ok {
				t.ahead++
				t.here[uint32(j)] = true
			}
		}
	}
	for _, unused := range t.here {
		if unused {
			t.wasted++
		}
	}
	return t
}

func steps(from, stride, n int) (pages []uint32) {
	for k := range n {
		pages = append(pages, uint32(from+k*stride))
	}
	return pages
}

// braid takes turns.
func braid(of ...[]uint32) (pages []uint32) {
	for k := range of[0] {
		for _, p := range of {
			pages = append(pages, p[k])
		}
	}
	return pages
}

func TestStreamsOnTraces(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var random, pointers []uint32
	for range 4000 {
		random = append(random, rng.Uint32N(100_000))
		pointers = append(pointers, rng.Uint32N(4000))
	}
	var gaps []uint32
	for k := range uint32(1000) {
		if k%7 != 3 {
			gaps = append(gaps, 50+k)
		}
	}
	for _, c := range []struct {
		name           string
		accesses       []uint32
		faults, wasted int // at most
	}{
		{"one page", steps(9, 0, 1), 1, 0},
		{"two neighbours", steps(9, 1, 2), 2, 2},
		{"two pages apart", steps(9, 30, 2), 2, 0},
		{"scan", steps(100, 1, 2000), 40, 64},
		{"backward", steps(5000, -1, 2000), 40, 64},
		{"every third", steps(100, 3, 1000), 25, 64},
		{"column of a matrix", steps(100, 64, 1000), 25, 64},
		{"too long a stride", steps(100, strideMax+1, 500), 500, 0},
		{"copy", braid(steps(1000, 1, 1000), steps(50_000, 1, 1000)), 50, 128},
		{"neighbours on near arrays", braid(steps(1000, 1, 500), steps(1520, 1, 500)), 50, 128},
		{"eight scans at once", braid(steps(1000, 1, 300), steps(2000, 1, 300), steps(3000, 1, 300), steps(4000, 1, 300),
			steps(5000, -1, 300), steps(6000, 2, 300), steps(7000, 3, 300), steps(8000, 5, 300)), 110, 8 * 64},
		{"scan with holes", gaps, 250, 143 + 64}, // the holes themselves are 143
		{"at random", random, 4000, 60},
		{"at random, densely", pointers, 4000, 900},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := runTrace(c.accesses)
			if got.faults > c.faults || got.wasted > c.wasted {
				t.Errorf("%d faults of %d accesses, at most %d expected; %d of %d pages for nothing, at most %d expected",
					got.faults, got.all, c.faults, got.wasted, got.ahead, c.wasted)
			}
			t.Logf("%d accesses, %d faults, %d asked for ahead, %d of them for nothing", got.all, got.faults, got.ahead, got.wasted)
		})
	}
}

// TestStreamsWasteLittle: walks of all kinds, each in memory of its own, one after the other or in turns. What each has
// asked for in vain is no more than its last window, which is at most twice as long as all of it so far.
func TestStreamsWasteLittle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		length := rapid.IntRange(1, 100).Draw(t, "steps")
		var walks [][]uint32
		for n := range rapid.IntRange(1, 8).Draw(t, "walks") {
			walks = append(walks, steps((2*n+1)*10_000, rapid.IntRange(-strideMax, strideMax).Draw(t, "stride"), length))
		}
		got := runTrace(braid(walks...))
		if most := len(walks) * min(2*length, traceMost); got.wasted > most {
			t.Fatalf("%d faults, %d pages asked for ahead, %d of them for nothing, at most %d expected", got.faults, got.ahead, got.wasted, most)
		}
	})
}
