package sim

import (
	"time"

	"ironspan/engine/wire"
)

// What can fail, and what that leads to. A queue pair that breaks leaves open what became of the packets on it: in each
// direction some of them still arrive, in their order, and the rest never does. A write that is cut off may have
// landed in part. Each end learns of it when it likes. The first to learn ends the VM: each node's vCPUs stop, each in
// its time, and agents go on serving what they can meanwhile, since they are not told. So until the last vCPU stops
// every check of a run without failures holds, but for those that somebody is waiting for in vain.

// Crash is the end of a node, with all its links.
type Crash struct {
	Node int
	At   time.Duration
}

// Break is the end of the links between two nodes, which both go on. It waits until there is something on the links.
type Break struct {
	A, B int
	At   time.Duration
}

// Aftermath is what happened after a failure, and because of it.
type Aftermath struct {
	Ops     int // done by vCPUs that had not been stopped yet
	Late    int // packets of a broken link that arrived all the same
	Lost    int // packets that did not
	Torn    int // writes that landed in part
	Blocked int // vCPUs of nodes that are left, which in the end waited for a page

	Losses // what the nodes that are left say of the pages
}

func (c *cluster) planFailures() {
	for _, x := range c.cfg.Crash {
		c.plan(int64(x.At), event{what: evCrash, node: x.Node})
	}
	for _, x := range c.cfg.Break {
		c.plan(int64(x.At), event{what: evBreak, node: x.A, peer: x.B})
	}
}

// crash ends a node. What it sent is on its links, and shares their fate.
func (c *cluster) crash(n *node) {
	n.crashed = true
	for peer := range c.nodes {
		if peer != n.id {
			c.breakPair(n.id, peer)
		}
	}
}

// breakUnderWay breaks the links between two nodes over something that is on them, if need be later.
func (c *cluster) breakUnderWay(a, b int) {
	to, from := &c.links[a][b], &c.links[b][a]
	to.doomed = to.sent == to.arrived && from.sent == from.arrived
	from.doomed = to.doomed
	if !to.doomed {
		c.breakPair(a, b)
	}
}

// breakPair breaks both directions between two nodes, unless that has happened.
func (c *cluster) breakPair(a, b int) {
	c.failed = true
	if c.links[a][b].broken {
		return
	}
	c.cut(a, b)
	c.cut(b, a)
	for _, x := range [2][2]int{{a, b}, {b, a}} {
		c.plan(c.between(c.cfg.Detect[0], c.cfg.Detect[1]), event{what: evLearn, node: x[0], peer: x[1]})
	}
}

// cut draws what becomes of what is on a link.
func (c *cluster) cut(from, to int) {
	l := &c.links[from][to]
	l.broken = true
	l.last = l.arrived + uint64(c.rng.Int64N(int64(l.sent-l.arrived)+1))
	l.torn = c.rng.IntN(2) == 0
}

// arrives says whether a packet gets to where it was sent.
func (c *cluster) arrives(e *event) bool {
	l := &c.links[e.peer][e.node]
	if l.deaf || l.broken && e.nth > l.last {
		c.result.Aftermath.Lost++
		return false
	}
	l.arrived = e.nth
	if l.broken {
		c.result.Aftermath.Late++
	}
	return true
}

// landed is what a one-sided write leaves: itself, nothing or, if it is the one that was cut off, rubbish. It says
// whether it was the first.
func (c *cluster) landed(n *node, e *event) bool {
	l := &c.links[e.peer][e.node]
	switch {
	case c.arrives(e):
		c.land(n, e)
		return true
	case !l.deaf && l.torn && e.nth == l.last+1:
		e.val, e.late = poison, false
		c.land(n, e)
		c.result.Aftermath.Torn++
	}
	return false
}

// learn tells a node that it has lost a peer: it takes no more from it. The first node to learn anything ends the VM.
func (c *cluster) learn(n *node, peer int) {
	c.links[peer][n.id].deaf = true
	if c.ending {
		return
	}
	c.ending = true
	for _, m := range c.nodes {
		c.plan(c.between(c.cfg.Detect[0], c.cfg.Detect[1]), event{what: evStop, node: m.id})
	}
}

// afterLoss looks at what is left when nothing happens any more after a failure.
func (c *cluster) afterLoss() {
	for _, n := range c.nodes {
		if !n.crashed && !n.stopped {
			c.fail("node %d goes on after the loss of a node or link", n.id)
		}
		for i := range n.vcpus {
			if !n.crashed && n.vcpus[i].blocked {
				c.result.Aftermath.Blocked++
			}
		}
	}
	for p := range c.truth {
		if _, ours := c.nodes[0].agent.Inspect(wire.PFN(p)); ours {
			c.check(wire.PFN(p))
		}
	}
	c.checkLosses()
}
