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
	start int64
}

func newPending(pages int) pending {
	size := 64
	for size < 2*pages {
		size *= 2
	}
	return pending{slots: make([]waiting, size), mask: uint64(size - 1)}
}

func (p *pending) home(key uint64) uint64 { return key * 0x9e3779b97f4a7c15 >> 20 & p.mask }

// begin notes that a page is waited for since now, unless it already is for longer.
func (p *pending) begin(page wire.PFN, now int64) {
	key := uint64(page) + 1
	i := p.home(key)
	for p.slots[i].key != 0 {
		if p.slots[i].key == key {
			return
		}
		i = (i + 1) & p.mask
	}
	if 2*p.n >= len(p.slots) {
		return
	}
	p.slots[i] = waiting{key: key, start: now}
	p.n++
}

// end forgets a page and returns since when it was waited for.
func (p *pending) end(page wire.PFN) (start int64, ok bool) {
	key := uint64(page) + 1
	i := p.home(key)
	for p.slots[i].key != key {
		if p.slots[i].key == 0 {
			return 0, false
		}
		i = (i + 1) & p.mask
	}
	start = p.slots[i].start
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
	return start, true
}
