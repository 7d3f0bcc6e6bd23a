package coherence

import (
	"fmt"
	"math/bits"

	"ironspan/engine/wire"
)

// Fate is what one node can say of a page after others were lost.
type Fate uint8

// The fates. A page homed at a lost node is kept if any of the nodes that are left says so, else uncertain if any says
// that, and lost if none has anything to say about it: its home frame is gone, and so is what the guest's CPUs there
// may have written to it without anybody's knowledge. Of a page homed at one of the nodes that are left, its home alone
// speaks, and says nothing where the page is safe.
const (
	_         Fate = iota
	Kept           // homed at a lost node, and this node has the bytes last written
	Lost           // homed here, and the directory says that a lost node had the only current copy
	Uncertain      // something was under way for the page, and cannot be told to have come to its end
)

var fateNames = [...]string{Kept: "kept", Lost: "lost", Uncertain: "uncertain"}

// String returns kept, lost or uncertain.
func (f Fate) String() string {
	if int(f) < len(fateNames) && f != 0 {
		return fateNames[f]
	}
	return fmt.Sprintf("Fate(%d)", uint8(f))
}

// Losses says what became of the shard's pages when the nodes of a set were lost, bit n for node n: each gets ranges of
// pages of the same fate, in ascending order. It only reads; its driver must have stopped, or be who calls. This node
// must not be in the set.
//
// It is exact for pages that nothing is under way for. A page that was granted to a lost node counts as lost whether or
// not the grant arrived: only the home's part of that is known, and it had given the page up. What a node sends away
// and does not keep is uncertain until somebody says that it has it, also between nodes that are left: their queue pair
// may have failed, and with an empty set that is all that can be told.
func (a *Agent) Losses(lost uint64, each func(Range, Fate)) {
	var run Range
	var fate Fate
	end := func() {
		if fate != 0 {
			each(run, fate)
		}
	}
	for n, r := range a.homes {
		atHome := wire.NodeID(n) == a.self
		if !atHome && lost&bit(wire.NodeID(n)) == 0 {
			continue
		}
		for i := a.firstIndex(r.First); i < a.firstIndex(r.Last); i++ {
			index := uint32(i)
			f := Fate(0)
			if atHome {
				f = a.fateAtHome(index, lost)
			} else {
				f = a.fateOfCopy(&a.pages[index])
			}
			page := a.pageAt(index)
			if f == fate && page == run.Last {
				run.Last++
				continue
			}
			end()
			run, fate = Range{page, page + 1}, f
		}
	}
	end()
}

// fateOfCopy judges a page whose home is lost by what is here of it. Who may read a page has the bytes last written, if
// it has any; and so has who waits for the last acknowledgements, since nobody may write before, and who is parking it.
// Where the page is asked for, it may be on its way from another node that has given it up already.
func (a *Agent) fateOfCopy(p *local) Fate {
	switch {
	case p.mapped() != wire.None:
		return Kept
	case p.slot == 0:
		return 0
	}
	switch r := &a.requests[p.slot-1]; {
	case r.kind == wire.Parked && r.void:
		return 0 // somebody else has it from the home frame
	case r.kind == wire.Parked, r.granted && r.carried != 0:
		return Kept
	}
	return Uncertain
}

// fateAtHome judges a page homed here by its directory entry, unless the node has it mapped.
func (a *Agent) fateAtHome(i uint32, lost uint64) Fate {
	if a.pages[i].mode != wire.None {
		return 0
	}
	e := a.entry(i)
	gone := func(n wire.NodeID) bool { return lost&bit(n) != 0 }
	if !e.is(busy) {
		switch {
		case e.is(writeBack):
			return Uncertain // the home frame may or may not have been written, and sharers may have dropped their copies
		case !e.is(shared) && gone(e.owner):
			return Lost
		}
		return 0
	}
	switch r := a.first(e); {
	case e.is(shared):
		// The home frame was good when this began. A requester who had all acknowledgements can have written since.
		if gone(r.requester) {
			return Uncertain
		}
	case r.kind == wire.GetS && !e.is(writeBack) && r.requester != a.self:
		// It was written back.
	case r.kind == wire.GetS:
		// The owner keeps its copy, or was parking it and does not. Without it there is what it may have sent the reader, or
		// written here.
		return Uncertain
	case gone(e.owner) && gone(r.requester):
		return Lost // it is at one of them, or was between them
	default:
		return Uncertain // it is at one of them, or between them
	}
	return 0
}

// Waiting is a request that this node waits for.
type Waiting struct {
	Txn  uint32 // names it among the agent's requests; 0: there is none
	Page wire.PFN
	For  wire.NodeID // who has to do something next, as far as this node can tell; itself if it can not
}

// Oldest returns the request that has been waited for longest. A request that stays the oldest for much longer than
// any tenure will not be answered: a message that it needs was lost, or refused.
func (a *Agent) Oldest() (w Waiting) {
	for i := range a.requests {
		r := &a.requests[i]
		if r.txn != 0 && (w.Txn == 0 || int32(r.txn-w.Txn) < 0) {
			w = Waiting{Txn: r.txn, Page: r.page, For: a.awaited(r)}
		}
	}
	return w
}

// awaited returns who has to do something next for a request of this node.
func (a *Agent) awaited(r *request) wire.NodeID {
	if missing := r.need &^ r.got; r.granted && missing != 0 {
		return wire.NodeID(bits.TrailingZeros64(missing))
	}
	if !a.isHome(r.page) {
		return a.homeOf(r.page)
	}
	e := a.entry(r.index)
	switch {
	case !e.is(busy): // it waits for the write-back
		return e.owner
	case a.first(e).requester != a.self && !e.is(writeBack):
		return a.first(e).requester
	}
	return e.owner
}
