package coherence

import (
	"math/bits"

	"ironspan/engine/wire"
)

// groupPages is how many neighbouring pages of a shard one grant can be about: the bits of a word.
const groupPages = 64

// cover gives a reader, beside page i, the right to read other pages of its group, and returns them as bits. Their
// bytes stay in the home frames, from where the reader fetches what it needs, so that of a group that is read all over
// only the first pages cost a message. The reader counts as a sharer of them from now on.
//
// Pages that are shared anyway cost nothing but one more invalidation once somebody writes there. Pages that the home
// may write, it has to give that up for; it does so for a reader that has the right to as many pages of the group as
// the configuration says, and not a second time for a page that it wrote again before anybody asked for it. Pages that
// are fought over, or go from node to node to be written, are left alone.
func (a *Agent) cover(now int64, i uint32, reader wire.NodeID) (pages uint64) {
	if a.coverFrom == 0 {
		return 0
	}
	group := i &^ (groupPages - 1)
	first, last := max(group, a.dirBase), min(group+groupPages, a.dirBase+uint32(len(a.dir)))
	known, own := 1, uint64(0)
	for j := first; j < last; j++ {
		e := a.entry(j)
		switch {
		case e.is(shared) && e.sharers&bit(reader) != 0:
			known++
			continue
		case j == i || e.is(busy|writeBack|migratory) || a.policy.decayed(e, now) != 0:
			continue
		case e.is(shared):
			e.sharers |= bit(reader)
			pages |= 1 << (j - group)
		case e.owner == a.self && !e.is(covered) && a.evictable(&a.pages[j]):
			own |= 1 << (j - group)
		}
	}
	if known >= a.coverFrom {
		for rest := own; rest != 0; rest &= rest - 1 {
			j := group + uint32(bits.TrailingZeros64(rest))
			e := a.entry(j)
			a.emit(OpProtect, a.pageAt(j))
			a.pages[j].mode = wire.Shared
			a.cache.setGood(j, false) // says nothing of the home's own pages
			e.bits |= shared | covered
			e.sharers = bit(a.self) | bit(reader)
		}
		pages |= own
	}
	a.stats.Covered += uint64(bits.OnesCount64(pages))
	return pages
}

// canCover says whether a grant for page i may cover these pages of its group: they are the home's.
func (a *Agent) canCover(i uint32, pages uint64, home wire.NodeID) bool {
	group := uint64(i &^ (groupPages - 1))
	low, high := group+uint64(bits.TrailingZeros64(pages)), group+uint64(bits.Len64(pages))-1
	r := a.homes[home]
	return high < uint64(len(a.pages)) && a.pageAt(uint32(low)) >= r.First && a.pageAt(uint32(high)) < r.Last
}

// takeCovered takes in what a grant covers besides its page: it is as if these pages had been parked here.
func (a *Agent) takeCovered(i uint32, pages uint64) {
	group := i &^ (groupPages - 1)
	for ; pages != 0; pages &= pages - 1 {
		j := group + uint32(bits.TrailingZeros64(pages))
		if p := &a.pages[j]; p.mode == wire.None {
			p.mode = wire.Shared
			p.marks |= parked
			a.cache.setGood(j, true)
		}
	}
}
