package check

import (
	"fmt"
	"math"
	"slices"

	"ironspan/engine/coherence"
	"ironspan/engine/wire"
)

// world is one state, unfolded: agents, links and memory.
type world struct {
	cfg    *Config
	agents []*coherence.Agent
	nodes  []node
	links  [][][]packet // [from][to]
	words  [][][]packet // [home][node]: word of operations that are over, on its way to who asked for them
	zero   []bool       // by page: the last written are zeros
	err    error        // the first violation
	trace  func(format string, args ...any)
}

// node is a driver with its memory and its vCPUs.
type node struct {
	now           int64
	reads, writes int // budget
	pages         []page
	slots         []receiveSlot
	evictions     int // budget
	idle          bool
}

// page is a page at a node.
type page struct {
	guest          wire.Mode // mapping of the guest view
	frame          content   // home frame, or cached frame
	reader, writer vcpu
}

// receiveSlot is a receive slot, with the bytes of a page that is not installed yet.
type receiveSlot struct {
	page  wire.PFN
	bytes content
}

// content is what memory holds of a page.
type content uint8

const (
	absent  content = iota // nothing: no frame, or an unused slot
	stale                  // not the last written
	current                // the last written
)

// vcpu is what a virtual CPU that wants to read (or write) a page is at.
type vcpu uint8

const (
	elsewhere vcpu = iota
	woken          // will try again
	blocked        // waits for its fault
)

// packet is a message on its way, with the page's bytes if it carries them; or an operation on the receiver's home frame,
// which turns into the word that it is over.
type packet struct {
	msg   wire.Message
	bytes content
}

func newWorld(cfg *Config) (*world, error) {
	agents, err := cfg.agents()
	if err != nil {
		return nil, err
	}
	w := &world{cfg: cfg, agents: agents, nodes: make([]node, cfg.Nodes), zero: make([]bool, len(cfg.Homes))}
	for n := range w.nodes {
		w.links = append(w.links, make([][]packet, cfg.Nodes))
		w.words = append(w.words, make([][]packet, cfg.Nodes))
		x := &w.nodes[n]
		*x = node{
			now: cfg.start(), reads: cfg.Reads[n], writes: cfg.Writes[n],
			pages: make([]page, len(cfg.Homes)), slots: make([]receiveSlot, cfg.Slots),
		}
		if cfg.Evictions != nil {
			x.evictions = cfg.Evictions[n]
		}
		for p := range x.pages {
			if cfg.Homes[p] == n {
				x.pages[p] = page{guest: wire.Modified, frame: current}
			}
		}
	}
	for p := range w.zero {
		w.zero[p] = cfg.Zeros // memory begins as zeros, if that is looked at
	}
	return w, nil
}

func (w *world) at(n wire.NodeID, p wire.PFN) *page { return &w.nodes[n].pages[p] }

// fail notes the first violation.
func (w *world) fail(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf(format, args...)
	}
}

func (w *world) say(format string, args ...any) {
	if w.trace != nil {
		w.trace(format, args...)
	}
}

// what happens next
type what uint8

const (
	runRead    what = iota // a vCPU that was woken tries again
	runWrite               // the same
	deliver                // the first message from peer arrives, or operation
	conclude               // the first word of an operation at peer arrives
	tick                   // the deadline is met
	wait                   // the clock goes on, and a deadline is still to come
	startRead              // a vCPU wants to read
	startWrite             // or to write
	park                   // the node parks a page
	halt                   // all vCPUs of the node are halted, or run again
	pass                   // the clock goes on, and nothing waits for it
)

// event is a transition.
type event struct {
	what what
	node wire.NodeID
	peer wire.NodeID
	page wire.PFN
	flag bool // of a write: what is written are zeros; of any other: it is time for a trial (migratory pages)
}

func (e event) String() string {
	switch e.what {
	case deliver:
		return fmt.Sprintf("node %d gets a message from node %d", e.node, e.peer)
	case tick:
		return fmt.Sprintf("node %d meets its deadline", e.node)
	case wait, pass:
		return fmt.Sprintf("node %d's clock goes on", e.node)
	case conclude:
		return fmt.Sprintf("node %d gets word of an operation at node %d", e.node, e.peer)
	case park:
		return fmt.Sprintf("node %d parks page %d", e.node, e.page)
	case halt:
		return fmt.Sprintf("node %d's vCPUs halt, or run again", e.node)
	case runRead, startRead:
		return fmt.Sprintf("node %d reads page %d", e.node, e.page)
	}
	if e.flag {
		return fmt.Sprintf("node %d writes zeros to page %d", e.node, e.page)
	}
	return fmt.Sprintf("node %d writes page %d", e.node, e.page)
}

// events appends what can happen. If the first of them gives no new work, it is the designated one.
func (w *world) events(list []event) []event {
	list = w.runs(list, true)
	if w.cfg.Prompt {
		if list = w.runs(list, false); len(list) > 0 {
			return list
		}
	}
	for from := range w.links {
		for to, l := range w.links[from] {
			if len(l) > 0 {
				list = append(list, event{what: deliver, node: wire.NodeID(to), peer: wire.NodeID(from)})
			}
			if len(w.words[from][to]) > 0 {
				list = append(list, event{what: conclude, node: wire.NodeID(to), peer: wire.NodeID(from)})
			}
		}
	}
	for n, a := range w.agents {
		next := a.Next()
		switch {
		case next == math.MaxInt64 || w.cfg.tamper != nil && w.cfg.tamper.noTicks:
		case next <= w.nodes[n].now:
			list = append(list, event{what: tick, node: wire.NodeID(n)})
		default:
			list = append(list, event{what: wait, node: wire.NodeID(n)})
		}
	}
	list = w.runs(list, false)
	list = w.begins(list)
	if w.cfg.Migratory {
		for _, e := range list {
			if e.canTry() && slices.Contains(w.cfg.Homes, int(e.node)) {
				e.flag = true
				list = append(list, e)
			}
		}
	}
	return list
}

// canTry says whether a read can begin at its home by the event.
func (e event) canTry() bool {
	return e.what == deliver || e.what == conclude || e.what == tick || e.what == halt || e.what == runRead || e.what == startRead
}

// runs appends the vCPUs that were woken, those that get on or those that fault again.
func (w *world) runs(list []event, on bool) []event {
	for n := range w.nodes {
		for p := range w.nodes[n].pages {
			x := &w.nodes[n].pages[p]
			e := event{node: wire.NodeID(n), page: wire.PFN(p)}
			if x.reader == woken && x.guest != wire.None == on {
				e.what = runRead
				list = append(list, e)
			}
			if x.writer == woken && x.guest == wire.Modified == on {
				e.what = runWrite
				list = w.writes(list, e, x)
			}
		}
	}
	return list
}

// writes appends a write, with each of the values that make a difference.
func (w *world) writes(list []event, e event, x *page) []event {
	list = append(list, e)
	if w.cfg.Zeros && x.guest == wire.Modified {
		e.flag = true
		list = append(list, e)
	}
	return list
}

// begins appends what gives new work, or is no progress.
func (w *world) begins(list []event) []event {
	for n := range w.nodes {
		for p := range w.nodes[n].pages {
			x := &w.nodes[n].pages[p]
			e := event{node: wire.NodeID(n), page: wire.PFN(p)}
			if x.reader == elsewhere && x.guest == wire.None && w.nodes[n].reads > 0 {
				e.what = startRead
				list = append(list, e)
			}
			if x.writer == elsewhere && w.nodes[n].writes > 0 {
				e.what = startWrite
				list = w.writes(list, e, x)
			}
			if w.nodes[n].evictions > 0 && w.agents[n].CanEvict(e.page) {
				e.what = park
				list = append(list, e)
			}
		}
		e := event{node: wire.NodeID(n)}
		if next := w.agents[n].Next(); w.cfg.Tenure.Base > 0 && (next <= w.nodes[n].now || next == math.MaxInt64) {
			e.what = pass
			list = append(list, e)
		}
		if w.cfg.Idle {
			e.what = halt
			list = append(list, e)
		}
	}
	return list
}

// onlyDrains says whether the event gives no new work, so that it may be a designated one.
func (e event) onlyDrains() bool { return e.what <= wait }

// apply lets an event happen.
func (w *world) apply(e event) {
	n := &w.nodes[e.node]
	a := w.agents[e.node]
	w.say("%v", e)
	a.TrialNext(e.flag && e.canTry())
	switch e.what {
	case startRead:
		n.reads--
		w.run(e)
	case startWrite:
		n.writes--
		w.run(e)
	case runRead, runWrite:
		w.run(e)
	case deliver:
		w.deliver(e)
	case tick:
		w.input(e.node, -1, endOfTenure, func() coherence.Status { a.Tick(n.now); return coherence.OK })
	case conclude:
		w.conclude(e)
	case park:
		n.evictions--
		w.input(e.node, int(e.page), eviction, func() coherence.Status { a.Evict(e.page); return coherence.OK })
	case wait, pass:
		n.now += int64(step)
	case halt:
		n.idle = !n.idle
		w.input(e.node, -1, endOfTenure, func() coherence.Status { a.Idle(n.now, n.idle); return coherence.OK })
	}
	if w.err == nil {
		w.refault(e.node)
		w.check()
	}
}

// run lets a vCPU read or write, or fault.
func (w *world) run(e event) {
	x := w.at(e.node, e.page)
	write := e.what == runWrite || e.what == startWrite
	v, need, fault := &x.reader, wire.Shared, readFault
	if write {
		v, need, fault = &x.writer, wire.Modified, writeFault
	}
	if x.guest < need {
		*v = blocked
		a, now := w.agents[e.node], w.nodes[e.node].now
		s := w.input(e.node, int(e.page), fault, func() coherence.Status { return a.Fault(now, e.page, write) })
		if s != coherence.OK {
			w.fail("node %d: fault on page %d: %v", e.node, e.page, s)
		}
		return
	}
	*v = elsewhere
	if !write {
		return
	}
	w.zero[e.page] = e.flag
	for n := range w.nodes {
		w.nodes[n].pages[e.page].frame.age()
	}
	for from := range w.links {
		for to := range w.links[from] {
			for _, l := range [...][]packet{w.links[from][to], w.words[from][to]} {
				for i := range l {
					if k := &l[i]; k.msg.Page == e.page {
						k.bytes.age()
					}
				}
			}
		}
	}
	for n := range w.nodes {
		for s := range w.nodes[n].slots {
			if k := &w.nodes[n].slots[s]; k.page == e.page {
				k.bytes.age()
			}
		}
	}
	x.frame = current
}

// age makes the last written bytes those before the last.
func (c *content) age() {
	if *c == current {
		*c = stale
	}
}

func pop(link *[]packet) packet {
	k := (*link)[0]
	*link = (*link)[:copy(*link, (*link)[1:])]
	return k
}

// deliver hands over the first message of a link, or does what the first operation is.
func (w *world) deliver(e event) {
	k := pop(&w.links[e.peer][e.node])
	w.say("    %s", describe(&k.msg))
	frame := &w.at(e.node, k.msg.Page).frame
	switch {
	case k.msg.Kind == wire.Parked:
		*frame = k.bytes
		k.bytes = absent
	case k.msg.Kind == wire.Fetched:
		k.bytes = *frame
	default:
		if k.msg.Flags&wire.FlagData != 0 {
			w.land(e, &k)
		}
		w.hand(e, &k.msg)
		return
	}
	w.words[e.node][e.peer] = append(w.words[e.node][e.peer], k)
}

// conclude hands over the first word of an operation. The slot of one that came to nothing is free again.
func (w *world) conclude(e event) {
	k := pop(&w.words[e.peer][e.node])
	w.say("    %s", describe(&k.msg))
	slot := &w.nodes[e.node].slots[k.msg.Slot]
	if k.msg.Kind == wire.Fetched {
		if slot.bytes != absent {
			w.fail("node %d: slot %d is written while it is in use", e.node, k.msg.Slot)
		}
		*slot = receiveSlot{k.msg.Page, k.bytes}
	}
	w.hand(e, &k.msg)
	*slot = receiveSlot{}
}

// hand gives a message to its agent, twice: the second has to be refused.
func (w *world) hand(e event, m *wire.Message) {
	a, now := w.agents[e.node], w.nodes[e.node].now
	s := w.input(e.node, int(m.Page), inputOf(m), func() coherence.Status { return a.Step(now, m) })
	if s != coherence.OK {
		w.fail("node %d refuses %s from node %d: %v", e.node, describe(m), e.peer, s)
		return
	}
	if s := a.Step(now, m); s == coherence.OK || len(a.Actions()) > 0 {
		w.fail("node %d accepts a second %s from node %d", e.node, describe(m), e.peer)
	}
}

// land stores the bytes that arrive before their message.
func (w *world) land(e event, k *packet) {
	p := k.msg.Page
	if w.cfg.homeOf(p) == e.peer && w.at(e.peer, p).frame != k.bytes {
		w.fail("home frame of page %d changed while it was sent to node %d", p, e.node)
	}
	if w.cfg.homeOf(p) == e.node {
		w.at(e.node, p).frame = k.bytes
		return
	}
	slot := &w.nodes[e.node].slots[k.msg.Slot]
	if slot.bytes != absent {
		w.fail("node %d: slot %d is written while it is in use", e.node, k.msg.Slot)
	}
	slot.page, slot.bytes = p, k.bytes
}
