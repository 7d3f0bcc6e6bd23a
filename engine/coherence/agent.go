package coherence

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"time"

	"ironspan/engine/wire"
)

// Agent is one node's part of the protocol for one stripe of memory: requester, holder and home in one.
// It does nothing by itself and knows no time but what it is told. One goroutine drives it: Fault, Step or
// Tick, then the Actions, in order and to the last, then Clear, then the next input.
type Agent struct {
	self   wire.NodeID
	nodes  int
	others uint64 // bit of every node but self
	epoch  wire.Epoch
	homes  []Range
	total  wire.PFN // pages of the VM

	shards, shard wire.PFN
	shift         uint
	mask          wire.PFN
	readAsWrite   bool
	walksWrite    bool
	migrate       bool
	prefetch      uint32
	coverFrom     int

	pages []local // this node's right to each page of the shard, by index

	// As requester: one request for each slot, the free slots, the faults without one. Slots are used in turns, so that
	// pages that were asked for together mostly arrive in slots that lie together.
	requests []request
	free     fifo
	lastTxn  uint32
	waiters  fifo

	// As holder: forwards and invalidations that tenure put off, a heap by due time.
	deferrals []deferral

	// As home: the directory, by index from dirBase; and a record for each request that is queued or in
	// progress here, by requester and slot.
	home    Range
	dirBase uint32
	dir     []entry
	records []record
	slots   uint32
	trial   uint8 // counts the reads of migratory pages

	policy policy
	spell  spell

	cache      cache
	companions companions
	streams    streams
	idle       bool // no vCPU of this node runs
	hot        sketch

	actions []Action
	stats   Stats
}

// local is what a node knows about its copy of a page. It is 8 bytes, because there is one for every page of
// the VM at every node; the array is only touched where pages are, so the rest costs no memory.
type local struct {
	since uint32 // beginning of the tenure, in clock units (see policy)
	slot  uint16 // slot of the outstanding request + 1, 0: none
	mode  wire.Mode
	marks uint8 // below; level of the tenure in the upper bits
}

// Marks of a page.
const (
	deferred    uint8 = 1 << iota // a forward or invalidation waits for the end of the tenure
	queuedRead                    // the page is in the FIFO for a slot, to be read
	queuedWrite                   // or to be written
	robbed                        // it had a tenure when it was taken away
	parked                        // the right is here, the bytes are in the home frame or on their way there
	queuedAny   = queuedRead | queuedWrite
)

func (p *local) is(any uint8) bool { return p.marks&any != 0 }
func (p *local) level() uint8      { return p.marks >> levelShift }
func (p *local) setLevel(l uint8)  { p.marks = p.marks&(1<<levelShift-1) | l<<levelShift }

// mapped returns how the guest has the page mapped.
func (p *local) mapped() wire.Mode {
	if p.is(parked) {
		return wire.None
	}
	return p.mode
}

// revoke takes the right to the page away.
func (p *local) revoke() {
	p.mode = wire.None
	if p.level() != 0 {
		p.marks |= robbed
		p.setLevel(0)
	}
}

// New returns an Agent in the state in which a VM starts: every page is owned, in M, by its home.
func New(c Config) (*Agent, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	n := len(c.Homes)
	a := &Agent{
		self: c.Self, nodes: n, others: (1<<n - 1) &^ bit(c.Self), epoch: c.Epoch,
		homes: append([]Range(nil), c.Homes...), total: c.Homes[n-1].Last,
		shards: wire.PFN(c.Shards), shard: wire.PFN(c.Shard), shift: c.StripeShift, mask: 1<<c.StripeShift - 1,
		readAsWrite: c.ReadAsWrite, walksWrite: c.WalksWrite, migrate: c.Migratory, prefetch: uint32(c.Prefetch),
		coverFrom: c.CoverFrom,
		home:      c.Homes[c.Self], slots: uint32(c.Slots), policy: newPolicy(c.Tenure),
	}
	end := a.firstIndex(a.total)
	if end > math.MaxUint32 {
		return nil, fmt.Errorf("coherence: %d pages in one shard are more than an index holds: use more shards", end)
	}
	a.pages = make([]local, end)
	first, last := a.firstIndex(a.home.First), a.firstIndex(a.home.Last)
	a.dirBase = uint32(first)
	a.dir = make([]entry, last-first)
	if a.cache = newCache(c, len(a.pages)); c.Cache > 0 {
		a.prefetch = min(a.prefetch, uint32(c.Cache)/4) // nothing is asked for ahead only to be parked
	}
	for i := range a.dir {
		a.dir[i].owner = a.self
		a.pages[first+uint64(i)].mode = wire.Modified
	}
	a.requests = make([]request, c.Slots)
	a.free = newFIFO(c.Slots)
	for i := range c.Slots {
		a.free.push(uint32(i))
	}
	a.records = make([]record, n*c.Slots+1)
	a.waiters = newFIFO(waitersMax)
	a.deferrals = make([]deferral, 0, min(n*c.Slots, deferralsMax))
	a.actions = make([]Action, 0, 4*wire.MaxNodes)
	return a, nil
}

func (c *Config) check() error {
	n := len(c.Homes)
	switch {
	case n == 0 || n > wire.MaxNodes:
		return fmt.Errorf("coherence: %d nodes, want 1 to %d", n, wire.MaxNodes)
	case int(c.Self) >= n:
		return fmt.Errorf("coherence: self is node %d of %d", c.Self, n)
	case c.Shards < 1 || c.Shard < 0 || c.Shard >= c.Shards:
		return fmt.Errorf("coherence: shard %d of %d", c.Shard, c.Shards)
	case c.StripeShift > 32:
		return fmt.Errorf("coherence: stripes of 2^%d pages, want at most 2^32", c.StripeShift)
	case c.Prefetch < 0 || c.Prefetch > MaxSlots:
		return fmt.Errorf("coherence: %d pages of prefetch, want at most %d", c.Prefetch, MaxSlots)
	case c.CoverFrom < 0:
		return fmt.Errorf("coherence: grants cover others from %d pages on", c.CoverFrom)
	case c.Cache < 0:
		return fmt.Errorf("coherence: %d pages of cache", c.Cache)
	case c.Slots < 1 || c.Slots > MaxSlots:
		return fmt.Errorf("coherence: %d slots, want 1 to %d", c.Slots, MaxSlots)
	}
	var next wire.PFN
	for i, r := range c.Homes {
		if r.First != next || r.Last < r.First {
			return fmt.Errorf("coherence: home of node %d is pages %d to %d, want it to start at %d", i, r.First, r.Last, next)
		}
		next = r.Last
	}
	if next == 0 {
		return errors.New("coherence: no node has memory")
	}
	return c.Tenure.check()
}

// Fault says that a vCPU (or a lease) of this node wants to read or write a page that its mapping does not
// let it. The page's waiters are woken by OpInstall, OpUnprotect or OpWake, then or later; woken is not
// served: a writer that waited behind a reader's request faults again.
func (a *Agent) Fault(now int64, page wire.PFN, write bool) Status {
	i, ok := a.index(page)
	if !ok {
		return a.drop(BadPage)
	}
	a.fault(now, i, page, write)
	a.goOn(now)
	return OK
}

func (a *Agent) fault(now int64, i uint32, page wire.PFN, write bool) {
	p := &a.pages[i]
	need := wire.Shared
	if write {
		need = wire.Modified
	}
	switch {
	case p.mapped() >= need:
		a.stats.StaleFaults++
		a.emit(OpWake, page).Mode = p.mode
	case p.slot != 0:
		a.stats.FollowerFaults++
		if a.parking(p) { // to be fetched again, once its bytes are out
			p.marks |= queuedRead
			if write {
				p.marks |= queuedWrite
			}
		}
	case p.is(queuedAny):
		a.stats.FollowerFaults++
		if write {
			p.marks |= queuedWrite
		}
	case a.free.n > 0 && a.hasFrame(page, p):
		if a.prefetch > 0 {
			need = a.foresee(i, need)
		}
		a.ask(now, i, page, need)
		if write && a.walksWrite {
			a.askCompanions(now, i)
		}
		if a.prefetch > 0 {
			a.askAhead(now, i, need)
		}
	case a.waiters.push(i):
		if a.free.n > 0 {
			a.stats.FrameWaits++
		} else {
			a.stats.SlotWaits++
		}
		p.marks |= queuedRead
		if write {
			p.marks |= queuedWrite
		}
	default:
		a.stats.SlotRefusals++
		a.emit(OpWake, page).Mode = p.mapped()
	}
}

// goOn does what the input just taken in made possible: pages are parked if too many are cached, which goes before
// because faults may wait for it; then those are asked for that wait for a slot or a frame.
func (a *Agent) goOn(now int64) {
	a.evict(now)
	for a.waiters.n > 0 && a.serveWaiters(now) {
		a.evict(now)
	}
}

// Step takes in a message from another node. The caller has decoded it, and made sure that From is the node
// at the other end of the queue pair; everything else is checked here. Or it is the word that an OpFetch or OpPark is
// over. It does not keep m.
func (a *Agent) Step(now int64, m *wire.Message) Status {
	s := a.step(now, m)
	if s != OK {
		return a.drop(s)
	}
	a.goOn(now)
	return OK
}

func (a *Agent) step(now int64, m *wire.Message) Status {
	if m.Epoch != a.epoch {
		return BadEpoch
	}
	if m.Kind < wire.CoherenceFirst || m.Kind > wire.Parked {
		return BadKind
	}
	if int(m.From) >= a.nodes || m.From == a.self {
		return BadSender
	}
	if int(m.Requester) >= a.nodes {
		return BadRequester
	}
	i, ok := a.index(m.Page)
	if !ok {
		return BadPage
	}
	if m.Slot >= a.slots {
		return BadSlot
	}
	if !wellFormed(m) {
		return BadField
	}
	switch m.Kind {
	case wire.GetS, wire.GetM, wire.Upgrade:
		return a.stepRequest(now, i, m)
	case wire.FwdGetS, wire.FwdGetM, wire.Inv:
		return a.stepForward(now, i, m)
	case wire.Grant:
		return a.stepGrant(now, i, m)
	case wire.InvAck:
		return a.stepInvAck(now, i, m)
	case wire.WriteBack:
		return a.stepWriteBack(now, i, m)
	case wire.Fetched, wire.Parked:
		return a.stepOver(i, m)
	default: // wire.Done, by the check of the kind above
		return a.stepDone(now, i, m)
	}
}

// wellFormed checks the fields that have to have a certain value, or none, for the message's kind.
func wellFormed(m *wire.Message) bool {
	if m.Txn == 0 || m.Args[3] != 0 || m.Flags&(m.Flags-1) != 0 {
		return false
	}
	if m.Kind == wire.Grant {
		return m.Flags != wire.FlagHome && (m.Mode == wire.Shared || m.Mode == wire.Modified) && bits.OnesCount64(m.Args[1]) == int(m.Acks)
	}
	if m.Acks != 0 || m.Args[1] != 0 || m.Args[2] != 0 {
		return false
	}
	mode, tenure, flags := wire.None, false, false
	switch m.Kind {
	case wire.GetS:
		mode = wire.Shared
	case wire.GetM, wire.Upgrade:
		mode = wire.Modified
	case wire.FwdGetS:
		mode, tenure = wire.Shared, true
	case wire.FwdGetM:
		mode, tenure = wire.Modified, true
	case wire.WriteBack:
		flags = true
	}
	return m.Mode == mode && (tenure || m.Args[0] == 0) && flags == (m.Flags != 0)
}

// Tick performs the forwards and invalidations whose tenure ends at now or before, and goes on parking pages.
func (a *Agent) Tick(now int64) {
	for len(a.deferrals) > 0 && a.deferrals[0].due <= now {
		d := a.popDeferral()
		p := &a.pages[d.index]
		if due := a.holdUntil(now, p, d.requester); due > now {
			d.due = due
			a.pushDeferral(d)
			continue
		}
		a.serveDeferred(now, &d)
	}
	a.cache.rests = a.cache.rests && now < a.cache.until
	a.goOn(now)
}

// Idle says whether all vCPUs of this node are halted. A node that does not run has no use for its tenures:
// what it put off is done, and nothing is put off until it runs again.
func (a *Agent) Idle(now int64, idle bool) {
	a.idle = idle
	for idle && len(a.deferrals) > 0 {
		d := a.popDeferral()
		a.serveDeferred(now, &d)
	}
	a.goOn(now)
}

// serveDeferred does what was put off.
func (a *Agent) serveDeferred(now int64, d *deferral) {
	a.pages[d.index].marks &^= deferred
	a.stats.DeferredNs += uint64(max(now-d.came, 0))
	a.serve(now, &d.forward)
	if a.isHome(d.page) && d.kind != wire.Inv {
		a.ownForwardServed(now, d.index)
	}
}

// Next returns the time at which Tick has something to do, or math.MaxInt64 if nothing waits for time.
func (a *Agent) Next() int64 {
	next := int64(math.MaxInt64)
	if len(a.deferrals) > 0 {
		next = a.deferrals[0].due
	}
	if a.cache.rests {
		next = min(next, a.cache.until)
	}
	return next
}

// Actions returns what the driver has to do, in order, before the next input. It is valid until Clear.
func (a *Agent) Actions() []Action { return a.actions }

// Clear forgets the actions: they are done.
func (a *Agent) Clear() { a.actions = a.actions[:0] }

// Stats returns the agent's counters, which go on counting.
func (a *Agent) Stats() *Stats { return &a.stats }

// Mode returns how this node's guest has a page mapped; None if the page is not one of the shard's.
func (a *Agent) Mode(page wire.PFN) wire.Mode {
	i, ok := a.index(page)
	if !ok {
		return wire.None
	}
	return a.pages[i].mapped()
}

// Inspect describes a page; ok is false if it is not one of the shard's.
func (a *Agent) Inspect(page wire.PFN) (info PageInfo, ok bool) {
	i, ok := a.index(page)
	if !ok {
		return PageInfo{}, false
	}
	p := &a.pages[i]
	info = PageInfo{Mode: p.mapped(), Right: p.mode, Waiting: p.slot != 0 || p.is(queuedAny), Deferred: p.is(deferred)}
	if !a.isHome(page) {
		return info, true
	}
	e := a.entry(i)
	info.Home = true
	info.Shared = e.is(shared)
	info.Owner = e.owner
	info.Sharers = e.sharers
	info.Busy = e.is(busy | writeBack)
	info.Tenure = time.Duration(a.policy.tenure(e.level()))
	if e.tail != 0 {
		info.Queue = 1
		for id := a.records[e.tail].next; id != e.tail; id = a.records[id].next {
			info.Queue++
		}
	}
	return info, true
}

// index returns a page's place in pages.
func (a *Agent) index(page wire.PFN) (uint32, bool) {
	if page >= a.total {
		return 0, false
	}
	stripe := page >> a.shift
	row := stripe / a.shards
	if stripe-row*a.shards != a.shard {
		return 0, false
	}
	return uint32(row<<a.shift | page&a.mask), true
}

// firstIndex returns the index of the shard's first page that is not before page. Within a shard, indices
// are in the order of pages, so the pages of a range are a range of indices.
func (a *Agent) firstIndex(page wire.PFN) uint64 {
	stripe := page >> a.shift
	row, col := stripe/a.shards, stripe%a.shards
	switch {
	case col < a.shard:
		return uint64(row << a.shift)
	case col > a.shard:
		return uint64((row + 1) << a.shift)
	}
	return uint64(row<<a.shift | page&a.mask)
}

// pageAt is the inverse of index.
func (a *Agent) pageAt(i uint32) wire.PFN {
	row := wire.PFN(i) >> a.shift
	return (row*a.shards+a.shard)<<a.shift | wire.PFN(i)&a.mask
}

// homeOf returns the home of a page of the VM.
func (a *Agent) homeOf(page wire.PFN) wire.NodeID {
	for n := range a.homes {
		if page < a.homes[n].Last {
			return wire.NodeID(n)
		}
	}
	panic("coherence: home of a page outside of RAM")
}

func (a *Agent) isHome(page wire.PFN) bool { return page >= a.home.First && page < a.home.Last }

func bit(n wire.NodeID) uint64 { return 1 << n }

// drop counts a refused input.
func (a *Agent) drop(s Status) Status {
	a.stats.Dropped[s]++
	return s
}

// emit appends an action. The result is valid until the next one.
func (a *Agent) emit(op Op, page wire.PFN) *Action {
	n := len(a.actions)
	if n == cap(a.actions) {
		a.actions = slices.Grow(a.actions, n)
	}
	a.actions = a.actions[:n+1]
	act := &a.actions[n]
	*act = Action{Op: op, Page: page}
	return act
}

// send appends an OpSend or OpSendPage of a message to another node; the caller fills in the rest.
func (a *Agent) send(op Op, to wire.NodeID, kind wire.Kind, page wire.PFN, t transaction) *wire.Message {
	act := a.emit(op, page)
	act.Peer = to
	m := &act.Msg
	m.Kind = kind
	m.From = a.self
	m.Epoch = a.epoch
	m.Page = page
	m.Requester = t.requester
	m.Txn = t.txn
	m.Slot = t.slot
	a.stats.Sent[kind]++
	if op == OpSendPage {
		a.stats.PagesSent++
	}
	return m
}

// transaction names a request for a page, uniquely among those in progress: a node does not use a slot for
// the next request before it has what it asked for with the last, and numbers its requests.
type transaction struct {
	txn, slot uint32
	requester wire.NodeID
}
