package rdma

import (
	"math/bits"

	"ironspan/engine/wire"
	"ironspan/fastpath/fabric"
	"ironspan/verbs"
)

// The immediate data of a WRITE; see the package documentation.
const (
	briefSpentBits = 11
	briefModeShift = briefSpentBits
	briefTxnShift  = briefModeShift + 1
	briefTxnBits   = 4
	briefSlotShift = briefTxnShift + briefTxnBits
	briefSlots     = 1 << (32 - briefSlotShift)

	spentMantissaBits = 6
)

// question is what this node asked for last with a slot.
type question struct {
	page wire.PFN
	txn  uint32
	open bool // no brief answer came
}

// ask notes a message that a brief grant may answer: a node's request, or what a home has an owner do for it.
func (l *Lane) ask(m *wire.Message) {
	if m.Kind < wire.GetS || m.Kind > wire.FwdGetM || m.Requester != l.cfg.Self || uint64(m.Slot) >= uint64(len(l.questions)) {
		return
	}
	l.questions[m.Slot] = question{page: m.Page, txn: m.Txn, open: true}
}

// emitBrief has the last write of the batch take the packet's only message along, if that is the grant of the page that
// it writes, and says nothing that the requester could not tell from its request and 32 bits. The packet is empty then.
func (l *Lane) emitBrief(k *link) bool {
	r := &k.run
	if k.packetLen != wire.Size || r.pages != 1 || r.verb != fabric.Write {
		return false
	}
	var m wire.Message
	if m.Decode(k.packet[:wire.Size]) != nil {
		return false // this node's own error; the peer will say what of it is wrong
	}
	imm, ok := l.brief(k.id, &m)
	if !ok || r.remote() != k.landing(&m) || !k.batch.SetImm(imm) {
		return false
	}
	k.packetLen, r.pages = 0, 0
	return true
}

// brief says a grant in 32 bits, if it can be.
func (l *Lane) brief(to wire.NodeID, m *wire.Message) (imm uint32, ok bool) {
	spent := packSpent(m.Spent)
	imm = m.Slot<<briefSlotShift | m.Txn%(1<<briefTxnBits)<<briefTxnShift | spent
	if m.Mode == wire.Modified {
		imm |= 1 << briefModeShift
	}
	plain := wire.Message{
		Kind: wire.Grant, From: l.cfg.Self, Flags: wire.FlagData, Requester: to, Mode: m.Mode, Epoch: l.cfg.Epoch,
		Txn: m.Txn, Slot: m.Slot, Spent: m.Spent, Page: m.Page,
	}
	return imm, *m == plain && m.Mode != wire.None && m.Slot < briefSlots
}

// landing is where the page of a grant has to be: its home frame, if k is its home, or else the requester's slot.
func (k *link) landing(m *wire.Message) verbs.Remote {
	if r, ok := k.ram.at(uint64(m.Page) << wire.PageShift); ok {
		return r
	}
	r, _ := k.slots.at(uint64(m.Slot) << wire.PageShift)
	return r
}

// expand is the inverse of brief, at the requester; false if it has no such question.
func (l *Lane) expand(from wire.NodeID, imm uint32, m *wire.Message) bool {
	slot := imm >> briefSlotShift
	if uint64(slot) >= uint64(len(l.questions)) {
		return false
	}
	q := &l.questions[slot]
	if !q.open || (q.txn^imm>>briefTxnShift)%(1<<briefTxnBits) != 0 {
		return false
	}
	q.open = false
	*m = wire.Message{
		Kind: wire.Grant, From: from, Flags: wire.FlagData, Requester: l.cfg.Self, Mode: wire.Shared, Epoch: l.cfg.Epoch,
		Txn: q.txn, Slot: slot, Spent: unpackSpent(imm % (1 << briefSpentBits)), Page: q.page,
	}
	if imm>>briefModeShift&1 != 0 {
		m.Mode = wire.Modified
	}
	return true
}

// packSpent keeps the upper bits of a time and how many are below them, and rounds down by less than a 32nd.
func packSpent(ns uint32) uint32 {
	shift := max(bits.Len32(ns)-spentMantissaBits, 0)
	return uint32(shift)<<spentMantissaBits | ns>>shift
}

// unpackSpent is its inverse, but for the bits that were dropped.
func unpackSpent(b uint32) uint32 { return b % (1 << spentMantissaBits) << (b >> spentMantissaBits) }
