// Package lane is the machine lane of a node: what nodes tell each other that is not memory. It carries interrupt
// messages, port and MMIO accesses for the devices of another node, ends of interrupts, and clock samples.
package lane

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"ironspan/engine/wire"
	"ironspan/fastpath/epoll"
	"ironspan/fastpath/fabric"
	"ironspan/kvmhost"
	"ironspan/kvmhost/apic"
)

// Platform is the node with the platform's devices: the IOAPIC, the serial port, the clock.
const Platform wire.NodeID = 0

const (
	// outboxDepth is how many messages a producer may have waiting for the lane's thread. A vCPU has at
	// most one access under way and sends an IPI in one exit, so it meets the bound only when it sends
	// faster than the lane can; then it waits.
	outboxDepth = 64

	// batch is the number of messages taken from the fabric in one poll.
	batch = 32

	// driftEvery is the time between two clock samples while the VM runs.
	driftEvery = time.Second

	// spin is how long an idle lane polls before it sleeps, where it may poll at all.
	spin = 50 * time.Microsecond
)

// Handler is what the machine lane needs of its node. Its methods are called on the lane's thread and must
// not block.
type Handler interface {
	// Deliver gives a message of another node to the local APICs that it names.
	Deliver(m apic.Message)
	// Access performs a port or MMIO access of another node's vCPU on this node's devices, and says whether one
	// answered. data is little-endian.
	Access(port bool, addr uint64, data []byte, write bool) bool
	// EOI tells the IOAPIC that a level-triggered interrupt has been serviced.
	EOI(vector uint8)
	// FabricLost reports a peer whose connection failed, once for each.
	FabricLost(err *fabric.PeerError)
}

// letter is a message on its way to the lane's thread.
type letter struct {
	peer wire.NodeID
	msg  wire.Message
}

// Who has the endpoint, and what drain needs, in hand. Whoever has something to send while the lane's thread sleeps takes
// the endpoint from the table, sends by itself, and puts it back: that costs no more than to wake the thread, and saves
// the message the time in which the thread wakes.
const (
	ofThread  uint32 = iota // the lane's thread is awake, or has not begun, or has ended
	onTable                 // it sleeps
	ofAnother               // it sleeps, or is about to wake and waits
)

// outbox is a ring of messages from one producer to the lane's thread. The producer alone writes entries and
// tail, the lane's thread alone writes head; an entry is written before the tail that covers it.
type outbox struct {
	entries [outboxDepth]letter
	head    atomic.Uint32
	_       [60]byte
	tail    atomic.Uint32
	_       [60]byte
}

// push adds a message and reports whether there was room.
func (o *outbox) push(peer wire.NodeID, m *wire.Message) bool {
	t := o.tail.Load()
	if t-o.head.Load() == outboxDepth {
		return false
	}
	o.entries[t%outboxDepth] = letter{peer, *m}
	o.tail.Store(t + 1)
	return true
}

// waiter is a vCPU that may wait for the answer to an access. Its thread sets expect before it sends; the lane's thread
// clears it when the answer is there, and writes data and ok before it signals.
type waiter struct {
	event  int           // eventfd, one count for each answer
	seq    uint32        // of the last read, the vCPU's alone
	expect atomic.Uint32 // the read that is waited for, or 0
	data   atomic.Uint64
	ok     atomic.Bool
}

// Config is what a lane is made of.
type Config struct {
	Self     wire.NodeID
	Nodes    int // of the VM
	Epoch    wire.Epoch
	Endpoint fabric.Endpoint // connected before Start
	Handler  Handler
	NodeOf   func(apicID uint32) (wire.NodeID, bool)
	VCPUs    int  // local ones
	Spin     bool // poll before sleeping
	CPU      int  // to pin the thread to, or -1
}

// Lane is one node's end. One thread at a time has the endpoint; vCPUs hand it messages through an outbox each, without a lock,
// and others share one.
type Lane struct {
	cfg Config

	out     []outbox // one for each vCPU
	waiters []waiter // one for each vCPU

	// What device threads send, the lane's own among them when it performs an access: rare, so a lock will do,
	// and never bounded, because the lane's thread must not wait for itself.
	shared struct {
		sync.Mutex
		some    atomic.Bool // letters is not empty
		letters []letter
	}
	spare []letter // the lane's: shared.letters' other buffer

	wake    int        // eventfd that ends the thread's sleep
	waits   *epoll.Set // for that, and the endpoint
	hands   atomic.Uint32
	stopped atomic.Bool
	running atomic.Bool // Start was called
	done    chan struct{}

	clock clock

	// Counters, written by the lane's thread only, except sentIPIs and accesses, which vCPUs add to.
	dropped  atomic.Uint64
	sentIPIs atomic.Uint64
	accesses atomic.Uint64
	posted   atomic.Uint64
	recvIPIs atomic.Uint64
	served   atomic.Uint64
}

// New prepares a lane. Close frees what it holds.
func New(cfg Config) (*Lane, error) {
	l := &Lane{cfg: cfg, out: make([]outbox, cfg.VCPUs), waiters: make([]waiter, cfg.VCPUs), done: make(chan struct{}), wake: -1}
	for i := range l.waiters {
		l.waiters[i].event = -1
	}
	var err error
	if l.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, fmt.Errorf("lane: eventfd: %w", err)
	}
	if l.waits, err = epoll.New(); err == nil {
		err = errors.Join(l.waits.Add(l.wake, false), l.waits.Add(cfg.Endpoint.FD(), true))
	}
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("lane: %w", err)
	}
	for i := range l.waiters {
		if l.waiters[i].event, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
			l.Close()
			return nil, fmt.Errorf("lane: eventfd: %w", err)
		}
	}
	l.clock.init()
	return l, nil
}

// Start runs the lane's thread.
func (l *Lane) Start() {
	l.running.Store(true)
	go func() {
		defer close(l.done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		restore := pinThread(l.cfg.CPU)
		defer restore()
		l.run()
	}()
}

// Halt ends every wait of a vCPU and lets the thread run out. It does not wait for it, and may be called more
// than once.
func (l *Lane) Halt() {
	l.stopped.Store(true)
	signal(l.wake)
	for i := range l.waiters {
		signal(l.waiters[i].event)
	}
}

// Wait returns when the lane's thread has ended, after Halt. A lane that never started has no thread.
func (l *Lane) Wait() {
	if l.running.Load() {
		<-l.done
	}
}

// Close frees what the lane holds. The thread must have ended, and no vCPU may be running.
func (l *Lane) Close() {
	for i := range l.waiters {
		if l.waiters[i].event >= 0 {
			unix.Close(l.waiters[i].event)
		}
	}
	if l.waits != nil {
		l.waits.Close()
	}
	if l.wake >= 0 {
		unix.Close(l.wake)
	}
}

func (l *Lane) run() {
	var in [batch]wire.Message
	ep := l.cfg.Endpoint
	idleSince := time.Now()
	for !l.stopped.Load() {
		n, perr := ep.Poll(in[:])
		if perr != nil {
			l.cfg.Handler.FabricLost(perr)
		}
		for i := range in[:n] {
			l.handle(&in[i])
		}
		sent := l.drain()
		now := time.Now()
		if l.clock.due(now) {
			l.ping(now)
			sent++
		}
		ep.Flush()
		if n+sent > 0 || perr != nil {
			idleSince = now
			continue
		}
		if l.cfg.Spin && now.Sub(idleSince) < spin {
			continue
		}
		l.sleep(now)
		idleSince = time.Now()
	}
}

// sleep waits for a message or the next clock sample, and leaves the endpoint to others meanwhile. Whoever fills an
// outbox looks at the table afterwards, and the endpoint is there before the outboxes are looked at again: one of the
// two sees the other.
func (l *Lane) sleep(now time.Time) {
	if l.cfg.Endpoint.Arm() {
		return
	}
	l.hands.Store(onTable)
	defer l.takeBack()
	if l.waiting() || l.stopped.Load() {
		return
	}
	for _, e := range l.waits.Wait(l.clock.wait(now)) {
		if int(e.Fd) == l.wake {
			drainEvent(l.wake)
		}
	}
}

// takeBack gives the lane's thread the endpoint again. Another may have it, for as long as it takes to send.
func (l *Lane) takeBack() {
	for !l.hands.CompareAndSwap(onTable, ofThread) {
		runtime.Gosched()
	}
}

func (l *Lane) waiting() bool {
	for i := range l.out {
		if l.out[i].head.Load() != l.out[i].tail.Load() {
			return true
		}
	}
	return l.shared.some.Load()
}

// drain sends what the outboxes hold and returns how many messages that were.
func (l *Lane) drain() (sent int) {
	for i := range l.out {
		o := &l.out[i]
		h, t := o.head.Load(), o.tail.Load()
		for ; h != t; h++ {
			e := &o.entries[h%outboxDepth]
			l.cfg.Endpoint.Send(e.peer, &e.msg)
			sent++
		}
		o.head.Store(h)
	}
	if !l.shared.some.Load() {
		return sent
	}
	l.shared.Lock()
	letters := l.shared.letters
	l.shared.letters = l.spare[:0]
	l.shared.some.Store(false)
	l.shared.Unlock()
	for i := range letters {
		l.cfg.Endpoint.Send(letters[i].peer, &letters[i].msg)
	}
	l.spare = letters
	return sent + len(letters)
}

// post hands a message to the lane's thread on behalf of a vCPU, or of a device if vcpu is negative. A vCPU that
// finds its outbox full waits for the lane: that is the back pressure of a guest which sends interrupts faster
// than the fabric takes them.
func (l *Lane) post(vcpu int, peer wire.NodeID, m *wire.Message) {
	m.From, m.Epoch = l.cfg.Self, l.cfg.Epoch
	if vcpu < 0 {
		l.shared.Lock()
		l.shared.letters = append(l.shared.letters, letter{peer, *m})
		l.shared.some.Store(true)
		l.shared.Unlock()
		l.deliver()
		return
	}
	for !l.out[vcpu].push(peer, m) {
		if l.stopped.Load() {
			return
		}
		l.deliver()
		runtime.Gosched()
	}
	l.deliver()
}

// deliver sends what the outboxes hold, if the lane's thread sleeps; otherwise it will. What somebody else puts there
// meanwhile, and leaves to us, is seen when the endpoint is on the table again.
func (l *Lane) deliver() {
	for l.hands.Load() == onTable && l.waiting() && l.hands.CompareAndSwap(onTable, ofAnother) {
		l.drain()
		l.cfg.Endpoint.Flush()
		l.hands.Store(onTable)
	}
}

// SendInterrupt sends an interrupt message of a vCPU, or of a device if vcpu is negative, to every other node that
// may hold one of its destinations.
func (l *Lane) SendInterrupt(vcpu int, a apic.Message) {
	m := wire.Message{Kind: wire.IPI, Args: packInterrupt(a)}
	if a.Shorthand == apic.NoShorthand && !a.Logical && a.Dest != apic.Broadcast {
		node, ok := l.cfg.NodeOf(a.Dest)
		if !ok || node == l.cfg.Self {
			return // nobody has that APIC ID: as on hardware, the message is lost
		}
		l.sentIPIs.Add(1)
		l.post(vcpu, node, &m)
		return
	}
	for n := range l.cfg.Nodes {
		if node := wire.NodeID(n); node != l.cfg.Self {
			l.sentIPIs.Add(1)
			l.post(vcpu, node, &m)
		}
	}
}

// SendEOI tells the IOAPIC's node about the end of a level-triggered interrupt.
func (l *Lane) SendEOI(vcpu int, vector uint8) {
	l.post(vcpu, Platform, &wire.Message{Kind: wire.EOI, Args: [4]uint64{uint64(vector)}})
}

const (
	accessWrite = 1 << 8 // in Args[1], above the size
	accessPort  = 1 << 9
)

// Waiting returns a number that tells the read for whose answer a local vCPU waits from others of that vCPU; 0: it
// waits for none. Any thread.
func (l *Lane) Waiting(vcpu int) uint32 { return l.waiters[vcpu].expect.Load() }

// RemoteAccess performs an access of a local vCPU on the platform's node. Writes are posted: they need no
// answer, and the queue pair keeps them in order with the reads that follow. A read blocks the vCPU's thread
// until the answer is there, and returns false when no device answered or the lane is halted.
func (l *Lane) RemoteAccess(vcpu int, port bool, addr uint64, data []byte, write bool) bool {
	if l.cfg.Self == Platform {
		return false
	}
	m := wire.Message{Kind: wire.Access, Txn: uint32(vcpu)}
	m.Args[0], m.Args[1] = addr, uint64(len(data))
	if port {
		m.Args[1] |= accessPort
	}
	if write {
		m.Args[1] |= accessWrite
		m.Args[2] = littleEndian(data)
		l.posted.Add(1)
		l.post(vcpu, Platform, &m)
		return true
	}
	l.accesses.Add(1)
	w := &l.waiters[vcpu]
	if w.seq++; w.seq == 0 {
		w.seq = 1
	}
	m.Slot = w.seq
	w.expect.Store(w.seq)
	l.post(vcpu, Platform, &m)
	if l.stopped.Load() {
		return false
	}
	awaitEvent(w.event) // halt signals it, too
	if l.stopped.Load() {
		return false
	}
	putLittleEndian(data, w.data.Load())
	return w.ok.Load()
}

// handle acts on one message of a peer. Everything in it is checked here: a peer that sends nonsense is counted
// and otherwise ignored.
func (l *Lane) handle(m *wire.Message) {
	if m.Epoch != l.cfg.Epoch || int(m.From) >= l.cfg.Nodes || m.From == l.cfg.Self {
		l.dropped.Add(1)
		return
	}
	ok := false
	switch m.Kind {
	case wire.IPI:
		var a apic.Message
		if a, ok = unpackInterrupt(m.Args); ok {
			l.recvIPIs.Add(1)
			l.cfg.Handler.Deliver(a)
		}
	case wire.Access:
		ok = l.serve(m)
	case wire.AccessAck:
		ok = l.answered(m)
	case wire.EOI:
		if ok = m.Args[0] <= 0xff && l.cfg.Self == Platform; ok {
			l.cfg.Handler.EOI(uint8(m.Args[0]))
		}
	case wire.Ping:
		ok = true
		pong := wire.Message{Kind: wire.Pong, From: l.cfg.Self, Epoch: l.cfg.Epoch, Txn: m.Txn}
		pong.Args[0] = m.Args[0]
		pong.Args[1] = uint64(int64(kvmhost.HostTSC()) + l.clock.offset.Load())
		l.cfg.Endpoint.Send(m.From, &pong)
	case wire.Pong:
		ok = m.From == Platform && l.clock.pong(m, kvmhost.HostTSC())
	}
	if !ok {
		l.dropped.Add(1)
	}
}

// serve performs another node's access and answers a read.
func (l *Lane) serve(m *wire.Message) bool {
	size := m.Args[1] & 0xff
	port := m.Args[1]&accessPort != 0
	if l.cfg.Self != Platform || m.Args[1]&^uint64(0xff|accessPort|accessWrite) != 0 ||
		(size != 1 && size != 2 && size != 4 && size != 8) || port && (m.Args[0] > 0xffff || size == 8) {
		return false
	}
	l.served.Add(1)
	var buf [8]byte
	data := buf[:size]
	if m.Args[1]&accessWrite != 0 {
		putLittleEndian(data, m.Args[2])
		l.cfg.Handler.Access(port, m.Args[0], data, true)
		return true
	}
	ack := wire.Message{Kind: wire.AccessAck, From: l.cfg.Self, Epoch: l.cfg.Epoch, Txn: m.Txn, Slot: m.Slot}
	if l.cfg.Handler.Access(port, m.Args[0], data, false) {
		ack.Args[0], ack.Args[1] = littleEndian(data), 1
	}
	l.cfg.Endpoint.Send(m.From, &ack)
	return true
}

// answered takes the answer to a read to the vCPU that waits for it.
func (l *Lane) answered(m *wire.Message) bool {
	if m.From != Platform || uint64(m.Txn) >= uint64(len(l.waiters)) {
		return false
	}
	w := &l.waiters[m.Txn]
	if m.Slot == 0 || !w.expect.CompareAndSwap(m.Slot, 0) {
		return false
	}
	w.data.Store(m.Args[0])
	w.ok.Store(m.Args[1] == 1)
	signal(w.event)
	return true
}

// ping sends the next clock sample.
func (l *Lane) ping(now time.Time) {
	t0 := kvmhost.HostTSC()
	m := wire.Message{Kind: wire.Ping, From: l.cfg.Self, Epoch: l.cfg.Epoch, Txn: l.clock.sent(now, t0)}
	m.Args[0] = t0
	l.cfg.Endpoint.Send(Platform, &m)
}

// SyncClock measures this node's guest TSC offset against the platform's node and sets it. It returns the offset
// and the round trip of the best sample, in TSC ticks; half the round trip bounds the offset's error.
func (l *Lane) SyncClock(ctx context.Context) (offset int64, roundTrip uint64, err error) {
	l.clock.begin()
	l.deliver()
	signal(l.wake) // the thread may be asleep without a deadline
	select {
	case <-l.clock.synced:
	case <-l.done:
		return 0, 0, errors.New("lane: the machine lane ended while clocks were compared")
	case <-ctx.Done():
		return 0, 0, fmt.Errorf("lane: node %d did not answer clock samples: %w", Platform, context.Cause(ctx))
	}
	return l.clock.offset.Load(), l.clock.best.Load(), nil
}

// SetOffset gives the clock of the platform's node, which has nobody to ask: what to add to the host TSC. On any node,
// it replaces what SyncClock found.
func (l *Lane) SetOffset(offset int64) { l.clock.offset.Store(offset) }

// Stats are a lane's counters at one moment.
type Stats struct {
	SentIPIs, ReceivedIPIs uint64
	Reads, Writes          uint64 // accesses of this node's vCPUs to the platform's devices
	Served                 uint64 // accesses performed for others
	Dropped                uint64 // messages that made no sense

	// Of the clock, in TSC ticks: the round trip that the offset comes from, and by how much the last good sample
	// differs from the offset.
	RoundTrip uint64
	Drift     int64
}

// Stats reads the counters, one by one; any thread, any time.
func (l *Lane) Stats() Stats {
	return Stats{
		SentIPIs: l.sentIPIs.Load(), ReceivedIPIs: l.recvIPIs.Load(), Reads: l.accesses.Load(), Writes: l.posted.Load(),
		Served: l.served.Load(), Dropped: l.dropped.Load(), RoundTrip: l.clock.best.Load(), Drift: l.clock.drift.Load(),
	}
}

// packInterrupt lays an interrupt message out in the words of an IPI message.
func packInterrupt(a apic.Message) [4]uint64 {
	w := uint64(a.Vector) | uint64(a.Mode)<<8 | uint64(a.Shorthand)<<16
	if a.Logical {
		w |= 1 << 24
	}
	if a.Level {
		w |= 1 << 25
	}
	if a.Trigger {
		w |= 1 << 26
	}
	return [4]uint64{uint64(a.Dest), w, uint64(a.Source)}
}

// unpackInterrupt is the inverse of packInterrupt, for words off the wire.
func unpackInterrupt(args [4]uint64) (apic.Message, bool) {
	w := args[1]
	a := apic.Message{
		Dest:      uint32(args[0]),
		Logical:   w&(1<<24) != 0,
		Mode:      apic.DeliveryMode(w >> 8),
		Vector:    uint8(w),
		Level:     w&(1<<25) != 0,
		Trigger:   w&(1<<26) != 0,
		Shorthand: apic.Shorthand(w >> 16),
		Source:    uint32(args[2]),
	}
	ok := args[0]>>32 == 0 && args[2]>>32 == 0 && args[3] == 0 && w>>27 == 0 &&
		a.Mode <= apic.ExtINT && a.Shorthand <= apic.AllExcludingSelf
	return a, ok
}

func littleEndian(b []byte) (v uint64) {
	for i := len(b) - 1; i >= 0; i-- {
		v = v<<8 | uint64(b[i])
	}
	return v
}

func putLittleEndian(b []byte, v uint64) {
	for i := range b {
		b[i] = byte(v >> (8 * i))
	}
}
