package coherence

import "ironspan/engine/wire"

// request is what a node asked for and does not have yet. It belongs to the slot into which its page comes
// and is idle if txn is 0. It is complete, and done with, when it is granted and got covers need.
type request struct {
	need, got uint64 // nodes whose invalidation is to be awaited (known from the grant on); who acknowledged
	page      wire.PFN
	tenure    int64
	index     uint32
	txn       uint32
	kind      wire.Kind
	want      wire.Mode
	granted   bool
	void      bool       // of a fetch, or of parking: the right went meanwhile, and the bytes may be old
	tellHome  bool       // the home waits for a Done
	carried   wire.Flags // how the page's bytes came: FlagData, FlagZero or, with an upgrade, not at all
}

// waitersMax bounds the FIFO of pages that wait for a slot. A vCPU waits for one page at a time, so this is
// more than a server has; beyond it a vCPU is sent back to fault again.
const waitersMax = 1024

// fifo is a queue of bounded length: a ring.
type fifo struct {
	ring    []uint32
	head, n uint32
}

func newFIFO(most int) fifo { return fifo{ring: make([]uint32, most)} }

// at returns the k-th from the head on.
func (f *fifo) at(k uint32) *uint32 { return &f.ring[(f.head+k)%uint32(len(f.ring))] }

func (f *fifo) push(v uint32) bool {
	if int(f.n) == len(f.ring) {
		return false
	}
	*f.at(f.n) = v
	f.n++
	return true
}

func (f *fifo) pop() uint32 {
	v := *f.at(0)
	f.head = (f.head + 1) % uint32(len(f.ring))
	f.n--
	return v
}

// serveWaiters asks for the pages in the FIFO while there are slots, and frames. A request that this node's own
// directory grants at once frees its slot again. It says whether there was any.
func (a *Agent) serveWaiters(now int64) (any bool) {
	for a.waiters.n > 0 && a.free.n > 0 {
		i := *a.waiters.at(0)
		p, page := &a.pages[i], a.pageAt(i)
		if !a.hasFrame(page, p) {
			break
		}
		any = true
		a.waiters.pop()
		need := wire.Shared
		if p.is(queuedWrite) {
			need = wire.Modified
		}
		p.marks &^= queuedAny
		a.ask(now, i, page, need)
	}
	return any
}

// ask takes a slot, which there is, and requests a page that the node has no sufficient right to, or fetches it if all
// it lacks is the bytes.
func (a *Agent) ask(now int64, i uint32, page wire.PFN, need wire.Mode) {
	p := &a.pages[i]
	if p.is(parked) && p.mode >= need && (p.mode == wire.Modified || a.cache.isGood(i)) {
		a.fetch(i, page)
		return
	}
	atHome := a.isHome(page)
	kind := wire.GetS
	switch {
	case need == wire.Modified && p.mapped() == wire.Shared:
		kind = wire.Upgrade
		a.stats.UpgradeFaults++
	case need == wire.Modified || atHome && a.readAsWrite:
		need = wire.Modified
		kind = wire.GetM
		a.stats.WriteFaults++
	default:
		a.stats.ReadFaults++
	}
	a.spell.ask(now, a.policy.levels[1])
	t := a.take(i, page, kind, need)
	if atHome {
		a.enqueue(now, i, kind, t)
		return
	}
	if p.mapped() == wire.None {
		a.cache.frames++
	}
	a.send(OpSend, a.homeOf(page), kind, page, t).Mode = need
}

// take takes a slot, which there is, for a request.
func (a *Agent) take(i uint32, page wire.PFN, kind wire.Kind, want wire.Mode) transaction {
	slot := a.free.pop()
	a.lastTxn++
	if a.lastTxn == 0 {
		a.lastTxn = 1
	}
	a.requests[slot] = request{page: page, index: i, txn: a.lastTxn, kind: kind, want: want}
	a.pages[i].slot = uint16(slot + 1)
	return transaction{requester: a.self, txn: a.lastTxn, slot: slot}
}

// requestOf finds the request that a grant or an acknowledgement is about.
func (a *Agent) requestOf(m *wire.Message) (*request, Status) {
	if m.Requester != a.self {
		return nil, BadRequester
	}
	r := &a.requests[m.Slot]
	if r.txn != m.Txn || r.page != m.Page {
		return nil, BadTxn
	}
	return r, OK
}

// stepGrant takes in what another node, as home or as the owner the home asked, grants.
func (a *Agent) stepGrant(now int64, i uint32, m *wire.Message) Status {
	r, s := a.requestOf(m)
	if s != OK {
		return s
	}
	if r.granted || r.kind > wire.CoherenceLast {
		return BadTxn
	}
	need := m.Args[1]
	if m.Mode < r.want || need&^a.others != 0 || need != 0 && m.Mode != wire.Modified {
		return BadField
	}
	home := a.homeOf(m.Page)
	switch {
	case home == a.self && (!a.entry(i).is(busy) || a.entry(i).is(shared) || a.entry(i).owner != m.From):
		return BadSender // not the owner that the directory knows
	case home != m.From && need != 0:
		return BadField // only the home knows the sharers
	case m.Flags != 0 && a.pages[i].mapped() != wire.None:
		return BadState // would overwrite a copy that is in use
	case m.Flags == 0 && (r.kind != wire.Upgrade || home != m.From || a.pages[i].mode != wire.Shared):
		return BadState // nothing to upgrade
	case m.Args[2] != 0 && (home != m.From || m.Mode != wire.Shared || !a.canCover(i, m.Args[2], home)):
		return BadField
	}
	r.want = m.Mode // a reader may get more than it asked for
	a.granted(now, r, m.Flags, int64(min(m.Args[0], uint64(a.policy.max))), need, home != m.From || need != 0)
	a.takeCovered(i, m.Args[2])
	return OK
}

// granted notes a grant and completes the request if no acknowledgement is missing.
func (a *Agent) granted(now int64, r *request, carried wire.Flags, tenure int64, need uint64, tellHome bool) {
	r.granted = true
	r.carried = carried
	r.tenure = tenure
	r.need = need
	r.tellHome = tellHome
	if r.got&need == need {
		a.complete(now, r)
	}
}

// stepInvAck takes in a sharer's acknowledgement. It may overtake the grant, which comes from another node:
// then it is kept, and judged when the grant says who the sharers were.
func (a *Agent) stepInvAck(now int64, _ uint32, m *wire.Message) Status {
	r, s := a.requestOf(m)
	switch {
	case s != OK:
		return s
	case r.want != wire.Modified:
		return BadState
	case r.got&bit(m.From) != 0:
		return BadTxn
	case r.granted && r.need&bit(m.From) == 0:
		return BadSender
	}
	r.got |= bit(m.From)
	if !r.granted {
		a.stats.EarlyAcks++
		return OK
	}
	if r.got&r.need == r.need {
		a.complete(now, r)
	}
	return OK
}

// complete installs the page, on which the tenure begins, frees the slot and tells the home.
func (a *Agent) complete(now int64, r *request) {
	p := &a.pages[r.index]
	slot := uint32(p.slot - 1)
	bare := r.kind == wire.Upgrade && p.mode == wire.Shared
	// The copy that was to be upgraded is gone, and a grant for another page has covered this one since.
	bytesAtHome := bare && p.is(parked)
	p.slot = 0
	p.mode = r.want
	p.marks &^= parked
	a.cache.setGood(r.index, !r.tellHome) // a reader's grant came from the home
	a.beginTenure(now, p, r)
	if r.want == wire.Shared {
		a.stats.GrantsShared++
	} else {
		a.stats.GrantsModified++
	}
	if r.carried&wire.FlagZero != 0 {
		a.stats.ZeroGrants++
	}
	if bytesAtHome {
		p.marks |= parked
		p.setLevel(0)
		a.cache.frames--
	} else if bare {
		a.stats.UpgradesBare++
		a.emit(OpUnprotect, r.page).Mode = r.want
		a.cache.won(r.index, !a.isHome(r.page))
	} else {
		if r.kind == wire.Upgrade {
			a.stats.UpgradesCarried++
		}
		act := a.emit(OpInstall, r.page)
		act.Mode = r.want
		act.Slot = slot
		act.Msg.Flags = r.carried
		if !a.isHome(r.page) {
			a.cached(r.index)
		}
	}
	t := transaction{requester: a.self, txn: r.txn, slot: slot}
	page, i, tell := r.page, r.index, r.tellHome
	*r = request{}
	a.free.push(slot)
	if bytesAtHome {
		a.fetch(i, page)
	}
	switch {
	case !tell:
	case a.isHome(page):
		a.finish(now, i)
	default:
		a.send(OpSend, a.homeOf(page), wire.Done, page, t)
	}
}
