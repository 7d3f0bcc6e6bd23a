package rdma

import (
	"errors"
	"testing"

	"pgregory.net/rapid"

	"ironspan/engine/wire"
	"ironspan/fastpath/fabric"
)

// grant is what node b says to what a asked of it, in the slot of the same number as the page of b's home range.
func grant(a, b *node, i int, txn uint32) *wire.Message {
	return &wire.Message{
		Kind: wire.Grant, From: b.id, Flags: wire.FlagData, Requester: a.id, Mode: wire.Shared, Epoch: 7,
		Txn: txn, Slot: uint32(i), Page: wire.PFN(int(b.id)*homePages + i),
	}
}

// asks has node a ask, for itself, with a message that node b gets.
func asks(a, b *node, kind wire.Kind, g *wire.Message) {
	a.t.Helper()
	m := wire.Message{Kind: kind, From: a.id, Requester: a.id, Epoch: 7, Txn: g.Txn, Slot: g.Slot, Page: g.Page}
	a.Send(b.id, &m)
	a.Flush()
	if got := b.get(); got != m {
		a.t.Fatalf("got %+v, want %+v", got, m)
	}
}

// sends is how many packets with messages a node has posted.
func (n *node) sends() uint64 { return n.Stats().Snapshot().Send.Ops }

// A page and its grant are one request; so they are for more pages than there are credits.
func TestBriefGrants(t *testing.T) {
	for _, opt := range []Options{{}, {Depth: 2, SendWR: 8}} {
		ns := mesh(t, 2, opt)
		a, b := ns[0], ns[1]
		for i := range slotPages {
			stamp(b.frame(homePages+i), i)
		}
		for n := range 100 {
			i := n % slotPages
			g := grant(a, b, i, uint32(1000+n))
			if g.Spent = uint32(n); n%2 == 1 {
				g.Mode = wire.Modified
			}
			g.Spent = unpackSpent(packSpent(g.Spent))
			asks(a, b, wire.GetS, g)
			clear(a.slot(i))
			before := b.sends()
			b.WritePage(0, fabric.Slots, uint64(i)*page, fabric.RAM, uint64(g.Page)*page)
			b.Send(0, g)
			b.Flush()
			if got := a.get(); got != *g || !stamped(a.slot(i), i) {
				t.Fatalf("got %+v, want %+v; the page is there: %t", got, *g, stamped(a.slot(i), i))
			}
			if b.sends() != before {
				t.Fatalf("grant %d took a message", n)
			}
		}
		works(t, a, b)
	}
}

// What an owner answers who is not the home, and to the home itself.
func TestBriefGrantsOfOwners(t *testing.T) {
	ns := mesh(t, 3, Options{})
	a, b, c := ns[0], ns[1], ns[2]
	pg := make([]byte, page)
	stamp(pg, 42)

	g := grant(a, b, 3, 9)
	asks(a, b, wire.GetM, g)
	g.From, g.Mode = c.id, wire.Modified
	before := c.sends()
	c.WriteBytes(0, fabric.Slots, 3*page, pg, nil)
	c.Send(0, g)
	c.Flush()
	if got := a.get(); got != *g || !stamped(a.slot(3), 42) || c.sends() != before {
		t.Errorf("of another owner: got %+v, want %+v", got, *g)
	}

	g = grant(a, a, 5, 10) // a's own page
	asks(a, c, wire.FwdGetM, g)
	g.From, g.Mode = c.id, wire.Modified
	before = c.sends()
	c.WriteBytes(0, fabric.RAM, 5*page, pg, nil)
	c.Send(0, g)
	c.Flush()
	if got := a.get(); got != *g || !stamped(a.frame(5), 42) || c.sends() != before {
		t.Errorf("to the home: got %+v, want %+v", got, *g)
	}
	works(t, a, b)
	works(t, a, c)
}

// A grant that says more than fits, or that is not about the write before it, is a message as any other.
func TestGrantsInFull(t *testing.T) {
	write := func(b *node, i int) {
		b.WritePage(0, fabric.Slots, uint64(i)*page, fabric.RAM, uint64(homePages+i)*page)
	}
	for _, c := range []struct {
		name string
		post func(b *node, g *wire.Message)
	}{
		{"tenure", func(b *node, g *wire.Message) { g.Args[0] = 1; write(b, 3); b.Send(0, g) }},
		{"sharers", func(b *node, g *wire.Message) { g.Args[1], g.Acks = 4, 1; write(b, 3); b.Send(0, g) }},
		{"covered pages", func(b *node, g *wire.Message) { g.Args[2] = 1 << 5; write(b, 3); b.Send(0, g) }},
		{"zeros", func(b *node, g *wire.Message) { g.Flags = wire.FlagZero; write(b, 3); b.Send(0, g) }},
		{"no right", func(b *node, g *wire.Message) { g.Mode = wire.None; write(b, 3); b.Send(0, g) }},
		{"another epoch", func(b *node, g *wire.Message) { g.Epoch++; write(b, 3); b.Send(0, g) }},
		{"another kind", func(b *node, g *wire.Message) { g.Kind = wire.InvAck; write(b, 3); b.Send(0, g) }},
		{"another slot", func(b *node, g *wire.Message) { write(b, 4); b.Send(0, g) }},
		{"no write", func(b *node, g *wire.Message) { b.Send(0, g) }},
		{"the write has left", func(b *node, g *wire.Message) { write(b, 3); b.Flush(); b.Send(0, g) }},
		{"two pages", func(b *node, g *wire.Message) { write(b, 2); write(b, 3); b.Send(0, g) }},
		{"a read in between", func(b *node, g *wire.Message) {
			write(b, 3)
			b.ReadPage(0, 0, 0, over(wire.Fetched, 0, 0))
			b.Send(0, g)
		}},
		{"a message before", func(b *node, g *wire.Message) {
			first := *g
			first.Kind = wire.Done
			b.Send(0, &first)
			write(b, 3)
			b.Send(0, g)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ns := mesh(t, 2, Options{})
			a, b := ns[0], ns[1]
			g := grant(a, b, 3, 9)
			asks(a, b, wire.GetS, g)
			before := b.sends()
			c.post(b, g)
			b.Flush()
			got := a.get()
			if got.Kind == wire.Done {
				got = a.get()
			}
			if got != *g || b.sends() != before+1 {
				t.Errorf("got %+v, want %+v, in %d messages", got, *g, b.sends()-before)
			}
		})
	}
}

// A brief grant of what was not asked for loses its sender.
func TestBriefGrantsAreChecked(t *testing.T) {
	for _, c := range []struct {
		name  string
		bytes uint32
		imm   func(l *Lane, g *wire.Message) uint32
	}{
		{"another transaction", page, func(l *Lane, g *wire.Message) uint32 { g.Txn++; imm, _ := l.brief(0, g); return imm }},
		{"another slot", page, func(l *Lane, g *wire.Message) uint32 { g.Slot++; imm, _ := l.brief(0, g); return imm }},
		{"no slot", page, func(l *Lane, g *wire.Message) uint32 { g.Slot = slotPages; imm, _ := l.brief(0, g); return imm }},
		{"any bits", page, func(*Lane, *wire.Message) uint32 { return 1<<32 - 1 }},
		{"no page", 64, func(l *Lane, g *wire.Message) uint32 { imm, _ := l.brief(0, g); return imm }},
		{"twice", page, func(l *Lane, g *wire.Message) uint32 {
			imm, _ := l.brief(0, g)
			l.links[0].batch.WriteImm(1, 0, l.memMR.SGE(0, page), l.links[0].landing(g), imm)
			return imm
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ns := mesh(t, 3, Options{})
			a, b := ns[0], ns[1]
			g := grant(a, b, 3, 9)
			landing := b.links[0].landing(g)
			asks(a, b, wire.GetS, g)
			bad := b.links[0].batch
			if !bad.WriteImm(1, 0, b.memMR.SGE(0, c.bytes), landing, c.imm(b.Lane, g)) {
				t.Fatal("not sent")
			}
			_, err := bad.Post()
			must(t, err)
			if lost := a.loss(); lost.Peer != 1 || lost.Op != "poll" || !errors.Is(lost, fabric.ErrGarbled) {
				t.Errorf("got %v", lost)
			}
			works(t, a, ns[2])
		})
	}
}

func TestBriefGrantsDoNotAllocate(t *testing.T) {
	ns := mesh(t, 2, Options{})
	a, b := ns[0], ns[1]
	g := grant(a, b, 3, 9)
	ask := wire.Message{Kind: wire.GetS, From: a.id, Requester: a.id, Epoch: 7, Txn: g.Txn, Slot: g.Slot, Page: g.Page}
	var ms [1]wire.Message
	take := func(n *node, kind wire.Kind) {
		for {
			if k, lost := n.Poll(ms[:]); lost != nil || k > 0 {
				if lost != nil || ms[0].Kind != kind {
					t.Fatal(ms[0], lost)
				}
				return
			}
		}
	}
	round := func() {
		a.Send(1, &ask)
		a.Flush()
		take(b, wire.GetS)
		b.WritePage(0, fabric.Slots, 3*page, fabric.RAM, uint64(g.Page)*page)
		b.Send(0, g)
		b.Flush()
		take(a, wire.Grant)
	}
	if n := testing.AllocsPerRun(50, round); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if b.sends() != 0 {
		t.Errorf("%d of the grants took a message", b.sends())
	}
}

// A time is rounded down by less than a 32nd.
func TestSpentIsRounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ns := rapid.Uint32().Draw(t, "ns")
		b := packSpent(ns)
		if got := unpackSpent(b); b >= 1<<briefSpentBits || got > ns || uint64(ns-got)*32 > uint64(ns) || ns < 64 && got != ns {
			t.Fatalf("%d became %#x, %d", ns, b, got)
		}
	})
}

// FuzzExpand: whatever 32 bits come, they are refused or are a grant that its sender could have said so.
func FuzzExpand(f *testing.F) {
	cfg := fabric.Config{Self: 2, Nodes: 3, Epoch: 7}
	l := &Lane{cfg: cfg, questions: make([]question, slotPages)}
	for i := range l.questions {
		l.questions[i] = question{page: wire.PFN(i), txn: uint32(i * i), open: true}
	}
	sender := &Lane{cfg: fabric.Config{Self: 1, Nodes: 3, Epoch: 7}}
	f.Add(uint32(0), true)
	f.Add(uint32(3<<briefSlotShift|9<<briefTxnShift|1<<briefModeShift|77), true)
	f.Fuzz(func(t *testing.T, imm uint32, open bool) {
		slot := imm >> briefSlotShift
		if slot < slotPages {
			l.questions[slot].open = open
		}
		var m wire.Message
		if !l.expand(1, imm, &m) {
			return
		}
		again, ok := sender.brief(2, &m)
		if !ok || !open || l.questions[slot].open || m.Txn != slot*slot || m.Page != wire.PFN(slot) ||
			unpackSpent(again%(1<<briefSpentBits)) != m.Spent || (again^imm)>>briefModeShift != 0 {
			t.Fatalf("%#x became %+v, %#x", imm, m, again)
		}
	})
}
