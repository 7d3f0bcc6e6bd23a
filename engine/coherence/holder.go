package coherence

import "ironspan/engine/wire"

// forward is what a home wants of a holder: FwdGetS, FwdGetM or Inv, on behalf of a requester.
type forward struct {
	page   wire.PFN
	tenure int64 // what to tell the requester
	transaction
	index uint32
	kind  wire.Kind
}

// deferral is a forward that waits for the end of the tenure, or for a moment at which to look again.
type deferral struct {
	due, came int64
	forward
}

// deferralsMax bounds the heap of deferrals. There is at most one for every request in progress in the VM;
// should there be more, the page is given up at once, which costs fairness, not correctness.
const deferralsMax = 1 << 16

// stepForward takes in what the page's home wants of this node's copy. There is at most one such message
// for a page at any time, because the home works at one transaction of a page after the other.
func (a *Agent) stepForward(now int64, i uint32, m *wire.Message) Status {
	if a.isHome(m.Page) || a.homeOf(m.Page) != m.From {
		return BadSender
	}
	if m.Requester == a.self {
		return BadRequester
	}
	have := wire.Modified
	if m.Kind == wire.Inv {
		have = wire.Shared
	}
	if p := &a.pages[i]; p.mode != have || p.is(deferred) {
		return BadState
	}
	f := forward{
		page: m.Page, index: i, kind: m.Kind, tenure: int64(min(m.Args[0], uint64(a.policy.max))),
		transaction: transaction{requester: m.Requester, txn: m.Txn, slot: m.Slot},
	}
	if !a.deferForward(now, &f) {
		a.serve(now, &f)
	}
	return OK
}

// deferForward puts a forward off if the page is in its tenure.
func (a *Agent) deferForward(now int64, f *forward) bool {
	p := &a.pages[f.index]
	if p.level() == 0 || p.is(deferred) {
		return false
	}
	due := a.holdUntil(now, p, f.requester)
	if due <= now {
		return false
	}
	if len(a.deferrals) == cap(a.deferrals) {
		a.stats.DeferOverflows++
		return false
	}
	p.marks |= deferred
	a.stats.Deferred++
	a.pushDeferral(deferral{due: due, came: now, forward: *f})
	return true
}

// serve does what a forward asks for: it revokes the guest's right first and only then sends the bytes,
// which nobody can change any more. A right that is not there any more is none to revoke; that takes a
// requester that lied to the home about being done, and whose page it was.
func (a *Agent) serve(now int64, f *forward) {
	p := &a.pages[f.index]
	if p.is(parked) {
		a.yield(f)
		return
	}
	atHome := a.isHome(f.page)
	if f.kind == wire.Inv {
		revoked := a.invalidate(f.page, p)
		a.send(OpSend, f.requester, wire.InvAck, f.page, f.transaction)
		if revoked && !atHome {
			a.discard(f.page, f.index)
		}
		return
	}
	if p.mode != wire.Modified {
		return
	}
	a.stats.ForwardsServed++
	if f.kind == wire.FwdGetS {
		a.emit(OpProtect, f.page)
		p.mode = wire.Shared
		a.cache.setGood(f.index, false) // as soon as the home has the write-back, but this node will not hear of it
		a.sendGrant(now, OpSendPage, f.page, f.index, f.transaction, wire.Shared, f.tenure, 0)
		if home := a.homeOf(f.page); !atHome && f.requester != home {
			a.send(OpSendPage, home, wire.WriteBack, f.page, f.transaction)
		}
		return
	}
	a.emit(OpUnmap, f.page)
	p.revoke()
	a.sendGrant(now, OpSendPage, f.page, f.index, f.transaction, wire.Modified, f.tenure, 0)
	if p.is(robbed) {
		a.companions.robbed(f.index)
	}
	if !atHome {
		a.discard(f.page, f.index)
	}
}

// invalidate takes away a read right, if there is one.
func (a *Agent) invalidate(page wire.PFN, p *local) bool {
	if p.mode != wire.Shared {
		return false
	}
	a.emit(OpUnmap, page)
	p.revoke()
	a.stats.InvalidatesServed++
	return true
}

// pushDeferral and popDeferral keep the heap.
func (a *Agent) pushDeferral(d deferral) {
	h := append(a.deferrals, d)
	i := len(h) - 1
	for i > 0 {
		up := (i - 1) / 2
		if h[up].due <= d.due {
			break
		}
		h[i] = h[up]
		i = up
	}
	h[i] = d
	a.deferrals = h
}

func (a *Agent) popDeferral() deferral {
	h := a.deferrals
	top := h[0]
	d := h[len(h)-1]
	h = h[:len(h)-1]
	a.deferrals = h
	if len(h) == 0 {
		return top
	}
	i := 0
	for {
		c := 2*i + 1
		if c >= len(h) {
			break
		}
		if c+1 < len(h) && h[c+1].due < h[c].due {
			c++
		}
		if d.due <= h[c].due {
			break
		}
		h[i] = h[c]
		i = c
	}
	h[i] = d
	return top
}
