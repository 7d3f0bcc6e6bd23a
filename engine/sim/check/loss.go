package check

import (
	"math/bits"

	"ironspan/engine/coherence"
	"ironspan/engine/wire"
)

// checkLosses takes away no node, each, and each two, and holds what the agents of the others say of the pages against
// what is there. Whatever is still under way to a node that is left may arrive or not: so what they call safe may not
// depend on it, and what they call lost may not be part of it.
func (w *world) checkLosses() {
	for lost := uint64(0); lost < 1<<len(w.agents)-1; lost++ {
		if bits.OnesCount64(lost) <= 2 {
			w.checkLoss(lost)
		}
	}
}

func (w *world) checkLoss(lost uint64) {
	var room [16]coherence.Fate
	fates := append(room[:0], make([]coherence.Fate, len(w.cfg.Homes))...)
	for n, a := range w.agents {
		if lost>>n&1 == 1 {
			continue
		}
		a.Losses(lost, func(r coherence.Range, f coherence.Fate) {
			for p := r.First; p < r.Last; p++ {
				w.checkFate(wire.NodeID(n), p, f)
				if fates[p] != coherence.Kept {
					fates[p] = f
				}
			}
		})
	}
	for p, f := range fates {
		page, home := wire.PFN(p), w.cfg.homeOf(wire.PFN(p))
		if f == 0 && lost>>home&1 == 1 {
			f = coherence.Lost
		}
		if f == coherence.Uncertain {
			continue
		}
		there, usable := false, w.underWay(page, lost)
		for n := range w.nodes {
			if lost>>n&1 == 0 {
				has := w.has(wire.NodeID(n), page)
				usable = usable || has
				there = there || has || wire.NodeID(n) == home && w.nodes[n].pages[p].frame == current
			}
		}
		switch {
		case f == coherence.Lost && usable:
			w.fail("without nodes %b page %d counts as lost, and is there", lost, p)
		case f != coherence.Lost && !there:
			w.fail("without nodes %b page %d counts as safe (%v), and is not there", lost, p, f)
		}
	}
}

// checkFate checks what one node says of a page.
func (w *world) checkFate(n wire.NodeID, p wire.PFN, f coherence.Fate) {
	info, _ := w.agents[n].Inspect(p)
	switch {
	case f == coherence.Kept && !w.has(n, p):
		w.fail("node %d says that it has page %d, and has not", n, p)
	case f == coherence.Uncertain && !info.Busy && !info.Waiting:
		w.fail("node %d is uncertain of page %d, for which nothing is under way", n, p)
	}
}

// has says whether a node has the page's last written bytes mapped, keeps them until they are parked, or waits for
// acknowledgements with them in a slot.
func (w *world) has(n wire.NodeID, p wire.PFN) bool {
	x := w.at(n, p)
	if x.guest != wire.None {
		return x.frame == current
	}
	switch r, _ := w.agents[n].Roles(p); r.Requester {
	case "parking", "parking, wanted":
		return x.frame == current
	case "granted":
	default:
		return false
	}
	if w.zero[p] || x.frame == current {
		return true
	}
	for _, s := range w.nodes[n].slots {
		if s.page == p && s.bytes == current {
			return true
		}
	}
	return false
}

// underWay says whether the page's last written bytes are on their way to a node that is left, which will know that they
// are the last. A home does not know that of those that are parked there.
func (w *world) underWay(p wire.PFN, lost uint64) bool {
	for from := range w.links {
		for to, l := range w.links[from] {
			for i := range l {
				k := &l[i]
				if k.msg.Kind == wire.Parked {
					continue
				}
				if lost>>to&1 == 0 && k.msg.Page == p && (k.bytes == current || k.msg.Flags&wire.FlagZero != 0 && w.zero[p]) {
					return true
				}
			}
		}
	}
	return false
}
