// Package ether is the wire between lab servers: an Ethernet switch over QEMU's stream sockets.
//
// QEMU's "-netdev stream" sends each frame behind its length, four bytes big-endian. The switch learns
// which port an address lives on, floods what it does not know, and can break links for tests.
//
// A frame is moved by the thread that read it, from a blocking read to a write that does not block: one
// wake-up per hop. Only what a slow receiver's socket does not take goes through a queue.
package ether

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// MaxFrame is the largest frame taken: a jumbo frame with room to spare.
	MaxFrame   = 64 << 10
	lengthSize = 4
	minFrame   = 14
	bufferSize = 4 * (lengthSize + MaxFrame)
	// queueLen bounds what waits for one server. A port that is full drops, as any switch does; rxe then
	// resends.
	queueLen = 4096
)

// ErrFrame says that a port's stream is out of step.
var ErrFrame = errors.New("ether: malformed frame length")

type address [6]byte

func (a address) group() bool { return a[0]&1 != 0 }

// Switch joins ports.
type Switch struct {
	ports []*Port
	mu    sync.RWMutex // guards table
	// table says behind which port an address was last seen.
	table map[address]*Port
}

// Port is one server's end.
type Port struct {
	file *os.File
	fd   int
	sw   *Switch

	mu   sync.Mutex // guards all writing, and below
	wake *sync.Cond
	// queue holds what the socket did not take, the first frame perhaps only in part. While it is not
	// empty the sender alone writes.
	queue [][]byte
	ended bool

	down atomic.Bool
	// lossEvery drops every n-th frame that arrives at this port; 0 drops none.
	lossEvery atomic.Uint32
	stats     portStats
}

type portStats struct{ in, out, bytesIn, queued, dropped atomic.Uint64 }

// Stats counts frames: from the server (In), to it (Out), those of Out that had to wait, and those of In
// or for Out that were dropped.
type Stats struct {
	In      uint64 `json:"in"`
	Out     uint64 `json:"out"`
	BytesIn uint64 `json:"bytes_in"`
	Queued  uint64 `json:"queued"`
	Dropped uint64 `json:"dropped"`
}

// New makes a switch with one port for each socket, which must be in blocking mode and is the switch's
// from now on.
func New(sockets []*os.File) *Switch {
	s := &Switch{table: map[address]*Port{}}
	for _, f := range sockets {
		p := &Port{file: f, fd: int(f.Fd()), sw: s}
		p.wake = sync.NewCond(&p.mu)
		s.ports = append(s.ports, p)
	}
	return s
}

// Run moves frames until every port has ended, which Close brings about.
func (s *Switch) Run() {
	var receivers, senders sync.WaitGroup
	for _, p := range s.ports {
		receivers.Go(func() { p.receive() })
		senders.Go(func() { p.drain() })
	}
	receivers.Wait()
	senders.Wait()
	for _, p := range s.ports {
		p.file.Close()
	}
}

// Close ends all ports.
func (s *Switch) Close() {
	for _, p := range s.ports {
		p.end()
	}
}

// end makes the port's reader and sender return; its descriptor stays, since others may be writing.
func (p *Port) end() {
	unix.Shutdown(p.fd, unix.SHUT_RDWR)
	p.mu.Lock()
	p.ended, p.queue = true, nil
	p.mu.Unlock()
	p.wake.Broadcast()
}

// Frames counts those that have come in, at all ports.
func (s *Switch) Frames() uint64 {
	var n uint64
	for _, p := range s.ports {
		n += p.stats.in.Load()
	}
	return n
}

// Port returns port n.
func (s *Switch) Port(n int) (*Port, error) {
	if n < 0 || n >= len(s.ports) {
		return nil, fmt.Errorf("ether: no port %d", n)
	}
	return s.ports[n], nil
}

// SetDown cuts or mends the link.
func (p *Port) SetDown(down bool) { p.down.Store(down) }

// SetLoss drops every n-th frame the server sends; 0 none.
func (p *Port) SetLoss(every uint32) { p.lossEvery.Store(every) }

// Stats returns the port's counters.
func (p *Port) Stats() Stats {
	return Stats{
		In: p.stats.in.Load(), Out: p.stats.out.Load(), BytesIn: p.stats.bytesIn.Load(),
		Queued: p.stats.queued.Load(), Dropped: p.stats.dropped.Load(),
	}
}

func (p *Port) receive() {
	defer p.end()
	r := bufio.NewReaderSize(p.file, bufferSize)
	for {
		frame, err := next(r)
		if err != nil {
			return
		}
		n := p.stats.in.Add(1)
		p.stats.bytesIn.Add(uint64(len(frame) - lengthSize))
		if every := p.lossEvery.Load(); p.down.Load() || every != 0 && n%uint64(every) == 0 {
			p.stats.dropped.Add(1)
		} else {
			p.sw.forward(p, frame)
		}
		if _, err := r.Discard(len(frame)); err != nil {
			return
		}
	}
}

// next returns the next frame with its length in front; it stays in r until discarded.
func next(r *bufio.Reader) ([]byte, error) {
	h, err := r.Peek(lengthSize)
	if err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(h)
	if n < minFrame || n > MaxFrame {
		return nil, ErrFrame
	}
	frame, err := r.Peek(lengthSize + int(n))
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return frame, err
}

func (s *Switch) forward(from *Port, frame []byte) {
	var dst, src address
	copy(dst[:], frame[lengthSize:])
	copy(src[:], frame[lengthSize+6:])
	s.mu.RLock()
	known, to := s.table[src], s.table[dst]
	s.mu.RUnlock()
	if known != from && !src.group() {
		s.mu.Lock()
		s.table[src] = from
		s.mu.Unlock()
	}
	if to != nil && !dst.group() {
		if to != from {
			to.write(frame)
		}
		return
	}
	for _, p := range s.ports {
		if p != from {
			p.write(frame)
		}
	}
}

// write passes a frame to the server if its socket takes it now, and queues what is left otherwise.
func (p *Port) write(frame []byte) {
	if p.down.Load() {
		p.stats.dropped.Add(1)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended || len(p.queue) >= queueLen {
		p.stats.dropped.Add(1)
		return
	}
	if len(p.queue) == 0 {
		n, err := unix.SendmsgN(p.fd, frame, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		switch {
		case err == nil:
			frame = frame[n:]
		case !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR):
			p.stats.dropped.Add(1) // the server is gone; its reader ends the port
			return
		}
		if len(frame) == 0 {
			p.stats.out.Add(1)
			return
		}
	}
	p.stats.queued.Add(1)
	p.queue = append(p.queue, append([]byte(nil), frame...))
	p.wake.Signal()
}

// drain writes the queue, blocking.
func (p *Port) drain() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		for len(p.queue) == 0 && !p.ended {
			p.wake.Wait()
		}
		if p.ended {
			return
		}
		frame := p.queue[0]
		p.mu.Unlock()
		_, err := p.file.Write(frame)
		p.mu.Lock()
		if err != nil || p.ended {
			p.ended = true
			return
		}
		p.stats.out.Add(1)
		// Removed only now: until then nobody else may write.
		p.queue[0] = nil
		p.queue = p.queue[1:]
	}
}
