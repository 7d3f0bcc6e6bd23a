package sim

import (
	"time"

	"ironspan/engine/coherence"
	"ironspan/engine/wire"
)

// vcpu is a virtual CPU: it does operations, one after the other.
type vcpu struct {
	op      []Access
	has     bool // op is to be done
	blocked bool // waits for page
	page    wire.PFN
	done    int
	tries   int     // of op
	called  int     // event of the first
	thread  *thread // what it does instead
}

// run lets a vCPU do its operation, or fault at the first page that it lacks.
func (c *cluster) run(n *node, id int) {
	v := &n.vcpus[id]
	if v.thread != nil {
		c.runThread(n, id, v.thread)
		return
	}
	if !v.has {
		if c.cfg.Ops > 0 && v.done == c.cfg.Ops {
			c.busy--
			return
		}
		var think time.Duration
		v.op, think = c.cfg.Workload(c.rng, n.id, id, v.done)
		v.op = append([]Access(nil), v.op...)
		v.has = true
		v.tries = 0
		if think > 0 {
			c.plan(c.pace(n, 0, 2*think), event{what: evRun, node: n.id, vcpu: id})
			return
		}
	}
	if v.tries == 0 {
		v.called = c.result.Events
	}
	for _, x := range v.op {
		need := wire.Shared
		if x.Write {
			need = wire.Modified
		}
		if !c.mapped(n, id, x.Page, need) {
			return
		}
	}
	for _, x := range v.op {
		c.access(n, id, x)
	}
	v.has = false
	c.done(v)
	c.plan(1, event{what: evRun, node: n.id, vcpu: id})
}

func (c *cluster) done(v *vcpu) {
	v.done++
	if c.failed {
		c.result.Aftermath.Ops++
	}
}

// mapped says whether the guest may use a page. If not, the vCPU faults on it.
func (c *cluster) mapped(n *node, id int, page wire.PFN, need wire.Mode) bool {
	if n.guest[page] >= need {
		return true
	}
	v := &n.vcpus[id]
	v.blocked = true
	v.page = page
	v.tries++
	c.plan(c.pace(n, 1, c.cfg.FaultLatency), event{what: evFault, node: n.id, page: page, flag: need == wire.Modified})
	return false
}

// access reads or writes a page that the guest has mapped. There is one clock, and a mapping is gone when its
// driver says so, so a read has to see the very last write.
func (c *cluster) access(n *node, id int, x Access) {
	got := n.frames[x.Page]
	if got != c.truth[x.Page] {
		c.fail("node %d reads %#x from page %d, the last written is %#x", n.id, got, x.Page, c.truth[x.Page])
	}
	in := access{reads: true, writes: x.Write}
	if x.Write {
		if c.rng.Float64() >= c.cfg.Zeros {
			c.last++
			in.val = c.last
		}
		in.reads = c.last%2 == 0 || c.cfg.Nodes*c.cfg.VCPUs > plainMost
		n.frames[x.Page] = in.val
		c.truth[x.Page] = in.val
	}
	if c.history != nil {
		c.history.note(x.Page, n.id*c.cfg.VCPUs+id, n.vcpus[id].called, c.result.Events, in, got)
	}
}

// wake lets go all that wait for a page, also those of whose faults the agent has not heard yet.
func (c *cluster) wake(n *node, page wire.PFN) {
	for i := range n.vcpus {
		if v := &n.vcpus[i]; v.blocked && v.page == page {
			v.blocked = false
			c.plan(c.pace(n, 1, c.cfg.FaultLatency), event{what: evRun, node: n.id, vcpu: i})
		}
	}
}

// check holds a page against the invariants.
func (c *cluster) check(page wire.PFN) {
	writers, readers := 0, 0
	home := c.homes[page]
	for _, n := range c.nodes {
		g := n.guest[page]
		switch g {
		case wire.Modified:
			writers++
		case wire.Shared:
			readers++
		}
		if m := n.agent.Mode(page); m != g {
			c.fail("node %d has page %d in %v, its agent thinks %v", n.id, page, g, m)
		}
	}
	if writers > 1 || writers == 1 && readers > 0 {
		c.fail("page %d has %d writers and %d readers", page, writers, readers)
		return
	}
	info, ok := home.agent.Inspect(page)
	if !ok || !info.Home {
		c.fail("page %d: node %d says it is not its home", page, home.id)
		return
	}
	if info.Busy {
		return
	}
	if (info.Shared || int(info.Owner) == home.id) && home.frames[page] != c.truth[page] {
		c.fail("page %d: home frame holds %#x, the last written is %#x", page, home.frames[page], c.truth[page])
	}
	for _, n := range c.nodes {
		if g := n.guest[page]; g > right(&info, n.id) {
			c.fail("page %d: node %d has it in %v, the directory gives it %v", page, n.id, g, right(&info, n.id))
		}
	}
}

// checkAtRest is check for all pages when nothing is under way any more: then nobody waits, and directory
// and mappings agree exactly.
func (c *cluster) checkAtRest() {
	for _, n := range c.nodes {
		for i := range n.vcpus {
			if v := &n.vcpus[i]; v.blocked {
				info, _ := n.agent.Inspect(v.page)
				c.fail("deadlock: vcpu %d of node %d waits for page %d (%+v), and nothing happens any more", i, n.id, v.page, info)
			}
		}
	}
	for _, n := range c.nodes {
		for p := n.home.First; p < n.home.Last; p++ {
			info, ok := n.agent.Inspect(p)
			if !ok {
				continue
			}
			c.check(p)
			if info.Busy || info.Queue > 0 || info.Deferred {
				c.fail("page %d at rest: %+v", p, info)
			}
			for _, m := range c.nodes {
				mine, _ := m.agent.Inspect(p)
				if mine.Right != right(&info, m.id) {
					c.fail("page %d at rest: node %d has a right to it of %v, the directory says %v", p, m.id, mine.Right, right(&info, m.id))
				}
				if mine.Mode != mine.Right && n.frames[p] != c.truth[p] {
					c.fail("page %d at rest: parked by node %d, and the home frame holds %#x, the last written is %#x", p, m.id, n.frames[p], c.truth[p])
				}
			}
		}
	}
}

// right is what the directory lets a node have.
func right(info *coherence.PageInfo, node int) wire.Mode {
	switch {
	case info.Shared && info.Sharers>>node&1 == 1:
		return wire.Shared
	case !info.Shared && int(info.Owner) == node:
		return wire.Modified
	}
	return wire.None
}
