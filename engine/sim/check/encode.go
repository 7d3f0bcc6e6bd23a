package check

import (
	"bytes"
	"encoding/binary"

	"ironspan/engine/coherence"
	"ironspan/engine/wire"
)

// folder writes states down and restores them.
type folder struct {
	renamings  []renaming
	naming     coherence.Naming
	least, try []byte
}

// fold returns the least of the encodings that the state has under the cluster's symmetries, and the renaming
// that gives it. The encoding is valid until the next call.
func (f *folder) fold(w *world) ([]byte, *renaming) {
	var by *renaming
	for i := range f.renamings {
		r := &f.renamings[i]
		f.try = f.append(f.try[:0], w, r)
		if by == nil || bytes.Compare(f.try, f.least) < 0 {
			f.least, f.try, by = f.try, f.least, r
		}
	}
	return f.least, by
}

func (f *folder) append(b []byte, w *world, r *renaming) []byte {
	n := &f.naming
	n.Reset(r.nodes, r.pages)
	for _, id := range r.nodesBack {
		x := &w.nodes[id]
		b = append(b, byte(x.reads)<<4|byte(x.writes), byte(x.evictions)<<1|byteOf(x.idle))
		if w.cfg.Tenure.Base > 0 {
			b = append(b, w.phase(x))
		}
		b = w.agents[id].AppendState(b, x.now, n)
		for _, p := range r.pagesBack {
			g := &x.pages[p]
			b = append(b, byte(g.guest)|byte(g.frame)<<2|byte(g.reader)<<4|byte(g.writer)<<6)
		}
		for _, s := range n.Slots(id) {
			k := &x.slots[s]
			b = append(b, byte(k.bytes))
			if k.bytes != absent {
				b = append(b, byte(n.Page(k.page)))
			}
		}
	}
	for _, from := range r.nodesBack {
		for _, to := range r.nodesBack {
			l := w.links[from][to]
			if from == to {
				continue
			}
			b = appendPackets(b, l, n)
			b = appendPackets(b, w.words[from][to], n)
		}
	}
	for _, p := range r.pagesBack {
		b = append(b, byteOf(w.zero[p]))
	}
	return b
}

func byteOf(x bool) byte {
	if x {
		return 1
	}
	return 0
}

// phase is whose turn it is by a node's clock. If no page is kept beyond the least tenure nobody asks.
func (w *world) phase(x *node) byte {
	if w.cfg.Tenure.Max == w.cfg.Tenure.Base {
		return 0
	}
	return byte(x.now / w.cfg.turn() % int64(w.cfg.Nodes))
}

func appendPackets(b []byte, l []packet, n *coherence.Naming) []byte {
	b = append(b, byte(len(l)))
	for i := range l {
		b = appendPacket(b, &l[i], n)
	}
	return b
}

func appendPacket(b []byte, k *packet, n *coherence.Naming) []byte {
	m := &k.msg
	b = append(b, byte(m.Kind)|byte(m.Flags)<<4, byte(k.bytes)|byte(m.Mode)<<2|m.Acks<<4, byte(n.Node(m.Requester)),
		byte(n.Slot(m.Requester, m.Slot)), byte(n.Txn(m.Requester, m.Txn)), byte(n.Page(m.Page)))
	b = binary.AppendUvarint(b, m.Args[0])
	b = binary.AppendUvarint(b, n.Nodes(m.Args[1]))
	return binary.AppendUvarint(b, n.PageSet(m.Args[2]))
}

// unfold puts the world into the state that b encodes.
func (w *world) unfold(b []byte) {
	w.err = nil
	for id := range w.nodes {
		x := &w.nodes[id]
		x.reads, x.writes, x.idle = int(b[0]>>4), int(b[0]&0xf), b[1]&1 != 0
		x.evictions = int(b[1] >> 1)
		b = b[2:]
		x.now = w.cfg.start()
		if w.cfg.Tenure.Base > 0 {
			x.now += int64(b[0]) * w.cfg.turn()
			b = b[1:]
		}
		b = w.agents[id].SetState(b, x.now)
		for p := range x.pages {
			g := b[p]
			x.pages[p] = page{wire.Mode(g & 3), content(g >> 2 & 3), vcpu(g >> 4 & 3), vcpu(g >> 6)}
		}
		b = b[len(x.pages):]
		for s := range x.slots {
			x.slots[s] = receiveSlot{bytes: content(b[0])}
			if b = b[1:]; x.slots[s].bytes != absent {
				x.slots[s].page = wire.PFN(b[0])
				b = b[1:]
			}
		}
	}
	for from := range w.links {
		for to := range w.links[from] {
			if from == to {
				continue
			}
			w.links[from][to], b = w.readPackets(w.links[from][to][:0], b, wire.NodeID(from))
			w.words[from][to], b = w.readPackets(w.words[from][to][:0], b, wire.NodeID(from))
		}
	}
	for p := range w.zero {
		w.zero[p] = b[p] != 0
	}
}

// readPackets reads what appendPackets wrote. The word of an operation is the home's, whichever way it goes.
func (w *world) readPackets(l []packet, b []byte, from wire.NodeID) ([]packet, []byte) {
	count := b[0]
	b = b[1:]
	for range count {
		var k packet
		k, b = readPacket(b)
		if k.msg.From = from; k.msg.Kind > wire.CoherenceLast {
			k.msg.From = w.cfg.homeOf(k.msg.Page)
		}
		l = append(l, k)
	}
	return l, b
}

func readPacket(b []byte) (k packet, rest []byte) {
	k.bytes = content(b[1] & 3)
	k.msg = wire.Message{
		Kind: wire.Kind(b[0] & 0xf), Flags: wire.Flags(b[0] >> 4), Mode: wire.Mode(b[1] >> 2 & 3), Acks: b[1] >> 4,
		Requester: wire.NodeID(b[2]), Slot: uint32(b[3]), Txn: uint32(b[4]), Page: wire.PFN(b[5]), Epoch: 1,
	}
	b = b[6:]
	for i := range 3 {
		x, n := binary.Uvarint(b)
		k.msg.Args[i] = x
		b = b[n:]
	}
	return k, b
}
