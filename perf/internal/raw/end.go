package raw

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"ironspan/verbs"
)

const (
	pattern = 0x1a05_59a7_7e4e_0001 // what the last word of the first page holds

	// Layout of the memory of both ends: a page that is read, a page that is sent, then what peers write to.
	scratch = 2 * page
	memory  = scratch + maxWindow*maxSize

	doorbell  = 8 // requests posted together, for bandwidth; the last makes a completion
	maxWindow = 128
	maxSize   = 64 << 10
	maxRounds = 1 << 20
	receives  = 32 // posted ahead
	batch     = 32 // completions taken at a time
	spins     = 1 << 12
)

// end is a device, its memory and a queue pair.
type end struct {
	dev  *verbs.Device
	mem  *verbs.Memory
	mr   *verbs.MR
	ch   *verbs.Channel
	cq   *verbs.CQ
	qp   *verbs.QP
	peer remote

	event   bool // sleep, do not poll
	out     int  // signaled requests that have not completed
	arrived int  // receives that have completed and were not asked for yet
	posted  int  // receives posted
	wcs     [batch]verbs.WC
	text    [message]byte
}

// remote is the peer's memory.
type remote struct {
	Addr uint64
	RKey uint32
}

func (r remote) at(off uint64) verbs.Remote { return verbs.Remote{Addr: r.Addr + off, RKey: r.RKey} }

func newEnd(device string) (e *end, err error) {
	e = &end{}
	defer func() {
		if err != nil {
			e.close()
			err = fmt.Errorf("raw: %w", err)
		}
	}()
	if e.dev, err = verbs.Open(device); err != nil {
		return e, err
	}
	if e.mem, err = verbs.AllocMemory(memory); err != nil {
		return e, err
	}
	binary.LittleEndian.PutUint64(e.mem.Bytes()[page-8:], pattern)
	pd, err := e.dev.AllocPD()
	if err != nil {
		return e, err
	}
	if e.mr, err = pd.RegMemory(e.mem, verbs.LocalWrite|verbs.RemoteWrite|verbs.RemoteRead); err != nil {
		return e, err
	}
	if e.ch, err = e.dev.CreateChannel(); err != nil {
		return e, err
	}
	if e.cq, err = e.dev.CreateCQ(2*maxWindow+receives, e.ch); err != nil {
		return e, err
	}
	e.qp, err = pd.CreateQP(verbs.QPConfig{
		SendCQ: e.cq, RecvCQ: e.cq, SendWR: 2 * maxWindow, RecvWR: receives, MaxInline: message,
	})
	if err != nil {
		return e, err
	}
	return e, e.qp.Init(verbs.PortConfig{Access: verbs.RemoteWrite | verbs.RemoteRead})
}

func (e *end) close() {
	if e.dev != nil {
		e.dev.Close()
	}
	if e.mem != nil {
		e.mem.Close()
	}
}

// hello is what the ends tell each other.
type hello struct {
	Version  int              `json:"version"`
	Endpoint verbs.QPEndpoint `json:"endpoint"`
	Addr     uint64           `json:"addr"`
	RKey     uint32           `json:"rkey"`
	Bytes    uint64           `json:"bytes"`
}

const version = 1

func (h *hello) validate() error {
	switch {
	case h.Version != version:
		return fmt.Errorf("raw: the other end speaks version %d, this one %d", h.Version, version)
	case h.Bytes != memory || h.Addr == 0 || h.Addr+h.Bytes < h.Addr:
		return fmt.Errorf("raw: the other end offers %d bytes at %#x, not %d", h.Bytes, h.Addr, memory)
	}
	return h.Endpoint.Validate()
}

// meet exchanges hellos and connects.
func (e *end) meet(c *control) error {
	err := c.write(&hello{Version: version, Endpoint: e.qp.Endpoint(), Addr: e.mr.Addr(), RKey: e.mr.RKey(), Bytes: e.mr.Len()})
	if err != nil {
		return err
	}
	var h hello
	if err := c.read(&h); err != nil {
		return err
	}
	if err := h.validate(); err != nil {
		return err
	}
	if err := e.qp.Connect(h.Endpoint); err != nil {
		return fmt.Errorf("raw: %w", err)
	}
	e.peer = remote{Addr: h.Addr, RKey: h.RKey}
	// Who is connected may be sent to.
	if err := c.write(&reply{}); err != nil {
		return err
	}
	return c.answer()
}

// words is a message that begins with a number.
func (e *end) words(i uint64) []byte {
	binary.LittleEndian.PutUint64(e.text[:], i)
	return e.text[:]
}

// post hands the batch to the device; so many of it are signaled.
func (e *end) post(signaled int) error {
	if _, err := e.qp.Batch().Post(); err != nil {
		return err
	}
	e.out += signaled
	return nil
}

// fill posts as many receives as are lacking.
func (e *end) fill() error {
	if e.posted == receives {
		return nil
	}
	b := e.qp.RecvBatch()
	for ; e.posted < receives; e.posted++ {
		if !b.Add(0, e.mr.SGE(memory-receives*message+uint64(e.posted*message), message)) {
			return errors.New("the receive queue is full")
		}
	}
	_, err := b.Post()
	return err
}

// receive waits for an arrival. Others are posted when half are used up, so that a round mostly pays for none.
func (e *end) receive(ctx context.Context) error {
	for e.arrived == 0 {
		if err := e.completion(ctx); err != nil {
			return err
		}
	}
	e.arrived--
	if e.posted > receives/2 {
		return nil
	}
	return e.fill()
}

// settle waits until nothing is out.
func (e *end) settle(ctx context.Context) error {
	for e.out > 0 {
		if err := e.completion(ctx); err != nil {
			return err
		}
	}
	return nil
}

// completion waits for completions and accounts for them.
func (e *end) completion(ctx context.Context) error {
	n, err := e.await(ctx)
	if err != nil {
		return err
	}
	for i := range e.wcs[:n] {
		wc := &e.wcs[i]
		if err := wc.Err("raw"); err != nil {
			return err
		}
		switch wc.Opcode {
		case verbs.OpRecv, verbs.OpRecvImm:
			e.arrived++
			e.posted--
		default:
			e.out--
		}
	}
	return nil
}

// await polls, or sleeps, until there are completions.
func (e *end) await(ctx context.Context) (int, error) {
	for i := 1; ; i++ {
		n, err := e.cq.Poll(e.wcs[:])
		if n > 0 || err != nil {
			return n, err
		}
		if i%spins == 0 || e.event {
			if err := ctx.Err(); err != nil {
				return 0, fmt.Errorf("the other end does not answer: %w", err)
			}
		}
		if !e.event {
			continue
		}
		if err := e.cq.Arm(); err != nil {
			return 0, err
		}
		if n, err = e.cq.Poll(e.wcs[:]); n > 0 || err != nil {
			return n, err
		}
		if _, err := e.ch.Wait(time.Second); err != nil {
			return 0, err
		}
		if _, err := e.ch.Drain(); err != nil {
			return 0, err
		}
	}
}

// request starts the other end's part in a test.
type request struct {
	Test   string `json:"test"`
	Rounds int    `json:"rounds"`
	Event  bool   `json:"event"`
}

func (r *request) validate() error {
	if r.Test != Page && r.Test != WriteImm || r.Rounds < 1 || r.Rounds > 2*maxRounds {
		return fmt.Errorf("raw: %d rounds of %q are not served", r.Rounds, r.Test)
	}
	return nil
}

// reply ends a request's beginning, and its end.
type reply struct {
	Error string `json:"error,omitempty"`
}

// control is the connection of two ends: lines of JSON.
type control struct {
	conn net.Conn
	r    *bufio.Reader
	once sync.Once
}

// maxLine bounds what is read of the other end's.
const maxLine = 16 << 10

func newControl(conn net.Conn) *control {
	return &control{conn: conn, r: bufio.NewReaderSize(conn, maxLine)}
}

func (c *control) close() { c.once.Do(func() { c.conn.Close() }) }

// over says whether the other end is done.
func (c *control) over(err error) bool { return errors.Is(err, io.EOF) }

func (c *control) write(v any) error {
	b, err := json.Marshal(v)
	if err == nil {
		_, err = c.conn.Write(append(b, '\n'))
	}
	if err != nil {
		return fmt.Errorf("raw: control: %w", err)
	}
	return nil
}

func (c *control) read(into any) error {
	line, err := c.r.ReadSlice('\n')
	if err == nil {
		d := json.NewDecoder(bytes.NewReader(line))
		d.DisallowUnknownFields()
		if err = d.Decode(into); err == nil && d.More() {
			err = errors.New("more than one value in a line")
		}
	}
	if err != nil {
		return fmt.Errorf("raw: control: %w", err)
	}
	return nil
}

// answer reads a reply.
func (c *control) answer() error {
	var r reply
	if err := c.read(&r); err != nil {
		return err
	}
	if r.Error != "" {
		return fmt.Errorf("raw: the other end: %s", r.Error)
	}
	return nil
}

func (c *control) ask(r *request) error {
	if err := c.write(r); err != nil {
		return err
	}
	return c.answer()
}
