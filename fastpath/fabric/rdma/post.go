package rdma

import (
	"errors"

	"ironspan/engine/wire"
	"ironspan/fastpath/fabric"
	"ironspan/verbs"
)

var (
	errNotConnected = errors.New("a post before the link was connected")
	errBounce       = errors.New("it acknowledges no pages: all bounce pages are in use")
)

func (k *link) sendID() uint64 { return uint64(k.id)<<idPeerShift | uint64(k.posted) }

func (k *link) recvID(buf uint32) uint64 { return uint64(k.id)<<idPeerShift | idRecv | uint64(buf) }

// room says whether the send queue takes one more request, and the packet's.
func (k *link) room(l *Lane) bool {
	used := k.posted - k.finished
	if k.packetLen > 0 {
		used++
	}
	return used < uint32(l.opt.SendWR)
}

// open says whether one more message can go out with the next Flush.
func (k *link) open(l *Lane) bool { return k.packetLen > 0 || k.credits > 0 && k.room(l) }

// ready says whether posts to k make sense, and loses it when they can only be a mistake.
func (l *Lane) ready(k *link, op string) bool {
	if k.state == linkNone {
		l.lose(k, op, errNotConnected)
	}
	return k.state == linkUp
}

// Send posts m to peer.
func (l *Lane) Send(peer wire.NodeID, m *wire.Message) {
	k := &l.links[peer]
	if !l.ready(k, "send") {
		return
	}
	if m.From != l.cfg.Self {
		l.lose(k, "send", fabric.ErrGarbled)
		return
	}
	l.ask(m)
	if k.heldLen == 0 && k.open(l) {
		m.Encode(l.emitMessage(k))
		l.emitFull(k)
		return
	}
	if h := l.hold(k, "send"); h != nil {
		h.verb = fabric.Send
		m.Encode(h.msg[:])
	}
}

// WritePage posts a write of one of this node's own frames to peer.
func (l *Lane) WritePage(peer wire.NodeID, dst fabric.Region, dstOff uint64, src fabric.Region, srcOff uint64) {
	k := &l.links[peer]
	if !l.ready(k, "write") {
		return
	}
	remote, ok := k.remote(dst, dstOff)
	local, have := l.local(src, srcOff)
	if !ok || !have {
		l.lose(k, "write", fabric.ErrRange)
		return
	}
	l.access(k, access{verb: fabric.Write, local: local, remote: remote}, nil)
}

// WriteBytes posts a write of a copy of page to peer.
func (l *Lane) WriteBytes(peer wire.NodeID, dst fabric.Region, dstOff uint64, page []byte, over *wire.Message) {
	k := &l.links[peer]
	if !l.ready(k, "write") {
		return
	}
	remote, ok := k.remote(dst, dstOff)
	if !ok || len(page) != wire.PageSize {
		l.lose(k, "write", fabric.ErrRange)
		return
	}
	if k.pagesUsed-k.pagesDone >= uint64(l.opt.Bounce) && !l.reap(k) {
		l.lose(k, "write", errBounce)
		return
	}
	off := k.pageAt + k.pagesUsed%uint64(l.opt.Bounce)*wire.PageSize
	copy(l.mem.Bytes()[off:off+wire.PageSize], page)
	k.pagesUsed++
	l.access(k, access{verb: fabric.Write, bounce: true, local: l.memMR.SGE(off, wire.PageSize), remote: remote}, over)
}

// ReadPage posts a read of a home frame of peer into a slot.
func (l *Lane) ReadPage(peer wire.NodeID, srcOff uint64, slot uint32, over *wire.Message) {
	k := &l.links[peer]
	if !l.ready(k, "read") {
		return
	}
	remote, ok := k.ram.at(srcOff)
	local, have := l.local(fabric.Slots, uint64(slot)*wire.PageSize)
	if !ok || !have {
		l.lose(k, "read", fabric.ErrRange)
		return
	}
	l.access(k, access{verb: fabric.Read, local: local, remote: remote}, over)
}

// remote is where an offset of the peer's region is.
func (k *link) remote(r fabric.Region, off uint64) (verbs.Remote, bool) {
	switch r {
	case fabric.RAM:
		return k.ram.at(off)
	case fabric.Slots:
		return k.slots.at(off)
	}
	return verbs.Remote{}, false
}

// local is the page at an offset of this node's own region; only home frames and slots are registered.
func (l *Lane) local(r fabric.Region, off uint64) (verbs.SGE, bool) {
	mr := l.slots
	if r == fabric.RAM {
		mr = l.home
		if mr == nil || off < l.cfg.Homes[l.cfg.Self].First {
			return verbs.SGE{}, false
		}
		off -= l.cfg.Homes[l.cfg.Self].First
	}
	if mr == nil || r > fabric.Slots || off%wire.PageSize != 0 || off >= mr.Len() {
		return verbs.SGE{}, false
	}
	return mr.SGE(off, wire.PageSize), true
}

// access posts an operation on a page, and keeps the word for its end, if there is to be one.
func (l *Lane) access(k *link, a access, over *wire.Message) {
	if over != nil && !l.promise(k, a.verb.String(), over) {
		return
	}
	a.word = over != nil
	if k.heldLen == 0 && l.extend(k, &a) {
		return
	}
	if k.heldLen == 0 && k.room(l) {
		l.emitAccess(k, &a)
		return
	}
	if h := l.hold(k, a.verb.String()); h != nil {
		h.access = a
	}
}

// promise takes a place in the ring of words; false if that cannot be: then the peer is lost.
func (l *Lane) promise(k *link, op string, over *wire.Message) bool {
	switch {
	case over.From != k.id:
		l.lose(k, op, fabric.ErrGarbled)
		return false
	case k.wordsUsed-k.wordsTold == uint64(len(k.words)):
		l.lose(k, op, fabric.ErrWords)
		return false
	}
	k.words[k.wordsUsed%uint64(len(k.words))] = *over
	k.wordsUsed++
	return true
}

// hold takes a place in the ring of posts that wait; nil if there is none: then the peer is lost.
func (l *Lane) hold(k *link, op string) *heldPost {
	if k.heldLen == len(k.held) {
		l.lose(k, op, fabric.ErrOverflow)
		return nil
	}
	i := k.heldHead + k.heldLen
	if i >= len(k.held) {
		i -= len(k.held)
	}
	k.heldLen++
	l.stats.HeldBack.Add(1)
	return &k.held[i]
}

// pump emits posts that wait, in order, as far as credits and room go.
func (l *Lane) pump(k *link) {
	for k.heldLen > 0 {
		h := &k.held[k.heldHead]
		switch {
		case h.verb != fabric.Send && k.room(l):
			l.emitAccess(k, &h.access)
		case h.verb == fabric.Send && k.open(l):
			copy(l.emitMessage(k), h.msg[:])
			l.emitFull(k)
		default:
			return
		}
		k.heldLen--
		if k.heldHead++; k.heldHead == len(k.held) {
			k.heldHead = 0
		}
	}
}

// next numbers a request and says whether it has to ask for a completion: always if its end is to be told, and
// otherwise often enough that a full queue, or a dearth of bounce pages, always has a completion to come.
func (l *Lane) next(k *link, word bool) (id uint64, f verbs.SendFlags) {
	k.posted++
	l.open |= 1 << k.id
	k.run.pages = 0
	if word || k.posted-k.signalled >= uint32(l.opt.SendWR/4) ||
		k.pagesSent-k.mark(k.signalled).pages >= uint64(max(l.opt.Bounce/2, 1)) {
		f = verbs.Signaled
		k.signalled = k.posted
		*k.mark(k.posted) = mark{k.pagesSent, k.wordsSent}
	}
	return k.sendID(), f
}

// emitMessage returns the place of one more message in the packet. The caller has checked that it is open.
func (l *Lane) emitMessage(k *link) []byte {
	if k.packetLen == 0 {
		k.credits--
		l.touch(k)
	}
	at := k.packetLen
	k.packetLen += wire.Size
	return k.packet[at:k.packetLen:k.packetLen]
}

// emitFull adds a packet that takes no more messages to the batch.
func (l *Lane) emitFull(k *link) {
	if k.packetLen == k.packetMax {
		l.emitPacket(k)
	}
}

// emitPacket adds the packet to the batch, behind the pages that its messages may be about.
func (l *Lane) emitPacket(k *link) {
	if l.emitBrief(k) {
		return
	}
	id, f := l.next(k, false)
	k.batch.SendInlineImm(id, f, k.packet[:k.packetLen], uint32(k.owed))
	l.stats.Posted[fabric.Send].Add(uint64(k.packetLen))
	k.owed, k.packetLen = 0, 0
}

// emitAccess adds an operation on a page to the batch. The caller has checked the room.
func (l *Lane) emitAccess(k *link, a *access) {
	if a.bounce {
		k.pagesSent++
	}
	if a.word {
		k.wordsSent++
	}
	id, f := l.next(k, a.word)
	if a.verb == fabric.Read {
		k.batch.Read(id, f, a.local, a.remote)
	} else {
		k.batch.Write(id, f, a.local, a.remote)
	}
	l.stats.Posted[a.verb].Add(wire.PageSize)
	l.touch(k)
	k.run = run{verb: a.verb, pages: 1, next: a.remote, closed: a.bounce || a.word != (a.verb == fabric.Read)}
	k.run.next.Addr += wire.PageSize
}

// extend has the last request take a page more, if it can: of reads all are told the end of, of writes none.
func (l *Lane) extend(k *link, a *access) bool {
	r := &k.run
	if r.pages == 0 || r.pages == runPages || r.closed || a.verb != r.verb || a.remote != r.next || a.bounce ||
		a.word != (a.verb == fabric.Read) || !k.batch.AddSGE(a.local) {
		return false
	}
	r.pages++
	r.next.Addr += wire.PageSize
	if a.word { // then the request asked for its completion
		k.wordsSent++
		k.mark(k.posted).words = k.wordsSent
	}
	l.stats.Posted[a.verb].Bytes.Add(wire.PageSize)
	return true
}

// emitCredits returns credits by a SEND of their own when so many are due that the peer may be short of
// them, and no packet takes them along. It is tried again by every Poll until there is room.
func (l *Lane) emitCredits(k *link) {
	if k.owed < (l.opt.Depth+1)/2 || k.packetLen > 0 || !k.room(l) {
		return
	}
	id, f := l.next(k, false)
	k.batch.SendInlineImm(id, f, nil, uint32(k.owed))
	k.owed = 0
	l.stats.Posted[fabric.Send].Add(0)
	l.touch(k)
}

// touch notes that the link's batch wants a doorbell.
func (l *Lane) touch(k *link) {
	if !k.dirty {
		k.dirty = true
		l.dirty = append(l.dirty, k.id)
	}
}

// Flush ends the packets and rings the doorbell of every link with posts in its batch. Where somebody sleeps who had
// nothing to wait for, it sees to it that he hears of the end of these.
func (l *Lane) Flush() {
	if l.resting && len(l.dirty) > 0 && !l.out.watched() {
		l.arm(&l.out)
	}
	for _, id := range l.dirty {
		k := &l.links[id]
		k.dirty = false
		if k.state != linkUp {
			continue
		}
		if k.packetLen > 0 {
			l.emitPacket(k)
		}
		if k.batch.Len() == 0 {
			continue
		}
		l.stats.Doorbells.Add(1)
		k.run.pages = 0
		if _, err := k.batch.Post(); err != nil {
			l.lose(k, "send", err)
		}
	}
	l.dirty = l.dirty[:0]
}
