package devices

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// console is a writer that can be watched, and held up.
type console struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	hold chan struct{} // a value for each Write, if not nil
	err  error
}

func (c *console) Write(p []byte) (int, error) {
	if c.hold != nil {
		<-c.hold
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.buf.Write(p)
	return len(p), c.err
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.buf.String()
}

// line is an interrupt pin.
type line struct {
	level  atomic.Bool
	rising atomic.Int32
}

func (l *line) set(level bool) {
	l.level.Store(level)
	if level {
		l.rising.Add(1)
	}
}

func newSerial(t *testing.T) (*Serial, *console, *line) {
	out, irq := &console{}, &line{}
	s := NewSerial(out, irq.set)
	t.Cleanup(func() { _ = s.Close(time.Second) })
	return s, out, irq
}

type device interface {
	Read(off uint64, data []byte)
	Write(off uint64, data []byte)
}

func in(d device, off uint64) uint8 {
	var b [1]byte
	d.Read(off, b[:])
	return b[0]
}

func out(d device, off uint64, v uint8) { d.Write(off, []byte{v}) }

// TestSerialProbe does what drivers do to find out which UART this is.
func TestSerialProbe(t *testing.T) {
	s, _, _ := newSerial(t)
	out(s, uartIER, 0)
	if v := in(s, uartIER); v != 0 {
		t.Errorf("IER %#x after 0", v)
	}
	out(s, uartIER, 0xff)
	if v := in(s, uartIER); v != 0x0f {
		t.Errorf("IER %#x after 0xff: the upper half belongs to later chips", v)
	}
	out(s, uartIER, 0)
	out(s, uartMCR, mcrLoop|mcrOut2|mcrRTS)
	if v := in(s, uartMSR) & 0xf0; v != 0x90 {
		t.Errorf("MSR %#x in loopback, want DCD and CTS", v)
	}
	out(s, uartMCR, mcrLoop|mcrOut1|mcrDTR)
	if v := in(s, uartMSR) & 0xf0; v != 0x60 {
		t.Errorf("MSR %#x in loopback, want RI and DSR", v)
	}
	out(s, uartMCR, 0xff)
	if v := in(s, uartMCR); v != 0x1f {
		t.Errorf("MCR %#x", v)
	}
	out(s, uartMCR, 0)
	if v := in(s, uartMSR) & 0xf0; v != 0xb0 {
		t.Errorf("MSR %#x", v)
	}
	for _, v := range []uint8{0x5a, 0xa5} {
		if out(s, uartSCR, v); in(s, uartSCR) != v {
			t.Error("no scratch register")
		}
	}
	if v := in(s, uartIIR); v != 0x01 {
		t.Errorf("IIR %#x without FIFO", v)
	}
	out(s, uartIIR, fcrEnable|0x20)
	if v := in(s, uartIIR); v != 0xc1 {
		t.Errorf("IIR %#x with FIFO, want a 16550A's, not a 16750's", v)
	}
	out(s, uartLCR, 0xbf)
	if v := in(s, uartIIR); v == 0 {
		t.Error("an EFR, as later chips have")
	}
	out(s, uartLCR, lcrDLAB|3)
	out(s, uartData, 0x34)
	out(s, uartIER, 0x12)
	if in(s, uartData) != 0x34 || in(s, uartIER) != 0x12 || in(s, uartLCR) != 0x83 {
		t.Error("divisor latch")
	}
	out(s, uartLCR, 3)
	if in(s, uartIER) != 0 {
		t.Error("the divisor latch shines through")
	}
	if v := in(s, uartLSR); v != lsrTHRE|lsrTEMT {
		t.Errorf("LSR %#x", v)
	}
	var wide [4]byte
	s.Read(uartIER, wide[:])
	if wide != [4]byte{0, 0xc1, 3, 0} {
		t.Errorf("wide read % x", wide)
	}
}

// TestSerialTransmitInterrupt: enabling it with an empty transmitter interrupts, reading the IIR acknowledges,
// and so again: what Linux calls a UART without the THRE bug.
func TestSerialTransmitInterrupt(t *testing.T) {
	s, console, irq := newSerial(t)
	out(s, uartIER, ierTX)
	if irq.level.Load() {
		t.Error("OUT2 does not gate the line")
	}
	if v := in(s, uartIIR); v != iirTX {
		t.Errorf("IIR %#x", v)
	}
	if v := in(s, uartIIR); v != iirNone {
		t.Errorf("IIR %#x after it was read", v)
	}
	out(s, uartIER, 0)
	out(s, uartIER, ierTX)
	if v := in(s, uartIIR); v != iirTX {
		t.Errorf("IIR %#x the second time", v)
	}
	out(s, uartMCR, mcrOut2)
	out(s, uartData, 'x')
	if !irq.level.Load() || irq.rising.Load() != 1 {
		t.Error("no interrupt after a character")
	}
	if v := in(s, uartIIR); v != iirTX || irq.level.Load() {
		t.Errorf("IIR %#x, line %v", v, irq.level.Load())
	}
	out(s, uartData, 'y')
	if irq.rising.Load() != 2 {
		t.Error("no second edge")
	}
	out(s, uartIER, 0)
	if irq.level.Load() {
		t.Error("the line stays with the interrupt disabled")
	}
	if !s.Flush(time.Minute) || console.String() != "xy" {
		t.Errorf("written %q", console)
	}
}

func TestSerialReceive(t *testing.T) {
	s, _, irq := newSerial(t)
	out(s, uartMCR, mcrOut2)
	if n := s.Feed([]byte("ab")); n != 0 {
		t.Errorf("%d characters taken without RTS", n)
	}
	out(s, uartMCR, mcrOut2|mcrRTS)
	if n := s.Feed([]byte("ab")); n != 1 {
		t.Errorf("%d characters taken without a FIFO", n)
	}
	if in(s, uartData) != 'a' || in(s, uartData) != 0 {
		t.Error("not what was sent")
	}
	out(s, uartIIR, fcrEnable|0x80) // trigger at 8
	out(s, uartIER, ierRX)
	if n := s.Feed([]byte("0123456789abcdefghij")); n != fifoSize {
		t.Errorf("%d characters taken", n)
	}
	if v := in(s, uartIIR); v != iirFIFO|iirRX || !irq.level.Load() {
		t.Errorf("IIR %#x", v)
	}
	for i := range 9 {
		if v := in(s, uartData); v != "012345678"[i] {
			t.Errorf("received %q", v)
		}
	}
	if v := in(s, uartIIR); v != iirFIFO|iirRXTime || !irq.level.Load() {
		t.Errorf("IIR %#x below the trigger", v)
	}
	if v := in(s, uartLSR); v&lsrDR == 0 {
		t.Errorf("LSR %#x", v)
	}
	out(s, uartIIR, fcrEnable|fcrClearRX)
	if v := in(s, uartLSR); v&lsrDR != 0 || irq.level.Load() {
		t.Errorf("LSR %#x after clearing", v)
	}
	out(s, uartIER, 0)
	if s.Feed([]byte("z")); irq.level.Load() {
		t.Error("interrupt while disabled")
	}
}

func TestSerialLoopback(t *testing.T) {
	s, console, _ := newSerial(t)
	out(s, uartMCR, mcrLoop)
	out(s, uartIER, ierLine|ierRX)
	out(s, uartData, 'a')
	if s.Feed([]byte("x")) != 0 {
		t.Error("the line is not cut")
	}
	out(s, uartData, 'b')
	if v := in(s, uartIIR); v != iirLine {
		t.Errorf("IIR %#x at an overrun", v)
	}
	if v := in(s, uartLSR); v != lsrDR|lsrOE|lsrTHRE|lsrTEMT {
		t.Errorf("LSR %#x", v)
	}
	if v := in(s, uartIIR); v != iirRX {
		t.Errorf("IIR %#x", v)
	}
	if v := in(s, uartData); v != 'a' {
		t.Errorf("received %q", v)
	}
	if s.Flush(time.Minute); console.String() != "" {
		t.Errorf("%q leaked out", console)
	}
}

func TestSerialModemInterrupt(t *testing.T) {
	s, _, _ := newSerial(t)
	out(s, uartIER, ierModem)
	out(s, uartMCR, mcrLoop|mcrOut1)
	if v := in(s, uartIIR); v != iirModem {
		t.Errorf("IIR %#x", v)
	}
	if v := in(s, uartMSR); v != 0x4b {
		t.Errorf("MSR %#x, want changes of CTS, DSR and DCD, but not RI's leading edge", v)
	}
	if v := in(s, uartIIR); v != iirNone {
		t.Errorf("IIR %#x after the MSR was read", v)
	}
	out(s, uartMCR, mcrLoop)
	if v := in(s, uartMSR); v != 0x04 {
		t.Errorf("MSR %#x, want RI's trailing edge", v)
	}
}

// waitUntil gives another goroutine the time to get somewhere.
func waitUntil(t *testing.T, done func() bool) {
	t.Helper()
	for patience := time.Now().Add(time.Minute); !done(); time.Sleep(100 * time.Microsecond) {
		if time.Now().After(patience) {
			t.Fatal("waited in vain")
		}
	}
}

// TestSerialSlowConsole: a console that stands still stops the transmitter, not the guest.
func TestSerialSlowConsole(t *testing.T) {
	console, irq := &console{hold: make(chan struct{})}, &line{}
	s := NewSerial(console, irq.set)
	out(s, uartMCR, mcrOut2)
	out(s, uartIER, ierTX)
	out(s, uartData, 'a')
	waitUntil(t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.writing
	})
	sent := 1
	for ; in(s, uartLSR)&lsrTHRE != 0; sent++ {
		out(s, uartData, 'a'+uint8(sent%26))
	}
	if sent != 1+txBuffer-fifoSize+1 {
		t.Errorf("stopped after %d characters", sent)
	}
	if in(s, uartIIR); in(s, uartIIR) != iirNone || irq.level.Load() {
		t.Error("transmitter interrupt while it is not ready")
	}
	for range fifoSize - 1 + 5 { // what is left of the buffer, and more
		out(s, uartData, '!')
	}
	if s.Dropped() != 5 {
		t.Errorf("%d dropped", s.Dropped())
	}
	if s.Flush(time.Millisecond) {
		t.Error("flushed")
	}
	edges := irq.rising.Load()
	close(console.hold)
	if !s.Flush(time.Minute) {
		t.Fatal("not flushed")
	}
	if irq.rising.Load() == edges || in(s, uartLSR)&lsrTHRE == 0 {
		t.Error("the guest does not learn that it can go on")
	}
	if got := console.String(); len(got) < sent || got[:26] != "abcdefghijklmnopqrstuvwxyz" || got[sent-1] != 'a'+uint8((sent-1)%26) {
		t.Errorf("%d characters written of %d", len(got), sent)
	}
	if err := s.Close(time.Minute); err != nil {
		t.Error(err)
	}
}

func TestSerialClose(t *testing.T) {
	broken := errors.New("broken")
	s := NewSerial(&console{err: broken}, func(bool) {})
	out(s, uartData, 'x')
	if err := s.Close(time.Minute); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	out(s, uartData, 'y')
	if in(s, uartLSR)&lsrTHRE == 0 || s.Dropped() != 1 {
		t.Error("a guest on a closed port waits")
	}
	if _, err := s.Input().Write([]byte("z")); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("%v", err)
	}
	stuck := &console{hold: make(chan struct{})}
	s = NewSerial(stuck, func(bool) {})
	out(s, uartData, 'x')
	if err := s.Close(time.Millisecond); err != nil {
		t.Error(err)
	}
	close(stuck.hold)
	<-s.done
}

// TestSerialInput sends more than the FIFO holds to a guest that reads by interrupt.
func TestSerialInput(t *testing.T) {
	edges := make(chan struct{}, 1)
	s := NewSerial(io.Discard, func(level bool) {
		if level {
			select {
			case edges <- struct{}{}:
			default:
			}
		}
	})
	want := bytes.Repeat([]byte("the quick brown fox "), 500)
	go func() {
		if n, err := s.Input().Write(want); n != len(want) || err != nil {
			t.Errorf("%d, %v", n, err)
		}
	}()
	out(s, uartIIR, fcrEnable|fcrClearRX|0xc0)
	out(s, uartIER, ierRX)
	out(s, uartMCR, mcrOut2|mcrRTS|mcrDTR)
	var got []byte
	for len(got) < len(want) {
		<-edges
		for in(s, uartIIR)&iirNone == 0 {
			for in(s, uartLSR)&lsrDR != 0 {
				got = append(got, in(s, uartData))
			}
		}
	}
	if !bytes.Equal(got, want) {
		t.Error("received something else")
	}
	done := make(chan error)
	go func() {
		_, err := s.Input().Write(want)
		done <- err
	}()
	if err := s.Close(time.Minute); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("a writer that waits: %v", err)
	}
}

// TestSerialLine: whatever the guest does, the line is what the registers say, and the callback only hears of
// changes.
func TestSerialLine(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		level := false
		s := NewSerial(io.Discard, func(l bool) {
			if l == level {
				t.Fatal("told of a level that it had")
			}
			level = l
		})
		defer func() { _ = s.Close(time.Minute) }()
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			off := rapid.Uint64Range(0, 7).Draw(t, "register")
			switch rapid.IntRange(0, 2).Draw(t, "what") {
			case 0:
				in(s, off)
			case 1:
				out(s, off, rapid.Uint8().Draw(t, "value"))
			case 2:
				s.Feed([]byte("abc"))
			}
			out(s, uartLCR, s.lcr&^lcrDLAB)
			s.mu.Lock()
			if want := s.interrupt() != iirNone && s.mcr&mcrOut2 != 0 && s.mcr&mcrLoop == 0; level != want {
				t.Fatalf("line %v, registers say %v", level, want)
			}
			s.mu.Unlock()
		}
	})
}

func FuzzSerial(f *testing.F) {
	fuzzDevice(f, COM1Size, func() (device, func()) {
		s := NewSerial(io.Discard, func(bool) {})
		return s, func() { _ = s.Close(time.Minute) }
	})
}
