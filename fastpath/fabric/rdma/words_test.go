package rdma

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"ironspan/engine/wire"
	"ironspan/fastpath/fabric"
	"ironspan/fastpath/fabric/lanetest"
	"ironspan/verbs"
)

// settled is time enough for what was posted to be over.
const settled = 100 * time.Millisecond

// words takes what is there and comes within a while, and returns it by transaction.
func (n *node) words(want int) map[uint32]wire.Message {
	n.t.Helper()
	got := map[uint32]wire.Message{}
	for range want {
		m := n.get()
		if _, again := got[m.Txn]; again {
			n.t.Errorf("%+v came twice", m)
		}
		got[m.Txn] = m
	}
	time.Sleep(settled)
	var ms [1]wire.Message
	if k, lost := n.Poll(ms[:]); k != 0 || lost != nil {
		n.t.Errorf("and then came %+v, %v", ms[:k], lost)
	}
	return got
}

// What is read is in the slot with its word, and what is written is in the home frame; there may be more of both than
// the device has reads on their way, and than the queue holds.
func TestWords(t *testing.T) {
	for _, opt := range []Options{{}, {Depth: 2, SendWR: 8}} {
		ns := mesh(t, 2, opt)
		a, b := ns[0], ns[1]
		for i := range homePages {
			stamp(b.frame(homePages+i), i)
		}
		pg := make([]byte, page)
		for s := range slotPages {
			if s%4 == 3 {
				stamp(pg, 1000+s)
				a.WriteBytes(1, fabric.RAM, uint64(homePages+s/4)*page, pg, over(wire.Parked, 1, s))
			} else {
				a.ReadPage(1, uint64(homePages+8+s%8)*page, uint32(s), over(wire.Fetched, 1, s))
			}
		}
		clear(pg) // it was copied
		a.Flush()
		got := a.words(slotPages)
		for s := range slotPages {
			want := over(wire.Fetched, 1, s)
			ok := stamped(a.slot(s), 8+s%8)
			if s%4 == 3 {
				want.Kind, ok = wire.Parked, stamped(b.frame(homePages+s/4), 1000+s)
			}
			if got[want.Txn] != *want || !ok {
				t.Errorf("word %d is %+v, the bytes are good: %t", s, got[want.Txn], ok)
			}
		}
		st := a.Stats().Snapshot()
		const reads, runs = slotPages * 3 / 4, slotPages / 4 // three neighbours at a time
		if st.Read.Bytes != reads*page || st.Read.Ops < runs || st.Read.Ops > runs && opt.SendWR == 0 ||
			st.Write.Ops != slotPages-reads || st.Received.Ops != 0 || (st.HeldBack > 0) != (opt.SendWR > 0) {
			t.Errorf("%+v", st)
		}
		works(t, a, b)
	}
}

// Neighbouring pages that are read one after the other, or written from home frames, share requests, wherever they are
// here; and what lies apart, or was posted before the doorbell, does not.
func TestRuns(t *testing.T) {
	ns := mesh(t, 2, Options{})
	a, b := ns[0], ns[1]
	for i := range homePages {
		stamp(b.frame(homePages+i), i)
		stamp(a.frame(i), 100+i)
	}
	const pages = 2*runPages + 3
	for i := range pages {
		slot := pages - 1 - i
		a.ReadPage(1, uint64(homePages+i)*page, uint32(slot), over(wire.Fetched, 1, slot))
	}
	a.Flush()
	got := a.words(pages)
	for i := range pages {
		if want := over(wire.Fetched, 1, i); got[want.Txn] != *want || !stamped(a.slot(i), pages-1-i) {
			t.Errorf("slot %d: word %+v, page %d: %t", i, got[want.Txn], pages-1-i, stamped(a.slot(i), pages-1-i))
		}
	}
	if st := a.Stats().Snapshot(); st.Read != (fabric.VerbCount{Ops: 3, Bytes: pages * page}) {
		t.Errorf("%d neighbours: %+v", pages, st.Read)
	}

	for i := range pages {
		a.WritePage(1, fabric.Slots, uint64(i)*page, fabric.RAM, uint64(i/2)*page)
	}
	a.Send(1, over(wire.Done, 0, 0))
	a.Flush()
	b.get()
	for i := range pages {
		if !stamped(b.slot(i), 100+i/2) {
			t.Errorf("page %d did not arrive before the message", i)
		}
	}
	if st := a.Stats().Snapshot(); st.Write != (fabric.VerbCount{Ops: 3, Bytes: pages * page}) {
		t.Errorf("%d neighbours: %+v", pages, st.Write)
	}

	before := a.Stats().Snapshot().Read.Ops
	for i, at := range []int{0, 2, 1, 2, 2} { // 1 and 2 are the only neighbours
		a.ReadPage(1, uint64(homePages+at)*page, uint32(i), over(wire.Fetched, 1, i))
	}
	a.Flush()
	a.ReadPage(1, (homePages+3)*page, 5, over(wire.Fetched, 1, 5))
	a.Flush()
	a.words(6)
	for i, at := range []int{0, 2, 1, 2, 2, 3} {
		if !stamped(a.slot(i), at) {
			t.Errorf("slot %d does not hold page %d", i, at)
		}
	}
	if ops := a.Stats().Snapshot().Read.Ops - before; ops != 5 {
		t.Errorf("%d requests, want 5", ops)
	}
	works(t, a, b)
}

// A read sees what was written before it, without a word of the write.
func TestReadSeesTheWriteBeforeIt(t *testing.T) {
	a := mesh(t, 2, Options{SendWR: 8})[0]
	pg := make([]byte, page)
	for i := 1; i <= 100; i++ {
		stamp(pg, i)
		a.WriteBytes(1, fabric.RAM, homePages*page, pg, nil)
		a.ReadPage(1, homePages*page, 3, over(wire.Fetched, 1, 3))
		a.Flush()
		if m := a.get(); m.Kind != wire.Fetched || !stamped(a.slot(3), i) {
			t.Fatalf("round %d: %+v", i, m)
		}
	}
}

func TestMix(t *testing.T) {
	for _, c := range []struct {
		nodes int
		opt   Options
	}{
		{2, Options{}}, {2, Options{Depth: 2, SendWR: 8}}, {3, Options{Depth: 7, SendWR: 16}},
	} {
		t.Run(fmt.Sprintf("%d nodes, queue %d", c.nodes, c.opt.SendWR), func(t *testing.T) {
			c.opt.Backlog, c.opt.Bounce = 512, 512
			c.opt.Retry = verbs.Retry{RNRCount: -1}
			var ends []lanetest.Node
			ns := mesh(t, c.nodes, c.opt)
			for _, n := range ns {
				slot := func(s uint32) []byte { return n.slot(int(s)) }
				ends = append(ends, lanetest.Node{Endpoint: n, Frame: n.frame, Slot: slot})
			}
			lanetest.Mix(t, ends, 7, homePages, slotPages, 1500, rand.Uint64())
			t.Logf("%+v", ns[0].Stats().Snapshot())
		})
	}
}

// A sleeper is woken by the word.
func TestWordWakes(t *testing.T) {
	a := mesh(t, 2, Options{})[0]
	var ms [4]wire.Message
	for i := range 200 {
		a.ReadPage(1, homePages*page, 0, over(wire.Fetched, 1, 0))
		a.Flush()
		for {
			n, lost := a.Poll(ms[:])
			if lost != nil {
				t.Fatal(lost)
			}
			if n > 0 {
				break
			}
			if a.Arm() {
				continue
			}
			if !a.wakes() {
				t.Fatalf("round %d: a wake-up was lost", i)
			}
		}
	}
	if a.Stats().Armed.Load() == 0 {
		t.Error("it never slept")
	}
}

// Who looks for bounce pages finds completions: Poll still hands out the words, and goes on with what waited for room.
func TestWhatReapFinds(t *testing.T) {
	ns := mesh(t, 3, Options{Depth: 64, SendWR: 8, Bounce: 4})
	a := ns[0]
	pg := make([]byte, page)
	read := func(s int) { a.ReadPage(1, homePages*page, uint32(s), over(wire.Fetched, 1, s)) }
	for s := range 12 { // four of them wait
		read(s)
	}
	for range 4 {
		a.WriteBytes(2, fabric.Slots, 0, pg, nil)
	}
	a.Flush()
	time.Sleep(settled)
	a.WriteBytes(2, fabric.Slots, 0, pg, nil)
	a.Flush()
	time.Sleep(settled)
	if a.due != 1<<1 || len(a.busy) == 0 || a.wcAt != a.wcEnd {
		t.Fatalf("words of %b, %d links to go on with, %d completions", a.due, len(a.busy), a.wcEnd)
	}
	due, busy := a.due, a.busy
	for name, only := range map[string]func(){
		"posts that have room": func() { a.due = 0 },
		"words to hand out":    func() { a.busy = nil },
	} {
		if only(); !a.Arm() {
			t.Errorf("it would sleep with %s", name)
		}
		a.due, a.busy = due, busy
	}
	if got := a.words(12); len(got) != 12 {
		t.Errorf("%d words", len(got))
	}
	works(t, a, ns[2])
}

// What a peer is lost with is not told any more, what concerns others is.
func TestWordsOfTheLost(t *testing.T) {
	ns := mesh(t, 3, Options{SendWR: 8})
	a := ns[0]
	for s := range slotPages {
		peer := wire.NodeID(1 + s%2)
		a.ReadPage(peer, uint64(peer)*homePages*page, uint32(s), over(wire.Fetched, peer, s))
	}
	a.Flush()
	time.Sleep(settled)
	a.reap(&a.links[1]) // some of both are due
	var ms [4]wire.Message
	if n, lost := a.Poll(ms[:3]); n != 3 || lost != nil || a.due != 1<<1|1<<2 {
		t.Fatalf("got %d words, %v, others of %b", n, lost, a.due)
	}
	early := map[wire.NodeID]int{}
	for _, m := range ms[:3] {
		early[m.From]++
	}
	a.WriteBytes(1, fabric.RAM, 0, make([]byte, page), over(wire.Parked, 1, 0))
	a.ReadPage(1, homePages*page, 0, over(wire.Fetched, 1, 0)) // dropped
	if n, lost := a.Poll(nil); n != 0 || lost == nil || lost.Peer != 1 || !errors.Is(lost, fabric.ErrRange) {
		t.Errorf("got %d, %v", n, lost)
	}
	for _, m := range a.words(slotPages/2 - early[2]) {
		if m != *over(wire.Fetched, 2, int(m.Slot)) {
			t.Errorf("got %+v", m)
		}
	}
	works(t, a, ns[2])
}

func TestReadOfTheDead(t *testing.T) {
	ns := mesh(t, 3, Options{})
	a := ns[0]
	must(t, ns[1].links[0].qp.Close())
	ns[1].links[0].state = linkLost
	a.ReadPage(1, homePages*page, 0, over(wire.Fetched, 1, 0))
	a.ReadPage(2, 2*homePages*page, 1, over(wire.Fetched, 2, 1))
	a.Flush()
	if m := a.get(); m != *over(wire.Fetched, 2, 1) {
		t.Errorf("got %+v", m)
	}
	var ms [4]wire.Message
	if n, lost := a.next(ms[:]); n != 0 || lost == nil || lost.Peer != 1 || !errors.Is(lost, verbs.StatusRetryExceeded) {
		t.Errorf("got %d messages, %v", n, lost)
	}
	works(t, a, ns[2])
}

func TestWordsAreBounded(t *testing.T) {
	for name, c := range map[string]struct {
		over *wire.Message
		want error
	}{
		"one too many": {over(wire.Fetched, 1, 0), fabric.ErrWords},
		"of another":   {over(wire.Fetched, 2, 0), fabric.ErrGarbled},
	} {
		t.Run(name, func(t *testing.T) {
			ns := mesh(t, 3, Options{SendWR: 8})
			a := ns[0]
			most := slotPages
			if c.want == fabric.ErrGarbled {
				most = 1
			}
			for s := range most {
				a.ReadPage(1, homePages*page, uint32(s), over(wire.Fetched, 1, s))
			}
			a.ReadPage(1, homePages*page, 0, c.over)
			n, lost := a.Poll(make([]wire.Message, 4))
			if n != 0 || lost == nil || lost.Op != "read" || !errors.Is(lost, c.want) {
				t.Errorf("got %d messages, %v", n, lost)
			}
			works(t, a, ns[2])
		})
	}
}

// Home frames are there to be read; slots are not.
func TestSlotsCannotBeRead(t *testing.T) {
	ns := mesh(t, 3, Options{})
	a := ns[0]
	k := &a.links[1]
	remote, _ := k.remote(fabric.Slots, 0)
	l := access{verb: fabric.Read, local: a.Lane.slots.SGE(0, page), remote: remote}
	a.access(k, l, over(wire.Fetched, 1, 0))
	a.Flush()
	if lost := a.loss(); lost.Peer != 1 || !errors.Is(lost, verbs.StatusRemoteAccess) {
		t.Errorf("got %v", lost)
	}
	works(t, a, ns[2])
}
