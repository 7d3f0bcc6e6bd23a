package lane

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"ironspan/engine/leaktest"
	"ironspan/engine/wire"
	"ironspan/fastpath/fabric"
	"ironspan/kvmhost"
	"ironspan/kvmhost/apic"
)

// fakeFabric joins the endpoints of all nodes through queues. Messages travel encoded, at Flush.
type fakeFabric struct {
	ends []*fakeEndpoint
}

// fakeEndpoint is one node's end. in is guarded by mu, anybody may add to it; the rest belongs to the lane's thread.
type fakeEndpoint struct {
	fabric *fakeFabric
	self   wire.NodeID
	event  int // eventfd: readable while in may have something
	posts  []letter
	stats  fabric.Stats

	mu   sync.Mutex
	in   [][wire.Size]byte
	lost *fabric.PeerError // reported once, by Poll
}

func newFakeFabric(t *testing.T, nodes int) *fakeFabric {
	t.Helper()
	f := &fakeFabric{}
	for n := range nodes {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		f.ends = append(f.ends, &fakeEndpoint{fabric: f, self: wire.NodeID(n), event: fd})
	}
	return f
}

func (e *fakeEndpoint) WritePage(wire.NodeID, fabric.Region, uint64, fabric.Region, uint64) {
	panic("no pages on the machine lane")
}

func (e *fakeEndpoint) WriteBytes(wire.NodeID, fabric.Region, uint64, []byte, *wire.Message) {
	panic("no pages on the machine lane")
}

func (e *fakeEndpoint) ReadPage(wire.NodeID, uint64, uint32, *wire.Message) {
	panic("no pages on the machine lane")
}

func (e *fakeEndpoint) Send(peer wire.NodeID, m *wire.Message) {
	if m.From != e.self || peer == e.self {
		panic(fmt.Sprintf("node %d posts %v of node %d to node %d", e.self, m.Kind, m.From, peer))
	}
	e.posts = append(e.posts, letter{peer, *m})
}

func (e *fakeEndpoint) Flush() {
	for i := range e.posts {
		e.fabric.ends[e.posts[i].peer].arrive(&e.posts[i].msg)
	}
	e.posts = e.posts[:0]
}

// arrive puts a message into the node's queue.
func (e *fakeEndpoint) arrive(m *wire.Message) {
	var b [wire.Size]byte
	m.Encode(b[:])
	e.mu.Lock()
	e.in = append(e.in, b)
	e.mu.Unlock()
	signal(e.event)
}

func (e *fakeEndpoint) Poll(ms []wire.Message) (n int, lost *fabric.PeerError) {
	drainEvent(e.event)
	e.mu.Lock()
	defer e.mu.Unlock()
	for n = 0; n < len(ms) && n < len(e.in); n++ {
		if err := ms[n].Decode(e.in[n][:]); err != nil {
			panic(err)
		}
	}
	e.in = e.in[n:]
	lost, e.lost = e.lost, nil
	return n, lost
}

func (e *fakeEndpoint) Arm() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.in) > 0 || e.lost != nil
}

func (e *fakeEndpoint) lose(err *fabric.PeerError) {
	e.mu.Lock()
	e.lost = err
	e.mu.Unlock()
	signal(e.event)
}

func (e *fakeEndpoint) FD() int              { return e.event }
func (e *fakeEndpoint) Stats() *fabric.Stats { return &e.stats }
func (e *fakeEndpoint) Close() error         { return nil }

// access is one access that a node performed for another.
type access struct {
	port  bool
	addr  uint64
	write bool
	size  int
	data  uint64
}

// fakeNode is the node above a lane: it notes what it is told and has one device, whose reads give what was last
// written there, in all bytes that the size allows.
type fakeNode struct {
	mu        sync.Mutex
	delivered []apic.Message
	accesses  []access
	eois      []uint8
	lost      []*fabric.PeerError
	device    uint64
	none      bool // no device answers
}

func (n *fakeNode) Deliver(m apic.Message) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.delivered = append(n.delivered, m)
}

func (n *fakeNode) Access(port bool, addr uint64, data []byte, write bool) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if write {
		n.device = littleEndian(data)
	} else if !n.none {
		putLittleEndian(data, n.device)
	}
	n.accesses = append(n.accesses, access{port, addr, write, len(data), littleEndian(data)})
	return !n.none
}

func (n *fakeNode) EOI(vector uint8) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.eois = append(n.eois, vector)
}

func (n *fakeNode) FabricLost(err *fabric.PeerError) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lost = append(n.lost, err)
}

func (n *fakeNode) got() []apic.Message {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.delivered)
}

const (
	testEpoch    = 7
	idsPerNode   = 4 // APIC IDs of a node: from idsPerNode times its number
	testLaneCPUs = 2
)

// testLane is a lane of a fake node on a fake fabric.
type testLane struct {
	*Lane
	node *fakeNode
	end  *fakeEndpoint
}

// newLanes makes one lane for each node, not started.
func newLanes(t *testing.T, nodes int, spin bool) []*testLane {
	t.Helper()
	leaktest.Check(t)
	f := newFakeFabric(t, nodes)
	nodeOf := func(id uint32) (wire.NodeID, bool) {
		return wire.NodeID(id / idsPerNode), id < uint32(nodes*idsPerNode)
	}
	var ls []*testLane
	for n := range nodes {
		tl := &testLane{node: &fakeNode{}, end: f.ends[n]}
		var err error
		tl.Lane, err = New(Config{
			Self: wire.NodeID(n), Nodes: nodes, Epoch: testEpoch, Endpoint: tl.end, Handler: tl.node, NodeOf: nodeOf,
			VCPUs: testLaneCPUs, Spin: spin, CPU: -1,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			tl.Halt()
			tl.Wait()
			tl.Close()
		})
		ls = append(ls, tl)
	}
	return ls
}

// startLanes is newLanes, started.
func startLanes(t *testing.T, nodes int, spin bool) []*testLane {
	t.Helper()
	ls := newLanes(t, nodes, spin)
	for _, l := range ls {
		l.Start()
	}
	return ls
}

// eachWay runs a test with lanes that poll before they sleep and with lanes that sleep at once.
func eachWay(t *testing.T, f func(t *testing.T, spin bool)) {
	for _, spin := range []bool{false, true} {
		t.Run(fmt.Sprintf("spin=%t", spin), func(t *testing.T) { f(t, spin) })
	}
}

func TestLaneInterrupts(t *testing.T) {
	eachWay(t, func(t *testing.T, spin bool) {
		ls := startLanes(t, 3, spin)
		const end = 0xff // vector of the message that closes a case: it goes to both other nodes
		for i, c := range []struct {
			name string
			m    apic.Message
			to   [3]bool
		}{
			{"physical to node 1", apic.Message{Dest: 5, Vector: 0x40, Level: true}, [3]bool{1: true}},
			{"physical to node 2", apic.Message{Dest: 11, Mode: apic.Startup, Vector: 0x9a}, [3]bool{2: true}},
			{"physical to its own node", apic.Message{Dest: 1, Vector: 0x41}, [3]bool{}},
			{"physical to nobody", apic.Message{Dest: 12, Vector: 0x42}, [3]bool{}},
			{"physical to a far id", apic.Message{Dest: 1 << 20, Vector: 0x42}, [3]bool{}},
			{"physical broadcast", apic.Message{Dest: apic.Broadcast, Vector: 0x43}, [3]bool{1: true, 2: true}},
			{"logical", apic.Message{Dest: 1, Logical: true, Vector: 0x44}, [3]bool{1: true, 2: true}},
			{"all", apic.Message{Shorthand: apic.AllIncludingSelf, Mode: apic.NMI}, [3]bool{1: true, 2: true}},
			{"all but self", apic.Message{Shorthand: apic.AllExcludingSelf, Mode: apic.INIT, Trigger: true}, [3]bool{1: true, 2: true}},
		} {
			vcpu := i%(testLaneCPUs+1) - 1 // a device's now and then
			var want [3][]apic.Message
			for n := 1; n < 3; n++ {
				want[n] = ls[n].node.got()
				if c.to[n] {
					want[n] = append(want[n], c.m)
				}
				closing := apic.Message{Dest: apic.Broadcast, Vector: end}
				want[n] = append(want[n], closing)
			}
			sent := ls[0].sentIPIs.Load()
			ls[0].SendInterrupt(vcpu, c.m)
			ls[0].SendInterrupt(vcpu, apic.Message{Dest: apic.Broadcast, Vector: end})
			for n := 1; n < 3; n++ {
				eventually(t, c.name, func() bool { return len(ls[n].node.got()) >= len(want[n]) })
				if got := ls[n].node.got(); !slices.Equal(got, want[n]) {
					t.Fatalf("%s: node %d got %+v, want %+v", c.name, n, got, want[n])
				}
			}
			count := uint64(2)
			for _, to := range c.to {
				if to {
					count++
				}
			}
			if got := ls[0].sentIPIs.Load() - sent; got != count {
				t.Errorf("%s: %d messages counted, want %d", c.name, got, count)
			}
		}
		if got := ls[0].node.got(); len(got) != 0 {
			t.Errorf("the sender got %+v", got)
		}
		for n, l := range ls {
			if d := l.dropped.Load(); d != 0 {
				t.Errorf("node %d dropped %d", n, d)
			}
		}
	})
}

func TestLaneAccess(t *testing.T) {
	eachWay(t, func(t *testing.T, spin bool) {
		ls := startLanes(t, 2, spin)
		l, device := ls[1], ls[0].node
		var want []access
		for i := range uint64(50) {
			for _, size := range []int{1, 2, 4, 8} {
				port := i%2 == 0 && size < 8
				addr := uint64(0x3f8)
				if !port {
					addr = 0xfec00000 + i<<32
				}
				value := 0x1122334455667788 + i*0x0101010101010101
				value &= math.MaxUint64 >> (64 - 8*size)
				data := make([]byte, size)
				putLittleEndian(data, value)
				vcpu := int(i) % testLaneCPUs
				// The write is posted; the read behind it must not pass it.
				if !l.RemoteAccess(vcpu, port, addr, data, true) {
					t.Fatal("a write was not taken")
				}
				back := make([]byte, size)
				if !l.RemoteAccess(vcpu, port, addr, back, false) {
					t.Fatal("nobody answered a read")
				}
				if got := littleEndian(back); got != value {
					t.Fatalf("read %d bytes: %#x, want %#x", size, got, value)
				}
				want = append(want, access{port, addr, true, size, value}, access{port, addr, false, size, value})
			}
		}
		if !slices.Equal(device.accesses, want) {
			t.Errorf("the device saw %+v\nwant %+v", device.accesses, want)
		}
		device.mu.Lock()
		device.none = true
		device.mu.Unlock()
		if l.RemoteAccess(0, true, 0x3f8, make([]byte, 1), false) {
			t.Error("a read that no device answers was answered")
		}
		if a, p, s := l.accesses.Load(), l.posted.Load(), ls[0].served.Load(); a != 201 || p != 200 || s != 401 {
			t.Errorf("%d reads, %d writes, %d served, want 201, 200, 401", a, p, s)
		}
		if ls[0].RemoteAccess(0, true, 0x3f8, make([]byte, 1), false) {
			t.Error("the platform's node has a remote device")
		}
	})
}

// TestLaneEOI is the way of a device's or a vCPU's end of interrupt to the IOAPIC.
func TestLaneEOI(t *testing.T) {
	ls := startLanes(t, 2, false)
	ls[1].SendEOI(-1, 0x51)
	ls[1].SendEOI(1, 0x52)
	eventually(t, "two EOIs", func() bool {
		ls[0].node.mu.Lock()
		defer ls[0].node.mu.Unlock()
		return len(ls[0].node.eois) == 2
	})
	slices.Sort(ls[0].node.eois)
	if !slices.Equal(ls[0].node.eois, []uint8{0x51, 0x52}) {
		t.Errorf("%#x", ls[0].node.eois)
	}
}

// TestLaneRefuses feeds a lane what no honest peer sends. The lane is not running: the test is its thread.
func TestLaneRefuses(t *testing.T) {
	good := func(kind wire.Kind, from wire.NodeID) wire.Message {
		return wire.Message{Kind: kind, From: from, Epoch: testEpoch}
	}
	with := func(m wire.Message, args ...uint64) wire.Message {
		copy(m.Args[:], args)
		return m
	}
	const read1 = 1 | accessPort
	for _, c := range []struct {
		name string
		self int
		m    wire.Message
	}{
		{"another epoch", 0, wire.Message{Kind: wire.EOI, From: 1, Epoch: testEpoch - 1}},
		{"a stranger", 0, good(wire.EOI, 2)},
		{"itself", 1, good(wire.IPI, 1)},
		{"a kind of the coherence lane", 0, good(wire.GetS, 1)},
		{"kind 0", 0, good(0, 1)},

		{"interrupt for a wide id", 0, with(good(wire.IPI, 1), 1<<32)},
		{"interrupt with unknown bits", 0, with(good(wire.IPI, 1), 1, 1<<27)},
		{"interrupt of no mode", 0, with(good(wire.IPI, 1), 1, 8<<8)},
		{"interrupt of no shorthand", 0, with(good(wire.IPI, 1), 1, 4<<16)},
		{"interrupt from a wide id", 0, with(good(wire.IPI, 1), 1, 0, 1<<32)},
		{"interrupt with a tail", 0, with(good(wire.IPI, 1), 1, 0, 0, 1)},

		{"access at a node without devices", 1, with(good(wire.Access, 0), 0x3f8, read1)},
		{"access of no bytes", 0, with(good(wire.Access, 1), 0x3f8, accessPort)},
		{"access of 3 bytes", 0, with(good(wire.Access, 1), 0x3f8, 3|accessPort)},
		{"access of 16 bytes", 0, with(good(wire.Access, 1), 0xfec00000, 16)},
		{"access of 255 bytes", 0, with(good(wire.Access, 1), 0xfec00000, 255|accessWrite)},
		{"access with unknown bits", 0, with(good(wire.Access, 1), 0x3f8, read1|1<<10)},
		{"access with high bits", 0, with(good(wire.Access, 1), 0x3f8, read1|1<<63)},
		{"port of 8 bytes", 0, with(good(wire.Access, 1), 0x3f8, 8|accessPort)},
		{"port 0x10000", 0, with(good(wire.Access, 1), 0x10000, read1)},
		{"port far above", 0, with(good(wire.Access, 1), 1<<40|0x3f8, read1|accessWrite)},

		{"answer that nobody asked for", 1, with(good(wire.AccessAck, 0), 0xbad, 1)},
		{"answer for a vcpu that is not there", 1, wire.Message{Kind: wire.AccessAck, From: 0, Epoch: testEpoch, Txn: testLaneCPUs}},
		{"answer for a vcpu that cannot be", 1, wire.Message{Kind: wire.AccessAck, From: 0, Epoch: testEpoch, Txn: math.MaxUint32}},
		{"answer from a node without devices", 0, good(wire.AccessAck, 1)},

		{"EOI at a node without platform", 1, with(good(wire.EOI, 0), 0x30)},
		{"EOI of vector 256", 0, with(good(wire.EOI, 1), 256)},

		{"pong that nobody asked for", 1, with(good(wire.Pong, 0), 1, 2)},
		{"pong from a node without the clock", 0, with(good(wire.Pong, 1), 1, 2)},
	} {
		t.Run(c.name, func(t *testing.T) {
			ls := newLanes(t, 2, false)
			l := ls[c.self]
			l.handle(&c.m)
			if d := l.dropped.Load(); d != 1 {
				t.Errorf("%d dropped, want 1", d)
			}
			if n := l.node; len(n.delivered)+len(n.accesses)+len(n.eois) != 0 {
				t.Errorf("it reached the node: %+v %+v %v", n.delivered, n.accesses, n.eois)
			}
			if len(l.end.posts) != 0 {
				t.Errorf("it was answered: %+v", l.end.posts)
			}
			for i := range l.waiters {
				if signalled(l.waiters[i].event) {
					t.Errorf("it woke vcpu %d", i)
				}
			}
		})
	}
}

// signalled says whether an eventfd has a count.
func signalled(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 1
}

// TestLaneAnswers: a vCPU takes the answer to its read, once, and no other; answers to its posted writes, repeated
// ones and guesses of the next number are dropped.
func TestLaneAnswers(t *testing.T) {
	ls := newLanes(t, 2, false)
	l, platform := ls[1], ls[0]
	answer := func(slot uint32, data uint64) {
		platform.cfg.Endpoint.Send(1, &wire.Message{Kind: wire.AccessAck, Epoch: testEpoch, Slot: slot, Args: [4]uint64{data, 1}})
		platform.cfg.Endpoint.Flush()
	}
	// Node 0's lane never runs: the test answers for it.
	request := func() wire.Message {
		var in [1]wire.Message
		eventually(t, "a request", func() bool { n, _ := platform.end.Poll(in[:]); return n == 1 })
		return in[0]
	}
	l.Start()
	dropped := func(n uint64) {
		t.Helper()
		eventually(t, fmt.Sprintf("%d dropped", n), func() bool { return l.dropped.Load() >= n })
	}
	answer(0, 0xbad) // before anything was asked
	dropped(1)
	l.RemoteAccess(0, true, 0x80, []byte{1}, true)
	answer(request().Slot, 0xbad) // a write has no answer
	dropped(2)

	type result struct {
		v  byte
		ok bool
	}
	for i := range uint64(3) {
		got := make(chan result, 1)
		go func() {
			var b [1]byte
			ok := l.RemoteAccess(0, true, 0x60, b[:], false)
			got <- result{b[0], ok}
		}()
		m := request()
		answer(m.Slot-1, 0xbad)
		answer(m.Slot+1, 0xbad)
		dropped(3 + 5*i + 1)
		select {
		case r := <-got:
			t.Fatalf("round %d: a nonsense answer was taken: %+v", i, r)
		default:
		}
		answer(m.Slot, 0x40+i)
		if r := <-got; r != (result{byte(0x40 + i), true}) {
			t.Fatalf("round %d: %+v", i, r)
		}
		answer(m.Slot, 0xbad)   // again
		answer(m.Slot+1, 0xbad) // the next number, as a peer might guess
		answer(m.Slot+2, 0xbad)
		dropped(2 + 5*(i+1))
	}
}

func TestLaneHaltFreesAWaitingRead(t *testing.T) {
	eachWay(t, func(t *testing.T, spin bool) {
		ls := newLanes(t, 2, spin) // node 0 does not run, so nobody answers
		l := ls[1]
		l.Start()
		got := make(chan bool, testLaneCPUs)
		for v := range testLaneCPUs {
			go func() { got <- l.RemoteAccess(v, false, 0xfec00000, make([]byte, 4), false) }()
		}
		eventually(t, "both reads under way", func() bool {
			ls[0].end.mu.Lock()
			defer ls[0].end.mu.Unlock()
			return len(ls[0].end.in) == testLaneCPUs
		})
		l.Halt()
		l.Halt()
		for range testLaneCPUs {
			select {
			case ok := <-got:
				if ok {
					t.Error("a read that nobody answered was answered")
				}
			case <-time.After(5 * time.Second):
				t.Fatal("a vcpu still waits for an answer")
			}
		}
		l.Wait()
		if l.RemoteAccess(0, true, 0x60, make([]byte, 1), false) {
			t.Error("a halted lane answers")
		}
	})
}

// TestLaneBackPressure: whoever fills its outbox waits for the lane, and nothing is lost or passed.
func TestLaneBackPressure(t *testing.T) {
	ls := newLanes(t, 2, false)
	l := ls[0]
	const n = 10 * outboxDepth
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range uint32(n) {
			l.SendInterrupt(1, apic.Message{Dest: idsPerNode, Vector: uint8(i), Source: i})
		}
	}()
	full := func() bool { return l.out[1].tail.Load()-l.out[1].head.Load() == outboxDepth }
	eventually(t, "a full outbox", full)
	time.Sleep(10 * time.Millisecond)
	select {
	case <-done:
		t.Fatal("the producer did not wait")
	default:
	}
	if !full() {
		t.Fatal("an outbox grew")
	}
	l.SendInterrupt(0, apic.Message{Dest: idsPerNode, Source: n}) // another vCPU's outbox has room
	ls[1].Start()
	l.Start()
	<-done
	eventually(t, "all messages", func() bool { return len(ls[1].node.got()) == n+1 })
	next := uint32(0)
	for _, m := range ls[1].node.got() {
		if m.Source == n {
			continue
		}
		if m.Source != next || m.Vector != uint8(next) {
			t.Fatalf("%+v where message %d belongs", m, next)
		}
		next++
	}
}

// TestLaneHaltFreesAProducer: a vCPU that waits for room returns when the lane is halted.
func TestLaneHaltFreesAProducer(t *testing.T) {
	ls := newLanes(t, 2, false)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range outboxDepth + 1 {
			ls[0].SendInterrupt(0, apic.Message{Dest: idsPerNode})
		}
	}()
	eventually(t, "a full outbox", func() bool { return ls[0].out[0].tail.Load() == outboxDepth })
	ls[0].Halt()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("the producer still waits")
	}
}

// TestLaneTraffic is everything at once, for the race detector: each vCPU and a device of each node send, and the
// order of each sender's messages holds at the receiver.
func TestLaneTraffic(t *testing.T) {
	eachWay(t, func(t *testing.T, spin bool) {
		ls := startLanes(t, 3, spin)
		const each = 300
		var senders sync.WaitGroup
		for n, l := range ls {
			for vcpu := -1; vcpu < testLaneCPUs; vcpu++ {
				senders.Go(func() {
					for i := range uint32(each) {
						l.SendInterrupt(vcpu, apic.Message{Shorthand: apic.AllExcludingSelf, Source: uint32(n*10+vcpu+1)<<16 | i})
						if vcpu >= 0 && n != 0 && i%16 == 0 && !l.RemoteAccess(vcpu, true, 0x60, make([]byte, 1), false) {
							t.Error("no answer")
							return
						}
					}
				})
			}
		}
		senders.Wait()
		const want = 2 * (testLaneCPUs + 1) * each
		for n, l := range ls {
			eventually(t, "all messages", func() bool { return l.recvIPIs.Load() == want })
			next := map[uint32]uint32{}
			for _, m := range l.node.got() {
				from, i := m.Source>>16, m.Source&0xffff
				if next[from] != i {
					t.Fatalf("node %d: message %d of sender %d where %d belongs", n, i, from, next[from])
				}
				next[from]++
			}
			if d := l.dropped.Load(); d != 0 {
				t.Errorf("node %d dropped %d", n, d)
			}
		}
	})
}

func TestLaneReportsLostPeer(t *testing.T) {
	ls := startLanes(t, 2, false)
	want := &fabric.PeerError{Peer: 1, Op: "poll", Reason: fabric.ErrPeerDied}
	ls[0].end.lose(want)
	eventually(t, "a report", func() bool {
		ls[0].node.mu.Lock()
		defer ls[0].node.mu.Unlock()
		return slices.Equal(ls[0].node.lost, []*fabric.PeerError{want})
	})
}

// TestLaneSyncClock: both nodes read one TSC, so the offset to find is the platform's own.
func TestLaneSyncClock(t *testing.T) {
	for _, offset := range []int64{0, 1, -1, 123_456_789_012, -int64(kvmhost.HostTSC()), math.MinInt64 + 5} {
		t.Run(fmt.Sprint(offset), func(t *testing.T) {
			ls := newLanes(t, 2, false)
			ls[0].clock.offset.Store(offset)
			ls[0].Start()
			ls[1].Start()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			got, trip, err := ls[1].SyncClock(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if trip == 0 || trip == math.MaxUint64 {
				t.Fatalf("round trip %d", trip)
			}
			// The counters of two CPUs may disagree by a little, the midpoint by half a tick.
			const slack = 1
			if d := got - offset; max(d, -d) > int64(trip/2)+slack {
				t.Errorf("offset %d, want %d, error %d in a round trip of %d", got, offset, d, trip)
			}
			if got != ls[1].clock.offset.Load() {
				t.Errorf("the clock has %d", ls[1].clock.offset.Load())
			}
			if n := ls[1].dropped.Load() + ls[0].dropped.Load(); n != 0 {
				t.Errorf("%d dropped", n)
			}
		})
	}
}

func TestLaneSyncClockGivesUp(t *testing.T) {
	ls := newLanes(t, 2, false)
	ls[1].Start() // node 0 does not answer
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	time.AfterFunc(10*time.Millisecond, func() { cancel(why) })
	if _, _, err := ls[1].SyncClock(ctx); !errors.Is(err, why) {
		t.Errorf("%v", err)
	}
	ended := make(chan error, 1)
	go func() { _, _, err := ls[1].SyncClock(context.Background()); ended <- err }()
	time.Sleep(time.Millisecond)
	ls[1].Halt()
	if err := <-ended; err == nil {
		t.Error("a halted lane compared clocks")
	}
}

func TestClockRefusesPongs(t *testing.T) {
	const t1 = 1000
	for _, c := range []struct {
		name string
		txn  uint32
		t0   uint64
		ok   bool
	}{
		{"good", 1, 900, true},
		{"another sample's", 0, 900, false},
		{"a later sample's", 2, 900, false},
		{"sent after it came back", 1, t1 + 1, false},
		{"with another time of sending", 1, 901, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var k clock
			k.init()
			k.begin()
			if n := k.sent(time.Now(), 900); n != 1 {
				t.Fatal("sample", n)
			}
			m := wire.Message{Kind: wire.Pong, Txn: c.txn, Args: [4]uint64{c.t0, 5000}}
			if k.pong(&m, t1) != c.ok {
				t.Fatalf("taken: %t", !c.ok)
			}
			if c.ok && (k.offset.Load() != 5000-950 || k.best.Load() != 100) {
				t.Errorf("offset %d, round trip %d", k.offset.Load(), k.best.Load())
			}
			if !c.ok && (k.offset.Load() != 0 || k.wanted.Load() != clockSamples) {
				t.Error("it counts nevertheless")
			}
			if c.ok && k.pong(&m, t1) {
				t.Error("taken twice")
			}
		})
	}
}

// TestClockSamples: the shortest round trip decides; afterwards good samples tell the drift and bad ones nothing.
func TestClockSamples(t *testing.T) {
	var k clock
	k.init()
	k.begin()
	now, tsc := time.Now(), uint64(1<<40)
	sample := func(trip uint64, offset int64) {
		t.Helper()
		if !k.due(now) {
			t.Fatal("no sample due")
		}
		m := wire.Message{Txn: k.sent(now, tsc), Args: [4]uint64{tsc, uint64(int64(tsc+trip/2) + offset)}}
		if k.due(now) {
			t.Fatal("two samples under way")
		}
		if !k.pong(&m, tsc+trip) {
			t.Fatal("refused")
		}
		tsc += 1 << 20
	}
	for i := range clockSamples {
		trip, off := uint64(2000), int64(777)
		if i == 42 {
			trip, off = 1000, 1234
		}
		sample(trip, off)
	}
	select {
	case <-k.synced:
	default:
		t.Fatal("not synced")
	}
	if k.offset.Load() != 1234 || k.best.Load() != 1000 {
		t.Fatalf("offset %d, round trip %d", k.offset.Load(), k.best.Load())
	}
	if k.due(now) {
		t.Error("a sample at once")
	}
	now = now.Add(driftEvery)
	sample(1500, 1254)
	now = now.Add(driftEvery)
	sample(5000, 9999)
	if k.drift.Load() != 20 || k.offset.Load() != 1234 {
		t.Errorf("drift %d, offset %d", k.drift.Load(), k.offset.Load())
	}
	// A sample that is never answered does not stop the others.
	now = now.Add(driftEvery)
	k.sent(now, tsc)
	if now = now.Add(pongPatience + 1); !k.due(now) {
		t.Error("no sample after a lost one")
	}
}

func TestMidpoint(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := rapid.Uint64().Draw(t, "a")
		b := rapid.Uint64Range(a, math.MaxUint64).Draw(t, "b")
		if got, want := midpoint(a, b), a+(b-a)/2; got != want {
			t.Fatalf("%d and %d: %d, want %d", a, b, got, want)
		}
	})
}

func TestInterruptRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := apic.Message{
			Dest:      rapid.Uint32().Draw(t, "dest"),
			Logical:   rapid.Bool().Draw(t, "logical"),
			Mode:      apic.DeliveryMode(rapid.Uint8Range(0, uint8(apic.ExtINT)).Draw(t, "mode")),
			Vector:    rapid.Uint8().Draw(t, "vector"),
			Level:     rapid.Bool().Draw(t, "level"),
			Trigger:   rapid.Bool().Draw(t, "trigger"),
			Shorthand: apic.Shorthand(rapid.Uint8Range(0, uint8(apic.AllExcludingSelf)).Draw(t, "shorthand")),
			Source:    rapid.Uint32().Draw(t, "source"),
		}
		got, ok := unpackInterrupt(packInterrupt(want))
		if !ok || got != want {
			t.Fatalf("%+v became %+v, %t", want, got, ok)
		}
	})
}

// FuzzUnpackInterrupt: what is taken off the wire is in range, and there is one form for each message.
func FuzzUnpackInterrupt(f *testing.F) {
	f.Add(uint64(1), uint64(0x30), uint64(2), uint64(0))
	f.Add(uint64(0xff), uint64(7<<24|3<<16|7<<8|0xff), uint64(math.MaxUint32), uint64(0))
	f.Add(uint64(1<<32), uint64(1<<27), uint64(1<<32), uint64(1))
	f.Fuzz(func(t *testing.T, a, b, c, d uint64) {
		args := [4]uint64{a, b, c, d}
		m, ok := unpackInterrupt(args)
		if !ok {
			return
		}
		if m.Mode > apic.ExtINT || m.Shorthand > apic.AllExcludingSelf {
			t.Errorf("%#x: %+v", args, m)
		}
		if again := packInterrupt(m); again != args {
			t.Errorf("%#x: %+v, which is %#x", args, m, again)
		}
	})
}

func TestLittleEndian(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), 0, 8).Draw(t, "bytes")
		back := make([]byte, len(b))
		putLittleEndian(back, littleEndian(b))
		if !slices.Equal(b, back) {
			t.Fatalf("% x became % x", b, back)
		}
	})
}

// eventually polls until cond holds.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(100 * time.Microsecond) {
		if time.Now().After(end) {
			t.Fatal("it never came to: ", what)
		}
	}
}
