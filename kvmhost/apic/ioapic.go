package apic

import (
	"encoding/binary"
	"math/bits"
	"sync"
)

const (
	// IOAPICBase is the guest-physical address of the IOAPIC's registers.
	IOAPICBase = 0xfec00000
	// IOAPICSize is the size of their window.
	IOAPICSize = 0x1000
	// IOAPICPins is the number of pins, and so of global system interrupts.
	IOAPICPins = 24

	ioRegSel = 0x00
	ioWin    = 0x10
	ioEOI    = 0x40

	ioIndexID      = 0
	ioIndexVersion = 1
	ioIndexArb     = 2
	ioIndexTable   = 0x10

	ioVersion = 0x20 | (IOAPICPins-1)<<16
)

// Bits of a redirection entry.
const (
	rteLogical   = 1 << 11
	rteRemoteIRR = 1 << 14
	rteLevel     = 1 << 15
	rteMasked    = 1 << 16
	rteWritable  = 0xff | 7<<8 | rteLogical | 1<<13 | rteLevel | rteMasked | 0xff<<56
)

// IOAPIC is the interrupt controller for devices' pins. It is a bus device; any thread may call it.
//
// Messages leave with no lock held, one at a time and in order: a thread that makes a pin deliverable while
// another one is delivering leaves it to that one. So the Router may post, send, or even come back into the
// IOAPIC, and cannot deadlock with it.
type IOAPIC struct {
	router Router

	mu         sync.Mutex // guards all below; never held across Router.Deliver
	id         uint8
	index      uint8
	table      [IOAPICPins]uint64
	asserted   uint32 // pins' levels
	due        uint32 // pins with a message to be sent
	delivering bool   // a thread is in deliver
}

// NewIOAPIC returns an IOAPIC in its reset state: every entry masked.
func NewIOAPIC(id uint8, router Router) *IOAPIC {
	a := &IOAPIC{router: router, id: id & 0xf}
	for i := range a.table {
		a.table[i] = rteMasked
	}
	return a
}

// SetPin sets the level of a pin. A pin that does not exist is ignored.
func (a *IOAPIC) SetPin(pin int, level bool) {
	if pin < 0 || pin >= IOAPICPins {
		return
	}
	a.mu.Lock()
	bit := uint32(1) << pin
	rising := level && a.asserted&bit == 0
	if level {
		a.asserted |= bit
	} else {
		a.asserted &^= bit
	}
	if a.levelTriggered(pin) {
		a.raiseLevel(pin)
	} else if rising && a.table[pin]&rteMasked == 0 {
		a.due |= bit
	}
	a.deliver()
}

// EOI ends the level-triggered interrupts that were delivered with vector: a local APIC's EOI broadcast. Pins
// still asserted interrupt again.
func (a *IOAPIC) EOI(vector uint8) {
	a.mu.Lock()
	for pin, rte := range a.table {
		if uint8(rte) == vector && rte&rteRemoteIRR != 0 {
			a.table[pin] &^= rteRemoteIRR
			a.raiseLevel(pin)
		}
	}
	a.deliver()
}

// levelTriggered: only fixed and lowest-priority interrupts have a level; the others are edges by nature.
func (a *IOAPIC) levelTriggered(pin int) bool {
	rte := a.table[pin]
	return rte&rteLevel != 0 && DeliveryMode(rte>>8&7).vectored()
}

// raiseLevel makes a level-triggered pin due if it is asserted, unmasked and not being serviced.
func (a *IOAPIC) raiseLevel(pin int) {
	bit := uint32(1) << pin
	if a.levelTriggered(pin) && a.asserted&bit != 0 && a.table[pin]&(rteMasked|rteRemoteIRR) == 0 {
		a.due |= bit
	}
}

// deliver sends what is due. It is entered with mu held and leaves with it released.
func (a *IOAPIC) deliver() {
	if a.delivering {
		a.mu.Unlock()
		return
	}
	a.delivering = true
	for a.due != 0 {
		pin := bits.TrailingZeros32(a.due)
		a.due &^= 1 << pin
		m, ok := a.message(pin)
		if !ok {
			continue
		}
		a.mu.Unlock()
		a.router.Deliver(m)
		a.mu.Lock()
	}
	a.delivering = false
	a.mu.Unlock()
}

// message is what the pin's entry says now, which may have changed since the pin became due.
func (a *IOAPIC) message(pin int) (m Message, ok bool) {
	rte := a.table[pin]
	level := a.levelTriggered(pin)
	switch {
	case rte&rteMasked != 0:
		return m, false
	case level && (a.asserted>>pin&1 == 0 || rte&rteRemoteIRR != 0):
		return m, false
	case level:
		a.table[pin] |= rteRemoteIRR
	}
	return Message{
		Dest:    uint32(rte >> 56),
		Logical: rte&rteLogical != 0,
		Mode:    DeliveryMode(rte >> 8 & 7),
		Vector:  uint8(rte),
		Level:   true,
		Trigger: level,
		Source:  NoSource,
	}, true
}

// Read answers a read of the register window. Parts of a register can be read; all else reads as zero.
func (a *IOAPIC) Read(off uint64, data []byte) {
	fill(data, 0)
	a.mu.Lock()
	defer a.mu.Unlock()
	var v uint32
	switch off &^ 3 {
	case ioRegSel:
		v = uint32(a.index)
	case ioWin:
		v = a.read()
	}
	var reg [4]byte
	binary.LittleEndian.PutUint32(reg[:], v)
	copy(data, reg[off&3:])
}

func (a *IOAPIC) read() uint32 {
	switch a.index {
	case ioIndexID, ioIndexArb:
		return uint32(a.id) << 24
	case ioIndexVersion:
		return ioVersion
	}
	if pin, high, ok := a.selected(); ok {
		return uint32(a.table[pin] >> high)
	}
	return 0
}

// selected is the redirection entry, and the shift of its half, that the index selects.
func (a *IOAPIC) selected() (pin int, shift uint, ok bool) {
	i := int(a.index) - ioIndexTable
	if i < 0 || i >= 2*IOAPICPins {
		return 0, 0, false
	}
	return i >> 1, uint(i) & 1 * 32, true
}

// Write performs a write of the register window: the index by any width, the others by aligned 32 bits.
func (a *IOAPIC) Write(off uint64, data []byte) {
	if off == ioRegSel && len(data) > 0 {
		a.mu.Lock()
		a.index = data[0]
		a.mu.Unlock()
		return
	}
	if len(data) != 4 {
		return
	}
	v := binary.LittleEndian.Uint32(data)
	switch off {
	case ioWin:
		a.mu.Lock()
		a.write(v)
		a.deliver()
	case ioEOI:
		a.EOI(uint8(v))
	}
}

func (a *IOAPIC) write(v uint32) {
	if a.index == ioIndexID {
		a.id = uint8(v>>24) & 0xf
		return
	}
	pin, shift, ok := a.selected()
	if !ok {
		return
	}
	mask := uint64(rteWritable) & (0xffffffff << shift)
	rte := a.table[pin]&^mask | uint64(v)<<shift&mask
	if rte&rteLevel == 0 {
		// The way by which operating systems get rid of a stuck remote IRR.
		rte &^= rteRemoteIRR
	}
	a.table[pin] = rte
	a.raiseLevel(pin)
}
