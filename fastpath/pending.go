package fastpath

import "ironspan/engine/wire"

// pendingExtra is how many pages more than there are slots may wait: the agent's FIFO, and room to spare.
const pendingExtra = 2048

// pending remembers since when a page is waited for: a hash table with linear probing that is never more than
// half full and never grows. The agent bounds the pages that wait; should there be more, their times are not
// taken, and nothing else is lost.
type pending struct {
	slots []waiting
	mask  uint64
	n     int
}

type waiting struct {
	key   uint64 // page + 1; 0: free
	start int64  // when the fault was read
	sent  int64  // when other nodes were first asked; 0: not yet
}

func newPending(pages int) pending {
	size := 64
	for size < 2*pages {
		size *= 2
	}
	return pending{slots: make([]waiting, size), mask: uint64(size - 1)}
}

func (p *pending) home(key uint64) uint64 { return key * 0x9e3779b97f4a7c15 >> 20 & p.mask }

// begin notes that a page is waited for since now; false if it already is for longer, or there is no room.
func (p *pending) begin(page wire.PFN, now int64) bool {
	i, ok := p.find(page)
	if ok || 2*p.n >= len(p.slots) {
		return false
	}
	p.slots[i] = waiting{key: uint64(page) + 1, start: now}
	p.n++
	return true
}

// find returns the page's place, or that of the free slot where the search ended.
func (p *pending) find(page wire.PFN) (i uint64, ok bool) {
	key := uint64(page) + 1
	for i = p.home(key); p.slots[i].key != key; i = (i + 1) & p.mask {
		if p.slots[i].key == 0 {
			return i, false
		}
	}
	return i, true
}

// waits says whether a vCPU waits for a page.
func (p *pending) waits(page wire.PFN) bool {
	_, ok := p.find(page)
	return ok
}

// asked notes that other nodes are asked for a page, if it is waited for and this is the first time.
func (p *pending) asked(page wire.PFN, now int64) {
	if i, ok := p.find(page); ok && p.slots[i].sent == 0 {
		p.slots[i].sent = now
	}
}

// end forgets a page and returns what was noted about it.
func (p *pending) end(page wire.PFN) (w waiting, ok bool) {
	i, ok := p.find(page)
	if !ok {
		return waiting{}, false
	}
	w = p.slots[i]
	p.n--
	// Close the gap: move up what probed past it.
	for j := i; ; {
		j = (j + 1) & p.mask
		if p.slots[j].key == 0 {
			break
		}
		if (j-p.home(p.slots[j].key))&p.mask >= (j-i)&p.mask {
			p.slots[i] = p.slots[j]
			i = j
		}
	}
	p.slots[i] = waiting{}
	return w, true
}
