package rdma

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"time"

	"ironspan/engine/wire"
	"ironspan/fastpath/epoll"
	"ironspan/fastpath/fabric"
	"ironspan/verbs"
)

const (
	homePages = 64
	slotPages = 32 // more than a queue pair has reads on their way
	page      = wire.PageSize
)

// quick gives a dead peer up within a second or two.
var quick = verbs.Retry{AckTimeout: 120 * time.Millisecond, Count: 5}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// node is a lane with the memory it serves.
type node struct {
	*Lane
	t          testing.TB
	id         wire.NodeID
	ram, slots *verbs.Memory
	waits      *epoll.Set // for FD; sleep makes it
}

// mesh makes n nodes of this process, all connected over the machine's first RDMA device.
func mesh(t testing.TB, n int, opt Options) []*node {
	t.Helper()
	if err := verbs.Probe(); errors.Is(err, verbs.ErrNoDevice) {
		t.Skip(err)
	}
	if opt.Retry == (verbs.Retry{}) {
		opt.Retry = quick
	}
	ns := make([]*node, n)
	for i := range ns {
		ns[i] = newNode(t, wire.NodeID(i), n, opt)
	}
	for _, a := range ns {
		for _, b := range ns {
			if a != b {
				o, err := a.Offer(b.id)
				must(t, err)
				must(t, b.Connect(a.id, o))
			}
		}
	}
	return ns
}

// sleep waits for something new at FD, and says whether it came.
func (n *node) sleep(timeout time.Duration) bool {
	if n.waits == nil {
		var err error
		if n.waits, err = epoll.New(); err != nil {
			n.t.Error(err)
			return false
		}
		n.t.Cleanup(func() { n.waits.Close() })
		if err = n.waits.Add(n.FD(), true); err != nil {
			n.t.Error(err)
		}
	}
	return len(n.waits.Wait(timeout)) > 0
}

// wakes says whether something comes to FD within the time that a test has for it; signals are no such thing.
func (n *node) wakes() bool {
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		if n.sleep(max(0, time.Until(end))) {
			return true
		}
	}
	return false
}

func newNode(t testing.TB, id wire.NodeID, n int, opt Options) *node {
	t.Helper()
	nd := &node{t: t, id: id}
	var err error
	nd.ram, err = verbs.AllocMemory(n * homePages * page)
	must(t, err)
	nd.slots, err = verbs.AllocMemory(slotPages * page)
	must(t, err)
	cfg := fabric.Config{
		Self: id, Nodes: n, Lane: 3, Epoch: 7,
		RAM:   fabric.Memory{Addr: nd.ram.Addr(), Len: uint64(len(nd.ram.Bytes())), FD: -1},
		Slots: fabric.Memory{Addr: nd.slots.Addr(), Len: slotPages * page, FD: -1},
	}
	for i := range uint64(n) {
		cfg.Homes = append(cfg.Homes, fabric.Span{First: i * homePages * page, Last: (i + 1) * homePages * page})
	}
	nd.Lane, err = New(cfg, opt)
	must(t, err)
	t.Cleanup(func() {
		must(t, nd.Close())
		must(t, nd.ram.Close())
		must(t, nd.slots.Close())
	})
	return nd
}

func (n *node) slot(i int) []byte { return n.slots.Bytes()[i*page : (i+1)*page] }

func (n *node) frame(pfn int) []byte { return n.ram.Bytes()[pfn*page : (pfn+1)*page] }

// over is the word of an operation on peer's memory.
func over(k wire.Kind, peer wire.NodeID, slot int) *wire.Message {
	return &wire.Message{Kind: k, From: peer, Epoch: 7, Txn: uint32(slot + 1), Slot: uint32(slot)}
}

func (n *node) msg(seq int) *wire.Message {
	return &wire.Message{Kind: wire.Grant, From: n.id, Epoch: 7, Txn: uint32(seq), Page: wire.PFN(seq)}
}

// next polls, sleeping on FD in between, until there are messages or a loss.
func (n *node) next(ms []wire.Message) (int, *fabric.PeerError) {
	n.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; {
		k, lost := n.Poll(ms)
		if k > 0 || lost != nil {
			return k, lost
		}
		if time.Now().After(end) {
			n.t.Fatalf("node %d: nothing for 20 s: %+v", n.id, n.Stats().Snapshot())
		}
		if !n.Arm() {
			n.sleep(100 * time.Millisecond)
		}
	}
}

// get waits for one message.
func (n *node) get() wire.Message {
	n.t.Helper()
	var ms [1]wire.Message
	if _, lost := n.next(ms[:]); lost != nil {
		n.t.Fatal(lost)
	}
	return ms[0]
}

// getFrom is get while a goes on with what it holds back; a gets no messages meanwhile.
func (n *node) getFrom(a *node) wire.Message {
	n.t.Helper()
	var ms [1]wire.Message
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		if k, lost := a.Poll(ms[:]); k != 0 || lost != nil {
			n.t.Fatal(k, lost)
		}
		k, lost := n.Poll(ms[:])
		if lost != nil {
			n.t.Fatal(lost)
		}
		if k > 0 {
			return ms[0]
		}
	}
	n.t.Fatal("nothing for 20 s")
	return ms[0]
}

// loss waits for the report of a loss.
func (n *node) loss() *fabric.PeerError {
	n.t.Helper()
	var ms [8]wire.Message
	for {
		if _, lost := n.next(ms[:]); lost != nil {
			return lost
		}
	}
}

func stamp(b []byte, seq int) {
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], uint64(seq)<<32|uint64(i))
	}
}

func stamped(b []byte, seq int) bool {
	for i := 0; i < len(b); i += 8 {
		if binary.LittleEndian.Uint64(b[i:]) != uint64(seq)<<32|uint64(i) {
			return false
		}
	}
	return true
}

// A message says that the page before it has landed: in a slot from Go's memory, in a slot from a home frame,
// and in the peer's home frame.
func TestMessageProvesThePage(t *testing.T) {
	ns := mesh(t, 2, Options{})
	a, b := ns[0], ns[1]
	pg := make([]byte, page)
	for i := 1; i <= 200; i++ {
		m := a.msg(i)
		s := i % slotPages
		home := homePages + i%homePages // of b
		stamp(pg, i)
		a.WriteBytes(1, fabric.Slots, uint64(s*page), pg, nil)
		stamp(a.frame(i%homePages), i+1000)
		a.WritePage(1, fabric.RAM, uint64(home*page), fabric.RAM, uint64(i%homePages*page))
		clear(pg) // it was copied
		a.Send(1, m)
		a.Flush()
		if got := b.get(); got != *m {
			t.Fatalf("got %+v, want %+v", got, *m)
		}
		if !stamped(b.slot(s), i) {
			t.Fatalf("slot %d does not hold page %d", s, i)
		}
		if !stamped(b.frame(home), i+1000) {
			t.Fatalf("home frame %d does not hold page %d", home, i)
		}
		b.Send(0, b.msg(i)) // the page's transaction is over
		b.Flush()
		a.get()
	}
	st := a.Stats().Snapshot()
	if st.Send.Ops < 200 || st.Send.Bytes != 200*64 || st.Write.Ops != 400 || st.Write.Bytes != 400*page || st.Received.Ops != 200 {
		t.Errorf("stats %+v", st)
	}
	if st.Doorbells < 200 || st.Doorbells > 400 {
		t.Errorf("%d doorbells for 200 flushes", st.Doorbells)
	}
}

// What is said between two Flushes goes out in packets, behind all the pages.
func TestMessagesSharePackets(t *testing.T) {
	ns := mesh(t, 2, Options{})
	a, b := ns[0], ns[1]
	pg := make([]byte, page)
	const total = 2*packetMessages + 3
	for i := 1; i <= total; i++ {
		if i%4 == 1 {
			stamp(pg, i)
			a.WriteBytes(1, fabric.Slots, uint64(i/4*page), pg, nil)
		}
		a.Send(1, a.msg(i))
	}
	a.Flush()
	var ms [5]wire.Message
	for i := 1; i <= total; {
		n, lost := b.next(ms[:])
		if lost != nil {
			t.Fatal(lost)
		}
		for _, m := range ms[:n] {
			if m.Txn != uint32(i) {
				t.Fatalf("got %d, want %d", m.Txn, i)
			}
			if i%4 == 1 && !stamped(b.slot(i/4), i) {
				t.Errorf("message %d is there before its page", i)
			}
			i++
		}
	}
	if st := a.Stats().Snapshot(); st.Send.Ops != 3 || st.Send.Bytes != total*wire.Size || st.Doorbells != 1 {
		t.Errorf("%+v", st)
	}
	works(t, a, b)
}

// Both sides send far more than credits and send queue hold, with pages between, and take at their own pace:
// everything arrives in order, and the receiver-not-ready path is never taken (one retry would end the test).
func TestFloodBothWays(t *testing.T) {
	for _, opt := range []Options{
		{Depth: 2, SendWR: 8, Backlog: 512, Bounce: 512},
		{Depth: 7, SendWR: 16, Backlog: 512, Bounce: 512},
		{Depth: 64, SendWR: 32, Backlog: 512, Bounce: 512},
		{},
	} {
		opt.Retry = verbs.Retry{RNRCount: -1}
		ns := mesh(t, 2, opt)
		const total = 1500
		var sent, got [2]int
		var ms [5]wire.Message
		pg := make([]byte, page)
		deadline := time.Now().Add(2 * time.Minute)
		for got[0] < total || got[1] < total {
			for i, n := range ns {
				peer := wire.NodeID(1 - i)
				for range 40 { // a burst, as long as the peer is not too far behind
					if sent[i] == total || sent[i]-got[1-i] > 400 {
						break
					}
					sent[i]++
					if sent[i]%50 == 0 {
						stamp(pg, sent[i])
						n.WriteBytes(peer, fabric.Slots, uint64(sent[i]/50%slotPages*page), pg, nil)
					}
					n.Send(peer, n.msg(sent[i]))
				}
				n.Flush()
				k, lost := n.Poll(ms[:1+(got[i]+i)%len(ms)])
				if lost != nil {
					t.Fatalf("%+v: %v after %d and %d", opt, lost, got[0], got[1])
				}
				for _, m := range ms[:k] {
					got[i]++
					if m.Txn != uint32(got[i]) {
						t.Fatalf("%+v: got %d, want %d", opt, m.Txn, got[i])
					}
				}
			}
			if time.Now().After(deadline) {
				t.Fatalf("%+v: stuck at %d and %d of %d", opt, got[0], got[1], total)
			}
		}
		t.Logf("depth %d, queue %d: %+v", opt.Depth, opt.SendWR, ns[0].Stats().Snapshot())
	}
}

// One side only sends, the other only takes: credits come back by messages of their own.
func TestFloodOneWay(t *testing.T) {
	ns := mesh(t, 2, Options{Depth: 4, SendWR: 8, Retry: verbs.Retry{RNRCount: -1}})
	a, b := ns[0], ns[1]
	const total = 1000
	for i := 1; i <= total; i++ {
		a.Send(1, a.msg(i))
	}
	a.Flush()
	done := make(chan struct{})
	stop := make(chan struct{})
	go func() { // a has to see the credits
		defer close(done)
		var ms [8]wire.Message
		for {
			select {
			case <-stop:
				return
			default:
				if _, lost := a.Poll(ms[:]); lost != nil {
					t.Error(lost)
					return
				}
				time.Sleep(50 * time.Microsecond)
			}
		}
	}()
	for i := 1; i <= total; i++ {
		if m := b.get(); m.Txn != uint32(i) {
			t.Errorf("got %d, want %d", m.Txn, i)
			break
		}
	}
	close(stop)
	<-done
	if st := a.Stats().Snapshot(); st.HeldBack == 0 {
		t.Errorf("nothing was held back: %+v", st)
	}
	if n := b.Stats().Posted[fabric.Send].Ops.Load(); n == 0 || n > total/2+1 {
		t.Errorf("%d messages to return credits for %d", n, total)
	}
}

func TestOverflowLosesThePeerOnly(t *testing.T) {
	ns := mesh(t, 3, Options{Depth: 4, SendWR: 8, Backlog: 16})
	a := ns[0]
	for i := range 200 { // node 1 takes nothing
		a.Send(1, a.msg(i))
		a.Flush()
	}
	if lost := a.loss(); lost.Peer != 1 || !errors.Is(lost, fabric.ErrOverflow) {
		t.Errorf("got %v", lost)
	}
	works(t, a, ns[2])
}

func TestBouncePagesRunOut(t *testing.T) {
	ns := mesh(t, 3, Options{Depth: 2, SendWR: 8, Bounce: 4})
	a := ns[0]
	pg := make([]byte, page)
	for range 3 { // behind messages that node 1 never takes
		a.Send(1, a.msg(1))
		a.Flush()
	}
	for range 5 {
		a.WriteBytes(1, fabric.Slots, 0, pg, nil)
	}
	if lost := a.loss(); lost.Peer != 1 || !errors.Is(lost, errBounce) {
		t.Errorf("got %v", lost)
	}
	works(t, a, ns[2])
}

// Bounce pages are freed by completions; what waits for credits keeps its own.
func TestBouncePagesAreReused(t *testing.T) {
	ns := mesh(t, 2, Options{Depth: 4, SendWR: 8, Bounce: 6})
	a, b := ns[0], ns[1]
	pg := make([]byte, page)
	for i := 1; i <= 200; i++ {
		for j := range 3 {
			stamp(pg, i*10+j)
			a.WriteBytes(1, fabric.Slots, uint64(j*page), pg, nil)
			a.Send(1, a.msg(i*10+j))
		}
		a.Flush()
		for j := range 3 {
			if m := b.getFrom(a); m.Txn != uint32(i*10+j) || !stamped(b.slot(j), i*10+j) {
				t.Fatalf("round %d, page %d: got %+v", i, j, m)
			}
		}
		b.Send(0, b.msg(i))
		b.Flush()
		a.get()
	}
}

// works sends a page and a message there and a message back.
func works(t testing.TB, a, b *node) {
	t.Helper()
	pg := make([]byte, page)
	stamp(pg, 4711)
	a.WriteBytes(b.id, fabric.Slots, 0, pg, nil)
	a.Send(b.id, a.msg(4711))
	a.Flush()
	if m := b.get(); m.Txn != 4711 || m.From != a.id || !stamped(b.slot(0), 4711) {
		t.Errorf("node %d got %+v from node %d", b.id, m, a.id)
	}
	b.Send(a.id, b.msg(4712))
	b.Flush()
	if m := a.get(); m.Txn != 4712 || m.From != b.id {
		t.Errorf("node %d got %+v from node %d", a.id, m, b.id)
	}
}

func TestAccessesOutOfTheOfferAreRefused(t *testing.T) {
	pg := make([]byte, page)
	for name, post := range map[string]func(a *node){
		"slots end":        func(a *node) { a.WriteBytes(1, fabric.Slots, slotPages*page, pg, nil) },
		"slots unaligned":  func(a *node) { a.WriteBytes(1, fabric.Slots, 8, pg, nil) },
		"own home":         func(a *node) { a.WriteBytes(1, fabric.RAM, 0, pg, nil) },
		"third's home":     func(a *node) { a.WriteBytes(1, fabric.RAM, 2*homePages*page, pg, nil) },
		"wraps":            func(a *node) { a.WriteBytes(1, fabric.RAM, ^uint64(0)&^(page-1), pg, nil) },
		"no region":        func(a *node) { a.WriteBytes(1, 9, 0, pg, nil) },
		"short page":       func(a *node) { a.WriteBytes(1, fabric.Slots, 0, pg[:100], nil) },
		"page, slots end":  func(a *node) { a.WritePage(1, fabric.Slots, slotPages*page, fabric.RAM, 0) },
		"from another's":   func(a *node) { a.WritePage(1, fabric.Slots, 0, fabric.RAM, homePages*page) },
		"from past slots":  func(a *node) { a.WritePage(1, fabric.Slots, 0, fabric.Slots, slotPages*page) },
		"from no region":   func(a *node) { a.WritePage(1, fabric.Slots, 0, 9, 0) },
		"source unaligned": func(a *node) { a.WritePage(1, fabric.Slots, 0, fabric.RAM, 100) },
		"read own home":    func(a *node) { a.ReadPage(1, 0, 0, over(wire.Fetched, 1, 0)) },
		"read third's":     func(a *node) { a.ReadPage(1, 2*homePages*page, 0, over(wire.Fetched, 1, 0)) },
		"read unaligned":   func(a *node) { a.ReadPage(1, homePages*page+8, 0, over(wire.Fetched, 1, 0)) },
		"read past slots":  func(a *node) { a.ReadPage(1, homePages*page, slotPages, over(wire.Fetched, 1, 0)) },
		"read, last slot":  func(a *node) { a.ReadPage(1, homePages*page, 1<<32-1, over(wire.Fetched, 1, 0)) },
	} {
		t.Run(name, func(t *testing.T) {
			ns := mesh(t, 3, Options{Depth: 8, SendWR: 8, Backlog: 8, Bounce: 4})
			a := ns[0]
			post(a)
			a.Send(1, a.msg(1)) // dropped silently
			a.Flush()
			var ms [4]wire.Message
			op := "write"
			if strings.HasPrefix(name, "read") {
				op = "read"
			}
			n, lost := a.Poll(ms[:])
			if n != 0 || lost == nil || lost.Peer != 1 || lost.Op != op || !errors.Is(lost, fabric.ErrRange) {
				t.Errorf("got %d messages, %v", n, lost)
			}
			if n, lost := a.Poll(ms[:]); n != 0 || lost != nil {
				t.Errorf("reported again: %d messages, %v", n, lost)
			}
			if st := a.Stats().Snapshot(); st.Write.Ops+st.Read.Ops != 0 {
				t.Errorf("it was posted: %+v", st)
			}
			works(t, a, ns[2])
		})
	}
}

func TestPeerDies(t *testing.T) {
	ns := mesh(t, 3, Options{})
	a := ns[0]
	works(t, a, ns[1])
	for i := range ns[1].links { // as when the kernel cleans up behind a process
		if q := ns[1].links[i].qp; q != nil {
			must(t, q.Close())
			ns[1].links[i].state = linkLost
		}
	}
	begin := time.Now()
	a.Send(1, a.msg(1))
	a.Flush()
	works(t, a, ns[2]) // while the loss is not known yet
	lost := a.loss()
	if lost.Peer != 1 || lost.Op != "send" || !errors.Is(lost, verbs.StatusRetryExceeded) {
		t.Errorf("got %v", lost)
	}
	t.Logf("known after %v (bound %v): %v", time.Since(begin), quick.Bound(), lost)
	if n := a.Stats().LostPeers.Load(); n != 1 {
		t.Errorf("%d lost", n)
	}
	a.Send(1, a.msg(2))
	a.WriteBytes(1, fabric.Slots, 0, make([]byte, page), nil)
	a.Flush()
	works(t, a, ns[2])
	works(t, ns[2], a)
}

func TestPeerCloses(t *testing.T) {
	ns := mesh(t, 3, Options{})
	begin := time.Now()
	must(t, ns[1].Close())
	took := time.Since(begin)
	for _, n := range []*node{ns[0], ns[2]} {
		if lost := n.loss(); lost.Peer != 1 || lost.Op != "closed" || !errors.Is(lost, fabric.ErrPeerClosed) {
			t.Errorf("node %d got %v", n.id, lost)
		}
	}
	t.Logf("close took %v", took)
	works(t, ns[0], ns[2])
}

// What a peer sends that is no message of this lane loses it.
func TestGarbledMessages(t *testing.T) {
	good := make([]byte, wire.Size)
	(&wire.Message{Kind: wire.GetS, From: 1, Epoch: 7}).Encode(good)
	spoilt := func(at int, v byte) []byte {
		b := bytes.Clone(good)
		b[at] = v
		return b
	}
	for _, c := range []struct {
		name string
		send func(b *verbs.Batch) bool
	}{
		{"version", func(b *verbs.Batch) bool { return b.SendInlineImm(1, 0, spoilt(0, 9), 0) }},
		{"kind", func(b *verbs.Batch) bool { return b.SendInlineImm(1, 0, spoilt(1, 200), 0) }},
		{"another sender", func(b *verbs.Batch) bool { return b.SendInlineImm(1, 0, spoilt(2, 2), 0) }},
		{"short", func(b *verbs.Batch) bool { return b.SendInlineImm(1, 0, good[:63], 0) }},
		{"without credits", func(b *verbs.Batch) bool { return b.SendInline(1, 0, good) }},
		{"too many credits", func(b *verbs.Batch) bool { return b.SendInlineImm(1, 0, good, 1) }},
		{"unknown bits", func(b *verbs.Batch) bool { return b.SendInlineImm(1, 0, good, 1<<20) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			ns := mesh(t, 3, Options{Depth: 8, SendWR: 8, Backlog: 8, Bounce: 4})
			bad := ns[1].links[0].batch
			if !c.send(bad) {
				t.Fatal("not sent")
			}
			_, err := bad.Post()
			must(t, err)
			if lost := ns[0].loss(); lost.Peer != 1 || lost.Op != "poll" || !errors.Is(lost, fabric.ErrGarbled) {
				t.Errorf("got %v", lost)
			}
			works(t, ns[0], ns[2])
		})
	}
	t.Run("too long", func(t *testing.T) {
		ns := mesh(t, 3, Options{Depth: 8, SendWR: 8, Backlog: 8, Bounce: 4})
		bad := ns[1]
		if !bad.links[0].batch.SendImm(1, 0, bad.memMR.SGE(0, recvSize+wire.Size), 0) {
			t.Fatal("not sent")
		}
		_, err := bad.links[0].batch.Post()
		must(t, err)
		if lost := ns[0].loss(); lost.Peer != 1 {
			t.Errorf("got %v", lost)
		}
		works(t, ns[0], ns[2])
	})
	t.Run("own mistake", func(t *testing.T) {
		ns := mesh(t, 2, Options{})
		ns[0].Send(1, ns[1].msg(1))
		if lost := ns[0].loss(); lost.Peer != 1 || lost.Op != "send" || !errors.Is(lost, fabric.ErrGarbled) {
			t.Errorf("got %v", lost)
		}
	})
}

func TestConnectTwice(t *testing.T) {
	ns := mesh(t, 2, Options{})
	o, err := ns[0].Offer(1)
	must(t, err)
	if err := ns[1].Connect(0, o); !errors.Is(err, fabric.ErrConnected) {
		t.Errorf("got %v", err)
	}
	again, err := ns[0].Offer(1)
	if err != nil || !bytes.Equal(again, o) {
		t.Errorf("the second offer differs, %v", err)
	}
	must(t, ns[0].Close())
	must(t, ns[0].Close())
	if _, err := ns[0].Offer(1); err == nil {
		t.Error("a closed lane made an offer")
	}
}

func TestPostBeforeConnect(t *testing.T) {
	if err := verbs.Probe(); errors.Is(err, verbs.ErrNoDevice) {
		t.Skip(err)
	}
	n := newNode(t, 0, 2, Options{})
	n.Send(1, n.msg(1))
	if _, lost := n.Poll(make([]wire.Message, 1)); lost == nil || lost.Peer != 1 || !errors.Is(lost, errNotConnected) {
		t.Errorf("got %v", lost)
	}
}

// Lanes of one adapter share the registration of the home frames and work side by side; so does one without
// memory.
func TestLanesOfOneAdapter(t *testing.T) {
	if err := verbs.Probe(); errors.Is(err, verbs.ErrNoDevice) {
		t.Skip(err)
	}
	var as [2]*Adapter
	var mem [2]*verbs.Memory
	for i := range as {
		var err error
		as[i], err = Open(Options{Retry: quick})
		must(t, err)
		mem[i], err = verbs.AllocMemory(4 * page)
		must(t, err)
	}
	var lanes [3][2]*Lane
	for k := range lanes {
		for i, a := range as {
			cfg := fabric.Config{Self: wire.NodeID(i), Nodes: 2, Lane: uint16(k), Epoch: 1}
			if k < 2 {
				cfg.RAM = fabric.Memory{Addr: mem[i].Addr(), Len: 4 * page}
				cfg.Homes = []fabric.Span{{First: 0, Last: 2 * page}, {First: 2 * page, Last: 4 * page}}
			}
			var err error
			lanes[k][i], err = a.NewLane(cfg)
			must(t, err)
		}
		for i := range as {
			o, err := lanes[k][i].Offer(wire.NodeID(1 - i))
			must(t, err)
			must(t, lanes[k][1-i].Connect(wire.NodeID(i), o))
		}
	}
	if lanes[0][0].home != lanes[1][0].home || lanes[0][0].home == nil || lanes[2][0].home != nil {
		t.Error("the home frames are not shared")
	}
	for k := range lanes {
		a, b := &node{Lane: lanes[k][0], t: t}, &node{Lane: lanes[k][1], t: t, id: 1}
		if k < 2 {
			stamp(mem[0].Bytes()[page:2*page], k)
			a.WritePage(1, fabric.RAM, 3*page, fabric.RAM, page)
		}
		a.Send(1, a.msg(k))
		a.Flush()
		if m := b.get(); m.Txn != uint32(k) || k < 2 && !stamped(mem[1].Bytes()[3*page:], k) {
			t.Errorf("lane %d: got %+v", k, m)
		}
	}
	a := &node{Lane: lanes[2][0], t: t}
	a.WriteBytes(1, fabric.Slots, 0, make([]byte, page), nil)
	if lost := a.loss(); !errors.Is(lost, fabric.ErrRange) {
		t.Errorf("write on a lane without memory: %v", lost)
	}
	for i, a := range as {
		must(t, a.Close())
		must(t, a.Close())
		must(t, mem[i].Close())
	}
}

// A sleeper that follows the rules is woken for every message.
func TestArmAndWake(t *testing.T) {
	ns := mesh(t, 2, Options{})
	a, b := ns[0], ns[1]
	if b.Arm() {
		var ms [1]wire.Message
		if n, lost := b.Poll(ms[:]); n != 0 || lost != nil {
			t.Fatal(n, lost)
		}
	}
	const rounds = 500
	done := make(chan string, 1)
	go func() {
		done <- func() string {
			var ms [4]wire.Message
			for got := 0; got < rounds; {
				n, lost := b.Poll(ms[:])
				if lost != nil {
					return lost.Error()
				}
				for _, m := range ms[:n] {
					got++
					b.Send(0, &wire.Message{Kind: wire.Done, From: 1, Txn: m.Txn})
				}
				b.Flush()
				if n > 0 || b.Arm() {
					continue
				}
				if !b.wakes() {
					return "a wake-up was lost"
				}
			}
			return ""
		}()
	}()
	for i := range rounds {
		a.Send(1, a.msg(i))
		a.Flush()
		if m := a.get(); m.Txn != uint32(i) {
			t.Fatalf("got %+v", m)
		}
		if i%50 == 0 {
			time.Sleep(2 * time.Millisecond) // let it sleep
		}
	}
	if s := <-done; s != "" {
		t.Fatal(s)
	}
	if n := b.Stats().Armed.Load(); n == 0 {
		t.Error("it never slept")
	}
}

// Events that nobody reads neither keep a sleeper awake nor pile up, and those to come still wake it.
func TestEventsStayUnread(t *testing.T) {
	ns := mesh(t, 2, Options{})
	a, b := ns[0], ns[1]
	quiet := func(n *node) {
		t.Helper()
		for range 3 { // what came while nobody slept is told once
			var ms [1]wire.Message
			if k, lost := n.Poll(ms[:]); k > 0 || lost != nil {
				t.Fatal(k, lost)
			}
			if !n.Arm() && !n.sleep(50*time.Millisecond) {
				return
			}
		}
		t.Errorf("node %d is woken for nothing", n.id)
	}
	for i := range 3 * eventsKept {
		a.Send(1, a.msg(i))
		a.Flush()
		if m := b.get(); m.Txn != uint32(i) {
			t.Fatalf("got %+v", m)
		}
		if a.events > eventsKept || b.events > eventsKept {
			t.Fatalf("%d and %d events wait", a.events, b.events)
		}
		if i%eventsKept == eventsKept/2 {
			quiet(a)
			quiet(b)
		}
	}
	if b.events == 0 {
		t.Error("it read each event")
	}
}

// To read the events takes one that tells of a message which nobody has seen: Arm does.
func TestEventTakenUnseen(t *testing.T) {
	ns := mesh(t, 2, Options{})
	a, b := ns[0], ns[1]
	for a.events < eventsKept {
		b.Send(0, b.msg(1))
		b.Flush()
		a.get()
		for a.Arm() {
			var ms [1]wire.Message
			if n, lost := a.Poll(ms[:]); n > 0 || lost != nil {
				t.Fatal(n, lost)
			}
		}
		a.events = max(a.events, eventsKept-1) // two more are enough
	}
	b.Send(0, b.msg(2))
	b.Flush()
	time.Sleep(settled)
	if !a.Arm() || a.events != 0 {
		t.Errorf("it would sleep over a message; %d events wait", a.events)
	}
}

// Who sleeps with nothing to wait for hears of the end of what another posts meanwhile, and so of a loss.
func TestPostsWhileAsleep(t *testing.T) {
	ns := mesh(t, 2, Options{})
	a, b := ns[0], ns[1]
	a.ReadPage(1, homePages*page, 0, over(wire.Fetched, 1, 0))
	a.Flush()
	if m := a.get(); m.Kind != wire.Fetched || a.open != 0 {
		t.Fatalf("got %+v, open %b", m, a.open)
	}
	var ms [1]wire.Message
	for a.Arm() {
		if n, lost := a.Poll(ms[:]); n > 0 || lost != nil {
			t.Fatal(n, lost)
		}
	}
	if a.out.watched() {
		t.Fatal("it asked for an event that no request will raise")
	}
	must(t, b.links[0].qp.Fail()) // takes nothing any more
	a.Send(1, a.msg(1))
	a.Flush()
	if !a.out.watched() {
		t.Error("it would not hear of the end")
	}
	if lost := a.loss(); lost.Op != "send" {
		t.Errorf("lost: %v", lost)
	}
}

// What Arm found is there for Poll, however small its steps.
func TestArmFindsMessages(t *testing.T) {
	ns := mesh(t, 2, Options{})
	a, b := ns[0], ns[1]
	for i := range 10 {
		a.Send(1, a.msg(i))
	}
	a.Flush()
	time.Sleep(50 * time.Millisecond)
	if !b.Arm() {
		t.Fatal("Arm saw nothing")
	}
	if !b.Arm() {
		t.Fatal("Arm forgot")
	}
	for i := range 10 {
		if m := b.get(); m.Txn != uint32(i) {
			t.Fatalf("got %+v, want %d", m, i)
		}
	}
}

func TestHotPathDoesNotAllocate(t *testing.T) {
	ns := mesh(t, 2, Options{Depth: 2, SendWR: 16})
	a, b := ns[0], ns[1]
	pg := make([]byte, page)
	var ms [8]wire.Message
	m, r := *a.msg(1), *b.msg(1)
	fetched, parked := over(wire.Fetched, 1, 5), over(wire.Parked, 1, 6)
	round := func() {
		for i := range 20 { // more than credits and queue hold
			if i%5 == 0 {
				a.WriteBytes(1, fabric.Slots, 0, pg, nil)
				a.WritePage(1, fabric.Slots, page, fabric.RAM, 0)
				a.WriteBytes(1, fabric.RAM, homePages*page, pg, parked)
				a.ReadPage(1, (homePages+1)*page, 5, fetched)
			}
			a.Send(1, &m)
		}
		a.Flush()
		words := 0
		for got := 0; got < 20; {
			n, lost := b.Poll(ms[:])
			if lost != nil {
				t.Fatal(lost)
			}
			got += n
			if n == 0 {
				b.Arm()
			}
			if n, lost = a.Poll(ms[:]); lost != nil {
				t.Fatal(lost)
			}
			words += n
		}
		b.Send(0, &r)
		b.Flush()
		for words < 8+1 { // and the message
			n, _ := a.Poll(ms[:])
			words += n
		}
	}
	if n := testing.AllocsPerRun(50, round); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if a.Stats().HeldBack.Load() == 0 {
		t.Error("the test held nothing back")
	}
}
