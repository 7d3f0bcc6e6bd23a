package apic

import "sync/atomic"

// posted is what other threads want of a vCPU.
//
// Invariant: written by any thread, emptied by the owner only. A poster first puts its vector into edge or
// level and then sets outstanding in events; Sync first clears events and then empties edge and level. All of
// them are sequentially consistent, so a poster that found outstanding set (and therefore does not kick) set
// it before the owner cleared it, and the owner, which empties the words after that, sees the vector. A
// poster that found it clear kicks, and the kick makes the owner call Sync once more.
type posted struct {
	_      [64]byte // other threads' stores stay off the owner's cache lines
	edge   [4]atomic.Uint64
	level  [4]atomic.Uint64
	events atomic.Uint64
	_      [56]byte
}

// Bits of posted.events.
const (
	evOutstanding = 1 << iota
	evNMI
	evINIT
	evSIPI
	evVectorShift = 8
	evVectorMask  = 0xff << evVectorShift
)

// Events is what Sync found besides vectors. They are to be applied in the order of the fields.
type Events struct {
	INIT bool // the LAPIC has reset itself; the vCPU goes to wait-for-SIPI with INIT's register values
	SIPI bool // start at Vector<<12; to be ignored by a vCPU that does not wait for it
	NMI  bool
	// Vector is the SIPI's vector.
	Vector uint8
}

// Post makes vector pending, level triggered or not, and reports whether the vCPU needs a kick. Any thread.
func (l *LAPIC) Post(vector uint8, level bool) (kick bool) {
	bit := uint64(1) << (vector & 63)
	if level {
		l.posted.level[vector>>6].Or(bit)
	} else {
		l.posted.edge[vector>>6].Or(bit)
	}
	return l.posted.events.Or(evOutstanding)&evOutstanding == 0
}

// PostNMI makes an NMI pending. Any thread.
func (l *LAPIC) PostNMI() (kick bool) {
	return l.posted.events.Or(evOutstanding|evNMI)&evOutstanding == 0
}

// PostINIT asks for an INIT. It cancels a SIPI and an NMI that were posted before. Any thread.
func (l *LAPIC) PostINIT() (kick bool) {
	for {
		old := l.posted.events.Load()
		if l.posted.events.CompareAndSwap(old, evOutstanding|evINIT) {
			return old&evOutstanding == 0
		}
	}
}

// PostSIPI asks for a start at page vector. Of several before a Sync the last one counts. Any thread.
func (l *LAPIC) PostSIPI(vector uint8) (kick bool) {
	for {
		old := l.posted.events.Load()
		next := old&^evVectorMask | evOutstanding | evSIPI | uint64(vector)<<evVectorShift
		if l.posted.events.CompareAndSwap(old, next) {
			return old&evOutstanding == 0
		}
	}
}

// Sync folds what was posted into the registers and returns the events. It must run on the vCPU's thread
// before each entry to the guest, with kicks from then on interrupting the entry.
func (l *LAPIC) Sync() Events {
	if l.posted.events.Load() == 0 {
		return Events{}
	}
	ev := l.posted.events.Swap(0)
	l.fold()
	out := Events{
		INIT:   ev&evINIT != 0,
		SIPI:   ev&evSIPI != 0,
		NMI:    ev&evNMI != 0,
		Vector: uint8(ev >> evVectorShift),
	}
	if out.INIT {
		l.initReset()
	}
	return out
}

// fold moves posted vectors into IRR and TMR. It leaves outstanding alone, which only Sync may clear.
func (l *LAPIC) fold() {
	for w := range l.posted.edge {
		if l.posted.edge[w].Load() != 0 {
			bits := l.legal(w, l.posted.edge[w].Swap(0))
			l.irr[w] |= bits
			l.tmr[w] &^= bits
		}
		if l.posted.level[w].Load() != 0 {
			bits := l.legal(w, l.posted.level[w].Swap(0))
			l.irr[w] |= bits
			l.tmr[w] |= bits
		}
	}
}

// legal drops vectors 0 to 15, which no message may carry, and records the error.
func (l *LAPIC) legal(word int, bits uint64) uint64 {
	const illegal = 0xffff
	if word == 0 && bits&illegal != 0 {
		l.raise(errReceiveVector)
		bits &^= illegal
	}
	return bits
}
