package devices

import (
	"bytes"
	"io"
	"testing"
	"time"

	"ironspan/kvmhost/bus"
)

// fuzzDevice reads accesses out of the fuzzer's bytes; none may panic.
func fuzzDevice(f *testing.F, size int, build func() (device, func())) {
	f.Add([]byte{0, 1, 1, 0xff, 1, 0, 1, 0x0f, 0, 4, 4, 0x1b, 1, 2, 2, 0})
	f.Fuzz(func(t *testing.T, program []byte) {
		d, done := build()
		defer done()
		for ; len(program) >= 4; program = program[4:] {
			off := int(program[1]) % size
			data := bytes.Repeat(program[3:4], min(int(program[2])%9, size-off))
			if program[0]&1 == 0 {
				d.Write(uint64(off), data)
			} else {
				d.Read(uint64(off), data)
			}
		}
	})
}

func rtcAt(t time.Time) *RTC { return NewRTC(func() time.Time { return t }) }

func cmos(r *RTC, index uint8) uint8 {
	out(r, 0, index)
	return in(r, 1)
}

func setCMOS(r *RTC, index, v uint8) {
	out(r, 0, index)
	out(r, 1, v)
}

// clock reads seconds, minutes, hours, day, month, year, century.
func clock(r *RTC) [7]uint8 {
	var c [7]uint8
	for i, index := range []uint8{rtcSecond, rtcMinute, rtcHour, rtcDay, rtcMonth, rtcYear, RTCCentury} {
		c[i] = cmos(r, index)
	}
	return c
}

func TestRTCTime(t *testing.T) {
	noon := time.Date(2031, 12, 28, 12, 34, 56, 0, time.UTC)
	for _, c := range []struct {
		now  time.Time
		b    uint8
		want [7]uint8
	}{
		{noon, rtcB24Hour, [7]uint8{0x56, 0x34, 0x12, 0x28, 0x12, 0x31, 0x20}},
		{noon, rtcB24Hour | rtcBBinary, [7]uint8{56, 34, 12, 28, 12, 31, 20}},
		{noon, 0, [7]uint8{0x56, 0x34, 0x92, 0x28, 0x12, 0x31, 0x20}},
		{noon.Add(-12 * time.Hour), 0, [7]uint8{0x56, 0x34, 0x12, 0x28, 0x12, 0x31, 0x20}},
		{noon.Add(11 * time.Hour), 0, [7]uint8{0x56, 0x34, 0x91, 0x28, 0x12, 0x31, 0x20}},
		{noon.In(time.FixedZone("", 7200)), rtcB24Hour, [7]uint8{0x56, 0x34, 0x12, 0x28, 0x12, 0x31, 0x20}},
	} {
		r := rtcAt(c.now)
		setCMOS(r, rtcB, c.b)
		if got := clock(r); got != c.want {
			t.Errorf("%v with B %#x: %x, want %x", c.now, c.b, got, c.want)
		}
	}
	r := rtcAt(noon)
	if day := cmos(r, rtcWeekday); day != 1 {
		t.Errorf("Sunday is %d", day)
	}
}

func TestRTCStatus(t *testing.T) {
	r := rtcAt(time.Unix(0, 0))
	setCMOS(r, rtcA, 0xff)
	if a := cmos(r, rtcA); a&0x80 != 0 {
		t.Errorf("A %#x: an update is in progress", a)
	}
	if cmos(r, rtcC) != 0 || cmos(r, rtcD) != 0x80 || cmos(r, rtcB) != 2 {
		t.Errorf("B %#x, C %#x, D %#x", cmos(r, rtcB), cmos(r, rtcC), cmos(r, rtcD))
	}
	setCMOS(r, 0x0f, 0x0a)
	setCMOS(r, 0x8f, 0x05) // with NMIs masked
	if v := cmos(r, 0x0f); v != 5 {
		t.Errorf("shutdown byte %#x", v)
	}
	if v := in(r, 0); v != 0x0f {
		t.Errorf("index %#x", v)
	}
	setCMOS(r, rtcAlarmHour, 0xc0)
	if v := cmos(r, rtcAlarmHour); v != 0xc0 {
		t.Errorf("alarm %#x", v)
	}
}

// TestRTCSet sets the clock as drivers do: stop it, write the parts in any order, start it.
func TestRTCSet(t *testing.T) {
	now := time.Date(2030, 1, 31, 10, 0, 0, 0, time.UTC)
	r := NewRTC(func() time.Time { return now })
	setCMOS(r, rtcB, rtcB24Hour|rtcBSet)
	now = now.Add(time.Hour)
	if got := clock(r); got[2] != 0x10 {
		t.Errorf("%x: runs while stopped", got)
	}
	for _, w := range [][2]uint8{{rtcMonth, 0x02}, {rtcDay, 0x28}, {rtcYear, 0x45}, {rtcHour, 0x23}, {rtcMinute, 0x59}, {rtcSecond, 0x58}} {
		setCMOS(r, w[0], w[1])
	}
	setCMOS(r, rtcB, rtcB24Hour)
	now = now.Add(3 * time.Second)
	if got, want := clock(r), [7]uint8{0x01, 0x00, 0x00, 0x01, 0x03, 0x45, 0x20}; got != want {
		t.Errorf("%x, want %x", got, want)
	}
	setCMOS(r, rtcHour, 0x12)
	setCMOS(r, RTCCentury, 0x21)
	if got, want := clock(r), [7]uint8{0x01, 0x00, 0x12, 0x01, 0x03, 0x45, 0x21}; got != want {
		t.Errorf("%x, want %x", got, want)
	}
	setCMOS(r, rtcB, 0)
	setCMOS(r, rtcHour, 0x83)
	setCMOS(r, rtcB, rtcB24Hour)
	if got := cmos(r, rtcHour); got != 0x15 {
		t.Errorf("3 pm is %#x", got)
	}
}

// machine is a bus with all devices, and counts what they ask of the machine.
type machine struct {
	*bus.Bus
	off, resets int
}

func newMachine(t testing.TB) *machine {
	m := &machine{Bus: bus.New()}
	s := NewSerial(io.Discard, func(bool) {})
	t.Cleanup(func() { _ = s.Close(time.Minute) })
	if err := AddStateless(m.Bus); err != nil {
		t.Fatal(err)
	}
	p := Platform{Serial: s, RTC: rtcAt(time.Unix(0, 0)), Off: func() { m.off++ }, Reset: func() { m.resets++ }}
	if err := p.Add(m.Bus); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *machine) in(port uint16) uint8 {
	b := []byte{0}
	m.ReadPort(port, b)
	return b[0]
}

func TestPower(t *testing.T) {
	for _, c := range []struct {
		port        uint16
		data        []byte
		off, resets int
	}{
		{SleepControl, []byte{5<<2 | 1<<5}, 1, 0},
		{SleepControl, []byte{5 << 2}, 0, 0},
		{SleepControl, []byte{3<<2 | 1<<5}, 0, 0},
		{SleepStatus, []byte{0x80}, 0, 0},
		{ACPIReset, []byte{1}, 0, 1},
		{ACPIReset, []byte{0}, 0, 0},
		{0xcf9, []byte{0x06}, 0, 1},
		{0xcf9, []byte{0x0e}, 0, 1},
		{0xcf9, []byte{0x02}, 0, 0},
		{0xcf8, []byte{0x00, 0x06, 0x00, 0x80}, 0, 0},
		{0xcf9, []byte{0x06, 0x00}, 0, 0},
		{0x64, []byte{0xfe}, 0, 1},
		{0x64, []byte{0x20}, 0, 0},
		{0x60, []byte{0xfe}, 0, 0},
	} {
		m := newMachine(t)
		if !m.WritePort(c.port, c.data) {
			t.Errorf("nobody at %#x", c.port)
		}
		if m.off != c.off || m.resets != c.resets {
			t.Errorf("%#x <- % x: off %d, resets %d", c.port, c.data, m.off, m.resets)
		}
	}
	if v := newMachine(t).in(SleepStatus); v != 0 {
		t.Errorf("sleep status %#x", v)
	}
}

// TestProbes does what kernels do to find hardware, and wants them to see at once that it is not there.
func TestProbes(t *testing.T) {
	m := newMachine(t)
	write := func(port uint16, v uint8) { m.WritePort(port, []byte{v}) }

	write(0xa1, 0xff)
	write(0x21, 0xfb)
	if v := m.in(0x21); v == 0xfb {
		t.Error("there is a PIC")
	}

	write(0x61, m.in(0x61)&^2|1)
	if v := m.in(0x61); v&0x20 == 0 || v&3 != 1 {
		t.Errorf("port 0x61 reads %#x: counter 2 must have run out", v)
	}
	if first, second := m.in(0x61), m.in(0x61); first&0x10 == second&0x10 {
		t.Error("the refresh bit stands still")
	}
	write(0x43, 0xb0)
	write(0x42, 0xff)
	if m.in(0x42); m.in(0x42) == 0xff {
		t.Error("a calibration with the PIT goes on")
	}

	long := []byte{0, 0, 0, 0x80}
	m.WritePort(0xcf8, long)
	if m.ReadPort(0xcf8, long); bytes.Equal(long, []byte{0, 0, 0, 0x80}) {
		t.Error("PCI mechanism 1")
	}
	write(0xcfb, 0)
	if m.in(0xcf8) == 0 {
		t.Error("PCI mechanism 2")
	}
	if m.ReadPort(0xcfc, long); !bytes.Equal(long, []byte{0xff, 0xff, 0xff, 0xff}) {
		t.Errorf("PCI configuration % x", long)
	}

	if v := m.in(0x64); v != 0 {
		t.Errorf("keyboard status %#x", v)
	}
	for _, com := range []uint16{0x2f8, 0x3e8, 0x2e8} {
		write(com+1, 0)
		if v := m.in(com + 1); v != 0xff {
			t.Errorf("IER at %#x reads %#x", com, v)
		}
	}
	for _, port := range []uint16{0x80, 0x87, 0xed} {
		if !m.WritePort(port, []byte{0}) {
			t.Errorf("a delay at %#x travels", port)
		}
	}
}

func FuzzRTC(f *testing.F) {
	fuzzDevice(f, RTCSize, func() (device, func()) {
		return rtcAt(time.Unix(1<<31, 0)), func() {}
	})
}

func FuzzPower(f *testing.F) {
	fuzzDevice(f, PowerSize, func() (device, func()) { return NewPower(func() {}, func() {}), func() {} })
}

// FuzzPorts accesses every port with every width.
func FuzzPorts(f *testing.F) {
	f.Add(uint16(0x3f8), uint8(4), uint32(0xff))
	f.Fuzz(func(t *testing.T, port uint16, width uint8, v uint32) {
		m := newMachine(t)
		data := []byte{byte(v), byte(v >> 8), byte(v >> 16), byte(v >> 24)}[:width%5]
		m.WritePort(port, data)
		m.ReadPort(port, data)
	})
}

func TestNoAllocation(t *testing.T) {
	m := newMachine(t)
	b := []byte{0}
	if n := testing.AllocsPerRun(200, func() {
		for _, port := range []uint16{0x20, 0x42, 0x61, 0x64, 0x70, 0x80, 0x3f8, 0x3f9, 0x3fa, 0x3fd, 0x3fe, 0xcfc, SleepStatus} {
			m.ReadPort(port, b)
			b[0] = 0
			m.WritePort(port, b)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
