package devices

import (
	"io"
	"sync"
	"time"
)

// Where a PC has COM1.
const (
	COM1     = 0x3f8
	COM1Size = 8
	COM1IRQ  = 4
)

// Registers of a 16550A; with DLAB set the first two are the divisor.
const (
	uartData = iota // RBR, THR, DLL
	uartIER         // IER, DLM
	uartIIR         // IIR, FCR
	uartLCR
	uartMCR
	uartLSR
	uartMSR
	uartSCR
)

const (
	ierRX     = 1 << 0
	ierTX     = 1 << 1
	ierLine   = 1 << 2
	ierModem  = 1 << 3
	ierMask   = ierRX | ierTX | ierLine | ierModem
	iirModem  = 0x0
	iirNone   = 0x1
	iirTX     = 0x2
	iirRX     = 0x4
	iirLine   = 0x6
	iirRXTime = 0xc
	iirFIFO   = 0xc0

	fcrEnable  = 1 << 0
	fcrClearRX = 1 << 1
	fcrClearTX = 1 << 2

	lcrDLAB = 1 << 7

	mcrDTR  = 1 << 0
	mcrRTS  = 1 << 1
	mcrOut1 = 1 << 2
	mcrOut2 = 1 << 3
	mcrLoop = 1 << 4
	mcrMask = 0x1f

	lsrDR   = 1 << 0
	lsrOE   = 1 << 1
	lsrTHRE = 1 << 5
	lsrTEMT = 1 << 6

	msrRI    = 1 << 6
	msrIdle  = 0xb0 // CTS, DSR, DCD on, RI off
	msrDelta = 0x0f

	fifoSize = 16
	// txBuffer is how far a guest may run ahead of a slow console.
	txBuffer = 64 << 10
)

// Serial is a 16550A serial port.
//
// What the guest transmits goes into a buffer that a goroutine empties into an io.Writer. While the buffer is
// full the transmitter is not ready, as if the line were slow; a guest that writes all the same loses the
// character, and never waits. What the host sends waits for room in the receive FIFO, and, as with a modem's
// flow control, until the guest says that it is ready by RTS: drivers do that when the port is opened, after
// they have emptied the FIFO, so what was typed before then is not lost.
type Serial struct {
	irq func(level bool)
	out io.Writer

	mu                           sync.Mutex // guards all below
	ier, fcr, lcr, mcr, msr, scr uint8
	dll, dlm                     uint8
	overrun                      bool
	txPending                    bool // transmitter-empty interrupt not yet acknowledged
	line                         bool // what irq was last told
	rx                           [fifoSize]byte
	rxHead, rxLen                int
	tx                           []byte // ring
	txHead, txLen                int
	writing                      bool // the goroutine is in out.Write
	dropped                      uint64
	outErr                       error
	closed                       bool
	changed                      *sync.Cond // rx room, RTS, tx data, tx drained, closed
	done                         chan struct{}
}

// NewSerial returns a serial port that writes to out and drives irq. Close it to stop its goroutine.
func NewSerial(out io.Writer, irq func(level bool)) *Serial {
	s := &Serial{
		irq: irq, out: out,
		dll: 12, // 9600 baud, as firmware leaves it
		msr: msrIdle,
		tx:  make([]byte, txBuffer), done: make(chan struct{}),
	}
	s.changed = sync.NewCond(&s.mu)
	go s.drain()
	return s
}

// Read implements bus.Device. A wide access reads the registers one after the other, as on an 8-bit bus.
func (s *Serial) Read(off uint64, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range data {
		data[i] = s.read(off + uint64(i))
	}
	s.update()
}

// Write implements bus.Device.
func (s *Serial) Write(off uint64, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, v := range data {
		s.write(off+uint64(i), v)
	}
	s.update()
}

func (s *Serial) read(off uint64) uint8 {
	dlab := s.lcr&lcrDLAB != 0
	switch off {
	case uartData:
		if dlab {
			return s.dll
		}
		return s.receive()
	case uartIER:
		if dlab {
			return s.dlm
		}
		return s.ier
	case uartIIR:
		id := s.interrupt()
		if id == iirTX {
			s.txPending = false
		}
		if s.fcr&fcrEnable != 0 {
			id |= iirFIFO
		}
		return id
	case uartLCR:
		return s.lcr
	case uartMCR:
		return s.mcr
	case uartLSR:
		return s.readLSR()
	case uartMSR:
		v := s.msr
		s.msr &^= msrDelta
		return v
	case uartSCR:
		return s.scr
	}
	return 0xff
}

func (s *Serial) write(off uint64, v uint8) {
	dlab := s.lcr&lcrDLAB != 0
	switch off {
	case uartData:
		if dlab {
			s.dll = v
		} else {
			s.transmit(v)
		}
	case uartIER:
		if dlab {
			s.dlm = v
			return
		}
		// Enabling the transmitter's interrupt while it is empty interrupts, which drivers test for.
		if v&ierTX != 0 && s.ier&ierTX == 0 && s.ready() {
			s.txPending = true
		}
		s.ier = v & ierMask
	case uartIIR:
		s.writeFCR(v)
	case uartLCR:
		s.lcr = v
	case uartMCR:
		s.mcr = v & mcrMask
		s.modem()
		s.changed.Broadcast()
	case uartSCR:
		s.scr = v
	}
}

func (s *Serial) readLSR() uint8 {
	var v uint8
	if s.rxLen > 0 {
		v |= lsrDR
	}
	if s.overrun {
		v |= lsrOE
		s.overrun = false
	}
	if s.ready() {
		v |= lsrTHRE | lsrTEMT
	}
	return v
}

func (s *Serial) writeFCR(v uint8) {
	if v&fcrEnable == 0 {
		v = 0
	}
	if v&fcrClearRX != 0 || (v^s.fcr)&fcrEnable != 0 {
		s.rxLen = 0
		s.changed.Broadcast()
	}
	if v&fcrClearTX != 0 && s.ready() {
		s.txPending = true
	}
	s.fcr = v &^ (fcrClearRX | fcrClearTX)
}

// receive takes a character from the FIFO.
func (s *Serial) receive() uint8 {
	if s.rxLen == 0 {
		return 0
	}
	v := s.rx[s.rxHead]
	s.rxHead = (s.rxHead + 1) % fifoSize
	s.rxLen--
	s.changed.Broadcast()
	return v
}

// depth is how many characters the receiver holds.
func (s *Serial) depth() int {
	if s.fcr&fcrEnable != 0 {
		return fifoSize
	}
	return 1
}

func (s *Serial) push(v uint8) bool {
	if s.rxLen >= s.depth() {
		return false
	}
	s.rx[(s.rxHead+s.rxLen)%fifoSize] = v
	s.rxLen++
	return true
}

// ready says that the transmitter takes a FIFO's load.
func (s *Serial) ready() bool {
	return s.closed || s.mcr&mcrLoop != 0 || len(s.tx)-s.txLen >= fifoSize
}

func (s *Serial) transmit(v uint8) {
	s.txPending = false
	switch {
	case s.mcr&mcrLoop != 0:
		if !s.push(v) {
			s.overrun = true
		}
	case s.closed || s.txLen == len(s.tx):
		s.dropped++
	default:
		s.tx[(s.txHead+s.txLen)%len(s.tx)] = v
		s.txLen++
		s.changed.Broadcast()
	}
	if s.ready() {
		s.txPending = true
	}
}

// modem recomputes the modem status after a write of the MCR; in loopback the outputs are the inputs.
func (s *Serial) modem() {
	now := uint8(msrIdle)
	if s.mcr&mcrLoop != 0 {
		now = s.mcr&mcrRTS<<3 | s.mcr&mcrDTR<<5 | s.mcr&mcrOut1<<4 | s.mcr&mcrOut2<<4
	}
	delta := (now ^ s.msr) >> 4
	if s.msr&msrRI == 0 {
		delta &^= msrRI >> 4 // the ring indicator counts its trailing edge only
	}
	s.msr = now | s.msr&msrDelta | delta
}

// interrupt is the identification of the interrupt of highest priority.
func (s *Serial) interrupt() uint8 {
	trigger := [4]int{1, 4, 8, 14}[s.fcr>>6]
	switch {
	case s.ier&ierLine != 0 && s.overrun:
		return iirLine
	case s.ier&ierRX != 0 && (s.rxLen >= trigger || s.rxLen > 0 && s.fcr&fcrEnable == 0):
		return iirRX
	case s.ier&ierRX != 0 && s.rxLen > 0:
		return iirRXTime
	case s.ier&ierTX != 0 && s.txPending:
		return iirTX
	case s.ier&ierModem != 0 && s.msr&msrDelta != 0:
		return iirModem
	}
	return iirNone
}

// update drives the interrupt line, which on a PC is gated by OUT2; loopback takes that off the pin.
func (s *Serial) update() {
	level := s.interrupt() != iirNone && s.mcr&(mcrOut2|mcrLoop) == mcrOut2
	if level != s.line {
		s.line = level
		s.irq(level)
	}
}

// drain is the goroutine that writes out what was transmitted.
func (s *Serial) drain() {
	defer close(s.done)
	chunk := make([]byte, 4096)
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		for s.txLen == 0 && !s.closed {
			s.changed.Wait()
		}
		if s.txLen == 0 {
			return
		}
		n := s.take(chunk)
		s.writing = true
		s.update()
		s.mu.Unlock()
		_, err := s.out.Write(chunk[:n])
		s.mu.Lock()
		s.writing = false
		if err != nil && s.outErr == nil {
			s.outErr = err
		}
		s.changed.Broadcast()
	}
}

// take moves from the ring into chunk, and lets the guest know when that made the transmitter ready.
func (s *Serial) take(chunk []byte) int {
	was := s.ready()
	n := copy(chunk, s.tx[s.txHead:min(s.txHead+s.txLen, len(s.tx))])
	s.txHead = (s.txHead + n) % len(s.tx)
	s.txLen -= n
	if !was && s.ready() {
		s.txPending = true
	}
	return n
}

// Feed offers input to the guest and returns how much of it the receiver took. It does not wait.
func (s *Serial) Feed(p []byte) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.feed(p)
}

// feed gives the receiver nothing while RTS is off, and during loopback, when the line is cut.
func (s *Serial) feed(p []byte) int {
	n := 0
	for s.mcr&(mcrRTS|mcrLoop) == mcrRTS && n < len(p) && s.push(p[n]) {
		n++
	}
	if n > 0 {
		s.update()
	}
	return n
}

// Input returns a writer of input to the guest. Its Write waits until the guest has taken everything or the
// port is closed.
func (s *Serial) Input() io.Writer { return serialInput{s} }

type serialInput struct{ s *Serial }

func (in serialInput) Write(p []byte) (int, error) {
	s := in.s
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for {
		if s.closed {
			return n, io.ErrClosedPipe
		}
		if n += s.feed(p[n:]); n == len(p) {
			return n, nil
		}
		s.changed.Wait()
	}
}

// Flush waits until what the guest transmitted has been written out, at most for the given time, and reports
// whether it was.
func (s *Serial) Flush(patience time.Duration) bool {
	expired := false
	timer := time.AfterFunc(patience, func() {
		s.mu.Lock()
		expired = true
		s.changed.Broadcast()
		s.mu.Unlock()
	})
	defer timer.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for (s.txLen > 0 || s.writing) && !expired {
		s.changed.Wait()
	}
	return s.txLen == 0 && !s.writing
}

// Dropped is the number of characters lost because the guest did not wait for a slow console.
func (s *Serial) Dropped() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dropped
}

// Close ends input, gives output the given time to be written, and returns the first error of the writer. The
// guest may go on using the registers; its output is dropped. A writer that never returns keeps its goroutine.
func (s *Serial) Close(patience time.Duration) error {
	flushed := s.Flush(patience)
	s.mu.Lock()
	if !flushed {
		s.dropped += uint64(s.txLen)
		s.txLen = 0
	}
	s.closed = true
	s.changed.Broadcast()
	err := s.outErr
	s.mu.Unlock()
	if flushed {
		<-s.done
	}
	return err
}
