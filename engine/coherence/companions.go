package coherence

import "ironspan/engine/wire"

const (
	// companionsMax is how many pages are remembered: more than an instruction needs.
	companionsMax = 16

	// companionTrust is how often in a row a page is asked for along with others before a fault of its own has to
	// show that it is still needed. A page that nobody needs any more is fetched in vain at most that often.
	companionTrust = 8
)

// companions are the pages that were lately taken from this node while it was fighting for them: the set that its
// vCPUs need at the same time (page-table pages, with the data they lead to). When one of them is missed, all are
// asked for at once, so that collecting the set takes one round trip where it would take one for each page.
//
// The first n entries are in use, the next one to be replaced is at next.
type companions struct {
	n, next int
	set     [companionsMax]companion
}

type companion struct {
	index uint32
	trust uint8 // 0: wait for a fault
}

// find returns the entry of a page, or nil.
func (c *companions) find(i uint32) *companion {
	for k := range c.set[:c.n] {
		if c.set[k].index == i {
			return &c.set[k]
		}
	}
	return nil
}

// robbed notes that a page was taken away although it is fought over.
func (c *companions) robbed(i uint32) {
	if c.find(i) != nil {
		return
	}
	if c.n < companionsMax {
		c.set[c.n] = companion{index: i, trust: companionTrust}
		c.n++
		return
	}
	c.set[c.next] = companion{index: i, trust: companionTrust}
	c.next = (c.next + 1) % companionsMax
}

// askCompanions asks for the rest of the set of which page i was missed. Half of the slots are left to faults. Only
// few nodes do so: see precedes.
func (a *Agent) askCompanions(now int64, i uint32) {
	if a.nodes > fewNodes {
		return
	}
	missed := a.companions.find(i)
	if missed == nil {
		return
	}
	missed.trust = companionTrust
	for k := range a.companions.set[:a.companions.n] {
		c := &a.companions.set[k]
		p := &a.pages[c.index]
		if c.trust == 0 || p.mode != wire.None || p.slot != 0 || p.marks&(queuedAny|robbed) != robbed ||
			!a.spare(c.index) {
			continue
		}
		c.trust--
		a.stats.Companions++
		a.ask(now, c.index, a.pageAt(c.index), wire.Modified)
	}
}
