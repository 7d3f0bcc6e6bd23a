package apic

import "encoding/binary"

// Register offsets in the LAPIC's page.
const (
	regID          = 0x020
	regVersion     = 0x030
	regTPR         = 0x080
	regAPR         = 0x090
	regPPR         = 0x0a0
	regEOI         = 0x0b0
	regRRD         = 0x0c0
	regLDR         = 0x0d0
	regDFR         = 0x0e0
	regSVR         = 0x0f0
	regISR         = 0x100 // eight registers, as TMR and IRR
	regTMR         = 0x180
	regIRR         = 0x200
	regESR         = 0x280
	regICRLow      = 0x300
	regICRHigh     = 0x310
	regLVTTimer    = 0x320
	regLVTThermal  = 0x330
	regLVTPerf     = 0x340
	regLVTLINT0    = 0x350
	regLVTLINT1    = 0x360
	regLVTError    = 0x370
	regTimerInit   = 0x380
	regTimerCount  = 0x390
	regTimerDivide = 0x3e0
)

// Entries of LAPIC.lvt, in the order of the registers.
const (
	lvtTimer = iota
	lvtThermal
	lvtPerf
	lvtLINT0
	lvtLINT1
	lvtError
	lvtCount
)

const (
	lvtMasked    = 1 << 16
	lvtModeShift = 17 // timer: one-shot, periodic, TSC deadline
	svrEnable    = 1 << 8
	version      = 0x14 | (lvtCount-1)<<16

	icrLogical  = 1 << 11
	icrAssert   = 1 << 14
	icrLevel    = 1 << 15
	icrWritable = 0xff | 7<<8 | icrLogical | icrAssert | icrLevel | 3<<18

	errSendVector    = 1 << 5
	errReceiveVector = 1 << 6
	errRegister      = 1 << 7
)

// lvtWritable has the bits of each LVT that the guest may change.
var lvtWritable = [lvtCount]uint32{
	lvtTimer:   0xff | lvtMasked | 3<<lvtModeShift,
	lvtThermal: 0xff | 7<<8 | lvtMasked,
	lvtPerf:    0xff | 7<<8 | lvtMasked,
	lvtLINT0:   0xff | 7<<8 | 1<<13 | 1<<15 | lvtMasked,
	lvtLINT1:   0xff | 7<<8 | 1<<13 | 1<<15 | lvtMasked,
	lvtError:   0xff | lvtMasked,
}

// MSRs that WriteMSR and ReadMSR know.
const (
	MSRAPICBase    = 0x1b
	MSRTSCDeadline = 0x6e0

	baseBSP    = 1 << 8
	baseX2APIC = 1 << 10
	baseEnable = 1 << 11
	baseAddr   = 0x000ffffffffff000
)

// Read answers a read of the register page. Registers are the first four bytes of each sixteen; parts of one
// can be read, everything else reads as zero.
func (l *LAPIC) Read(now, off uint64, data []byte) {
	if !l.enabled {
		fill(data, 0xff)
		return
	}
	fill(data, 0)
	if off&^0xf >= LAPICSize || off&0xf >= 4 {
		return
	}
	var reg [4]byte
	binary.LittleEndian.PutUint32(reg[:], l.read(now, uint32(off)&^0xf))
	copy(data, reg[off&0xf:])
}

func (l *LAPIC) read(now uint64, reg uint32) uint32 {
	switch reg {
	case regID:
		return uint32(l.id) << 24
	case regVersion:
		return version
	case regTPR:
		return uint32(l.tpr)
	case regAPR:
		l.fold()
		return uint32(l.apr())
	case regPPR:
		return uint32(l.ppr())
	case regEOI, regRRD:
		return 0
	case regLDR:
		return uint32(l.ldr) << 24
	case regDFR:
		return uint32(l.dfr)<<28 | 0x0fffffff
	case regSVR:
		return l.svr
	case regESR:
		return l.esr
	case regICRLow:
		return l.icrLow
	case regICRHigh:
		return l.icrHigh
	case regTimerInit:
		return l.timer.initial
	case regTimerCount:
		return l.timerCount(now)
	case regTimerDivide:
		return l.timer.divide
	case regLVTTimer, regLVTThermal, regLVTPerf, regLVTLINT0, regLVTLINT1, regLVTError:
		return l.lvt[(reg-regLVTTimer)>>4]
	}
	switch reg &^ 0x70 {
	case regISR:
		return word32(&l.isr, reg)
	case regTMR:
		l.fold()
		return word32(&l.tmr, reg)
	case regIRR:
		l.fold()
		return word32(&l.irr, reg)
	}
	l.raise(errRegister)
	return 0
}

// word32 is one of the eight registers that show a 256-bit set.
func word32(set *[4]uint64, reg uint32) uint32 {
	i := reg >> 4 & 7
	return uint32(set[i>>1] >> (i & 1 * 32))
}

// Write performs a write of the register page. Only aligned 32-bit writes count; the manuals leave others
// undefined. broadcast is true after a write of the EOI register that ended a level-triggered interrupt: the
// caller tells the IOAPIC, with vector eoi.
func (l *LAPIC) Write(now, off uint64, data []byte) (eoi uint8, broadcast bool) {
	if !l.enabled || len(data) != 4 || off&0xf != 0 || off >= LAPICSize {
		return 0, false
	}
	l.Advance(now)
	v := binary.LittleEndian.Uint32(data)
	switch off {
	case regID, regVersion, regAPR, regPPR, regRRD, regTimerCount:
	case regTPR:
		l.tpr = uint8(v)
	case regEOI:
		return l.EOI()
	case regLDR:
		l.ldr = uint8(v >> 24)
		l.publish()
	case regDFR:
		l.dfr = uint8(v >> 28)
		l.publish()
	case regSVR:
		l.setSVR(v)
	case regESR:
		l.esr, l.errors = l.errors, 0
	case regICRLow:
		l.icrLow = v & icrWritable
		l.send()
	case regICRHigh:
		l.icrHigh = v & 0xff000000
	case regLVTTimer:
		l.setLVTTimer(v)
	case regLVTThermal, regLVTPerf, regLVTLINT0, regLVTLINT1, regLVTError:
		l.setLVT(int(off-regLVTTimer)>>4, v)
	case regTimerInit:
		l.setTimerInitial(now, v)
	case regTimerDivide:
		l.setTimerDivide(now, v)
	default:
		if off < regISR || off >= regIRR+0x80 {
			l.raise(errRegister)
		}
	}
	return 0, false
}

// setSVR writes the spurious-interrupt register; software disable masks the whole LVT.
func (l *LAPIC) setSVR(v uint32) {
	l.svr = v & 0x3ff
	if !l.softwareEnabled() {
		for i := range l.lvt {
			l.lvt[i] |= lvtMasked
		}
	}
	l.publish()
}

func (l *LAPIC) setLVT(i int, v uint32) {
	v &= lvtWritable[i]
	if !l.softwareEnabled() {
		v |= lvtMasked
	}
	l.lvt[i] = v
}

// send performs the interrupt command in the ICR.
func (l *LAPIC) send() {
	m := Message{
		Dest:      l.icrHigh >> 24,
		Logical:   l.icrLow&icrLogical != 0,
		Mode:      DeliveryMode(l.icrLow >> 8 & 7),
		Vector:    uint8(l.icrLow),
		Level:     true,
		Shorthand: Shorthand(l.icrLow >> 18 & 3),
		Source:    uint32(l.id),
	}
	switch m.Mode {
	case SMI, RemoteRead, ExtINT:
		return
	case INIT:
		// A level de-assert only resynchronised arbitration IDs, long ago.
		if l.icrLow&icrLevel != 0 && l.icrLow&icrAssert == 0 {
			return
		}
	case Fixed, LowestPriority:
		if m.Vector < 16 {
			l.raise(errSendVector)
			return
		}
	}
	if m.Shorthand == Self {
		l.sendSelf(m)
		return
	}
	l.router.Deliver(m)
}

// sendSelf needs no router: this is the vCPU's own thread.
func (l *LAPIC) sendSelf(m Message) {
	switch m.Mode {
	case Fixed, LowestPriority:
		if l.softwareEnabled() {
			l.accept(m.Vector)
		}
	case NMI:
		l.PostNMI()
	}
}

// ReadMSR reads an MSR that belongs to the local APIC; false means a general protection fault.
func (l *LAPIC) ReadMSR(msr uint32) (uint64, bool) {
	switch msr {
	case MSRAPICBase:
		v := uint64(LAPICBase)
		if l.bsp {
			v |= baseBSP
		}
		if l.enabled {
			v |= baseEnable
		}
		return v, true
	case MSRTSCDeadline:
		return l.timer.tscDeadline, true
	}
	return 0, false
}

// WriteMSR writes an MSR that belongs to the local APIC; false means a general protection fault, which a
// guest also gets for what the package's documentation lists as unsupported.
func (l *LAPIC) WriteMSR(now uint64, msr uint32, v uint64) bool {
	switch msr {
	case MSRAPICBase:
		return l.setBase(v)
	case MSRTSCDeadline:
		l.setTSCDeadline(now, v)
		return true
	}
	return false
}

func (l *LAPIC) setBase(v uint64) bool {
	if v&baseAddr != LAPICBase || v&baseX2APIC != 0 || v&^(baseAddr|baseBSP|baseEnable) != 0 {
		return false
	}
	if on := v&baseEnable != 0; on != l.enabled {
		l.enabled = on
		l.initReset()
	}
	return true
}

func fill(data []byte, b byte) {
	for i := range data {
		data[i] = b
	}
}
