package apic

import (
	"encoding/binary"
	"testing"
)

const (
	testTSCHz = 2_000_000_000
	testBusHz = 1_000_000_000 // one count is two ticks of the TSC
)

// recorder is a Router that keeps what it is given.
type recorder struct{ got []Message }

func (r *recorder) Deliver(m Message) { r.got = append(r.got, m) }

func newLAPIC(t testing.TB, id uint32, r Router) *LAPIC {
	t.Helper()
	l, err := NewLAPIC(Config{ID: id, BSP: id == 0, TSCHz: testTSCHz, BusHz: testBusHz, Router: r})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// enabledLAPIC has been enabled by software, with spurious vector 0xff.
func enabledLAPIC(t testing.TB, id uint32, r Router) *LAPIC {
	l := newLAPIC(t, id, r)
	set(l, 0, regSVR, svrEnable|0xff)
	return l
}

func set(l *LAPIC, now, reg uint64, v uint32) (uint8, bool) {
	return l.Write(now, reg, binary.LittleEndian.AppendUint32(nil, v))
}

func get(l *LAPIC, now, reg uint64) uint32 {
	var b [4]byte
	l.Read(now, reg, b[:])
	return binary.LittleEndian.Uint32(b[:])
}

// take delivers the pending vector, or returns 0.
func take(l *LAPIC) uint8 {
	v, ok := l.Pending()
	if !ok {
		return 0
	}
	l.Acknowledge(v)
	return v
}

func TestReset(t *testing.T) {
	l := newLAPIC(t, 7, &recorder{})
	for reg, want := range map[uint64]uint32{
		regID: 7 << 24, regVersion: 0x00050014, regTPR: 0, regAPR: 0, regPPR: 0, regLDR: 0, regDFR: 0xffffffff,
		regSVR: 0xff, regESR: 0, regICRLow: 0, regICRHigh: 0,
		regLVTTimer: 0x10000, regLVTThermal: 0x10000, regLVTPerf: 0x10000, regLVTLINT0: 0x10000,
		regLVTLINT1: 0x10000, regLVTError: 0x10000,
		regTimerInit: 0, regTimerCount: 0, regTimerDivide: 0, regISR: 0, regIRR + 0x70: 0, regTMR + 0x30: 0,
	} {
		if got := get(l, 0, reg); got != want {
			t.Errorf("register %#x: %#x, want %#x", reg, got, want)
		}
	}
}

func TestWritableBits(t *testing.T) {
	l := enabledLAPIC(t, 7, &recorder{})
	for _, c := range []struct {
		reg         uint64
		write, want uint32
	}{
		{regID, 0xffffffff, 7 << 24},
		{regVersion, 0, 0x00050014},
		{regTPR, 0xffffff5a, 0x5a},
		{regLDR, 0xa5ffffff, 0xa5000000},
		{regDFR, 0x0, 0x0fffffff},
		{regSVR, 0xffffffff, 0x3ff},
		{regICRHigh, 0xffffffff, 0xff000000},
		{regICRLow, 0xffffffff &^ 0xfff, 0xcc000},
		{regLVTTimer, 0xfffbffff, 0x300ff},
		{regLVTThermal, 0xffffffff, 0x107ff},
		{regLVTPerf, 0xffffffff, 0x107ff},
		{regLVTLINT0, 0xffffffff, 0x1a7ff},
		{regLVTLINT1, 0xffffffff, 0x1a7ff},
		{regLVTError, 0xffffffff, 0x100ff},
		{regTimerInit, 0xffffffff, 0xffffffff},
		{regTimerDivide, 0xffffffff, 0xb},
		{regPPR, 0xff, 0x5a},
		{regISR, 0xffffffff, 0},
	} {
		set(l, 0, c.reg, c.write)
		if got := get(l, 0, c.reg); got != c.want {
			t.Errorf("register %#x after %#x: %#x, want %#x", c.reg, c.write, got, c.want)
		}
	}
}

func TestAccessWidths(t *testing.T) {
	l := enabledLAPIC(t, 0x5a, &recorder{})
	for _, c := range []struct {
		off  uint64
		want []byte
	}{
		{regID, []byte{0, 0, 0, 0x5a}},
		{regID + 3, []byte{0x5a}},
		{regID + 2, []byte{0, 0x5a}},
		{regID, []byte{0, 0, 0, 0x5a, 0, 0, 0, 0}},
		{regID + 4, []byte{0, 0, 0, 0}},
		{0xfff, []byte{0}},
		{0x1000, []byte{0, 0}},
		{1 << 63, []byte{0, 0}},
	} {
		got := make([]byte, len(c.want))
		l.Read(0, c.off, got)
		if string(got) != string(c.want) {
			t.Errorf("read %#x+%d: % x, want % x", c.off, len(got), got, c.want)
		}
	}
	for _, n := range []int{0, 1, 2, 3, 5, 8} {
		l.Write(0, regTPR, make([]byte, n, 8))
		data := make([]byte, n)
		fill(data, 0x33)
		l.Write(0, regTPR, data)
	}
	set(l, 0, regTPR+4, 0x33)
	set(l, 0, regTPR+1, 0x33)
	set(l, 0, regTPR+1<<32, 0x33)
	if l.TPR() != 0 {
		t.Errorf("a write that was not 32 bits wide and aligned counted")
	}
}

func TestPriority(t *testing.T) {
	l := enabledLAPIC(t, 0, &recorder{})
	for _, v := range []uint8{0x31, 0x51, 0x3f, 0x80} {
		l.Post(v, false)
	}
	l.Sync()
	if v := take(l); v != 0x80 {
		t.Fatalf("took %#x first", v)
	}
	if ppr := get(l, 0, regPPR); ppr != 0x80 {
		t.Errorf("PPR %#x while 0x80 is in service", ppr)
	}
	if v := take(l); v != 0 {
		t.Fatalf("%#x nests in 0x80", v)
	}
	l.Post(0x8f, false)
	l.Post(0x90, false)
	l.Sync()
	if v := take(l); v != 0x90 {
		t.Fatalf("took %#x, want 0x90 to nest", v)
	}
	if isr := get(l, 0, regISR+0x40); isr != 1<<16|1 {
		t.Errorf("ISR %#x", isr)
	}
	set(l, 0, regTPR, 0x48)
	var got []uint8
	for range 8 {
		set(l, 0, regEOI, 0)
		if v := take(l); v != 0 {
			got = append(got, v)
		}
	}
	if want := []uint8{0x8f, 0x51}; string(got) != string(want) {
		t.Errorf("took %#x with TPR 0x48, want %#x", got, want)
	}
	if ppr := get(l, 0, regPPR); ppr != 0x48 {
		t.Errorf("PPR %#x with TPR 0x48", ppr)
	}
	l.SetTPR(0x30)
	if v := take(l); v != 0 {
		t.Errorf("took %#x of TPR's own class", v)
	}
	if apr := get(l, 0, regAPR); apr != 0x30 {
		t.Errorf("APR %#x", apr)
	}
	l.SetTPR(0x2f)
	if v := take(l); v != 0x3f {
		t.Errorf("took %#x, want 0x3f", v)
	}
}

func TestEOIBroadcast(t *testing.T) {
	l := enabledLAPIC(t, 0, &recorder{})
	if _, broadcast := set(l, 0, regEOI, 0); broadcast {
		t.Error("EOI without an interrupt in service is broadcast")
	}
	l.Post(0x40, true)
	l.Post(0x50, false)
	l.Sync()
	if tmr := get(l, 0, regTMR+0x20); tmr != 1 {
		t.Errorf("TMR %#x", tmr)
	}
	take(l)
	if v, broadcast := set(l, 0, regEOI, 0); v != 0x50 || broadcast {
		t.Errorf("EOI of an edge: %#x, %v", v, broadcast)
	}
	take(l)
	if v, broadcast := set(l, 0, regEOI, 0); v != 0x40 || !broadcast {
		t.Errorf("EOI of a level: %#x, %v", v, broadcast)
	}
	l.Post(0x40, false)
	l.Sync()
	if tmr := get(l, 0, regTMR+0x20); tmr != 0 {
		t.Errorf("TMR %#x after an edge on the same vector", tmr)
	}
}

func TestSoftwareDisable(t *testing.T) {
	l := enabledLAPIC(t, 3, &recorder{})
	set(l, 0, regLVTTimer, 0x40)
	l.Post(0x60, false)
	l.Sync()
	set(l, 0, regSVR, 0xff)
	if lvt := get(l, 0, regLVTTimer); lvt != 0x10040 {
		t.Errorf("LVT timer %#x, want it masked", lvt)
	}
	set(l, 0, regLVTTimer, 0x41)
	if lvt := get(l, 0, regLVTTimer); lvt != 0x10041 {
		t.Errorf("LVT timer %#x after a write, want it masked", lvt)
	}
	if v := take(l); v != 0 {
		t.Errorf("took %#x", v)
	}
	for mode, want := range map[DeliveryMode]bool{Fixed: false, LowestPriority: false, NMI: true, INIT: true, Startup: true} {
		if got := l.Matches(Message{Dest: 3, Mode: mode, Vector: 0x40}); got != want {
			t.Errorf("%v: matches %v", mode, got)
		}
	}
	set(l, 0, regICRLow, 0x61|uint32(Self)<<18)
	set(l, 0, regSVR, 0x1ff)
	if v := take(l); v != 0x60 {
		t.Errorf("took %#x once enabled, want what was held", v)
	}
}

func TestMatches(t *testing.T) {
	const flat, cluster = 0xffffffff, 0x0fffffff
	for _, c := range []struct {
		name     string
		id       uint32
		dfr, ldr uint32
		m        Message
		want     bool
	}{
		{"physical", 5, flat, 0, Message{Dest: 5}, true},
		{"physical, other", 5, flat, 0x20, Message{Dest: 4}, false},
		{"physical, all", 5, flat, 0, Message{Dest: Broadcast}, true},
		{"physical, wide", 5, flat, 0, Message{Dest: 0x105}, false},
		{"flat", 5, flat, 0x20, Message{Dest: 0x21, Logical: true}, true},
		{"flat, other", 5, flat, 0x20, Message{Dest: 0xdf, Logical: true}, false},
		{"flat, none", 5, flat, 0x20, Message{Dest: 0, Logical: true}, false},
		{"flat, all", 5, flat, 0x00, Message{Dest: 0xff, Logical: true}, true},
		{"cluster", 5, cluster, 0x24, Message{Dest: 0x26, Logical: true}, true},
		{"cluster, other member", 5, cluster, 0x24, Message{Dest: 0x22, Logical: true}, false},
		{"cluster, other cluster", 5, cluster, 0x24, Message{Dest: 0x34, Logical: true}, false},
		{"cluster, all", 5, cluster, 0x24, Message{Dest: 0xff, Logical: true}, true},
		{"no model", 5, 0x7fffffff, 0x20, Message{Dest: 0x20, Logical: true}, false},
		{"self", 5, flat, 0, Message{Shorthand: Self, Source: 5}, true},
		{"other's self", 5, flat, 0, Message{Shorthand: Self, Source: 4}, false},
		{"all", 5, flat, 0, Message{Shorthand: AllIncludingSelf, Source: 5, Dest: 9}, true},
		{"all but self", 5, flat, 0, Message{Shorthand: AllExcludingSelf, Source: 5, Dest: 5}, false},
		{"all but another", 5, flat, 0, Message{Shorthand: AllExcludingSelf, Source: 4, Dest: 9}, true},
	} {
		l := enabledLAPIC(t, c.id, &recorder{})
		set(l, 0, regDFR, c.dfr)
		set(l, 0, regLDR, c.ldr<<24)
		c.m.Vector = 0x40
		if got := l.Matches(c.m); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
		if !l.WriteMSR(0, MSRAPICBase, LAPICBase) || l.Matches(c.m) {
			t.Errorf("%s: matches with the APIC base MSR's enable bit off", c.name)
		}
	}
}

func TestICR(t *testing.T) {
	const self = 9
	for _, c := range []struct {
		name      string
		high, low uint32
		want      []Message
		errors    uint32
	}{
		{name: "fixed", high: 3, low: 0x000040f1, want: []Message{{Dest: 3, Vector: 0xf1, Level: true, Source: self}}},
		{name: "fixed, trigger mode ignored", high: 3, low: 0x0000c0f1, want: []Message{{Dest: 3, Vector: 0xf1, Level: true, Source: self}}},
		{name: "logical", high: 3, low: 0x000048f1, want: []Message{{Dest: 3, Logical: true, Vector: 0xf1, Level: true, Source: self}}},
		{name: "lowest", high: 3, low: 0x000049f1, want: []Message{{Dest: 3, Logical: true, Mode: LowestPriority, Vector: 0xf1, Level: true, Source: self}}},
		{name: "nmi", high: 3, low: 0x00004400, want: []Message{{Dest: 3, Mode: NMI, Level: true, Source: self}}},
		{name: "init", high: 3, low: 0x0000c500, want: []Message{{Dest: 3, Mode: INIT, Level: true, Source: self}}},
		{name: "init, edge", high: 3, low: 0x00004500, want: []Message{{Dest: 3, Mode: INIT, Level: true, Source: self}}},
		{name: "init de-assert", high: 3, low: 0x00008500},
		{name: "startup", high: 3, low: 0x00000699, want: []Message{{Dest: 3, Mode: Startup, Vector: 0x99, Level: true, Source: self}}},
		{name: "all but self", high: 0, low: 0x000c00fb, want: []Message{{Vector: 0xfb, Shorthand: AllExcludingSelf, Level: true, Source: self}}},
		{name: "all", high: 0, low: 0x000800fb, want: []Message{{Vector: 0xfb, Shorthand: AllIncludingSelf, Level: true, Source: self}}},
		{name: "smi", high: 3, low: 0x00004200},
		{name: "remote read", high: 3, low: 0x00004300},
		{name: "extint", high: 3, low: 0x00004700},
		{name: "illegal vector", high: 3, low: 0x0000400f, errors: errSendVector},
	} {
		r := &recorder{}
		l := enabledLAPIC(t, self, r)
		set(l, 0, regICRHigh, c.high<<24)
		set(l, 0, regICRLow, c.low)
		if len(r.got) != len(c.want) || len(r.got) == 1 && r.got[0] != c.want[0] {
			t.Errorf("%s: sent %+v, want %+v", c.name, r.got, c.want)
		}
		set(l, 0, regESR, 0)
		if esr := get(l, 0, regESR); esr != c.errors {
			t.Errorf("%s: ESR %#x, want %#x", c.name, esr, c.errors)
		}
		if got := get(l, 0, regICRLow); got != c.low {
			t.Errorf("%s: ICR reads as %#x", c.name, got)
		}
	}
}

func TestSelfIPI(t *testing.T) {
	r := &recorder{}
	l := enabledLAPIC(t, 0, r)
	set(l, 0, regICRLow, uint32(Self)<<18|0x77)
	if v := take(l); v != 0x77 {
		t.Errorf("took %#x", v)
	}
	set(l, 0, regICRLow, uint32(Self)<<18|uint32(NMI)<<8)
	if ev := l.Sync(); ev != (Events{NMI: true}) {
		t.Errorf("events %+v", ev)
	}
	set(l, 0, regICRLow, uint32(Self)<<18|uint32(INIT)<<8|icrAssert)
	if ev := l.Sync(); ev != (Events{}) || len(r.got) != 0 {
		t.Errorf("INIT to itself: events %+v, messages %v", ev, r.got)
	}
}

func TestErrors(t *testing.T) {
	l := enabledLAPIC(t, 0, &recorder{})
	set(l, 0, regLVTError, 0x33)
	get(l, 0, 0x3f0)
	if v := take(l); v != 0x33 {
		t.Errorf("took %#x after an illegal register", v)
	}
	set(l, 0, regEOI, 0)
	if esr := get(l, 0, regESR); esr != 0 {
		t.Errorf("ESR %#x before it was written", esr)
	}
	l.Post(15, false)
	l.Sync()
	set(l, 0, regESR, 0xffffffff)
	if esr := get(l, 0, regESR); esr != errRegister|errReceiveVector {
		t.Errorf("ESR %#x", esr)
	}
	set(l, 0, regESR, 0)
	if esr := get(l, 0, regESR); esr != 0 {
		t.Errorf("ESR %#x after its second write", esr)
	}
	set(l, 0, regLVTError, 0x03)
	set(l, 0, 0x2f0, 0)
	take(l)
	if v := take(l); v != 0 {
		t.Errorf("illegal vector %#x from the error LVT", v)
	}
}

func TestINITAndSIPI(t *testing.T) {
	l := enabledLAPIC(t, 2, &recorder{})
	set(l, 0, regLDR, 4<<24)
	set(l, 0, regTPR, 0x20)
	l.Post(0x60, false)
	if l.PostSIPI(0x11) {
		t.Error("a second post asks for a kick")
	}
	l.PostNMI()
	l.PostINIT()
	if ev := l.Sync(); ev != (Events{INIT: true}) {
		t.Errorf("%+v, want INIT to cancel what came before", ev)
	}
	if get(l, 0, regSVR) != 0xff || get(l, 0, regTPR) != 0 || get(l, 0, regLDR) != 0 || get(l, 0, regIRR+0x30) != 0 {
		t.Error("INIT did not reset the registers")
	}
	if get(l, 0, regID) != 2<<24 {
		t.Error("INIT changed the ID")
	}
	if !l.PostINIT() {
		t.Error("a first post asks for no kick")
	}
	l.PostSIPI(0x98)
	l.PostSIPI(0x99)
	if ev := l.Sync(); ev != (Events{INIT: true, SIPI: true, Vector: 0x99}) {
		t.Errorf("%+v", ev)
	}
	if ev := l.Sync(); ev != (Events{}) {
		t.Errorf("%+v twice", ev)
	}
}

func TestBaseMSR(t *testing.T) {
	for id, want := range map[uint32]uint64{0: 0xfee00900, 1: 0xfee00800} {
		l := enabledLAPIC(t, id, &recorder{})
		if v, ok := l.ReadMSR(MSRAPICBase); !ok || v != want {
			t.Errorf("id %d: %#x, want %#x", id, v, want)
		}
		for _, bad := range []uint64{0xfee01800, 0xfee00c00, 0xfee00801, 1<<52 | 0xfee00800, 0x800} {
			if l.WriteMSR(0, MSRAPICBase, bad) {
				t.Errorf("%#x is accepted", bad)
			}
		}
		if !l.WriteMSR(0, MSRAPICBase, want) || get(l, 0, regSVR) != 0x1ff {
			t.Errorf("writing what was read does harm")
		}
		if !l.WriteMSR(0, MSRAPICBase, 0xfee00000) || get(l, 0, regSVR) != 0xffffffff {
			t.Error("disabled registers answer")
		}
		set(l, 0, regTPR, 0x10)
		if !l.WriteMSR(0, MSRAPICBase, want) || get(l, 0, regSVR) != 0xff || l.TPR() != 0 {
			t.Error("enabling did not reset")
		}
	}
	l := newLAPIC(t, 0, &recorder{})
	if _, ok := l.ReadMSR(0x10); ok || l.WriteMSR(0, 0x802, 0) {
		t.Error("a foreign MSR is accepted")
	}
}

func TestConfig(t *testing.T) {
	for name, c := range map[string]Config{
		"id":        {ID: 255, TSCHz: 1, BusHz: 1, Router: &recorder{}},
		"tsc":       {BusHz: 1, Router: &recorder{}},
		"bus":       {TSCHz: 1, Router: &recorder{}},
		"no router": {TSCHz: 1, BusHz: 1},
	} {
		if _, err := NewLAPIC(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestMSI(t *testing.T) {
	m, ok := MSI(0xfee0700c, 0x4123)
	if want := (Message{Dest: 7, Logical: true, Mode: LowestPriority, Vector: 0x23, Level: true, Source: NoSource}); !ok || m != want {
		t.Errorf("%+v, %v", m, ok)
	}
	if m, ok := MSI(0xfee01000, 0xc030); !ok || !m.Trigger || m.Dest != 1 {
		t.Errorf("%+v, %v", m, ok)
	}
	for _, addr := range []uint64{0xfed00000, 0xfef00000, 1<<32 | 0xfee00000} {
		if _, ok := MSI(addr, 0x30); ok {
			t.Errorf("%#x is in the window", addr)
		}
	}
}
