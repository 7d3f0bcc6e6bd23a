package devices

import (
	"sync"
	"time"
)

// Where a PC has its real-time clock.
const (
	RTCBase = 0x70
	RTCSize = 2
	// RTCCentury is the CMOS register with the century, for the FADT.
	RTCCentury = 0x32
)

// Registers of an MC146818; up to rtcYear they are the time and the alarm.
const (
	rtcSecond      = 0x0
	rtcAlarmSecond = 0x1
	rtcMinute      = 0x2
	rtcAlarmMinute = 0x3
	rtcHour        = 0x4
	rtcAlarmHour   = 0x5
	rtcWeekday     = 0x6
	rtcDay         = 0x7
	rtcMonth       = 0x8
	rtcYear        = 0x9
	rtcA           = 0xa
	rtcB           = 0xb
	rtcC           = 0xc
	rtcD           = 0xd

	rtcB24Hour = 1 << 1
	rtcBBinary = 1 << 2
	rtcBSet    = 1 << 7
	rtcAIdle   = 0x26 // 32.768 kHz, 1024 Hz; no update in progress
	rtcDValid  = 0x80
	rtcPM      = 0x80
	rtcIndex   = 0x7f
)

// RTC is the CMOS real-time clock: time in UTC from an injected clock, and the battery-backed RAM, in which
// the shutdown byte (0x0f) is like any other. Setting the clock moves the guest's view of it only.
//
// No update is ever seen in progress: each register shows the moment in which it is read, and a driver that
// compares the seconds before and after, as they all do, has a consistent time.
type RTC struct {
	now func() time.Time

	mu     sync.Mutex // guards all below
	index  uint8
	ram    [128]byte
	offset time.Duration // guest's clock minus now
	set    civil         // the stopped clock, while B's SET bit is on
}

// NewRTC returns a clock that shows now's time.
func NewRTC(now func() time.Time) *RTC {
	r := &RTC{now: now}
	r.ram[rtcA] = rtcAIdle
	r.ram[rtcB] = rtcB24Hour
	return r
}

// Read implements bus.Device.
func (r *RTC) Read(off uint64, data []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range data {
		switch off + uint64(i) {
		case 0:
			data[i] = r.index
		case 1:
			data[i] = r.read()
		default:
			data[i] = 0xff
		}
	}
}

// Write implements bus.Device.
func (r *RTC) Write(off uint64, data []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, v := range data {
		switch off + uint64(i) {
		case 0:
			r.index = v & rtcIndex // bit 7 masks NMIs on a PC
		case 1:
			r.write(v)
		}
	}
}

// civil is a time in parts. While the clock is stopped the parts are as the guest wrote them, one by one, and
// need not make a date yet.
type civil struct{ year, month, day, hour, minute, second int }

func civilOf(t time.Time) civil {
	return civil{t.Year(), int(t.Month()), t.Day(), t.Hour(), t.Minute(), t.Second()}
}

// time carries over parts that are out of range.
func (c civil) time() time.Time {
	return time.Date(c.year, time.Month(c.month), c.day, c.hour, c.minute, c.second, 0, time.UTC)
}

func (r *RTC) stopped() bool { return r.ram[rtcB]&rtcBSet != 0 }

func (r *RTC) time() civil {
	if r.stopped() {
		return r.set
	}
	return civilOf(r.now().UTC().Add(r.offset))
}

func (r *RTC) read() uint8 {
	t := r.time()
	switch r.index {
	case rtcSecond:
		return r.encode(t.second)
	case rtcMinute:
		return r.encode(t.minute)
	case rtcHour:
		return r.encodeHour(t.hour)
	case rtcWeekday:
		return r.encode(int(t.time().Weekday()) + 1)
	case rtcDay:
		return r.encode(t.day)
	case rtcMonth:
		return r.encode(t.month)
	case rtcYear:
		return r.encode(t.year % 100)
	case RTCCentury:
		return r.encode(t.year / 100)
	case rtcC:
		return 0
	case rtcD:
		return rtcDValid
	}
	return r.ram[r.index]
}

func (r *RTC) write(v uint8) {
	switch r.index {
	case rtcSecond, rtcMinute, rtcHour, rtcDay, rtcMonth, rtcYear, RTCCentury:
		r.setPart(v)
	case rtcA:
		r.ram[rtcA] = v &^ 0x80
	case rtcB:
		r.setB(v)
	case rtcWeekday, rtcC, rtcD: // the date says the weekday; the others are read only
	default:
		r.ram[r.index] = v
	}
}

// setB writes register B, whose SET bit stops the clock and, going off, starts it from what was written.
func (r *RTC) setB(v uint8) {
	was := r.stopped()
	if !was {
		r.set = r.time()
	}
	r.ram[rtcB] = v
	if was && !r.stopped() {
		r.start(r.set)
	}
}

// start lets the clock run from t, at most 292 years away from the host's.
func (r *RTC) start(t civil) { r.offset = t.time().Sub(r.now().UTC()) }

// setPart changes one part of the time.
func (r *RTC) setPart(v uint8) {
	t := r.time()
	n := r.decode(v)
	switch r.index {
	case rtcSecond:
		t.second = n
	case rtcMinute:
		t.minute = n
	case rtcHour:
		t.hour = r.decodeHour(v)
	case rtcDay:
		t.day = n
	case rtcMonth:
		t.month = n
	case rtcYear:
		t.year = t.year/100*100 + n%100
	case RTCCentury:
		t.year = n%100*100 + t.year%100
	}
	if r.stopped() {
		r.set = t
		return
	}
	r.start(t)
}

// encode is BCD, or binary where register B says so.
func (r *RTC) encode(n int) uint8 {
	if r.ram[rtcB]&rtcBBinary != 0 {
		return uint8(n)
	}
	return uint8(n/10<<4 | n%10)
}

func (r *RTC) decode(v uint8) int {
	if r.ram[rtcB]&rtcBBinary != 0 {
		return int(v)
	}
	return int(v>>4)*10 + int(v&0xf)
}

func (r *RTC) encodeHour(hour int) uint8 {
	if r.ram[rtcB]&rtcB24Hour != 0 {
		return r.encode(hour)
	}
	v := r.encode((hour+11)%12 + 1)
	if hour >= 12 {
		v |= rtcPM
	}
	return v
}

func (r *RTC) decodeHour(v uint8) int {
	if r.ram[rtcB]&rtcB24Hour != 0 {
		return r.decode(v)
	}
	hour := r.decode(v&^rtcPM) % 12
	if v&rtcPM != 0 {
		hour += 12
	}
	return hour
}
