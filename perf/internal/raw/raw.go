// Package raw measures what the RDMA device itself takes, by package verbs alone: one-sided reads and writes, the
// exchange that a remote page fault consists of, and bandwidth. One process serves, on one server; another one, on
// another server, measures. [Perftest] has the same from perftest's programs.
package raw

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"runtime"
	"time"

	"ironspan/verbs"
)

const (
	page    = 4096
	message = 64 // bytes: as long as one of Ironspan's own
)

// Plan is what to measure, of one way to wait.
type Plan struct {
	Event  bool          // both ends sleep on the completion channel; otherwise they poll
	Rounds int           // of each latency test
	Warmup int           // rounds before those
	Sizes  []int         // bytes of a message, for bandwidth
	Window int           // messages outstanding, for bandwidth
	Span   time.Duration // of each bandwidth test
}

// Plans takes some ten seconds between emulated servers. There, who polls takes from the device what it has to run on,
// and is ten times slower: fewer rounds have to do.
func Plans() []Plan {
	const window, span = 32, 300 * time.Millisecond
	return []Plan{
		{
			Event: true, Rounds: 500, Warmup: 20,
			Sizes: []int{64, 256, 1 << 10, page, 16 << 10, 64 << 10}, Window: window, Span: span,
		},
		{Rounds: 100, Warmup: 5, Sizes: []int{page}, Window: window, Span: span},
	}
}

func (p *Plan) validate() error {
	switch {
	case p.Rounds < 1 || p.Rounds > maxRounds || p.Warmup < 0 || p.Warmup > maxRounds:
		return fmt.Errorf("raw: %d rounds and %d before: 1 to %d", p.Rounds, p.Warmup, maxRounds)
	case p.Window < doorbell || p.Window > maxWindow:
		return fmt.Errorf("raw: window %d: %d to %d", p.Window, doorbell, maxWindow)
	}
	for _, n := range p.Sizes {
		if n < 8 || n > maxSize {
			return fmt.Errorf("raw: messages of %d bytes: 8 to %d", n, maxSize)
		}
	}
	return nil
}

// Latency is one latency test's outcome.
type Latency struct {
	Name  string  `json:"name"`
	Bytes int     `json:"bytes"`
	Event bool    `json:"event"` // as in the plan
	Ns    []int64 `json:"ns"`    // of each round, in their order
}

// Bandwidth is one bandwidth test's outcome.
type Bandwidth struct {
	Name           string  `json:"name"`
	Bytes          int     `json:"bytes"` // of a message
	Window         int     `json:"window"`
	Event          bool    `json:"event"`
	Messages       int     `json:"messages"`
	BytesPerSecond float64 `json:"bytes_per_second"`
}

// Report is the outcome of all tests.
type Report struct {
	Device    string      `json:"device"`
	Latency   []Latency   `json:"latency"`
	Bandwidth []Bandwidth `json:"bandwidth"`
}

// The names of tests.
const (
	Read      = "read"            // RDMA READ of a page
	Page      = "page-exchange"   // SEND of 64 bytes there, WRITE of a page and SEND of 64 bytes back: a fault's exchange
	Write     = "write"           // RDMA WRITE of 64 bytes, until its completion at the writer: there and back
	WriteImm  = "write-imm"       // RDMA WRITE with immediate of 64 bytes, one way: half of there and back
	ReadRate  = "read/bandwidth"  // bandwidth of reads
	WriteRate = "write/bandwidth" // bandwidth of writes
)

// patience bounds one test; it is reached only if the other end stands still.
const patience = 60 * time.Second

// Serve is the passive end: it listens at addr, tells ready, serves one Measure, and returns.
func Serve(ctx context.Context, addr, device string, ready func()) error {
	e, err := newEnd(device)
	if err != nil {
		return err
	}
	defer e.close()
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("raw: %w", err)
	}
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	ready()
	conn, err := l.Accept()
	if err != nil {
		return fmt.Errorf("raw: %w", err)
	}
	c := newControl(conn)
	defer c.close()
	defer context.AfterFunc(ctx, c.close)()
	if err := e.meet(c); err != nil {
		return err
	}
	runtime.LockOSThread()
	for {
		var r request
		if err := c.read(&r); err != nil {
			if c.over(err) {
				return nil
			}
			return err
		}
		if err := e.serve(ctx, c, &r); err != nil {
			c.write(&reply{Error: err.Error()})
			return err
		}
	}
}

// Measure is the active end: it goes through the plans with whoever serves at addr.
func Measure(ctx context.Context, addr, device string, plans []Plan) (*Report, error) {
	for _, p := range plans {
		if err := p.validate(); err != nil {
			return nil, err
		}
	}
	e, err := newEnd(device)
	if err != nil {
		return nil, err
	}
	defer e.close()
	conn, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("raw: %w", err)
	}
	c := newControl(conn)
	defer c.close()
	defer context.AfterFunc(ctx, c.close)()
	if err := e.meet(c); err != nil {
		return nil, err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	r := &Report{Device: e.dev.Name()}
	for _, p := range plans {
		if err := e.measure(ctx, c, p, r); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// measure goes through one plan.
func (e *end) measure(ctx context.Context, c *control, p Plan, r *Report) error {
	e.event = p.Event
	for _, t := range []struct {
		name  string
		bytes int
		parts int64 // of a round, one of which counts
		round func(context.Context, uint64) error
	}{
		{Read, page, 1, e.read},
		{Write, message, 1, e.write},
		{Page, page, 1, e.askPage},
		{WriteImm, message, 2, e.throw},
	} {
		ns, err := e.rounds(ctx, c, t.name, p, t.round)
		if err != nil {
			return fmt.Errorf("raw: %s, event %v: %w", t.name, p.Event, err)
		}
		for i := range ns {
			ns[i] /= t.parts
		}
		r.Latency = append(r.Latency, Latency{Name: t.name, Bytes: t.bytes, Event: p.Event, Ns: ns})
	}
	for _, name := range []string{ReadRate, WriteRate} {
		for _, size := range p.Sizes {
			b, err := e.rate(ctx, name, size, p)
			if err != nil {
				return fmt.Errorf("raw: %s of %d bytes, event %v: %w", name, size, p.Event, err)
			}
			r.Bandwidth = append(r.Bandwidth, *b)
		}
	}
	return nil
}

// rounds times a test's rounds, with the other end's part in it if it has one.
func (e *end) rounds(ctx context.Context, c *control, name string, p Plan, round func(context.Context, uint64) error) ([]int64, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	all := p.Warmup + p.Rounds
	echoed := name == Page || name == WriteImm
	if echoed {
		if err := e.fill(); err != nil {
			return nil, err
		}
		if err := c.ask(&request{Test: name, Rounds: all, Event: e.event}); err != nil {
			return nil, err
		}
	}
	ns := make([]int64, 0, all)
	for i := range uint64(all) {
		begin := time.Now()
		if err := round(ctx, i); err != nil {
			return nil, err
		}
		ns = append(ns, time.Since(begin).Nanoseconds())
	}
	if echoed {
		if err := e.settle(ctx); err != nil {
			return nil, err
		}
		if err := c.answer(); err != nil {
			return nil, err
		}
	}
	return ns[p.Warmup:], nil
}

// read reads the peer's page.
func (e *end) read(ctx context.Context, i uint64) error {
	e.qp.Batch().Read(0, verbs.Signaled, e.mr.SGE(0, page), e.peer.at(0))
	if err := e.post(1); err != nil {
		return err
	}
	if err := e.settle(ctx); err != nil {
		return err
	}
	if got := binary.LittleEndian.Uint64(e.mem.Bytes()[page-8:]); got != pattern {
		return fmt.Errorf("it read %#x where the peer has %#x", got, uint64(pattern))
	}
	return nil
}

// write writes a message, which the peer does not notice.
func (e *end) write(ctx context.Context, i uint64) error {
	e.qp.Batch().WriteInline(0, verbs.Signaled, e.words(i), e.peer.at(scratch))
	if err := e.post(1); err != nil {
		return err
	}
	return e.settle(ctx)
}

// askPage sends a message and waits for the one that follows a page.
func (e *end) askPage(ctx context.Context, i uint64) error {
	e.qp.Batch().SendInline(0, verbs.Signaled, e.words(i))
	if err := e.post(1); err != nil {
		return err
	}
	if err := e.receive(ctx); err != nil {
		return err
	}
	if got := binary.LittleEndian.Uint64(e.mem.Bytes()[scratch:]); got != i {
		return fmt.Errorf("page %d came in round %d", got, i)
	}
	return nil
}

// givePage is the other end of askPage.
func (e *end) givePage(ctx context.Context, i uint64) error {
	if err := e.receive(ctx); err != nil {
		return err
	}
	binary.LittleEndian.PutUint64(e.mem.Bytes()[page:], i)
	e.qp.Batch().Write(0, 0, e.mr.SGE(page, page), e.peer.at(scratch))
	e.qp.Batch().SendInline(0, verbs.Signaled, e.words(i))
	return e.post(1)
}

// throw writes a message with immediate and waits for one.
func (e *end) throw(ctx context.Context, i uint64) error {
	e.qp.Batch().WriteImm(0, verbs.Signaled, e.mr.SGE(page, message), e.peer.at(scratch), uint32(i))
	if err := e.post(1); err != nil {
		return err
	}
	return e.receive(ctx)
}

// throwBack is the other end of throw.
func (e *end) throwBack(ctx context.Context, i uint64) error {
	if err := e.receive(ctx); err != nil {
		return err
	}
	e.qp.Batch().WriteImm(0, verbs.Signaled, e.mr.SGE(page, message), e.peer.at(scratch), uint32(i))
	return e.post(1)
}

// serve is the other end of rounds.
func (e *end) serve(ctx context.Context, c *control, r *request) error {
	if err := r.validate(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	e.event = r.Event
	if err := e.fill(); err != nil {
		return err
	}
	if err := c.write(&reply{}); err != nil {
		return err
	}
	round := e.givePage
	if r.Test == WriteImm {
		round = e.throwBack
	}
	for i := range uint64(r.Rounds) {
		if err := round(ctx, i); err != nil {
			return fmt.Errorf("raw: %s: %w", r.Test, err)
		}
	}
	if err := e.settle(ctx); err != nil {
		return fmt.Errorf("raw: %s: %w", r.Test, err)
	}
	return c.write(&reply{})
}

// rate keeps a window of messages outstanding, posted by the doorbell, for the plan's span.
func (e *end) rate(ctx context.Context, name string, size int, p Plan) (*Bandwidth, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	b := &Bandwidth{Name: name, Bytes: size, Window: p.Window, Event: e.event}
	slots := (memory - scratch) / size
	begin := time.Now()
	for time.Since(begin) < p.Span {
		for i := range doorbell {
			at := uint64(scratch + (b.Messages+i)%slots*size)
			flags := verbs.SendFlags(0)
			if i == doorbell-1 {
				flags = verbs.Signaled
			}
			local, remote := e.mr.SGE(at, uint32(size)), e.peer.at(at)
			if name == ReadRate {
				e.qp.Batch().Read(0, flags, local, remote)
			} else {
				e.qp.Batch().Write(0, flags, local, remote)
			}
		}
		if err := e.post(1); err != nil {
			return nil, err
		}
		b.Messages += doorbell
		for e.out > p.Window/doorbell-1 {
			if err := e.completion(ctx); err != nil {
				return nil, err
			}
		}
	}
	if err := e.settle(ctx); err != nil {
		return nil, err
	}
	b.BytesPerSecond = float64(b.Messages*size) / time.Since(begin).Seconds()
	return b, nil
}
