package coherence

import (
	"cmp"
	"slices"
	"time"
)

// The sketch finds the pages that move most without a counter for each: space-saving (Metwally, Agrawal and
// El Abbadi, 2005) in 64 sets of four. A page that is not there replaces the least of its set and inherits
// its count, so a page that really moves a lot gets in and stays, and how much of its count may be another's
// is known.
const (
	sketchBits = 6
	sketchWays = 4
)

type sketch struct {
	sets [1 << sketchBits][sketchWays]counter
}

type counter struct {
	page        uint32 // index + 1, 0: free
	moves, over uint32
}

func (s *sketch) add(i uint32) {
	set := &s.sets[i*0x9e3779b1>>(32-sketchBits)]
	least := 0
	for w := range set {
		if set[w].page == i+1 {
			if set[w].moves++; set[w].moves == 0 {
				set[w].moves--
			}
			return
		}
		if set[w].moves < set[least].moves {
			least = w
		}
	}
	c := &set[least]
	c.page = i + 1
	c.over = c.moves
	c.moves++
}

// HotPages appends to dst the pages homed here that are fought over most, in falling order of moves, at
// most limit of them. Only quick moves count, those of a ping-pong; a page's first moves are no sign of
// anything.
func (a *Agent) HotPages(dst []HotPage, limit int) []HotPage {
	start := len(dst)
	for s := range a.hot.sets {
		for _, c := range a.hot.sets[s] {
			if c.page == 0 {
				continue
			}
			dst = append(dst, HotPage{
				Page: a.pageAt(c.page - 1), Moves: uint64(c.moves), Over: uint64(c.over),
				Tenure: time.Duration(a.policy.tenure(a.entry(c.page - 1).level())),
			})
		}
	}
	slices.SortFunc(dst[start:], func(x, y HotPage) int {
		return cmp.Or(cmp.Compare(y.Moves, x.Moves), cmp.Compare(x.Page, y.Page))
	})
	return dst[:min(len(dst), start+max(limit, 0))]
}
