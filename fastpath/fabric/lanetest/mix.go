// Package lanetest holds the forms of a lane against what package fabric promises of all of them.
package lanetest

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"

	"ironspan/engine/wire"
	"ironspan/fastpath/fabric"
)

// Node is a node's end of a lane that connects all nodes, and its memory.
type Node struct {
	fabric.Endpoint
	Frame func(page int) []byte // a page of RAM; those of node n's home range are n*pages to (n+1)*pages
	Slot  func(slot uint32) []byte
}

// Mix has all nodes post reads, writes and messages at random until each has posted count, and holds what comes of them
// against a model. Each page has one node that writes it, with a version, and that reads it, asks its home for it or tells
// its home of it; while somebody relies on it, it stays as it is. One goroutine drives all nodes.
func Mix(t testing.TB, nodes []Node, epoch wire.Epoch, pages, slots, count int, seed uint64) {
	t.Helper()
	x := &mix{
		t: t, rng: rand.New(rand.NewPCG(seed, 0)), seed: seed, nodes: nodes, epoch: epoch, pages: pages,
		frames: make([]frame, len(nodes)*pages), links: make([]link, len(nodes)*len(nodes)), words: map[uint32]word{},
	}
	for range nodes {
		var free []uint32
		for s := range slots {
			free = append(free, uint32(s))
		}
		x.free = append(x.free, free)
	}
	posted := make([]int, len(nodes))
	for end := time.Now().Add(2 * time.Minute); ; {
		idle := true
		for i := range nodes {
			for burst := x.rng.IntN(24); burst > 0 && posted[i] < count; burst-- {
				if x.post(i) {
					posted[i]++
				}
			}
			nodes[i].Flush()
			if x.rng.IntN(4) == 0 {
				nodes[i].Arm()
			}
			x.poll(i)
			idle = idle && posted[i] == count
		}
		if idle && x.atRest() {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("seed %d: stuck after %d posts: %d words to come, links %+v", seed, posted, len(x.words), x.links)
		}
	}
	for g := range x.frames {
		if f := &x.frames[g]; !stamped(nodes[g/pages].Frame(g), g, f.version) {
			t.Errorf("seed %d: at the end, page %d is not of version %d", seed, g, f.version)
		}
	}
	for i := range nodes {
		if len(x.free[i]) != slots {
			t.Errorf("seed %d: at the end, node %d has %d slots", seed, i, len(x.free[i]))
		}
	}
}

// mix is the model.
type mix struct {
	t      testing.TB
	rng    *rand.Rand
	seed   uint64
	nodes  []Node
	epoch  wire.Epoch
	pages  int
	frames []frame
	links  []link          // from i to p: i*len(nodes)+p
	free   [][]uint32      // by node
	words  map[uint32]word // to come, by Txn
	txn    uint32
	buf    [wire.PageSize]byte
}

type frame struct {
	version uint64 // last posted; 0: none yet
	users   int    // reads and messages that are on their way and about it
}

type link struct {
	sent, got      uint64 // messages
	writes, landed uint64 // posted, and known to have arrived
}

type word struct {
	wire.Message
	node    int
	version uint64
}

// Most messages and writes on their way from one node to another: fewer than any lane of a test can hold back.
const window = 100

func stamp(b []byte, g int, version uint64) {
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], version<<32|uint64(g)<<16|uint64(i))
	}
}

// stamped: version 0 is what nobody wrote.
func stamped(b []byte, g int, version uint64) bool {
	for i := 0; i < len(b); i += 8 {
		want := version<<32 | uint64(g)<<16 | uint64(i)
		if version == 0 {
			want = 0
		}
		if binary.LittleEndian.Uint64(b[i:]) != want {
			return false
		}
	}
	return true
}

// mine draws a page that node i writes; another one is its home.
func (x *mix) mine(i int) int {
	for {
		g := x.rng.IntN(len(x.frames))
		home, writer := g/x.pages, g%len(x.nodes)
		if writer == home {
			writer = (writer + 1) % len(x.nodes)
		}
		if writer == i {
			return g
		}
	}
}

// post has node i post something, if it may.
func (x *mix) post(i int) bool {
	g := x.mine(i)
	f, home := &x.frames[g], g/x.pages
	n, k, peer, off := x.nodes[i], &x.links[i*len(x.nodes)+home], wire.NodeID(home), uint64(g)*wire.PageSize
	switch x.rng.IntN(6) {
	case 0:
		if k.sent-k.got == window {
			return false
		}
		x.tell(i, g)
	case 1, 2:
		over := x.word(i, wire.Fetched, g)
		if over == nil {
			return false
		}
		f.users++
		clear(n.Slot(over.Slot))
		n.ReadPage(peer, off, over.Slot, over)
		*over = wire.Message{} // it was copied
	case 3:
		over := x.word(i, wire.Grant, g)
		if over == nil {
			return false
		}
		f.users++
		clear(n.Slot(over.Slot))
		n.Send(peer, &wire.Message{
			Kind: wire.GetS, From: wire.NodeID(i), Requester: wire.NodeID(i), Epoch: x.epoch, Txn: over.Txn, Slot: over.Slot,
			Page: over.Page,
		})
	default:
		for tries := 0; f.users > 0 && tries < 16; tries++ {
			g = x.mine(i)
			f, home = &x.frames[g], g/x.pages
			k, peer, off = &x.links[i*len(x.nodes)+home], wire.NodeID(home), uint64(g)*wire.PageSize
		}
		if f.users > 0 || k.writes-k.landed == window {
			return false
		}
		var over *wire.Message
		f.version++
		if x.rng.IntN(2) == 0 {
			if over = x.word(i, wire.Parked, g); over == nil {
				f.version--
				return false
			}
		}
		k.writes++
		stamp(x.buf[:], g, f.version)
		n.WriteBytes(peer, fabric.RAM, off, x.buf[:], over)
		clear(x.buf[:])
	}
	return true
}

// tell has node i send a page's home a message about it.
func (x *mix) tell(i, g int) {
	home := g / x.pages
	k := &x.links[i*len(x.nodes)+home]
	x.frames[g].users++
	k.sent++
	x.nodes[i].Send(wire.NodeID(home), &wire.Message{
		Kind: wire.Done, From: wire.NodeID(i), Txn: uint32(k.sent), Page: wire.PFN(g),
		Args: [4]uint64{x.frames[g].version, k.writes},
	})
}

// grant is the home's answer to a question: every other one with a tenure, which a lane may need more room for.
func (x *mix) grant(requester, home wire.NodeID, txn, slot uint32, page wire.PFN) *wire.Message {
	return &wire.Message{
		Kind: wire.Grant, From: home, Flags: wire.FlagData, Requester: requester, Mode: wire.Shared, Epoch: x.epoch,
		Txn: txn, Slot: slot, Page: page, Args: [4]uint64{uint64(txn % 2)},
	}
}

// answer has node i send a page that it is asked for.
func (x *mix) answer(i int, m *wire.Message) {
	n := x.nodes[i]
	n.WritePage(m.From, fabric.Slots, uint64(m.Slot)*wire.PageSize, fabric.RAM, uint64(m.Page)*wire.PageSize)
	n.Send(m.From, x.grant(m.From, wire.NodeID(i), m.Txn, m.Slot, m.Page))
}

// word takes a slot for a word, or an answer, and returns a copy; nil if there is none.
func (x *mix) word(i int, kind wire.Kind, g int) *wire.Message {
	free := x.free[i]
	if len(free) == 0 {
		return nil
	}
	at := x.rng.IntN(len(free))
	x.txn++
	m := wire.Message{
		Kind: kind, From: wire.NodeID(g / x.pages), Requester: wire.NodeID(i), Txn: x.txn, Slot: free[at], Page: wire.PFN(g),
	}
	if kind == wire.Grant {
		m = *x.grant(m.Requester, m.From, m.Txn, m.Slot, m.Page)
	}
	free[at] = free[len(free)-1]
	x.free[i] = free[:len(free)-1]
	x.words[x.txn] = word{m, i, x.frames[g].version}
	return &m
}

// poll takes what has come to node i.
func (x *mix) poll(i int) {
	x.t.Helper()
	var ms [6]wire.Message
	n, lost := x.nodes[i].Poll(ms[:1+x.rng.IntN(len(ms))])
	if lost != nil {
		x.t.Fatalf("seed %d: node %d: %v", x.seed, i, lost)
	}
	for _, m := range ms[:n] {
		g := int(m.Page)
		if m.Kind == wire.GetS {
			x.answer(i, &m)
			continue
		}
		if m.Kind == wire.Done {
			k := &x.links[int(m.From)*len(x.nodes)+i]
			if k.got++; m.Txn != uint32(k.got) {
				x.t.Fatalf("seed %d: node %d got message %d of node %d, want %d", x.seed, i, m.Txn, m.From, k.got)
			}
			if !stamped(x.nodes[i].Frame(g), g, m.Args[0]) {
				x.t.Fatalf("seed %d: version %d of page %d is not there with its message", x.seed, m.Args[0], g)
			}
			k.landed = m.Args[1]
			x.frames[g].users--
			continue
		}
		w, ok := x.words[m.Txn]
		if !ok || w.Message != m || w.node != i {
			x.t.Fatalf("seed %d: node %d got the word %+v, want %+v at node %d", x.seed, i, m, w.Message, w.node)
		}
		delete(x.words, m.Txn)
		x.free[i] = append(x.free[i], m.Slot)
		if m.Kind != wire.Parked {
			x.frames[g].users--
			if !stamped(x.nodes[i].Slot(m.Slot), g, w.version) {
				x.t.Fatalf("seed %d: node %d got something else than version %d of page %d", x.seed, i, w.version, g)
			}
		} else if w.version == x.frames[g].version && !stamped(x.nodes[g/x.pages].Frame(g), g, w.version) {
			x.t.Fatalf("seed %d: version %d of page %d is not there at its word", x.seed, w.version, g)
		}
	}
}

// atRest says whether nothing is on its way that will be heard of. What was written without a word, and no message
// came after, is made to be heard of.
func (x *mix) atRest() bool {
	rest := len(x.words) == 0
	for at := range x.links {
		k, i, p := &x.links[at], at/len(x.nodes), at%len(x.nodes)
		if k.sent == k.got && k.writes != k.landed {
			g := x.mine(i)
			for g/x.pages != p {
				g = x.mine(i)
			}
			x.tell(i, g)
		}
		rest = rest && k.sent == k.got
	}
	return rest
}
