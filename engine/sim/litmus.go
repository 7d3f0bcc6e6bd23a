package sim

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"ironspan/engine/litmus"
	"ironspan/engine/wire"
)

// Litmus has vCPUs run a shape's threads, round after round, and holds each round's outcome against the memory model.
// The variables lie on pages of their own, which other vCPUs may read but not write.
//
// With store buffers, a store waits in its vCPU's buffer until it retires into the page, in order; so it does at the
// latest when any right of the node goes, for that takes its vCPUs out of the guest. The outcomes are then to be of
// x86-TSO, and without buffers sequentially consistent. (Between nodes they are so in any case: whoever is to see a
// page that another node's store is waiting for, or to write one that it has read, takes a right away from that node.)
type Litmus struct {
	Shape   *litmus.Shape
	Split   litmus.Split                // only with buffers
	Pages   [litmus.MaxVars][2]wire.PFN // of each variable; the second is for the upper half of one that is split
	Threads []Place                     // by thread of the shape
	Rounds  int
	Buffers bool
	Retire  time.Duration // a store is in its buffer for this long at most
}

// Place is a vCPU.
type Place struct{ Node, VCPU int }

// Outcomes is what came of the rounds.
type Outcomes struct {
	Shape   string
	Rounds  int
	Relaxed int // rounds whose outcome takes store buffers (of shapes without split variables)
	Seen    map[litmus.Outcome]int
}

// trial is Litmus under way.
type trial struct {
	*Litmus
	threads []thread
	there   int // threads at the meeting point
	mem     [litmus.MaxVars]uint64

	allowed, sequential map[litmus.Outcome]bool
}

// thread is what a vCPU does instead of the workload. Words hold a litmus.Value: the lower half in the lowest byte, the
// upper half in the next.
type thread struct {
	place  Place
	code   []litmus.Instr
	steps  []step // of the round
	next   int
	regs   [litmus.MaxInstrs]uint64
	buffer []store // the oldest first
	parked bool    // waits for the buffer to be empty
}

// store is one that has not retired, or half of it.
type store struct {
	page wire.PFN
	word uint64
}

// step is what a thread does without anything in between.
type step struct {
	kind  stepKind
	page  wire.PFN // clear, read, load, collect
	instr int      // load, do
	v     litmus.Var
}

type stepKind uint8

const (
	clearPage stepKind = iota // make a variable, or its half, zero
	readPage                  // have it mapped, perhaps
	meet                      // wait for all threads, with an empty buffer
	load                      // all or half of a load
	do                        // any other instruction
	collect                   // load what is left in memory
)

const upper = 8 // bits by which the upper half is shifted

func word(v litmus.Value) uint64 { return uint64(v.Lo) | uint64(v.Hi)<<upper }

func value(w uint64) litmus.Value { return litmus.Value{Lo: uint8(w), Hi: uint8(w >> upper)} }

// models are the sets of outcomes that shapes may have. They take a while, and a soak asks for them again and again.
var models sync.Map

type modelKey struct {
	shape      *litmus.Shape
	split      litmus.Split
	sequential bool
}

func model(k modelKey) map[litmus.Outcome]bool {
	if m, found := models.Load(k); found {
		return m.(map[litmus.Outcome]bool)
	}
	var m map[litmus.Outcome]bool
	if k.sequential {
		m = sequential(k.shape)
	} else {
		m = litmus.Outcomes(k.shape, k.split)
	}
	models.Store(k, m)
	return m
}

// sequential is what the shape may do without store buffers: what it may do with a locked instruction for each store.
func sequential(s *litmus.Shape) map[litmus.Outcome]bool {
	locked := litmus.Shape{Name: s.Name}
	for _, code := range s.Threads {
		var t []litmus.Instr
		for _, in := range code {
			if in.Op == litmus.Store {
				in.Op = litmus.Xchg
			}
			t = append(t, in)
		}
		locked.Threads = append(locked.Threads, t)
	}
	out := map[litmus.Outcome]bool{}
	for o := range litmus.Outcomes(&locked, litmus.Split{}) {
		for t, code := range s.Threads {
			for i, in := range code {
				if !in.Op.Reads() {
					o.Regs[t][i] = litmus.Value{}
				}
			}
		}
		out[o] = true
	}
	return out
}

// addTrial gives the vCPUs their threads.
func (c *cluster) addTrial() {
	l := c.cfg.Litmus
	c.trial = &trial{
		Litmus: l, threads: make([]thread, len(l.Threads)),
		allowed: model(modelKey{l.Shape, l.Split, !l.Buffers}), sequential: model(modelKey{shape: l.Shape, sequential: true}),
	}
	c.result.Outcomes = &Outcomes{Shape: l.Shape.Name, Seen: map[litmus.Outcome]int{}}
	for i := range c.trial.threads {
		t := &c.trial.threads[i]
		t.place, t.code = l.Threads[i], l.Shape.Threads[i]
		c.nodes[t.place.Node].vcpus[t.place.VCPU].thread = t
		t.plan(c.rng, c.trial, i)
	}
}

// pages are those of a variable: one, or two in any order.
func (t *trial) pages(rng *rand.Rand, v litmus.Var) []wire.PFN {
	p := t.Pages[v]
	switch {
	case !t.Split[v]:
		return p[:1]
	case rng.IntN(2) == 0:
		return p[:]
	}
	return []wire.PFN{p[1], p[0]}
}

// plan lays out a round. One thread clears the variables first and one collects them last; and before it starts a
// thread may read what it will have to do with, so that there is something to invalidate.
func (t *thread) plan(rng *rand.Rand, l *trial, self int) {
	t.steps, t.next, t.regs = t.steps[:0], 0, [litmus.MaxInstrs]uint64{}
	all := func(kind stepKind) {
		for v := range l.Shape.Vars() {
			for _, p := range l.pages(rng, litmus.Var(v)) {
				t.steps = append(t.steps, step{kind: kind, page: p, v: litmus.Var(v)})
			}
		}
	}
	chosen := func() bool { return self == rng.IntN(len(l.threads)) }
	if chosen() || self == 0 {
		all(clearPage)
	}
	t.steps = append(t.steps, step{kind: meet})
	if rng.IntN(2) == 0 {
		all(readPage)
	}
	t.steps = append(t.steps, step{kind: meet})
	for i, in := range t.code {
		if in.Op != litmus.Load {
			t.steps = append(t.steps, step{kind: do, instr: i, v: in.Var})
			continue
		}
		for _, p := range l.pages(rng, in.Var) {
			t.steps = append(t.steps, step{kind: load, page: p, instr: i, v: in.Var})
		}
	}
	t.steps = append(t.steps, step{kind: meet})
	if chosen() || self == 0 {
		all(collect)
	}
	t.steps = append(t.steps, step{kind: meet})
}

// runThread does the next step of a thread, or faults on the way.
func (c *cluster) runThread(n *node, id int, t *thread) {
	s := t.steps[t.next]
	switch s.kind {
	case meet:
		if t.parked = len(t.buffer) > 0; !t.parked {
			c.meet()
		}
		return
	case readPage, load, collect:
		if !c.mapped(n, id, s.page, wire.Shared) {
			return
		}
		got := c.see(n, t, s.page)
		if s.kind == load {
			t.regs[s.instr] |= got
		} else if s.kind == collect {
			c.trial.mem[s.v] |= got
		}
	case clearPage:
		if !c.mapped(n, id, s.page, wire.Modified) {
			return
		}
		c.retired(n, store{page: s.page})
	case do:
		if !c.instruction(n, id, t, t.code[s.instr], &t.regs[s.instr]) {
			return
		}
	}
	t.next++
	c.done(&n.vcpus[id])
	c.plan(c.pace(n, 1, c.cfg.FaultLatency), event{what: evRun, node: n.id, vcpu: id})
}

// instruction does all that is not a load. It has all its pages or none: an instruction that faults has done nothing.
func (c *cluster) instruction(n *node, id int, t *thread, in litmus.Instr, reg *uint64) bool {
	if in.Op == litmus.Mfence {
		c.drain(n, t)
		return true
	}
	pages := c.trial.pages(c.rng, in.Var)
	for _, p := range pages {
		if !c.mapped(n, id, p, wire.Modified) {
			return false
		}
	}
	if in.Op == litmus.Store {
		for _, p := range pages {
			s := store{p, word(in.Value)}
			if len(pages) > 1 && p == c.trial.Pages[in.Var][0] {
				s.word &= 1<<upper - 1
			} else if len(pages) > 1 {
				s.word &^= 1<<upper - 1
			}
			t.buffer = append(t.buffer, s)
			c.plan(c.between(0, c.trial.Retire), event{what: evRetire, node: n.id, vcpu: id})
		}
		if !c.trial.Buffers {
			c.drain(n, t)
		}
		return true
	}
	c.drain(n, t)
	old := value(c.see(n, t, pages[0]))
	val := old
	switch in.Op {
	case litmus.Inc:
		val.Lo++
	case litmus.Xadd:
		val.Lo += in.Value.Lo
		val.Hi += in.Value.Hi
	case litmus.Xchg:
		val = in.Value
	case litmus.Cmpxchg:
		if old == in.Expect {
			val = in.Value
		}
	}
	if in.Op.Reads() {
		*reg = word(old)
	}
	c.retired(n, store{pages[0], word(val)})
	return true
}

// see is what a vCPU reads: its own newest store, or else memory, which has to hold what was stored last.
func (c *cluster) see(n *node, t *thread, page wire.PFN) uint64 {
	got := n.frames[page]
	if got != c.truth[page] {
		c.fail("node %d reads %#x from page %d, the last written is %#x", n.id, got, page, c.truth[page])
	}
	for _, s := range t.buffer {
		if s.page == page {
			got = s.word
		}
	}
	return got
}

// retire lets a vCPU's oldest store retire, if it has not done so already.
func (c *cluster) retire(n *node, id int) {
	t := n.vcpus[id].thread
	if len(t.buffer) == 0 {
		return
	}
	c.retired(n, t.buffer[0])
	t.buffer = t.buffer[1:]
	c.drained(n, id, t)
}

// drain empties a buffer.
func (c *cluster) drain(n *node, t *thread) {
	for _, s := range t.buffer {
		c.retired(n, s)
	}
	t.buffer = t.buffer[:0]
}

// drainNode empties all buffers of a node, as its vCPUs leave the guest.
func (c *cluster) drainNode(n *node) {
	if c.trial == nil {
		return
	}
	for id := range n.vcpus {
		if t := n.vcpus[id].thread; t != nil {
			c.drain(n, t)
			c.drained(n, id, t)
		}
	}
}

func (c *cluster) drained(n *node, id int, t *thread) {
	if t.parked && len(t.buffer) == 0 {
		t.parked = false
		c.plan(1, event{what: evRun, node: n.id, vcpu: id})
	}
}

// retired stores into a page, which the node must still have.
func (c *cluster) retired(n *node, s store) {
	if n.guest[s.page] != wire.Modified {
		c.fail("node %d: a store retires into page %d, which the guest has in %v", n.id, s.page, n.guest[s.page])
	}
	n.frames[s.page] = s.word
	c.truth[s.page] = s.word
}

// meet lets the threads go on when all are there; after the last meeting of a round, with another one.
func (c *cluster) meet() {
	l := c.trial
	if l.there++; l.there < len(l.threads) {
		return
	}
	l.there = 0
	first := &l.threads[0]
	if first.next+1 == len(first.steps) {
		c.judgeRound()
		if c.result.Outcomes.Rounds == l.Rounds {
			c.busy -= len(l.threads)
			return
		}
		for i := range l.threads {
			l.threads[i].plan(c.rng, l, i)
		}
	} else {
		for i := range l.threads {
			l.threads[i].next++
		}
	}
	for i := range l.threads {
		p := l.threads[i].place
		c.plan(c.between(0, c.cfg.Latency[1]), event{what: evRun, node: p.Node, vcpu: p.VCPU})
	}
}

// judgeRound holds a round's outcome against what the model allows. It is not the simulator's own knowledge.
func (c *cluster) judgeRound() {
	l, sum := c.trial, c.result.Outcomes
	var o litmus.Outcome
	for t := range l.threads {
		for i, w := range l.threads[t].regs {
			o.Regs[t][i] = value(w)
		}
	}
	for v, w := range l.mem {
		o.Mem[v] = value(w)
	}
	l.mem = [litmus.MaxVars]uint64{}
	sum.Rounds++
	sum.Seen[o]++
	if l.Split == (litmus.Split{}) && !l.sequential[o] {
		sum.Relaxed++
	}
	if !l.allowed[o] && c.err == nil {
		c.err = fmt.Errorf("%v: round %d ended in %s, which is forbidden", l.Shape, sum.Rounds, o.Describe(l.Shape))
	}
}
