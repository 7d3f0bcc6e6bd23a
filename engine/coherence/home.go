package coherence

import "ironspan/engine/wire"

// entry is a page's line in its home's directory: 16 bytes, since there is one for every page of the VM.
//
// While a transaction is in progress (busy) the entry still says how things were when it began; settle
// writes down how they are when it is over.
type entry struct {
	sharers uint64      // bit n: node n may hold the page in S; meaningful if shared
	tail    uint32      // last record of the page's requests, a ring; 0: none. The first is in progress if busy
	moved   uint16      // when the page last moved, in stamps (see policy); 0: never
	owner   wire.NodeID // who holds the page in M if not shared; source of the write-back if one is awaited
	bits    uint8       // flags below, tenure level in the upper bits
}

const (
	shared    uint8 = 1 << iota // held in S by sharers (which may be none), and the home frame is good
	busy                        // the first request of the ring is in progress
	writeBack                   // the home frame is not good before owner's write-back is here
	migratory                   // who reads the page goes on to write it: see begin
	covered                     // the home gave up writing it for a reader that had not asked for it: see cover
)

// One in so many reads of a migratory page is served as a mere read, to see whether the page still is one.
const migratoryTrial = 8

const (
	levelShift = 5
	levelMax   = 7
)

func (e *entry) is(any uint8) bool { return e.bits&any != 0 }
func (e *entry) level() uint8      { return e.bits >> levelShift }
func (e *entry) setLevel(l uint8)  { e.bits = e.bits&(1<<levelShift-1) | l<<levelShift }

// record is a request at its home, queued or in progress. Records are numbered by requester and slot, from
// 1, so there is always one for a request, and no node can take another's. The transaction of an absent one
// is the last of its slot.
type record struct {
	transaction
	index uint32
	next  uint32 // the next request of the same page
	kind  wire.Kind
	phase phase
}

// phase is how far a request has come at its home.
type phase uint8

const (
	absent  phase = iota
	queued        // others come first
	held          // the home is the owner, and its own tenure is not over
	waiting       // the requester will say when it is done
)

func (a *Agent) entry(i uint32) *entry { return &a.dir[i-a.dirBase] }

// first returns the first of the page's requests; there is one if the page is busy.
func (a *Agent) first(e *entry) *record { return &a.records[a.records[e.tail].next] }

func (a *Agent) recordID(requester wire.NodeID, slot uint32) uint32 {
	return uint32(requester)*a.slots + slot + 1
}

// stepRequest takes in another node's request for a page homed here.
func (a *Agent) stepRequest(now int64, i uint32, m *wire.Message) Status {
	if !a.isHome(m.Page) {
		return BadPage
	}
	if m.Requester != m.From {
		return BadRequester
	}
	r := &a.records[a.recordID(m.From, m.Slot)]
	if r.phase != absent {
		return BadSlot
	}
	if r.txn != 0 && int32(m.Txn-r.txn) <= 0 {
		return BadTxn // a repetition of what was served before
	}
	e := a.entry(i)
	if e.tail != 0 {
		// One request for a page at a time: the queue is never longer than there are nodes.
		for id := a.records[e.tail].next; ; id = a.records[id].next {
			if a.records[id].requester == m.From {
				return BadState
			}
			if id == e.tail {
				break
			}
		}
	}
	if !e.is(busy|writeBack) && e.absurd(m.From) {
		return BadState
	}
	a.enqueue(now, i, m.Kind, transaction{requester: m.From, txn: m.Txn, slot: m.Slot})
	return OK
}

// absurd says whether a node that has what it asks for is asking. A sharer may: it can have parked the page.
func (e *entry) absurd(from wire.NodeID) bool { return !e.is(shared) && e.owner == from }

// enqueue appends a request to its page's ring and begins it if nothing is before it.
func (a *Agent) enqueue(now int64, i uint32, kind wire.Kind, t transaction) {
	a.stats.Requests[kind-wire.GetS]++
	e := a.entry(i)
	id := a.recordID(t.requester, t.slot)
	r := &a.records[id]
	*r = record{transaction: t, index: i, kind: kind, phase: queued, next: id}
	if e.tail != 0 {
		r.next = a.records[e.tail].next
		a.records[e.tail].next = id
	}
	e.tail = id
	if e.is(busy | writeBack) {
		a.stats.Queued++
		return
	}
	a.advance(now, i, e)
}

// advance begins the page's requests in their order, until one has to wait for somebody.
func (a *Agent) advance(now int64, i uint32, e *entry) {
	for e.tail != 0 && !e.is(busy|writeBack) {
		r := a.first(e)
		if e.absurd(r.requester) { // could not be judged on arrival
			a.drop(BadState)
			a.release(e)
			continue
		}
		a.begin(now, i, e, r)
		if r.phase == queued { // over already
			a.settle(e, r)
			a.release(e)
			continue
		}
		e.bits |= busy
	}
}

// begin sends out what the request takes.
//
// A page is migratory if the last node that read it went on to write it and the only other copy was the previous
// writer's: it follows a lock or a task from node to node. The next reader of such a page gets it in M at once, which
// saves the upgrade.
//
// It leaves the phase as it is if the transaction is over with that:
// if all the requester needs is a grant from here, then whatever this home sends it about the page later
// comes after that grant on the same queue pair, and there is nothing to wait for.
func (a *Agent) begin(now int64, i uint32, e *entry, r *record) {
	page := a.pageAt(i)
	if r.requester != a.self {
		e.bits &^= covered
	}
	switch {
	case r.kind == wire.GetS && e.is(migratory) && !e.is(shared):
		if a.trial = (a.trial + 1) % migratoryTrial; a.trial == 0 {
			e.bits &^= migratory
			break
		}
		a.stats.Migrations++
		r.kind = wire.GetM
	case r.kind == wire.Upgrade:
		e.bits &^= migratory
		if a.migrate && e.is(shared) && e.owner != r.requester && e.sharers == bit(e.owner)|bit(r.requester) {
			e.bits |= migratory
		}
	}
	switch {
	case !e.is(shared):
		a.beginOwned(now, page, i, e, r)
	case r.kind == wire.GetS:
		a.grantFromHome(now, page, r, wire.Shared, a.policy.tenure(a.policy.decayed(e, now)), 0, false)
	default:
		a.beginShared(now, page, i, e, r)
	}
}

// beginOwned forwards a request to the owner, who answers the requester.
func (a *Agent) beginOwned(now int64, page wire.PFN, i uint32, e *entry, r *record) {
	f := forward{page: page, index: i, kind: wire.FwdGetM, tenure: a.move(now, i, e), transaction: r.transaction}
	if r.kind == wire.GetS {
		f.kind = wire.FwdGetS
	}
	a.stats.Forwards++
	if e.owner == a.self {
		if a.deferForward(now, &f) {
			r.phase = held
			return
		}
		a.serve(now, &f)
		return
	}
	m := a.send(OpSend, e.owner, f.kind, page, r.transaction)
	m.Mode = wire.Modified
	m.Args[0] = uint64(f.tenure)
	r.phase = waiting
	if f.kind == wire.FwdGetS {
		m.Mode = wire.Shared
		if r.requester != a.self {
			e.bits |= writeBack
		}
	}
}

// beginShared invalidates all other copies and grants M, with the page unless the requester still has it.
func (a *Agent) beginShared(now int64, page wire.PFN, i uint32, e *entry, r *record) {
	bare := r.kind == wire.Upgrade && e.sharers&bit(r.requester) != 0
	need := e.sharers &^ bit(r.requester)
	tenure := a.policy.tenure(a.policy.decayed(e, now))
	if need != 0 {
		tenure = a.move(now, i, e)
	}
	for n := wire.NodeID(0); int(n) < a.nodes; n++ {
		if need&bit(n) == 0 {
			continue
		}
		a.stats.Invalidates++
		if n != a.self {
			a.send(OpSend, n, wire.Inv, page, r.transaction)
		}
	}
	if need&bit(a.self) != 0 && a.dropOwn(now, page, i, r.transaction) {
		need &^= bit(a.self)
	}
	a.grantFromHome(now, page, r, wire.Modified, tenure, need, bare)
	if need != 0 {
		r.phase = waiting
	}
}

// dropOwn invalidates the home's own copy, which needs no acknowledgement: the grant follows. It returns
// false if the copy is in its tenure; then it is acknowledged like any other, later.
func (a *Agent) dropOwn(now int64, page wire.PFN, i uint32, t transaction) bool {
	if a.deferForward(now, &forward{page: page, index: i, kind: wire.Inv, transaction: t}) {
		return false
	}
	a.invalidate(page, &a.pages[i])
	return true
}

// grantFromHome grants a page whose home frame is good.
func (a *Agent) grantFromHome(now int64, page wire.PFN, r *record, mode wire.Mode, tenure int64, need uint64, bare bool) {
	if r.requester == a.self {
		if need == 0 {
			a.stats.HomeGrants++
		}
		own := &a.requests[r.slot]
		own.want = mode // a reader may get more than it asked for
		a.granted(now, own, 0, tenure, need, need != 0)
		return
	}
	op := OpSendPage
	if bare {
		op = OpSend
	}
	a.sendGrant(now, op, page, r.index, r.transaction, mode, tenure, need)
}

// stepDone takes in a requester's word that it has the page.
func (a *Agent) stepDone(now int64, i uint32, m *wire.Message) Status {
	if !a.isHome(m.Page) {
		return BadPage
	}
	if m.Requester != m.From {
		return BadRequester
	}
	r := &a.records[a.recordID(m.From, m.Slot)]
	if r.phase != waiting || r.txn != m.Txn || r.index != i {
		return BadTxn
	}
	a.finish(now, i)
	return OK
}

// stepWriteBack takes in the word that the home frame is good again.
func (a *Agent) stepWriteBack(now int64, i uint32, m *wire.Message) Status {
	if !a.isHome(m.Page) {
		return BadPage
	}
	e := a.entry(i)
	if m.Flags == wire.FlagHome {
		return a.stepReturn(now, i, e, m)
	}
	if !e.is(writeBack) || e.owner != m.From {
		return BadSender
	}
	if e.is(busy) {
		if a.first(e).transaction != (transaction{m.Txn, m.Slot, m.Requester}) {
			return BadTxn
		}
	} else if e.sharers&bit(m.Requester) == 0 {
		return BadTxn
	}
	a.stats.WriteBacks++
	if m.Flags&wire.FlagZero != 0 {
		a.emit(OpZeroFrame, m.Page)
	}
	e.bits &^= writeBack
	a.advance(now, i, e)
	return OK
}

// stepReturn takes in an owner's answer to a forward: it had parked the page. The home frame is good then, nobody has a
// right to the page, and the request that was forwarded begins once more.
func (a *Agent) stepReturn(now int64, i uint32, e *entry, m *wire.Message) Status {
	if !e.is(busy) || e.is(shared) || e.owner != m.From {
		return BadSender
	}
	r := a.first(e)
	if r.phase != waiting || r.transaction != (transaction{m.Txn, m.Slot, m.Requester}) {
		return BadTxn
	}
	a.stats.Returns++
	e.bits = e.bits&^(busy|writeBack) | shared
	e.sharers = 0
	r.phase = queued
	a.advance(now, i, e)
	return OK
}

// finish ends the transaction that is in progress for a page. The next one begins, unless a write-back is
// still under way.
func (a *Agent) finish(now int64, i uint32) {
	e := a.entry(i)
	a.settle(e, a.first(e))
	a.release(e)
	e.bits &^= busy
	a.advance(now, i, e)
}

// ownForwardServed ends the transaction for which this home has just given up its own page.
func (a *Agent) ownForwardServed(now int64, i uint32) {
	e := a.entry(i)
	if e.is(busy) && a.first(e).phase == held {
		a.finish(now, i)
	}
}

// settle writes down who holds the page after a request.
func (a *Agent) settle(e *entry, r *record) {
	switch {
	case r.kind != wire.GetS:
		e.bits &^= shared
		e.owner = r.requester
		e.sharers = 0
	case e.is(shared):
		e.sharers |= bit(r.requester)
	default:
		e.bits |= shared
		e.sharers = bit(e.owner) | bit(r.requester)
	}
}

// release takes the first request off the page's ring.
func (a *Agent) release(e *entry) {
	tail := &a.records[e.tail]
	id := tail.next
	if id == e.tail {
		e.tail = 0
	} else {
		tail.next = a.records[id].next
	}
	a.records[id].phase = absent
}

// move notes that somebody loses a right to a page and returns the tenure of who wins it.
func (a *Agent) move(now int64, i uint32, e *entry) int64 {
	a.stats.Moves++
	if a.policy.move(e, now) {
		a.stats.PingPongs++
		a.hot.add(i)
	}
	return a.policy.tenure(e.level())
}

// sendGrant sends a grant to another node. Args[0] is the tenure in nanoseconds; Args[1] and Acks are the set
// and the number of the nodes whose acknowledgement the requester awaits; Args[2] are the pages that the home's grant
// to a reader covers besides, as bits of the group.
func (a *Agent) sendGrant(now int64, op Op, page wire.PFN, i uint32, t transaction, mode wire.Mode, tenure int64, need uint64) {
	pages := uint64(0)
	if mode == wire.Shared && a.isHome(page) {
		pages = a.cover(now, i, t.requester)
	}
	m := a.send(op, t.requester, wire.Grant, page, t)
	m.Args[2] = pages
	m.Mode = mode
	m.Acks = ones(need)
	m.Args[0] = uint64(tenure)
	m.Args[1] = need
}
