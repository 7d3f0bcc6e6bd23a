package sim

import (
	"slices"
	"strings"

	"ironspan/engine/coherence"
	"ironspan/engine/wire"
)

// Losses counts the pages of each fate after a failure.
type Losses struct{ Kept, Gone, Uncertain int }

// checkLosses asks the agents of the nodes that are left what was lost, and holds their answer against what is there.
func (c *cluster) checkLosses() {
	lost := uint64(0)
	for _, n := range c.nodes {
		if n.crashed {
			lost |= 1 << n.id
		}
	}
	said := make([]coherence.Fate, len(c.truth)) // what the nodes say together
	for _, n := range c.nodes {
		if n.crashed {
			continue
		}
		next := wire.PFN(0)
		n.agent.Losses(lost, func(r coherence.Range, f coherence.Fate) {
			if r.First < next || r.Last <= r.First || int(r.Last) > len(c.truth) {
				c.fail("node %d says that pages %d to %d are %v, after those before %d", n.id, r.First, r.Last, f, next)
				return
			}
			next = r.Last
			for p := r.First; p < r.Last; p++ {
				c.checkFate(n, p, f)
				if said[p] != coherence.Kept {
					said[p] = f
				}
			}
		})
	}
	for p, f := range said {
		if _, ours := c.nodes[0].agent.Inspect(wire.PFN(p)); !ours {
			continue
		}
		page, home := wire.PFN(p), c.homes[p]
		if f == 0 && home.crashed {
			f = coherence.Lost
		}
		there := slices.ContainsFunc(c.nodes, func(n *node) bool { return !n.crashed && c.has(n, page) })
		mapped := slices.ContainsFunc(c.nodes, func(n *node) bool { return !n.crashed && n.guest[page] != wire.None })
		switch {
		case !there && f != coherence.Lost && f != coherence.Uncertain:
			c.fail("page %d of node %d: nobody has %#x, which was last written, and it counts as safe (%v)", p, home.id, c.truth[p], f)
		case mapped && f == coherence.Lost:
			c.fail("page %d of node %d counts as lost, and a node that is left has it mapped", p, home.id)
		case f == coherence.Lost && !home.crashed && c.good(page):
			c.fail("page %d of node %d counts as lost, and the home frame is good", p, home.id)
		}
		switch f {
		case coherence.Kept:
			c.result.Aftermath.Kept++
		case coherence.Lost:
			c.result.Aftermath.Gone++
		case coherence.Uncertain:
			c.result.Aftermath.Uncertain++
		}
	}
}

// checkFate checks what a node says of a page.
func (c *cluster) checkFate(n *node, page wire.PFN, f coherence.Fate) {
	info, ours := n.agent.Inspect(page)
	home := c.homes[page]
	switch {
	case !ours || !n.isHome(page) && !home.crashed:
		c.fail("node %d speaks of page %d of node %d, which is not its own and not lost", n.id, page, home.id)
	case f == coherence.Kept && (n.isHome(page) || !c.has(n, page)):
		c.fail("node %d says that it has page %d of node %d, and has not", n.id, page, home.id)
	case f == coherence.Lost && !n.isHome(page):
		c.fail("node %d says that page %d of node %d is lost, and cannot know", n.id, page, home.id)
	case f == coherence.Uncertain && !info.Busy && !info.Waiting:
		c.fail("node %d is uncertain of page %d of node %d, for which nothing is under way: %+v", n.id, page, home.id, info)
	}
}

// good says whether the directory calls the home frame of a page good.
func (c *cluster) good(page wire.PFN) bool {
	info, _ := c.homes[page].agent.Inspect(page)
	return info.Shared && !info.Busy
}

// has says whether what was last written to a page is at a node: in a frame that the guest has mapped or that is being
// parked, in the home frame, or in a slot in which the page waits for acknowledgements.
func (c *cluster) has(n *node, page wire.PFN) bool {
	val := c.truth[page]
	if n.guest[page] != wire.None || n.isHome(page) {
		return n.frames[page] == val
	}
	r, _ := n.agent.Roles(page)
	if strings.HasPrefix(r.Requester, "parking") {
		info, _ := n.agent.Inspect(page)
		return info.Right != wire.None && n.frames[page] == val
	}
	return r.Requester == "granted" && (val == 0 || slices.Contains(n.slots, val))
}
