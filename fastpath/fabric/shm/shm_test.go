package shm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ironspan/engine/wire"
	"ironspan/fastpath/fabric"
	"ironspan/fastpath/fabric/lanetest"
	"ironspan/fastpath/ram"
)

const (
	testPages = 64 // of RAM for each node
	testSlots = 8
	deadline  = 10 * time.Second
)

// node is one end of a lane and its memory.
type node struct {
	*Lane
	ram   *ram.RAM
	slots *ram.Slots
}

func homes(nodes int) (hs []fabric.Span) {
	for n := range nodes {
		hs = append(hs, fabric.Span{First: uint64(n) * testPages * wire.PageSize, Last: uint64(n+1) * testPages * wire.PageSize})
	}
	return hs
}

func newNode(self, nodes int, opt Options) (*node, error) {
	hs := homes(nodes)
	r, err := ram.New(ram.Config{Size: hs[nodes-1].Last, Home: hs[self]})
	if err != nil {
		return nil, err
	}
	s, err := ram.NewSlots(testSlots)
	if err != nil {
		return nil, err
	}
	l, err := New(fabric.Config{
		Self: wire.NodeID(self), Nodes: nodes, Lane: 3, Epoch: 7, RAM: r.Memory(), Homes: hs, Slots: s.Memory(),
	}, opt)
	return &node{Lane: l, ram: r, slots: s}, err
}

func (n *node) closeAll() {
	n.Lane.Close()
	n.ram.Close()
	n.slots.Close()
}

// mesh returns connected nodes.
func mesh(t testing.TB, nodes int, opt Options) []*node {
	t.Helper()
	var ns []*node
	for i := range nodes {
		n, err := newNode(i, nodes, opt)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(n.closeAll)
		ns = append(ns, n)
	}
	for i, a := range ns {
		for j, b := range ns {
			if i == j {
				continue
			}
			o, err := a.Offer(wire.NodeID(j))
			if err != nil {
				t.Fatal(err)
			}
			if err := b.Connect(wire.NodeID(i), o); err != nil {
				t.Fatal(err)
			}
		}
	}
	return ns
}

func message(from wire.NodeID, seq uint64) *wire.Message {
	return &wire.Message{Kind: wire.Grant, From: from, Mode: wire.Shared, Epoch: 7, Txn: uint32(seq), Args: [4]uint64{seq}}
}

// sleepOn says whether something woke the lane up: a bell, a dead peer, or, as with any driver, a signal to its
// thread, such as the one that Go preempts goroutines with.
func sleepOn(t testing.TB, l *Lane, d time.Duration) bool {
	t.Helper()
	fds := []unix.PollFd{{Fd: int32(l.FD()), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, int(d/time.Millisecond))
	if err != nil && !errors.Is(err, unix.EINTR) {
		t.Error(err)
	}
	return n != 0
}

// recv polls until it has a message or a lost peer, sleeping like a driver does.
func recv(t testing.TB, l *Lane, ms []wire.Message) (int, *fabric.PeerError) {
	t.Helper()
	for end := time.Now().Add(deadline); time.Now().Before(end); {
		if n, lost := l.Poll(ms); n > 0 || lost != nil {
			return n, lost
		}
		l.Flush()
		if !l.Arm() {
			sleepOn(t, l, time.Second)
		}
	}
	t.Error("nothing came")
	return 0, nil
}

func TestMessageProvesItsPage(t *testing.T) {
	ns := mesh(t, 3, Options{})
	page := bytes.Repeat([]byte{0xa5}, wire.PageSize)
	copy(ns[2].ram.Page(2*testPages+1), bytes.Repeat([]byte{0x5a}, wire.PageSize))
	for _, c := range []struct {
		name string
		post func(l *Lane)
		see  func() []byte
		want byte
	}{
		{"bytes into a slot", func(l *Lane) { l.WriteBytes(0, fabric.Slots, 5*wire.PageSize, page, nil) },
			func() []byte { return ns[0].slots.Page(5) }, 0xa5},
		{"bytes home", func(l *Lane) { l.WriteBytes(0, fabric.RAM, 9*wire.PageSize, page, nil) },
			func() []byte { return ns[0].ram.Page(9) }, 0xa5},
		{"home frame into a slot", func(l *Lane) {
			l.WritePage(0, fabric.Slots, 6*wire.PageSize, fabric.RAM, (2*testPages+1)*wire.PageSize)
		}, func() []byte { return ns[0].slots.Page(6) }, 0x5a},
	} {
		c.post(ns[2].Lane)
		ns[2].Send(0, message(2, 1))
		ns[2].Flush()
		var ms [4]wire.Message
		n, lost := recv(t, ns[0].Lane, ms[:])
		if n != 1 || lost != nil || ms[0].From != 2 || ms[0].Txn != 1 {
			t.Fatalf("%s: %d messages %+v, %v", c.name, n, ms[:n], lost)
		}
		if got := c.see(); got[0] != c.want || got[wire.PageSize-1] != c.want {
			t.Errorf("%s: bytes %x..%x", c.name, got[0], got[wire.PageSize-1])
		}
	}
	s := ns[2].Stats().Snapshot()
	if s.Write != (fabric.VerbCount{Ops: 3, Bytes: 3 * wire.PageSize}) || s.Send != (fabric.VerbCount{Ops: 3, Bytes: 3 * wire.Size}) {
		t.Errorf("counted %+v", s)
	}
	if s := ns[0].Stats().Snapshot(); s.Received.Ops != 3 {
		t.Errorf("counted %+v", s)
	}
}

// TestStream sends in all directions at once, far more than the rings hold, with readers that sleep; nothing may
// be lost, doubled or out of order, and every page must be there when its message is.
func TestStream(t *testing.T) {
	const nodes = 3
	count := uint64(20000)
	if testing.Short() {
		count = 3000
	}
	ns := mesh(t, nodes, Options{Entries: 64})
	var wg sync.WaitGroup
	for i, n := range ns {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(i)))
			var sent, got, acked [nodes]uint64
			var page [wire.PageSize]byte
			ms := make([]wire.Message, 16)
			// A window of 200, three times the ring.
			maySend := func(p int) bool { return p != i && sent[p] < count && sent[p]-acked[p] < 200 }
			finished, idle := false, false
			for !finished {
				for p := range nodes {
					for burst := rng.IntN(100); burst > 0 && maySend(p); burst-- {
						slot := uint64(i)
						if sent[p] == acked[p] { // nobody is reading the slot
							binary.LittleEndian.PutUint64(page[:], sent[p])
							binary.LittleEndian.PutUint64(page[wire.PageSize-8:], sent[p])
							n.WriteBytes(wire.NodeID(p), fabric.Slots, slot*wire.PageSize, page[:], nil)
						}
						m := message(wire.NodeID(i), sent[p])
						if sent[p] == acked[p] {
							m.Args[1] = 1
						}
						m.Args[2] = got[p]
						n.Send(wire.NodeID(p), m)
						sent[p]++
					}
				}
				n.Flush()
				k, lost := n.Poll(ms)
				if lost != nil {
					t.Errorf("node %d: %v", i, lost)
					return
				}
				for j := range ms[:k] {
					m := &ms[j]
					p := m.From
					if m.Kind == wire.InvAck {
						acked[p] = m.Args[0]
						continue
					}
					if m.Args[0] != got[p] {
						t.Errorf("node %d: message %d of node %d, want %d", i, m.Args[0], p, got[p])
						return
					}
					if b := n.slots.Page(uint32(p)); m.Args[1] == 1 &&
						(binary.LittleEndian.Uint64(b) != got[p] || binary.LittleEndian.Uint64(b[wire.PageSize-8:]) != got[p]) {
						t.Errorf("node %d: page of message %d of node %d is not there", i, got[p], p)
						return
					}
					got[p]++
					if got[p]%50 == 0 || got[p] == count {
						n.Send(p, &wire.Message{Kind: wire.InvAck, From: wire.NodeID(i), Epoch: 7, Args: [4]uint64{got[p]}})
					}
				}
				n.Flush()
				finished, idle = true, k == 0
				for p := range nodes {
					finished = finished && (p == i || sent[p] == count && got[p] == count && acked[p] == count)
					idle = idle && !maySend(p) // the others may be waiting for what is still to be sent
				}
				if idle && !finished && !n.Arm() && !sleepOn(t, n.Lane, deadline) {
					t.Errorf("node %d slept too long: sent %d, got %d, acknowledged %d", i, sent, got, acked)
					return
				}
			}
		})
	}
	wg.Wait()
	var held, bells uint64
	for _, n := range ns {
		held += n.Stats().HeldBack.Load()
		bells += n.Stats().Doorbells.Load()
	}
	if held == 0 {
		t.Error("the rings were never full")
	}
	t.Logf("%d messages held back, %d doorbells", held, bells)
}

func TestClosedPeer(t *testing.T) {
	ns := mesh(t, 3, Options{})
	ns[1].Send(0, message(1, 1))
	ns[1].Lane.Close()
	var ms [4]wire.Message
	n, lost := recv(t, ns[0].Lane, ms[:])
	if n != 1 {
		t.Fatalf("%d messages, want the last one", n)
	}
	if lost == nil {
		_, lost = recv(t, ns[0].Lane, ms[:])
	}
	if lost == nil || lost.Peer != 1 || !errors.Is(lost, fabric.ErrPeerClosed) {
		t.Fatalf("lost %v", lost)
	}
	// The others are still served, and posts to the lost one vanish.
	ns[0].WriteBytes(1, fabric.Slots, 0, make([]byte, wire.PageSize), nil)
	ns[0].Send(1, message(0, 1))
	ns[0].Send(2, message(0, 2))
	ns[0].Flush()
	for n == 1 || lost != nil && lost.Peer == 1 { // node 2 hears of node 1 as well
		if n, lost = recv(t, ns[2].Lane, ms[:]); n == 1 {
			break
		}
	}
	if n != 1 || ms[0].Txn != 2 {
		t.Errorf("%d messages, %v", n, lost)
	}
	if n, lost := ns[0].Poll(ms[:]); n != 0 || lost != nil {
		t.Errorf("reported again: %d, %v", n, lost)
	}
}

func TestOverflow(t *testing.T) {
	ns := mesh(t, 2, Options{Entries: 64, Backlog: 10})
	for i := range uint64(75) {
		ns[0].Send(1, message(0, i))
	}
	var ms [4]wire.Message
	if n, lost := ns[0].Poll(ms[:]); n != 0 || lost == nil || !errors.Is(lost, fabric.ErrOverflow) {
		t.Errorf("%d, %v", n, lost)
	}
}

func TestAccessesOutOfRangeLoseThePeer(t *testing.T) {
	page := make([]byte, wire.PageSize)
	read := func(off uint64, slot uint32) func(l *Lane) {
		return func(l *Lane) { l.ReadPage(1, off, slot, word(wire.Fetched, 1, slot)) }
	}
	for name, post := range map[string]func(l *Lane){
		"slot":               func(l *Lane) { l.WriteBytes(1, fabric.Slots, testSlots*wire.PageSize, page, nil) },
		"not home":           func(l *Lane) { l.WriteBytes(1, fabric.RAM, 0, page, nil) },
		"behind home":        func(l *Lane) { l.WriteBytes(1, fabric.RAM, 2*testPages*wire.PageSize, page, nil) },
		"not aligned":        func(l *Lane) { l.WriteBytes(1, fabric.Slots, 8, page, nil) },
		"short":              func(l *Lane) { l.WriteBytes(1, fabric.Slots, 0, page[:100], nil) },
		"source":             func(l *Lane) { l.WritePage(1, fabric.Slots, 0, fabric.RAM, 1<<40) },
		"wraps around":       func(l *Lane) { l.WriteBytes(1, fabric.Slots, ^uint64(wire.PageSize-1), page, nil) },
		"read, not home":     read(0, 0),
		"read, behind home":  read(2*testPages*wire.PageSize, 0),
		"read, not aligned":  read(testPages*wire.PageSize+8, 0),
		"read, wraps around": read(^uint64(wire.PageSize-1), 0),
		"read, slot":         read(testPages*wire.PageSize, testSlots),
		"read, last slot":    read(testPages*wire.PageSize, 1<<32-1),
	} {
		ns := mesh(t, 2, Options{})
		post(ns[0].Lane)
		var ms [1]wire.Message
		if n, lost := ns[0].Poll(ms[:]); n != 0 || lost == nil || !errors.Is(lost, fabric.ErrRange) {
			t.Errorf("%s: %d, %v", name, n, lost)
		}
	}
}

// word is one that an operation on peer's memory is over.
func word(k wire.Kind, peer wire.NodeID, slot uint32) *wire.Message {
	return &wire.Message{Kind: k, From: peer, Epoch: 7, Txn: slot + 1, Slot: slot}
}

// TestWords reads a page and writes one: the words are there at once, for as many as Poll takes, and come once.
func TestWords(t *testing.T) {
	ns := mesh(t, 2, Options{})
	copy(ns[1].ram.Page(testPages+3), bytes.Repeat([]byte{0x5a}, wire.PageSize))
	page := bytes.Repeat([]byte{0xa5}, wire.PageSize)
	fetched, parked := word(wire.Fetched, 1, 2), word(wire.Parked, 1, 4)
	ns[0].ReadPage(1, (testPages+3)*wire.PageSize, 2, fetched)
	ns[0].WriteBytes(1, fabric.RAM, (testPages+4)*wire.PageSize, page, parked)
	ns[0].WriteBytes(1, fabric.RAM, (testPages+5)*wire.PageSize, page, nil)
	ns[1].Send(0, message(1, 1))
	ns[1].Flush()
	var got []wire.Message
	var ms [1]wire.Message
	for i := range 3 {
		if !ns[0].Arm() {
			t.Fatalf("armed, with %d messages to come", 3-i)
		}
		if n, lost := ns[0].Poll(ms[:]); n != 1 || lost != nil {
			t.Fatalf("%d messages, %v", n, lost)
		}
		if ms[0].Kind != wire.Grant {
			got = append(got, ms[0])
		}
	}
	if len(got) != 2 || got[0] != *fetched || got[1] != *parked {
		t.Errorf("got %+v", got)
	}
	if b := ns[0].slots.Page(2); b[0] != 0x5a || b[wire.PageSize-1] != 0x5a {
		t.Errorf("read %x..%x", b[0], b[wire.PageSize-1])
	}
	if b := ns[1].ram.Page(testPages + 4); b[0] != 0xa5 || b[wire.PageSize-1] != 0xa5 {
		t.Errorf("wrote %x..%x", b[0], b[wire.PageSize-1])
	}
	if n, lost := ns[0].Poll(ms[:]); n != 0 || lost != nil || ns[0].Arm() {
		t.Errorf("after it: %d, %v", n, lost)
	}
	s := ns[0].Stats().Snapshot()
	if s.Read != (fabric.VerbCount{Ops: 1, Bytes: wire.PageSize}) || s.Write.Ops != 2 || s.Received.Ops != 1 {
		t.Errorf("counted %+v", s)
	}
}

// TestWordsOfTheLost: what a peer is lost with is not told any more, what concerns others is.
func TestWordsOfTheLost(t *testing.T) {
	ns := mesh(t, 3, Options{})
	for slot := range uint32(testSlots) {
		peer := wire.NodeID(1 + slot%2)
		ns[0].ReadPage(peer, uint64(peer)*testPages*wire.PageSize, slot, word(wire.Fetched, peer, slot))
	}
	ns[0].ReadPage(1, testPages*wire.PageSize, 0, word(wire.Fetched, 1, 0)) // one more than there are slots
	ns[0].ReadPage(1, testPages*wire.PageSize, 0, word(wire.Fetched, 1, 0)) // dropped
	var ms [3 * testSlots]wire.Message
	n, lost := ns[0].Poll(ms[:])
	if lost == nil || lost.Peer != 1 || lost.Op != "read" || !errors.Is(lost, fabric.ErrWords) {
		t.Errorf("lost %v", lost)
	}
	if n != testSlots/2 {
		t.Errorf("%d words, want those of node 2", n)
	}
	for i, m := range ms[:n] {
		if m != *word(wire.Fetched, 2, uint32(2*i+1)) {
			t.Errorf("got %+v", m)
		}
	}
	ns[0].ReadPage(2, 2*testPages*wire.PageSize, 0, word(wire.Fetched, 1, 0))
	if n, lost := ns[0].Poll(ms[:]); n != 0 || lost == nil || lost.Peer != 2 || !errors.Is(lost, fabric.ErrGarbled) {
		t.Errorf("the word of another: %d, %v", n, lost)
	}
}

func TestMix(t *testing.T) {
	for nodes := 2; nodes <= 3; nodes++ {
		t.Run(fmt.Sprintf("%d nodes", nodes), func(t *testing.T) {
			var ends []lanetest.Node
			for _, n := range mesh(t, nodes, Options{Entries: 64}) {
				ends = append(ends, lanetest.Node{
					Endpoint: n, Slot: n.slots.Page, Frame: func(page int) []byte { return n.ram.Page(wire.PFN(page)) },
				})
			}
			lanetest.Mix(t, ends, 7, testPages, testSlots, 5000, rand.Uint64())
		})
	}
}

func TestGarbledRings(t *testing.T) {
	for name, garble := range map[string]func(peer *link){
		"tail far ahead":   func(k *link) { k.out.tail.Store(1 << 20) },
		"tail behind":      func(k *link) { k.out.tail.Store(^uint32(0)) },
		"no message":       func(k *link) { k.out.tail.Store(1) },
		"wrong sender":     func(k *link) { message(0, 1).Encode(k.out.entry(0)); k.out.tail.Store(1) },
		"unknown version":  func(k *link) { message(1, 1).Encode(k.out.entry(0)); k.out.entry(0)[0] = 9; k.out.tail.Store(1) },
		"field past range": func(k *link) { message(1, 1).Encode(k.out.entry(0)); k.out.entry(0)[8] = 99; k.out.tail.Store(1) },
	} {
		ns := mesh(t, 2, Options{})
		garble(&ns[1].links[0])
		var ms [8]wire.Message
		if n, lost := recv(t, ns[0].Lane, ms[:]); n != 0 || !errors.Is(lost, fabric.ErrGarbled) {
			t.Errorf("%s: %d messages, %v", name, n, lost)
		}
	}
}

func TestGarbledHeadDoesNotOverrun(t *testing.T) {
	ns := mesh(t, 2, Options{Entries: 64})
	ns[1].links[0].in.head.Store(1 << 30)
	var ms [1]wire.Message
	for i := range uint64(65) {
		ns[0].Send(1, message(0, i))
	}
	if _, lost := ns[0].Poll(ms[:]); !errors.Is(lost, fabric.ErrGarbled) {
		t.Errorf("%v", lost)
	}
}

// TestScribble has a peer write random words into its ring while the other side polls: whatever comes out, nothing
// crashes, and the peer is lost.
func TestScribble(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for range 50 {
		ns := mesh(t, 2, Options{Entries: 64})
		var stop sync.WaitGroup
		done := make(chan struct{})
		k := &ns[1].links[0]
		seed := rng.Uint64()
		stop.Go(func() {
			r := rand.New(rand.NewPCG(seed, 1))
			for {
				select {
				case <-done:
					return
				default:
				}
				k.board[r.IntN(len(k.board))] = byte(r.Uint32())
				k.board[r.IntN(260)] = byte(r.Uint32())
			}
		})
		var ms [8]wire.Message
		var lost *fabric.PeerError
		for end := time.Now().Add(deadline); lost == nil && time.Now().Before(end); {
			_, lost = ns[0].Poll(ms[:])
			ns[0].Send(1, message(0, 1))
			ns[0].Flush()
		}
		close(done)
		stop.Wait()
		if lost == nil {
			t.Fatal("the peer was not lost")
		}
	}
}

func TestOffersAreChecked(t *testing.T) {
	ns := mesh(t, 1, Options{})
	_ = ns
	a, err := newNode(0, 2, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer a.closeAll()
	b, err := newNode(1, 2, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.closeAll()
	good, err := a.Offer(1)
	if err != nil {
		t.Fatal(err)
	}
	// Whatever single byte of an offer is changed, Connect must refuse it.
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 0x40
		if i == 15 { // padding
			continue
		}
		if err := b.Connect(0, bad); !errors.Is(err, fabric.ErrOffer) {
			t.Errorf("byte %d changed: %v", i, err)
		}
	}
	for name, c := range map[string]struct {
		change func(o *offer)
		want   string
	}{
		"epoch":   {func(o *offer) { o.Epoch = 8 }, "epoch 8, want 7"},
		"version": {func(o *offer) { o.Version = 2 }, "same release"},
		"to":      {func(o *offer) { o.To = 0 }, "this is node 1"},
		"process": {func(o *offer) { o.PID = 1 << 22 }, "PID namespace"},
		"slots":   {func(o *offer) { o.SlotsLen += 4096 }, "slots"},
		"bell":    {func(o *offer) { o.Bell = o.Board }, "not the file"},
	} {
		var o offer
		if _, err := binary.Decode(good, binary.LittleEndian, &o); err != nil {
			t.Fatal(err)
		}
		c.change(&o)
		bad, err := binary.Append(nil, binary.LittleEndian, &o)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Connect(0, bad); !errors.Is(err, fabric.ErrOffer) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	for _, bad := range [][]byte{nil, good[:len(good)-1], append(bytes.Clone(good), 0)} {
		if err := b.Connect(0, bad); !errors.Is(err, fabric.ErrOffer) {
			t.Errorf("%d bytes: %v", len(bad), err)
		}
	}
	if err := b.Connect(1, good); err == nil {
		t.Error("connected to itself")
	}
	if err := b.Connect(0, good); err != nil {
		t.Errorf("good offer: %v", err)
	}
	if err := b.Connect(0, good); !errors.Is(err, fabric.ErrConnected) {
		t.Errorf("connected twice: %v", err)
	}
}

// TestUnsealedMemoryIsRefused: a peer must not be able to truncate what others have mapped.
func TestUnsealedMemoryIsRefused(t *testing.T) {
	a, err := newNode(0, 2, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer a.closeAll()
	b, err := newNode(1, 2, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.closeAll()
	fd, err := unix.MemfdCreate("unsealed", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, testSlots*wire.PageSize); err != nil {
		t.Fatal(err)
	}
	a.cfg.Slots.FD = fd
	o, err := a.Offer(1)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Connect(0, o); err == nil || !strings.Contains(err.Error(), "sealed") {
		t.Errorf("%v", err)
	}
}

func FuzzDecodeOffer(f *testing.F) {
	n, err := newNode(0, 2, Options{})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(n.closeAll)
	o, err := n.Offer(1)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(o)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if o, err := n.decodeOffer(1, b); err == nil && (o.From != 1 || o.To != 0 || o.Epoch != 7) {
			t.Errorf("accepted %+v", o)
		}
	})
}

func TestNoAllocation(t *testing.T) {
	ns := mesh(t, 2, Options{Entries: 64})
	page := make([]byte, wire.PageSize)
	var ms [8]wire.Message
	m := *message(0, 1)
	fetched, parked := word(wire.Fetched, 1, 2), word(wire.Parked, 1, 3)
	if n := testing.AllocsPerRun(1000, func() {
		ns[0].WriteBytes(1, fabric.Slots, 0, page, nil)
		ns[0].WriteBytes(1, fabric.RAM, testPages*wire.PageSize, page, parked)
		ns[0].ReadPage(1, testPages*wire.PageSize, 2, fetched)
		for range 3 {
			ns[0].Send(1, &m)
		}
		ns[0].Flush()
		ns[1].Arm()
		ns[1].Poll(ms[:])
		ns[1].Arm()
		ns[0].Arm()
		ns[0].Poll(ms[:])
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// childVariable makes the test binary act as node 1 of TestKilledPeer.
const childVariable = "IRONSPAN_SHM_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		if err := child(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child exchanges offers over its standard files and sends until it is killed.
func child() error {
	n, err := newNode(1, 2, Options{})
	if err != nil {
		return err
	}
	o, err := n.Offer(0)
	if err != nil {
		return err
	}
	if _, err := os.Stdout.Write(o); err != nil {
		return err
	}
	theirs := make([]byte, offerSize)
	if _, err := io.ReadFull(os.Stdin, theirs); err != nil {
		return err
	}
	if err := n.Connect(0, theirs); err != nil {
		return err
	}
	n.WriteBytes(0, fabric.Slots, 0, bytes.Repeat([]byte{0x77}, wire.PageSize), nil)
	n.Send(0, message(1, 1))
	n.Flush()
	time.Sleep(time.Minute)
	return nil
}

func TestKilledPeer(t *testing.T) {
	for _, sleeping := range []bool{true, false} {
		t.Run(fmt.Sprintf("sleeping=%t", sleeping), func(t *testing.T) {
			n, err := newNode(0, 2, Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer n.closeAll()
			exe, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(exe)
			cmd.Env = append(os.Environ(), childVariable+"=1")
			cmd.Stderr = os.Stderr
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer cmd.Wait()
			defer cmd.Process.Kill()
			theirs := make([]byte, offerSize)
			if _, err := io.ReadFull(out, theirs); err != nil {
				t.Fatal(err)
			}
			if err := n.Connect(1, theirs); err != nil {
				t.Fatal(err)
			}
			ours, err := n.Offer(1)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := in.Write(ours); err != nil {
				t.Fatal(err)
			}
			var ms [4]wire.Message
			if k, lost := recv(t, n.Lane, ms[:]); k != 1 || lost != nil || n.slots.Page(0)[0] != 0x77 {
				t.Fatalf("%d messages, %v", k, lost)
			}
			killed := time.Now()
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			var lost *fabric.PeerError
			for lost == nil && time.Since(killed) < deadline {
				if sleeping {
					_, lost = recv(t, n.Lane, ms[:])
				} else {
					_, lost = n.Poll(ms[:])
				}
			}
			if lost == nil || lost.Peer != 1 || !errors.Is(lost, fabric.ErrPeerDied) {
				t.Fatalf("lost %v", lost)
			}
			took := time.Since(killed)
			if took > time.Second {
				t.Errorf("noticed after %v", took)
			}
			t.Logf("noticed after %v", took)
		})
	}
}

func BenchmarkPingPong(b *testing.B) {
	ns := mesh(b, 2, Options{})
	var stop sync.WaitGroup
	done := make(chan struct{})
	stop.Go(func() {
		var ms [8]wire.Message
		for {
			select {
			case <-done:
				return
			default:
			}
			k, _ := ns[1].Poll(ms[:])
			for range k {
				ns[1].Send(0, message(1, 1))
			}
			ns[1].Flush()
		}
	})
	var ms [8]wire.Message
	m := message(0, 1)
	for b.Loop() {
		ns[0].Send(1, m)
		ns[0].Flush()
		for {
			if k, _ := ns[0].Poll(ms[:]); k > 0 {
				break
			}
		}
	}
	close(done)
	stop.Wait()
}

// BenchmarkReadPage is a page read from a home frame, and the word of it.
func BenchmarkReadPage(b *testing.B) {
	ns := mesh(b, 2, Options{})
	over := word(wire.Fetched, 1, 0)
	var ms [8]wire.Message
	b.SetBytes(wire.PageSize)
	for b.Loop() {
		ns[0].ReadPage(1, testPages*wire.PageSize, 0, over)
		ns[0].Flush()
		if k, lost := ns[0].Poll(ms[:]); k != 1 {
			b.Fatal(k, lost)
		}
	}
}
