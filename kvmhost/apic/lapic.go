package apic

import (
	"fmt"
	"math"
	"math/bits"
	"sync/atomic"
)

const (
	// LAPICBase is the guest-physical address of the register page, the same for each vCPU.
	LAPICBase = 0xfee00000
	// LAPICSize is the size of the register page.
	LAPICSize = 0x1000
)

// Config describes a local APIC.
type Config struct {
	ID     uint32 // APIC ID, at most MaxID
	BSP    bool   // bootstrap processor
	TSCHz  uint64 // frequency of the TSC that now is given in
	BusHz  uint64 // frequency of the timer's input clock, before the divider
	Router Router // where messages from the ICR go

	// Stretch multiplies the distance of TSC deadlines, for guests that are known to ask for too short a one. Zero: not.
	Stretch Ratio
}

// Ratio is Num/Den, at least 1.
type Ratio struct{ Num, Den uint64 }

// of returns v times the ratio, saturating.
func (r Ratio) of(v uint64) uint64 {
	hi, lo := bits.Mul64(v, r.Num)
	if hi >= r.Den {
		return math.MaxUint64
	}
	q, _ := bits.Div64(hi, lo, r.Den)
	return q
}

// LAPIC is the local APIC of one vCPU. See the package's documentation for the threads that may call it.
type LAPIC struct {
	router Router
	id     uint8
	bsp    bool

	// Registers: the owner's alone.
	enabled  bool // APIC base MSR, bit 11
	irr      [4]uint64
	isr      [4]uint64
	tmr      [4]uint64
	tpr      uint8
	ldr      uint8
	dfr      uint8 // model nibble: 0xf flat, 0 cluster
	svr      uint32
	icrLow   uint32
	icrHigh  uint32
	lvt      [lvtCount]uint32
	esr      uint32 // what the guest reads
	errors   uint32 // what has happened since its last write of the ESR
	timer    timer
	tscHz    uint64
	busHz    uint64
	stretch  Ratio
	identity atomic.Uint64 // written by the owner, read by any thread: see publish

	posted posted
}

// NewLAPIC returns a local APIC in its power-up state.
func NewLAPIC(c Config) (*LAPIC, error) {
	switch {
	case c.ID > MaxID:
		return nil, fmt.Errorf("apic: id %d: xAPIC ids end at %d", c.ID, MaxID)
	case c.TSCHz == 0 || c.BusHz == 0:
		return nil, fmt.Errorf("apic: id %d: tsc and bus frequency must be given (%d Hz, %d Hz)", c.ID, c.TSCHz, c.BusHz)
	case c.Router == nil:
		return nil, fmt.Errorf("apic: id %d: no router", c.ID)
	}
	if c.Stretch == (Ratio{}) {
		c.Stretch = Ratio{1, 1}
	}
	if c.Stretch.Den == 0 || c.Stretch.Num < c.Stretch.Den {
		return nil, fmt.Errorf("apic: id %d: deadlines cannot be stretched by %d/%d", c.ID, c.Stretch.Num, c.Stretch.Den)
	}
	l := &LAPIC{router: c.Router, id: uint8(c.ID), bsp: c.BSP, tscHz: c.TSCHz, busHz: c.BusHz, stretch: c.Stretch, enabled: true}
	l.initReset()
	return l, nil
}

// initReset puts the registers into the state after power-up or INIT (SDM, "Local APIC State After It
// Receives an INIT"). The ID and the APIC base MSR stay.
func (l *LAPIC) initReset() {
	l.irr, l.isr, l.tmr = [4]uint64{}, [4]uint64{}, [4]uint64{}
	l.tpr, l.ldr, l.dfr = 0, 0, 0xf
	l.svr = 0xff
	l.icrLow, l.icrHigh = 0, 0
	for i := range l.lvt {
		l.lvt[i] = lvtMasked
	}
	l.esr, l.errors = 0, 0
	l.timer = timer{shift: divideShift(0)}
	l.publish()
}

// Layout of identity.
const (
	idShift      = 0
	ldrShift     = 8
	dfrShift     = 16
	softEnabled  = 1 << 24
	hardEnabled  = 1 << 25
	modelFlat    = 0xf
	modelCluster = 0x0
)

// publish makes what destination matching needs visible to other threads, in one store.
func (l *LAPIC) publish() {
	word := uint64(l.id)<<idShift | uint64(l.ldr)<<ldrShift | uint64(l.dfr)<<dfrShift
	if l.softwareEnabled() {
		word |= softEnabled
	}
	if l.enabled {
		word |= hardEnabled
	}
	l.identity.Store(word)
}

// ID is the APIC ID. Any thread.
func (l *LAPIC) ID() uint32 { return uint32(l.id) }

// Matches says whether the message is for this local APIC. A software-disabled one takes no vectors, but NMI,
// INIT and startup messages. Any thread.
func (l *LAPIC) Matches(m Message) bool {
	word := l.identity.Load()
	if word&hardEnabled == 0 || m.Mode.vectored() && word&softEnabled == 0 {
		return false
	}
	switch m.Shorthand {
	case Self:
		return m.Source == uint32(l.id)
	case AllIncludingSelf:
		return true
	case AllExcludingSelf:
		return m.Source != uint32(l.id)
	}
	if m.Dest == Broadcast {
		return true
	}
	if !m.Logical {
		return m.Dest == uint32(l.id)
	}
	ldr := uint32(word >> ldrShift & 0xff)
	switch word >> dfrShift & 0xf {
	case modelFlat:
		return m.Dest <= 0xff && m.Dest&ldr != 0
	case modelCluster:
		return m.Dest>>4 == ldr>>4 && m.Dest&ldr&0xf != 0
	}
	return false
}

// Pending returns the highest vector that the processor priority lets through. It does not change anything.
func (l *LAPIC) Pending() (vector uint8, ok bool) {
	if !l.enabled || !l.softwareEnabled() {
		return 0, false
	}
	v := highest(&l.irr)
	if v < 0 || v>>4 <= int(l.ppr()>>4) {
		return 0, false
	}
	return uint8(v), true
}

// Acknowledge moves the vector from IRR to ISR: the guest is about to take it.
func (l *LAPIC) Acknowledge(vector uint8) {
	bit := uint64(1) << (vector & 63)
	l.irr[vector>>6] &^= bit
	l.isr[vector>>6] |= bit
}

// EOI ends the interrupt of highest priority in service. broadcast says that it was level triggered and
// that the IOAPIC has to hear of vector's end.
func (l *LAPIC) EOI() (vector uint8, broadcast bool) {
	v := highest(&l.isr)
	if v < 0 {
		return 0, false
	}
	bit := uint64(1) << (v & 63)
	l.isr[v>>6] &^= bit
	return uint8(v), l.tmr[v>>6]&bit != 0
}

// TPR is the task priority; CR8 is its upper four bits.
func (l *LAPIC) TPR() uint8 { return l.tpr }

// SetTPR sets the task priority.
func (l *LAPIC) SetTPR(v uint8) { l.tpr = v }

// ppr is the processor priority (SDM, "Task and Processor Priorities").
func (l *LAPIC) ppr() uint8 {
	inService := uint8(max(highest(&l.isr), 0)) & 0xf0
	if l.tpr&0xf0 >= inService {
		return l.tpr
	}
	return inService
}

// apr is the arbitration priority of older processors.
func (l *LAPIC) apr() uint8 {
	requested := uint8(max(highest(&l.irr), 0)) & 0xf0
	inService := uint8(max(highest(&l.isr), 0)) & 0xf0
	if t := l.tpr & 0xf0; t >= requested && t > inService {
		return l.tpr
	}
	return max(requested, inService, l.tpr&0xf0)
}

func (l *LAPIC) softwareEnabled() bool { return l.svr&svrEnable != 0 }

// accept takes a vector from the LAPIC's own sources and from self-IPIs.
func (l *LAPIC) accept(vector uint8) {
	if vector < 16 {
		l.raise(errReceiveVector)
		return
	}
	bit := uint64(1) << (vector & 63)
	l.irr[vector>>6] |= bit
	l.tmr[vector>>6] &^= bit
}

// raise records an error and, where the error LVT asks for it, interrupts.
func (l *LAPIC) raise(e uint32) {
	l.errors |= e
	if lvt := l.lvt[lvtError]; lvt&lvtMasked == 0 && uint8(lvt) >= 16 {
		l.accept(uint8(lvt))
	}
}

// highest is the highest bit set, or -1.
func highest(set *[4]uint64) int {
	for w := 3; w >= 0; w-- {
		if set[w] != 0 {
			return w<<6 + bits.Len64(set[w]) - 1
		}
	}
	return -1
}
