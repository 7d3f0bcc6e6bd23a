package apic

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

const timerVector = 0xec

func timerLAPIC(t testing.TB, mode uint32) *LAPIC {
	l := enabledLAPIC(t, 0, &recorder{})
	set(l, 0, regTimerDivide, 0xb) // by 1
	set(l, 0, regLVTTimer, mode<<lvtModeShift|timerVector)
	return l
}

// fired consumes the timer's interrupt.
func fired(l *LAPIC) bool {
	v := take(l)
	if v != 0 {
		l.EOI()
	}
	return v == timerVector
}

func TestDivide(t *testing.T) {
	for reg, want := range map[uint32]uint{0: 1, 1: 2, 2: 3, 3: 4, 8: 5, 9: 6, 0xa: 7, 0xb: 0, 0xf4: 1} {
		if got := divideShift(reg); got != want {
			t.Errorf("%#x: 1<<%d, want 1<<%d", reg, got, want)
		}
	}
}

func TestOneShot(t *testing.T) {
	l := timerLAPIC(t, modeOneShot)
	set(l, 1000, regTimerInit, 50)
	if at, armed := l.NextDeadline(); at != 1100 || !armed {
		t.Fatalf("deadline %d, %v", at, armed)
	}
	for now, want := range map[uint64]uint32{1000: 50, 1001: 50, 1002: 49, 1098: 1, 1099: 1, 500: 50} {
		if got := get(l, now, regTimerCount); got != want {
			t.Errorf("count at %d: %d, want %d", now, got, want)
		}
	}
	l.Advance(1099)
	if fired(l) {
		t.Error("early")
	}
	l.Advance(1100)
	if !fired(l) {
		t.Error("not in time")
	}
	if got := get(l, 1200, regTimerCount); got != 0 {
		t.Errorf("count %d afterwards", got)
	}
	if _, armed := l.NextDeadline(); armed {
		t.Error("still armed")
	}
	l.Advance(5000)
	if fired(l) {
		t.Error("twice")
	}
	if got := get(l, 5000, regTimerInit); got != 50 {
		t.Errorf("initial count reads as %d", got)
	}
}

func TestPeriodic(t *testing.T) {
	l := timerLAPIC(t, modePeriodic)
	set(l, 1000, regTimerInit, 50)
	for _, c := range []struct {
		now, next uint64
		fires     bool
	}{
		{1050, 1100, false}, {1100, 1200, true}, {1199, 1200, false}, {1201, 1300, true},
		{1777, 1800, true}, // four more were missed, and merge
		{1799, 1800, false}, {1800, 1900, true},
	} {
		l.Advance(c.now)
		if got := fired(l); got != c.fires {
			t.Errorf("at %d: fired %v", c.now, got)
		}
		if at, armed := l.NextDeadline(); at != c.next || !armed {
			t.Errorf("at %d: next %d, %v, want %d", c.now, at, armed, c.next)
		}
	}
	if got := get(l, 1850, regTimerCount); got != 25 {
		t.Errorf("count %d", got)
	}
	set(l, 1850, regTimerInit, 0)
	if _, armed := l.NextDeadline(); armed {
		t.Error("initial count 0 does not stop it")
	}
}

func TestDeadline(t *testing.T) {
	l := timerLAPIC(t, modeDeadline)
	set(l, 0, regTimerInit, 50)
	if _, armed := l.NextDeadline(); armed || get(l, 0, regTimerInit) != 0 {
		t.Error("initial count counts in TSC-deadline mode")
	}
	l.WriteMSR(100, MSRTSCDeadline, 5000)
	if at, armed := l.NextDeadline(); at != 5000 || !armed {
		t.Errorf("deadline %d, %v", at, armed)
	}
	if v, _ := l.ReadMSR(MSRTSCDeadline); v != 5000 || get(l, 200, regTimerCount) != 0 {
		t.Errorf("MSR %d, count %d", v, get(l, 200, regTimerCount))
	}
	l.Advance(4999)
	if fired(l) {
		t.Error("early")
	}
	l.Advance(5000)
	if v, _ := l.ReadMSR(MSRTSCDeadline); v != 0 || !fired(l) {
		t.Errorf("not in time, or MSR %d", v)
	}
	l.WriteMSR(6000, MSRTSCDeadline, 5500)
	if !fired(l) {
		t.Error("a time that has passed does not fire at once")
	}
	l.WriteMSR(6000, MSRTSCDeadline, 7000)
	l.WriteMSR(6000, MSRTSCDeadline, 0)
	if _, armed := l.NextDeadline(); armed {
		t.Error("0 does not disarm")
	}
	l.WriteMSR(6000, MSRTSCDeadline, 7000)
	l.WriteMSR(7500, MSRTSCDeadline, 9000)
	if at, armed := l.NextDeadline(); !fired(l) || !armed || at != 9000 {
		t.Error("the deadline before got lost")
	}
	set(l, 8000, regLVTTimer, modeOneShot<<lvtModeShift|timerVector)
	if _, armed := l.NextDeadline(); armed {
		t.Error("leaving the mode does not disarm")
	}
	l.WriteMSR(8000, MSRTSCDeadline, 9000)
	if v, _ := l.ReadMSR(MSRTSCDeadline); v != 0 {
		t.Errorf("MSR %d outside of the mode", v)
	}
	if _, armed := l.NextDeadline(); armed {
		t.Error("MSR arms outside of the mode")
	}
}

func TestTimerMasked(t *testing.T) {
	for mode := uint32(modeOneShot); mode <= modeDeadline; mode++ {
		l := timerLAPIC(t, mode)
		set(l, 0, regLVTTimer, mode<<lvtModeShift|timerVector|lvtMasked)
		set(l, 0, regTimerInit, 50)
		l.WriteMSR(0, MSRTSCDeadline, 100)
		l.Advance(100)
		set(l, 100, regLVTTimer, mode<<lvtModeShift|timerVector)
		if fired(l) {
			t.Errorf("mode %d: masked, and fired", mode)
		}
	}
}

func TestTimerChanges(t *testing.T) {
	l := timerLAPIC(t, modeOneShot)
	set(l, 0, regTimerInit, 100)
	set(l, 50, regTimerDivide, 0) // 75 left, by 2 now
	if at, _ := l.NextDeadline(); at != 50+75*2*2 {
		t.Errorf("deadline %d after a change of the divider", at)
	}
	set(l, 50, regLVTTimer, modePeriodic<<lvtModeShift|timerVector)
	l.Advance(350)
	if at, armed := l.NextDeadline(); !fired(l) || !armed || at != 350+100*2*2 {
		t.Errorf("one-shot turned periodic: next %d, %v", at, armed)
	}
	set(l, 400, regLVTTimer, modeReserved<<lvtModeShift|timerVector)
	set(l, 400, regTimerInit, 10)
	if _, armed := l.NextDeadline(); armed {
		t.Error("runs in the reserved mode")
	}
	// A period that is over before the guest writes the LVT still interrupts as the LVT was.
	l = timerLAPIC(t, modeOneShot)
	set(l, 0, regTimerInit, 50)
	set(l, 150, regLVTTimer, modeOneShot<<lvtModeShift|lvtMasked|timerVector)
	if !fired(l) {
		t.Error("an expiry before a write was lost")
	}
}

// TestCount holds the count against exact arithmetic, for odd ratios of the clocks: it is what the time says, and 0
// exactly from the deadline on.
func TestCount(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tsc := rapid.Uint64Range(1_000_000, 6_000_000_000).Draw(t, "tsc")
		bus := rapid.Uint64Range(1_000_000, 2_000_000_000).Draw(t, "bus")
		l, err := NewLAPIC(Config{TSCHz: tsc, BusHz: bus, Router: &recorder{}})
		if err != nil {
			t.Fatal(err)
		}
		set(l, 0, regSVR, 0x1ff)
		set(l, 0, regLVTTimer, timerVector)
		set(l, 0, regTimerDivide, rapid.Uint32().Draw(t, "divide"))
		start, initial := rapid.Uint64Range(0, 1<<60).Draw(t, "start"), rapid.Uint32Range(1, math.MaxUint32).Draw(t, "initial")
		set(l, start, regTimerInit, initial)
		deadline, _ := l.NextDeadline()
		for range 10 {
			now := start + rapid.Uint64Range(0, deadline-start-1).Draw(t, "after")
			got := get(l, now, regTimerCount)
			gone := float64(now-start) * float64(bus) / float64(tsc) / float64(uint64(1)<<l.timer.shift)
			if got == 0 || math.Abs(float64(initial)-gone-float64(got)) > 1+gone*1e-9 {
				t.Fatalf("count %d at %d, exactly %f have gone", got, now, gone)
			}
		}
		if _, pending := l.Pending(); pending {
			t.Fatal("fired early")
		}
		if got := get(l, deadline, regTimerCount); got != 0 {
			t.Fatalf("count %d at the deadline", got)
		}
		if _, pending := l.Pending(); !pending {
			t.Fatal("did not fire")
		}
	})
}

func TestTimerFarAway(t *testing.T) {
	l, err := NewLAPIC(Config{TSCHz: math.MaxUint64, BusHz: 1, Router: &recorder{}})
	if err != nil {
		t.Fatal(err)
	}
	set(l, 0, regSVR, 0x1ff)
	set(l, 0, regLVTTimer, modePeriodic<<lvtModeShift|timerVector)
	set(l, 10, regTimerInit, math.MaxUint32)
	if at, armed := l.NextDeadline(); at != math.MaxUint64 || !armed {
		t.Errorf("deadline %d, %v", at, armed)
	}
	l.Advance(math.MaxUint64)
	if at, armed := l.NextDeadline(); at != math.MaxUint64 || !armed || !fired(l) {
		t.Errorf("deadline %d, %v", at, armed)
	}
	get(l, math.MaxUint64, regTimerCount)
}

func TestStretch(t *testing.T) {
	l, err := NewLAPIC(Config{TSCHz: testTSCHz, BusHz: testBusHz, Router: &recorder{}, Stretch: Ratio{5, 2}})
	if err != nil {
		t.Fatal(err)
	}
	set(l, 0, regSVR, 0x1ff)
	set(l, 0, regLVTTimer, modeDeadline<<lvtModeShift|timerVector)
	for _, c := range []struct{ now, deadline, at uint64 }{
		{1000, 1100, 1250},
		{1000, 1001, 1002},
		{1000, math.MaxUint64, math.MaxUint64},
	} {
		l.WriteMSR(c.now, MSRTSCDeadline, c.deadline)
		if at, armed := l.NextDeadline(); at != c.at || !armed {
			t.Errorf("%d at %d: expires at %d, %v, want %d", c.deadline, c.now, at, armed, c.at)
		}
		if v, _ := l.ReadMSR(MSRTSCDeadline); v != c.deadline {
			t.Errorf("MSR reads as %d, %d was written", v, c.deadline)
		}
	}
	if l.WriteMSR(1000, MSRTSCDeadline, 900); !fired(l) {
		t.Error("a time that has passed does not fire at once")
	}
	for _, r := range []Ratio{{1, 0}, {1, 2}, {0, 1}} {
		if _, err := NewLAPIC(Config{TSCHz: 1, BusHz: 1, Router: &recorder{}, Stretch: r}); err == nil {
			t.Errorf("%v is accepted", r)
		}
	}
}
