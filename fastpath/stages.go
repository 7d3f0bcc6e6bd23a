package fastpath

import (
	"fmt"
	"math"

	"ironspan/engine/coherence"
	"ironspan/engine/wire"
)

// Stage is a part of what it takes to serve a fault.
type Stage uint8

// The stages. The first four are the requester's, of each fault for which other nodes, or their memory, were asked, and
// make up its latency. The others are what this node did for any requester, and part of StageRemote there.
const (
	StageQueue   Stage = iota // from reading the fault until other nodes are asked: the wait for a slot, or a frame
	StageRemote               // at the home and the holder: the page's turn, its tenure, the stages below; no fetch has it
	StageFlight               // the rest: on the wire, and until a message is noticed, on all ways
	StageInstall              // from the last message to the vCPU's resumption
	StageSplit                // mapping a block's pages one by one, before the first of them is wanted elsewhere
	StageRevoke               // taking a right away: KVM's mapping gone, vCPUs out of the guest
	StageForget               // having KVM's shadow page tables forget the page
	StageSend                 // looking for zeros, posting the page
	Stages                    // number of stages
)

var stageNames = [Stages]string{"queue", "remote", "flight", "install", "split", "revoke", "forget", "send"}

// String returns the stage's name in reports: queue, remote, flight, install, split, revoke, forget, send.
func (g Stage) String() string {
	if g < Stages {
		return stageNames[g]
	}
	return fmt.Sprintf("Stage(%d)", uint8(g))
}

// transit remembers when requests arrived here that are on their way through this node, by requester and slot: there
// is one of each at a time. What it holds for others is never more than a diagnosis.
type transit struct {
	slots   uint64
	arrived []int64
}

func newTransit(nodes, slots int) transit {
	return transit{slots: uint64(slots), arrived: make([]int64, nodes*slots)}
}

// of returns the place of a message's transaction, nil if there is none.
func (t *transit) of(m *wire.Message) *int64 {
	i := uint64(m.Requester)*t.slots + uint64(m.Slot)
	if uint64(m.Slot) >= t.slots || i >= uint64(len(t.arrived)) {
		return nil
	}
	return &t.arrived[i]
}

// arrive notes a message that the agent accepted. What the transaction has spent elsewhere counts as if it had been
// spent here.
func (t *transit) arrive(now int64, m *wire.Message) {
	switch m.Kind {
	case wire.GetS, wire.GetM, wire.Upgrade, wire.FwdGetS, wire.FwdGetM, wire.Inv:
		if at := t.of(m); at != nil {
			*at = now - int64(m.Spent)
		}
	}
}

// stamp notes in a message that is about to be sent what its transaction has spent at nodes, or, if it is this node's
// own, that it begins. So does, of a fetch, the word of its end.
func (s *Shard) stamp(m *wire.Message) {
	switch m.Kind {
	case wire.GetS, wire.GetM, wire.Upgrade, wire.Fetched:
		s.pending.asked(m.Page, s.clock())
	case wire.FwdGetS, wire.FwdGetM, wire.Inv:
		if m.Requester == m.From {
			s.pending.asked(m.Page, s.clock())
			return
		}
		s.stampSpent(m)
	case wire.Grant, wire.InvAck:
		s.stampSpent(m)
	}
}

func (s *Shard) stampSpent(m *wire.Message) {
	if at := s.transit.of(m); at != nil {
		m.Spent = uint32(min(max(s.clock()-*at, 0), math.MaxUint32))
	}
}

// staged splits the latency of a fault that other nodes helped to serve. now is when the last message, or the word, was
// taken in, end when the vCPU could go on.
func (s *Shard) staged(now, end int64, a *coherence.Action, w *waiting) {
	if w.sent == 0 || s.cause == nil || s.cause.Page != a.Page {
		return
	}
	// What the others say is believed only as far as it can be true.
	remote := min(int64(s.cause.Spent), max(now-w.sent, 0))
	s.metrics.Stage[StageQueue].Record(w.sent - w.start)
	s.metrics.Stage[StageRemote].Record(remote)
	s.metrics.Stage[StageFlight].Record(now - w.sent - remote)
	s.metrics.Stage[StageInstall].Record(end - now)
}
