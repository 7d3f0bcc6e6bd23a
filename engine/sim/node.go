package sim

import (
	"math"

	"ironspan/engine/coherence"
	"ironspan/engine/wire"
)

// node is a driver with its memory. A page's bytes are one word; 0 is a page of zeros.
type node struct {
	id      int
	agent   *coherence.Agent
	home    coherence.Range
	guest   []wire.Mode // mapping of the guest view, by page
	frames  []uint64    // home frames and cached frames, by page
	slots   []uint64
	cached  int                // frames of other nodes' pages
	since   map[wire.PFN]int64 // when a page was asked for
	tickAt  int64
	vcpus   []vcpu
	inbox   []event // the agent is at the first
	slow    int64   // how many times as long everything takes
	crashed bool
	stopped bool // its vCPUs do nothing any more

	unasked uint64 // pages installed that no vCPU had faulted on
}

// ownAccount is how many pages the agent has asked for on its own account.
func (n *node) ownAccount() uint64 { return n.agent.Stats().Companions + n.agent.Stats().Prefetches }

// poison is what a receive slot holds that nothing was written to, or whose page was installed.
const poison = 0xdead_0000_0000_0000

// noFrame stands for the frame of a page that a node has none for.
const noFrame = 0xdead_ffff_ffff_ffff

func (c *cluster) addNode(id int) error {
	cfg := &c.cfg
	a, err := coherence.New(coherence.Config{
		Self: wire.NodeID(id), Homes: cfg.Homes, Shard: cfg.Shard, Shards: cfg.Shards, StripeShift: cfg.StripeShift,
		Epoch: 7, Slots: cfg.Slots, Tenure: cfg.Tenure, ReadAsWrite: cfg.ReadAsWrite,
		WalksWrite: cfg.WalksWrite, Migratory: cfg.Migratory, Prefetch: cfg.Prefetch, Cache: cfg.Cache,
		CoverFrom: cfg.CoverFrom,
	})
	if err != nil {
		return err
	}
	n := &node{
		id: id, agent: a, home: cfg.Homes[id], guest: make([]wire.Mode, len(c.truth)), frames: make([]uint64, len(c.truth)),
		slots: make([]uint64, cfg.Slots), since: map[wire.PFN]int64{}, tickAt: math.MaxInt64,
		vcpus: make([]vcpu, cfg.VCPUs), slow: 1,
	}
	if cfg.Slow > 0 && c.rng.Float64() < cfg.Slow {
		n.slow = int64(max(cfg.SlowBy, 1))
	}
	for p := range n.frames {
		n.frames[p] = noFrame
	}
	for p := n.home.First; p < n.home.Last; p++ {
		c.homes[p] = n
		if _, ours := a.Inspect(p); ours {
			n.guest[p] = wire.Modified
			n.frames[p] = 0
		}
	}
	for i := range n.slots {
		n.slots[i] = poison
	}
	c.nodes = append(c.nodes, n)
	for v := range n.vcpus {
		c.busy++
		c.plan(c.between(0, cfg.Latency[1]), event{what: evRun, node: id, vcpu: v})
	}
	return nil
}

func (n *node) isHome(p wire.PFN) bool { return p >= n.home.First && p < n.home.Last }

// fault hands a fault to the agent, which may know better by now.
func (c *cluster) fault(n *node, page wire.PFN, write bool) {
	c.result.Faults++
	need := wire.Shared
	if write {
		need = wire.Modified
	}
	// What the page allows by now nobody waits for.
	if _, asked := n.since[page]; !asked && n.guest[page] < need {
		n.since[page] = c.now
	}
	if s := n.agent.Fault(c.now, page, write); s != coherence.OK {
		c.fail("node %d: fault at page %d: %v", n.id, page, s)
		return
	}
	c.perform(n)
	if info, _ := n.agent.Inspect(page); !info.Waiting {
		delete(n.since, page)
	}
}

// message hands a message to the agent, twice at times: it has to see that the second is none.
func (c *cluster) message(n *node, e *event) {
	m := &e.msg
	switch m.Kind {
	case wire.Fetched:
		n.slots[m.Slot] = e.val
	case wire.Parked:
	default:
		c.costs.received(n.id, m, e.chain)
	}
	if s := n.agent.Step(c.now, m); s != coherence.OK {
		c.fail("node %d refuses %v from node %d for page %d of node %d: %v", n.id, m.Kind, m.From, m.Page, m.Requester, s)
		return
	}
	c.perform(n)
	if c.cfg.Idle > 0 && c.rng.Float64() < c.cfg.Idle {
		n.agent.Idle(c.now, c.rng.IntN(2) == 0)
		c.perform(n)
	}
	if c.cfg.Evict > 0 && c.rng.Float64() < c.cfg.Evict {
		if page := wire.PFN(c.rng.Int64N(int64(c.cfg.Homes[c.cfg.Nodes-1].Last))); n.agent.Evict(page) {
			c.perform(n)
		}
	}
	if c.cfg.Repeat > 0 && c.rng.Float64() < c.cfg.Repeat {
		if s := n.agent.Step(c.now, m); s == coherence.OK || len(n.agent.Actions()) > 0 {
			c.fail("node %d accepts a second %v from node %d for page %d of node %d", n.id, m.Kind, m.From, m.Page, m.Requester)
		}
	}
}

// land stores what a one-sided write carries.
func (c *cluster) land(n *node, e *event) {
	if e.late { // posted from a home frame without a copy, which must not have changed
		e.val = c.nodes[e.peer].frames[e.page]
	}
	if !e.flag {
		n.slots[e.slot] = e.val
		return
	}
	if m := n.guest[e.page]; m != wire.None {
		c.fail("node %d: page %d is written under the guest, which has it in %v", n.id, e.page, m)
	}
	n.frames[e.page] = e.val
}

// oneSided does what an OpPark or OpFetch of a peer asks for, in this node's home frame, and sends word.
func (c *cluster) oneSided(n *node, e *event) {
	if e.msg.Kind == wire.Parked && !c.landed(n, e) || e.msg.Kind == wire.Fetched && !c.arrives(e) {
		return
	}
	if e.msg.Kind == wire.Fetched {
		e.val = n.frames[e.page]
	}
	c.transmit(n.id, e.peer, event{what: evMessage, msg: e.msg, val: e.val})
}

// perform does what the agent wants, in order, and checks each action for sense, and the pages it was about.
func (c *cluster) perform(n *node) {
	actions := n.agent.Actions()
	for i := range actions {
		c.act(n, &actions[i])
	}
	for i := range actions {
		c.check(actions[i].Page)
	}
	n.agent.Clear()
	c.checkCached(n)
	if next := n.agent.Next(); next < n.tickAt {
		n.tickAt = next
		c.plan(max(next-c.now, 0)+c.pace(n, 0, c.cfg.FaultLatency), event{what: evTick, node: n.id})
	}
}

func (c *cluster) act(n *node, a *coherence.Action) {
	guest := n.guest[a.Page]
	switch a.Op {
	case coherence.OpSend:
		m := a.Msg
		c.post(n, a, &m)
	case coherence.OpSendPage:
		c.sendPage(n, a, guest)
	case coherence.OpPark, coherence.OpFetch:
		c.expect(n, a, guest == wire.None && !n.isHome(a.Page) && a.Msg.From == a.Peer && int(a.Peer) == c.homes[a.Page].id)
		c.transmit(n.id, int(a.Peer), event{what: evOneSided, page: a.Page, val: n.frames[a.Page], flag: true, msg: a.Msg})
	case coherence.OpProtect:
		c.drainNode(n)
		c.expect(n, a, guest == wire.Modified)
		n.guest[a.Page] = wire.Shared
	case coherence.OpUnmap:
		c.drainNode(n)
		c.expect(n, a, guest != wire.None)
		n.guest[a.Page] = wire.None
	case coherence.OpDiscard:
		c.expect(n, a, guest == wire.None && !n.isHome(a.Page))
		if n.frames[a.Page] != noFrame {
			n.cached--
		}
		n.frames[a.Page] = noFrame
	case coherence.OpZeroFrame:
		c.expect(n, a, guest == wire.None && n.isHome(a.Page))
		n.frames[a.Page] = 0
	case coherence.OpInstall:
		c.expect(n, a, guest == wire.None && a.Mode != wire.None)
		c.install(n, a)
		c.wake(n, a.Page)
	case coherence.OpUnprotect:
		c.expect(n, a, guest == wire.Shared)
		n.guest[a.Page] = wire.Modified
		c.served(n, a.Page)
		c.wake(n, a.Page)
	case coherence.OpWake:
		c.expect(n, a, guest == a.Mode)
		c.wake(n, a.Page)
	default:
		c.fail("node %d: action %d", n.id, a.Op)
	}
}

func (c *cluster) expect(n *node, a *coherence.Action, ok bool) {
	if !ok {
		c.fail("node %d: action %v on page %d, which the guest has in %v", n.id, a.Op, a.Page, n.guest[a.Page])
	}
}

func (c *cluster) sendPage(n *node, a *coherence.Action, guest wire.Mode) {
	val := n.frames[a.Page]
	c.expect(n, a, val != noFrame && guest != wire.Modified)
	m := a.Msg
	if val == 0 {
		m.Flags |= wire.FlagZero
	} else {
		m.Flags |= wire.FlagData
		land := event{what: evLand, page: a.Page, slot: m.Slot, val: val, flag: c.nodes[a.Peer].isHome(a.Page)}
		land.late = n.isHome(a.Page) && c.rng.IntN(2) == 0
		c.transmit(n.id, int(a.Peer), land)
	}
	c.post(n, a, &m)
}

func (c *cluster) post(n *node, a *coherence.Action, m *wire.Message) {
	if int(a.Peer) >= len(c.nodes) || int(a.Peer) == n.id || m.From != wire.NodeID(n.id) {
		c.fail("node %d sends %v as node %d to node %d", n.id, m.Kind, m.From, a.Peer)
		return
	}
	var b [wire.Size]byte
	var decoded wire.Message
	m.Encode(b[:])
	if err := decoded.Decode(b[:]); err != nil || decoded != *m {
		c.fail("node %d sends %+v: %v", n.id, *m, err)
		return
	}
	c.transmit(n.id, int(a.Peer), event{what: evMessage, msg: decoded, chain: c.costs.sent(n.id, m)})
}

func (c *cluster) install(n *node, a *coherence.Action) {
	zero := a.Msg.Flags&wire.FlagZero != 0
	if n.frames[a.Page] == noFrame {
		n.cached++
	}
	switch {
	case zero:
		n.frames[a.Page] = 0
	case !n.isHome(a.Page):
		n.frames[a.Page] = n.slots[a.Slot]
		n.slots[a.Slot] = poison
	}
	n.guest[a.Page] = a.Mode
	if got := n.frames[a.Page]; got != c.truth[a.Page] {
		c.fail("node %d installs page %d in %v with value %#x, the last written is %#x", n.id, a.Page, a.Mode, got, c.truth[a.Page])
	}
	c.served(n, a.Page)
}

// checkCached counts the frames of pages homed elsewhere.
func (c *cluster) checkCached(n *node) {
	if s := n.agent.Stats(); uint64(n.cached) != s.Cached || c.cfg.Cache > 0 && n.cached > c.cfg.Cache {
		c.fail("node %d has %d frames of other nodes' pages, its agent counts %d, the bound is %d", n.id, n.cached, s.Cached, c.cfg.Cache)
	}
}

// served closes the book on a request.
func (c *cluster) served(n *node, page wire.PFN) {
	c.costs.served(n.id, page)
	since, ok := n.since[page]
	if !ok { // a companion, then
		if n.unasked++; n.unasked > n.ownAccount() {
			c.fail("node %d gets page %d, for which it did not ask", n.id, page)
		}
		return
	}
	delete(n.since, page)
	wait := c.now - since
	c.result.WorstNs = max(c.result.WorstNs, wait)
	if wait > c.bound() && !c.failed {
		c.fail("node %d waited %d ns for page %d, bound is %d", n.id, wait, page, c.bound())
	}
}

// bound is the longest time that a request may take: its turn comes after that of every other node, each of
// which takes a tenure and four messages; and before that it may have waited for a slot, which is the same
// time again for each page that was before it. Where pages are parked, each of these may have waited for one that was,
// and the page itself have been parked before.
//
// A message waits for its turn with the agent that takes it. There it meets at most what belongs to requests, which are
// as many as there are slots: two messages and an invalidation of each, one of the node's faults for each vCPU, a tick.
func (c *cluster) bound() int64 {
	hop := int64(c.cfg.Latency[1])
	if c.cfg.Spread != Uniform {
		hop *= tail
	}
	if c.cfg.Clogged > 0 {
		hop *= cloggedBy
	}
	slow := int64(1)
	if c.cfg.Slow > 0 {
		slow = int64(max(c.cfg.SlowBy, 1))
	}
	inbox := 3*c.cfg.Nodes*min(c.cfg.Slots, c.cfg.VCPUs+c.cfg.Prefetch) + c.cfg.VCPUs + 1
	hop += int64(c.cfg.Service) * slow * int64(inbox)
	one := int64(c.cfg.Tenure.Max) + 6*hop + 4*int64(c.cfg.FaultLatency)*slow
	turns := 1 + (c.cfg.VCPUs+c.cfg.Slots-1)/c.cfg.Slots
	if c.cfg.Cache > 0 || c.cfg.Evict > 0 {
		turns = 2 * (1 + c.cfg.VCPUs)
	}
	return int64(c.cfg.Nodes) * one * int64(turns)
}
