package coherence

import (
	"encoding/binary"

	"ironspan/engine/wire"
)

// Naming says under which names AppendState writes nodes, pages, slots and transactions, so that states that
// differ in nothing but names are written alike. Nodes and pages are renamed as Reset is told. Slots and
// transactions are numbered in the order in which they are first mentioned: the protocol compares them for
// being the same, and in no other way (but for the one that AppendState tells of). The agents of one VM, and
// whatever else belongs to the same state, are written one after the other with the same Naming.
type Naming struct {
	nodes []wire.NodeID // by old name
	pages []wire.PFN    // by new name
	slots [][]uint32    // by requester's old name, in the order of new names
	txns  [][]uint32    // the same; names begin at 1
	index []wire.PFN    // new name of a page by old name
}

// txnFresh is the number before the first transaction that an agent begins after SetState, above all names.
const txnFresh = 1 << 16

// Reset forgets all names. From now on node n is nodes[n] and page p is pages[p]; both are permutations, and
// the home of a page's new name has to be the new name of its home.
func (n *Naming) Reset(nodes []wire.NodeID, pages []wire.PFN) {
	n.nodes, n.index = nodes, pages
	n.pages = append(n.pages[:0], pages...)
	for old, name := range pages {
		n.pages[name] = wire.PFN(old)
	}
	for len(n.slots) < len(nodes) {
		n.slots, n.txns = append(n.slots, nil), append(n.txns, nil)
	}
	for i := range nodes {
		n.slots[i], n.txns[i] = n.slots[i][:0], n.txns[i][:0]
	}
}

// Node returns a node's name.
func (n *Naming) Node(id wire.NodeID) wire.NodeID { return n.nodes[id] }

// Page returns a page's name.
func (n *Naming) Page(page wire.PFN) wire.PFN { return n.index[page] }

// PageSet renames a set of pages, all of them in the first group of one shard.
func (n *Naming) PageSet(set uint64) (named uint64) {
	for old := range n.index {
		if old < groupPages && set>>old&1 == 1 {
			named |= 1 << n.index[old]
		}
	}
	return named
}

// Nodes renames a set of nodes.
func (n *Naming) Nodes(set uint64) (named uint64) {
	for id := range n.nodes {
		if set&bit(wire.NodeID(id)) != 0 {
			named |= bit(n.nodes[id])
		}
	}
	return named
}

// Slot returns the name of a requester's slot.
func (n *Naming) Slot(requester wire.NodeID, slot uint32) uint32 {
	return nameIn(&n.slots[requester], slot)
}

// Txn returns the name of a requester's transaction.
func (n *Naming) Txn(requester wire.NodeID, txn uint32) uint32 {
	return nameIn(&n.txns[requester], txn) + 1
}

// Slots returns a requester's slots in the order of their names. All slots have one once the requester's
// agent has been written.
func (n *Naming) Slots(requester wire.NodeID) []uint32 { return n.slots[requester] }

func nameIn(list *[]uint32, x uint32) uint32 {
	for i, y := range *list {
		if x == y {
			return uint32(i)
		}
	}
	*list = append(*list, x)
	return uint32(len(*list) - 1)
}

// AppendState appends all that the agent's further behaviour depends on, in a form that is the same for
// states that behave the same way. It is meant for the agents of a model checker, between Clear and the next
// input; there are to be fewer than 256 pages. Left out are
//
//   - statistics, the sketch of hot pages among them;
//   - what another part implies, such as indices;
//   - what no branch reads any more: the owner of a page that is shared, once its write-back is there, unless
//     the home looks for migratory pages;
//   - how many reads of migratory pages it is to the next trial: it is for the model checker to decide (see
//     TrialNext), which cannot wait for so many;
//   - without tenure all times: they decide about tenures only. With it times are written as ages, and an
//     age from which on nothing depends on it any more is written as the least such;
//   - the pages that were lately taken away, unless walks count as writes and they are remembered for it;
//   - the number of a requester's last transaction at its home. It is there to refuse repetitions, and the
//     links of such a state do not repeat. The checker has to see that an agent sends each request once.
func (a *Agent) AppendState(b []byte, now int64, n *Naming) []byte {
	for _, page := range n.pages {
		i, ours := a.index(page)
		if !ours {
			continue
		}
		b = a.appendLocal(b, now, i, n)
		if a.isHome(page) {
			b = a.appendEntry(b, now, a.entry(i), n)
		}
	}
	b = append(b, byte(a.waiters.n))
	for k := range a.waiters.n {
		b = append(b, byte(n.Page(a.pageAt(*a.waiters.at(k)))))
	}
	b = append(b, byte(a.free.n))
	for k := range a.free.n {
		b = append(b, byte(n.Slot(a.self, *a.free.at(k))))
	}
	if a.tenured() {
		b = a.appendCollecting(b, now, n)
	}
	if a.prefetch > 0 {
		b = a.appendStreams(b)
	}
	if a.cache.held != nil {
		b = a.appendClock(b, now)
	}
	return b
}

// TrialNext says whether the next read of a migratory page homed here is one of those that are served as a mere
// read.
func (a *Agent) TrialNext(yes bool) {
	a.trial = 0
	if yes {
		a.trial = migratoryTrial - 1
	}
}

// SetState puts the agent, which has the Config of the one that a state calls by its name, into that state.
// It returns what follows in b.
func (a *Agent) SetState(b []byte, now int64) []byte {
	r := stateReader{b}
	clear(a.requests)
	clear(a.records)
	a.lastTxn = txnFresh
	a.trial = 0
	for page := range a.total {
		i, ours := a.index(page)
		if !ours {
			continue
		}
		a.setLocal(&r, now, page, i)
		if a.isHome(page) {
			a.setEntry(&r, now, i)
		}
	}
	a.waiters.head, a.waiters.n = 0, uint32(r.byte())
	for k := range a.waiters.n {
		a.waiters.ring[k], _ = a.index(wire.PFN(r.byte()))
	}
	a.free.head, a.free.n = 0, uint32(r.byte())
	for k := range a.free.n {
		*a.free.at(k) = uint32(r.byte())
	}
	if a.tenured() {
		a.setCollecting(&r, now)
	}
	if a.prefetch > 0 {
		a.setStreams(&r)
	}
	a.countCached()
	if a.cache.held != nil {
		a.setClock(&r, now)
	}
	return r.b
}

func (a *Agent) tenured() bool { return a.policy.top > 0 }

// appendAge appends for how long something has been so, up to a bound from which on it makes no difference.
func appendAge(b []byte, age, bound int64) []byte {
	return binary.AppendUvarint(b, uint64(min(age, bound)))
}

const (
	localSlot   = 1 << 2 // with the mode in bits 0 and 1
	localWrite  = 1 << 3 // what is asked for is M
	localGood   = 1 << 4 // the home frame is known to be good
	localVoid   = 1 << 5 // what is fetched, or parked, is worth nothing
	asksGranted = 1 << 6 // with the kind in bits 0 to 3 and what was carried in 4 and 5
	asksTell    = 1 << 7
)

func (a *Agent) appendLocal(b []byte, now int64, i uint32, n *Naming) []byte {
	p := &a.pages[i]
	marks := p.marks & (1<<levelShift - 1)
	if !a.walksWrite {
		marks &^= robbed
	}
	flags := byte(p.mode)
	if p.mode == wire.Shared && a.cache.isGood(i) {
		flags |= localGood
	}
	if p.slot != 0 {
		flags |= localSlot
		if a.requests[p.slot-1].want == wire.Modified {
			flags |= localWrite
		}
		if a.requests[p.slot-1].void {
			flags |= localVoid
		}
	}
	b = append(b, flags, marks)
	if a.tenured() {
		b = a.appendTenure(b, now, p)
	}
	if p.slot == 0 {
		return b
	}
	slot := uint32(p.slot - 1)
	r := &a.requests[slot]
	asks := byte(r.kind) | byte(r.carried)<<4
	if r.granted {
		asks |= asksGranted
	}
	if r.tellHome {
		asks |= asksTell
	}
	b = append(b, byte(n.Slot(a.self, slot)), byte(n.Txn(a.self, r.txn)), asks)
	b = binary.AppendUvarint(b, n.Nodes(r.need))
	b = binary.AppendUvarint(b, n.Nodes(r.got))
	return binary.AppendUvarint(b, uint64(r.tenure))
}

// appendTenure appends a page's tenure. One that is over is as good as none, but for those who remember what
// was taken from them: to them it is as good as the shortest.
func (a *Agent) appendTenure(b []byte, now int64, p *local) []byte {
	tick := now >> clockShift
	level, age := p.level(), int64(uint32(tick)-p.since)<<clockShift
	if level != 0 && age >= a.policy.levels[level] {
		if level = 0; a.walksWrite {
			level = 1
		}
	}
	b = append(b, level)
	if level == 0 {
		return b
	}
	return appendAge(b, age, a.policy.levels[level])
}

func (a *Agent) setLocal(r *stateReader, now int64, page wire.PFN, i uint32) {
	flags := r.byte()
	p := local{mode: wire.Mode(flags & 3), marks: r.byte()}
	a.cache.setGood(i, flags&localGood != 0)
	if a.tenured() {
		if p.setLevel(r.byte()); p.level() != 0 {
			p.since = uint32((now - r.time()) >> clockShift)
		}
	}
	if flags&localSlot != 0 {
		slot := uint32(r.byte())
		p.slot = uint16(slot + 1)
		q := request{page: page, index: i, txn: uint32(r.byte())}
		asks := r.byte()
		q.kind, q.carried = wire.Kind(asks&0xf), wire.Flags(asks>>4&3)
		q.granted, q.tellHome = asks&asksGranted != 0, asks&asksTell != 0
		q.want = wire.Shared
		if flags&localWrite != 0 {
			q.want = wire.Modified
		}
		if q.kind > wire.CoherenceLast {
			q.want = wire.None
		}
		q.void = flags&localVoid != 0
		q.need, q.got, q.tenure = r.number(), r.number(), r.time()
		a.requests[slot] = q
	}
	a.pages[i] = p
}

func (a *Agent) appendEntry(b []byte, now int64, e *entry, n *Naming) []byte {
	b = append(b, e.bits&(1<<levelShift-1))
	if a.ownerMatters(e) {
		b = append(b, byte(n.Node(e.owner)))
	}
	b = binary.AppendUvarint(b, n.Nodes(e.sharers))
	if a.tenured() {
		stamps, _ := a.policy.quiet(e, now)
		if e.moved == 0 {
			stamps = ^uint16(0)
		}
		b = append(b, e.level())
		b = binary.AppendUvarint(b, uint64(stamps))
	}
	length := len(b)
	b = append(b, 0)
	for id := e.tail; id != 0; {
		id = a.records[id].next
		r := &a.records[id]
		b[length]++
		b = append(b, byte(n.Node(r.requester)), byte(n.Slot(r.requester, r.slot)), byte(n.Txn(r.requester, r.txn)),
			byte(r.kind)|byte(r.phase)<<4)
		if id == e.tail {
			break
		}
	}
	return b
}

func (a *Agent) ownerMatters(e *entry) bool { return !e.is(shared) || e.is(writeBack) || a.migrate }

func (a *Agent) setEntry(r *stateReader, now int64, i uint32) {
	e := entry{bits: r.byte()}
	if a.ownerMatters(&e) {
		e.owner = wire.NodeID(r.byte())
	}
	e.sharers = r.number()
	if a.tenured() {
		e.setLevel(r.byte())
		if stamps := uint16(r.number()); stamps != ^uint16(0) {
			_, stamp := a.policy.quiet(&e, now)
			e.moved = stamp - stamps
		}
	}
	first := uint32(0)
	for range r.byte() {
		t := transaction{requester: wire.NodeID(r.byte()), slot: uint32(r.byte()), txn: uint32(r.byte())}
		how := r.byte()
		id := a.recordID(t.requester, t.slot)
		if first == 0 {
			first = id
		} else {
			a.records[e.tail].next = id
		}
		a.records[id] = record{transaction: t, index: i, next: first, kind: wire.Kind(how & 0xf), phase: phase(how >> 4)}
		e.tail = id
	}
	*a.entry(i) = e
}

// appendCollecting appends what there is only with tenure.
func (a *Agent) appendCollecting(b []byte, now int64, n *Naming) []byte {
	b = append(b, byte(len(a.deferrals)))
	for i := range a.deferrals {
		d := &a.deferrals[i]
		b = append(b, byte(n.Page(d.page)), byte(d.kind), byte(n.Node(d.requester)),
			byte(n.Slot(d.requester, d.slot)), byte(n.Txn(d.requester, d.txn)))
		b = binary.AppendUvarint(b, uint64(max(d.due-now, 0)))
		b = binary.AppendUvarint(b, uint64(d.tenure))
	}
	b = append(b, byte(a.spell.asked), flagByte(a.idle), flagByte(a.spell.start == never))
	// The last installation counts for as long as a pause may be, or a spell repaid; the first for how long
	// the spell was, up to a turn, and for whether a page that is in its tenure was won before it.
	last := min(now-a.spell.last, max(a.policy.levels[1], a.policy.turn)+1<<clockShift)
	b = binary.AppendUvarint(b, uint64(last))
	if a.spell.start != never {
		b = appendAge(b, now-a.spell.start, max(last+a.policy.turn, a.policy.max)+1<<clockShift)
	}
	if !a.walksWrite {
		return b
	}
	b = append(b, byte(a.companions.n), byte(a.companions.next))
	for _, c := range a.companions.set[:a.companions.n] {
		b = append(b, byte(n.Page(a.pageAt(c.index))), c.trust)
	}
	return b
}

func (a *Agent) setCollecting(r *stateReader, now int64) {
	a.deferrals = a.deferrals[:r.byte()]
	for i := range a.deferrals {
		f := forward{page: wire.PFN(r.byte()), kind: wire.Kind(r.byte())}
		f.index, _ = a.index(f.page)
		f.requester, f.slot, f.txn = wire.NodeID(r.byte()), uint32(r.byte()), uint32(r.byte())
		due := now + r.time()
		f.tenure = r.time()
		a.deferrals[i] = deferral{due: due, came: now, forward: f}
	}
	a.spell.asked, a.idle, a.spell.start = int(r.byte()), r.byte() != 0, never
	began := r.byte() == 0
	a.spell.last = now - r.time()
	if began {
		a.spell.start = now - r.time()
	}
	if !a.walksWrite {
		return
	}
	a.companions = companions{n: int(r.byte()), next: int(r.byte())}
	for i := range a.companions.n {
		c := &a.companions.set[i]
		c.index, _ = a.index(wire.PFN(r.byte()))
		c.trust = r.byte()
	}
}

// appendStreams appends the sequences of faults, which go by the order of pages: with them pages must not be
// renamed.
func (a *Agent) appendStreams(b []byte) []byte {
	b = append(b, byte(a.streams.next))
	for _, s := range a.streams.set {
		b = append(b, byte(s.last), byte(s.stride), byte(s.window), flagByte(s.write))
	}
	return b
}

func (a *Agent) setStreams(r *stateReader) {
	a.streams.next = int(r.byte())
	for i := range a.streams.set {
		a.streams.set[i] = stream{last: uint32(r.byte()), stride: int32(int8(r.byte())), window: uint32(r.byte()), write: r.byte() != 0}
	}
}

// appendClock appends what the choice of pages to park goes by. Like streams, it goes by the order of pages.
func (a *Agent) appendClock(b []byte, now int64) []byte {
	c := &a.cache
	b = append(b, flagByte(c.draining), byte(c.hand), flagByte(c.rests))
	if c.rests && a.tenured() {
		b = binary.AppendUvarint(b, uint64(max(c.until-now, 0)))
	}
	for _, w := range c.recent {
		b = binary.AppendUvarint(b, w)
	}
	return b
}

func (a *Agent) setClock(r *stateReader, now int64) {
	c := &a.cache
	c.draining, c.hand, c.rests, c.until = r.byte() != 0, uint32(r.byte()), r.byte() != 0, now
	if c.rests && a.tenured() {
		c.until += r.time()
	}
	for w := range c.recent {
		c.recent[w] = r.number()
	}
}

// countCached counts the pages that are held, asked for and being parked.
func (a *Agent) countCached() {
	c := &a.cache
	c.frames, c.parking, a.stats.Cached = 0, 0, 0
	clear(c.held)
	for page := range a.total {
		i, ours := a.index(page)
		if !ours || a.isHome(page) {
			continue
		}
		p := &a.pages[i]
		if a.parking(p) {
			c.parking++
		}
		if p.mapped() != wire.None || a.parking(p) {
			a.stats.Cached++
			if c.held != nil {
				c.held[i/64] |= 1 << (i % 64)
			}
		}
		if p.mapped() != wire.None || p.slot != 0 {
			c.frames++
		}
	}
}

func flagByte(x bool) byte {
	if x {
		return 1
	}
	return 0
}

// stateReader reads what AppendState wrote.
type stateReader struct{ b []byte }

func (r *stateReader) byte() byte {
	x := r.b[0]
	r.b = r.b[1:]
	return x
}

func (r *stateReader) number() uint64 {
	x, n := binary.Uvarint(r.b)
	r.b = r.b[n:]
	return x
}

func (r *stateReader) time() int64 { return int64(r.number()) }

// Roles is what a page is at, at one node, in each of the node's roles. The names are those of docs/protocol.md.
type Roles struct {
	Requester, Holder string
	Home              string // empty if the page is homed elsewhere
}

// Roles returns what a page of the shard is at.
func (a *Agent) Roles(page wire.PFN) (r Roles, ok bool) {
	i, ok := a.index(page)
	if !ok {
		return Roles{}, false
	}
	p := &a.pages[i]
	r.Requester = "idle"
	switch {
	case a.parking(p):
		r.Requester = "parking"
		if a.requests[p.slot-1].void {
			r.Requester = "parking, void"
		}
		if p.is(queuedAny) {
			r.Requester += ", wanted"
		}
	case p.is(queuedAny):
		r.Requester = "queued"
	case p.slot != 0 && a.requests[p.slot-1].granted:
		r.Requester = "granted"
	case p.slot != 0 && a.requests[p.slot-1].kind == wire.Fetched:
		r.Requester = "fetching"
		if a.requests[p.slot-1].void {
			r.Requester = "fetching, void"
		}
	case p.slot != 0:
		r.Requester = a.requests[p.slot-1].kind.String() + " asked"
	}
	r.Holder = p.mode.String()
	if p.is(parked) {
		r.Holder += " parked"
	}
	if p.is(deferred) {
		r.Holder += " deferred"
	}
	if a.isHome(page) {
		r.Home = a.homeState(a.entry(i))
	}
	return r, true
}

func (a *Agent) homeState(e *entry) string {
	switch {
	case e.is(busy) && a.first(e).phase == held:
		return "held"
	case e.is(busy) && e.is(shared):
		return "invalidating"
	case e.is(busy) && e.is(writeBack):
		return "forwarded for reading"
	case e.is(busy):
		return "forwarded"
	case e.is(writeBack):
		return "write-back"
	case e.is(shared):
		return "shared"
	case e.owner == a.self:
		return "owned by home"
	}
	return "owned"
}
