package apic

import (
	"math"
	"math/bits"
)

// Timer modes, as in bits 17 and 18 of the LVT.
const (
	modeOneShot = iota
	modePeriodic
	modeDeadline
	modeReserved
)

// timer is the LAPIC's timer. While running, it expires at TSC deadline.
//
// In the counting modes remaining counts were left at TSC start. Initial and current count are in units of
// the bus clock divided by 1<<shift.
type timer struct {
	mode    uint32
	divide  uint32 // register
	shift   uint   // log2 of what it says
	initial uint32 // register

	running   bool
	start     uint64
	remaining uint32
	deadline  uint64

	tscDeadline uint64 // MSR; 0 after expiry
}

// NextDeadline is the TSC at which Advance is wanted; false when the timer does not run.
func (l *LAPIC) NextDeadline() (tsc uint64, armed bool) {
	return l.timer.deadline, l.timer.running
}

// Advance lets the timer expire if it is due. Periods that were missed altogether count as one, as their
// interrupts would merge in the IRR anyway.
func (l *LAPIC) Advance(now uint64) {
	t := &l.timer
	if !t.running || now < t.deadline {
		return
	}
	switch t.mode {
	case modePeriodic:
		period := l.countsToTSC(t.initial)
		t.start = t.deadline
		t.start += (now - t.start) / period * period
		t.remaining = t.initial
		t.deadline = addSaturating(t.start, period)
	default:
		t.running = false
		t.tscDeadline = 0
	}
	if lvt := l.lvt[lvtTimer]; lvt&lvtMasked == 0 {
		l.accept(uint8(lvt))
	}
}

// setLVTTimer writes the timer's LVT. Going to or from TSC-deadline mode disarms the timer; between one-shot and
// periodic it goes on counting.
func (l *LAPIC) setLVTTimer(v uint32) {
	l.setLVT(lvtTimer, v)
	mode := v >> lvtModeShift & 3
	if old := l.timer.mode; mode != old && (mode >= modeDeadline || old >= modeDeadline) {
		l.timer = timer{divide: l.timer.divide, shift: l.timer.shift}
	}
	l.timer.mode = mode
}

// setTimerInitial starts a count, or stops it with 0. It is ignored in TSC-deadline mode.
func (l *LAPIC) setTimerInitial(now uint64, v uint32) {
	if l.timer.mode >= modeDeadline {
		return
	}
	l.timer.initial = v
	l.startCount(now, v)
}

// setTimerDivide changes the divider; a running count goes on from where it is.
func (l *LAPIC) setTimerDivide(now uint64, v uint32) {
	left := l.timerCount(now)
	l.timer.divide = v & 0xb
	l.timer.shift = divideShift(v)
	if l.timer.running && l.timer.mode < modeDeadline {
		l.startCount(now, left)
	}
}

func (l *LAPIC) startCount(now uint64, counts uint32) {
	t := &l.timer
	t.running = counts != 0
	t.start, t.remaining = now, counts
	t.deadline = addSaturating(now, l.countsToTSC(counts))
}

// timerCount is the current-count register.
func (l *LAPIC) timerCount(now uint64) uint32 {
	l.Advance(now)
	t := &l.timer
	if !t.running || t.mode >= modeDeadline {
		return 0
	}
	return t.remaining - l.countsSince(now)
}

// setTSCDeadline writes the MSR: a time that has passed expires at once, 0 disarms. It is ignored outside of
// TSC-deadline mode.
func (l *LAPIC) setTSCDeadline(now, v uint64) {
	l.Advance(now)
	t := &l.timer
	if t.mode != modeDeadline {
		return
	}
	t.tscDeadline, t.deadline = v, v
	if v > now {
		t.deadline = addSaturating(now, l.stretch.of(v-now))
	}
	t.running = v != 0
	l.Advance(now)
}

// countsToTSC is how long so many counts take, rounded up, so that at that time the count has reached 0.
func (l *LAPIC) countsToTSC(counts uint32) uint64 {
	hi, lo := bits.Mul64(uint64(counts)<<l.timer.shift, l.tscHz)
	lo, carry := bits.Add64(lo, l.busHz-1, 0)
	hi += carry
	if hi >= l.busHz {
		return math.MaxUint64
	}
	q, _ := bits.Div64(hi, lo, l.busHz)
	return q
}

// countsSince is how far the count has come since it was started. A TSC that seems to be before the start
// counts as the start. The timer has not expired, so it is less than remaining.
func (l *LAPIC) countsSince(now uint64) uint32 {
	if now <= l.timer.start {
		return 0
	}
	hi, lo := bits.Mul64(now-l.timer.start, l.busHz)
	if hi >= l.tscHz {
		return l.timer.remaining
	}
	q, _ := bits.Div64(hi, lo, l.tscHz)
	return uint32(min(q>>l.timer.shift, uint64(l.timer.remaining)))
}

// divideShift decodes the divide configuration: bits 0, 1 and 3 are 2, 4, ... 128, 1.
func divideShift(v uint32) uint {
	return uint((v&3|v>>1&4)+1) & 7
}

func addSaturating(a, b uint64) uint64 {
	if s := a + b; s >= a {
		return s
	}
	return math.MaxUint64
}
