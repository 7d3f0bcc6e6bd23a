package shm

import (
	"math/bits"
	"slices"

	"golang.org/x/sys/unix"

	"ironspan/engine/wire"
	"ironspan/fastpath/fabric"
)

// checkEvery is how many polls pass between two looks at the peers' processes while the lane never sleeps.
const checkEvery = 4096

// WritePage copies a page of this node's memory to peer.
func (l *Lane) WritePage(peer wire.NodeID, dst fabric.Region, dstOff uint64, src fabric.Region, srcOff uint64) {
	from := l.ram
	if src == fabric.Slots {
		from = l.slots
	}
	if l.isUp(peer) {
		l.copy(peer, fabric.Write, l.links[peer].page(dst, dstOff), pageOf(from, srcOff), nil)
	}
}

// WriteBytes copies a page to peer.
func (l *Lane) WriteBytes(peer wire.NodeID, dst fabric.Region, dstOff uint64, page []byte, over *wire.Message) {
	if l.isUp(peer) {
		l.copy(peer, fabric.Write, l.links[peer].page(dst, dstOff), page, over)
	}
}

// ReadPage copies a home frame of peer.
func (l *Lane) ReadPage(peer wire.NodeID, srcOff uint64, slot uint32, over *wire.Message) {
	if l.isUp(peer) {
		from := l.links[peer].page(fabric.RAM, srcOff)
		l.copy(peer, fabric.Read, pageOf(l.slots, uint64(slot)*wire.PageSize), from, over)
	}
}

// pageOf returns a page of mem, which is a whole number of them; nil if it is none of them.
func pageOf(mem []byte, off uint64) []byte {
	if off%wire.PageSize != 0 || off >= uint64(len(mem)) {
		return nil
	}
	return mem[off : off+wire.PageSize]
}

// page returns a page of the peer's memory; nil if it did not offer it.
func (k *link) page(r fabric.Region, off uint64) []byte {
	if r == fabric.RAM {
		return pageOf(k.home, off-k.first) // wraps if below: then it is none of them
	}
	return pageOf(k.slots, off)
}

// copy copies a page between this node's memory and that of a peer, which is up. With that it is over: the word is due.
func (l *Lane) copy(peer wire.NodeID, v fabric.Verb, to, from []byte, over *wire.Message) {
	switch {
	case len(to) != wire.PageSize || len(from) != wire.PageSize:
		l.lose(peer, v.String(), fabric.ErrRange)
		return
	case over != nil && over.From != peer:
		l.lose(peer, v.String(), fabric.ErrGarbled)
		return
	case over != nil && len(l.words) == cap(l.words):
		l.lose(peer, v.String(), fabric.ErrWords)
		return
	}
	copy(to, from)
	l.stats.Posted[v].Add(wire.PageSize)
	if over != nil {
		l.words = append(l.words, *over)
	}
}

func (l *Lane) isUp(peer wire.NodeID) bool { return peer < wire.MaxNodes && l.up&(1<<peer) != 0 }

// Send puts m into the peer's ring or, if there is no room, into the backlog.
func (l *Lane) Send(peer wire.NodeID, m *wire.Message) {
	if !l.isUp(peer) {
		return
	}
	k := &l.links[peer]
	l.stats.Posted[fabric.Send].Add(wire.Size)
	l.posted |= 1 << peer
	if k.heldLen == 0 && (k.tail != k.room || l.lookForRoom(peer)) {
		k.put(m)
		return
	}
	if !l.isUp(peer) { // lookForRoom found nonsense
		return
	}
	if k.heldLen == len(k.held) {
		l.lose(peer, "send", fabric.ErrOverflow)
		return
	}
	k.held[(k.heldHead+k.heldLen)%len(k.held)] = *m
	k.heldLen++
	l.backlog |= 1 << peer
	l.stats.HeldBack.Add(1)
}

// put encodes m into the next entry, for which there is room.
func (k *link) put(m *wire.Message) {
	m.Encode(k.out.entry(k.tail))
	k.tail++
}

// lookForRoom reads how far the peer is, and says whether there is room for a message.
func (l *Lane) lookForRoom(peer wire.NodeID) bool {
	k := &l.links[peer]
	head := k.out.head.Load()
	if k.tail-head > k.out.size() {
		l.lose(peer, "send", fabric.ErrGarbled)
		return false
	}
	k.room = head + k.out.size()
	return k.tail != k.room
}

// release what is held back, as far as there is room.
func (l *Lane) unhold(peer wire.NodeID) {
	k := &l.links[peer]
	for k.heldLen > 0 && (k.tail != k.room || l.lookForRoom(peer)) {
		k.put(&k.held[k.heldHead])
		k.heldHead = (k.heldHead + 1) % len(k.held)
		k.heldLen--
	}
	l.posted |= 1 << peer
	if k.heldLen == 0 {
		l.backlog &^= 1 << peer
	}
}

// publish makes entries visible to the peer.
func (k *link) publish() {
	if k.tail != k.published {
		k.published = k.tail
		order(k.out.tail, k.tail)
	}
}

// Flush publishes what was put into rings, and wakes the peers that sleep.
func (l *Lane) Flush() {
	for set := l.posted & l.up; set != 0; set &= set - 1 {
		peer := wire.NodeID(bits.TrailingZeros64(set))
		k := &l.links[peer]
		k.publish()
		if k.heldLen > 0 {
			// The peer is to tell when there is room; unless it made some just now.
			order(k.out.waiting, 1)
			l.unhold(peer)
			if !l.isUp(peer) {
				continue
			}
			k.publish()
		}
		if k.out.sleeping.Load() != 0 && k.out.sleeping.CompareAndSwap(1, 0) {
			strike(k.bell, l.scratch[:])
			l.stats.Doorbells.Add(1)
		}
	}
	l.posted = 0
}

// Poll takes messages out of the rings, one ring after the other, beginning with another one each time. Words take
// their turn as if this node had a ring, too.
func (l *Lane) Poll(ms []wire.Message) (int, *fabric.PeerError) {
	if l.polls++; l.armed || l.polls%checkEvery == 0 {
		l.disarm()
	}
	if l.backlog != 0 {
		l.goOn()
	}
	n := 0
	for set := bits.RotateLeft64(l.up|1<<l.cfg.Self, -int(l.next)); set != 0 && n < len(ms); set &= set - 1 {
		peer := wire.NodeID((uint32(bits.TrailingZeros64(set)) + l.next) % wire.MaxNodes)
		if peer == l.cfg.Self {
			n += l.tell(ms[n:])
		} else {
			n += l.take(peer, ms[n:])
		}
	}
	if l.up != 0 {
		l.next = (l.next + 1) % uint32(len(l.links))
	}
	if l.fresh != 0 {
		peer := bits.TrailingZeros64(l.fresh)
		l.fresh &^= 1 << peer
		return n, l.links[peer].lost
	}
	return n, nil
}

// tell moves words to ms.
func (l *Lane) tell(ms []wire.Message) int {
	n := copy(ms, l.words)
	l.words = l.words[:copy(l.words, l.words[n:])]
	return n
}

// take moves messages of one peer to ms.
func (l *Lane) take(peer wire.NodeID, ms []wire.Message) int {
	k := &l.links[peer]
	have := k.in.tail.Load() - k.head
	if have == 0 {
		l.idle(peer)
		return 0
	}
	if have > k.in.size() {
		l.lose(peer, "poll", fabric.ErrGarbled)
		return 0
	}
	n := min(int(have), len(ms))
	for i := range ms[:n] {
		// The peer could change the entry while it is judged: judge a copy.
		copy(l.scratch[:], k.in.entry(k.head))
		if ms[i].Decode(l.scratch[:]) != nil || ms[i].From != peer {
			l.lose(peer, "poll", fabric.ErrGarbled)
			return i
		}
		k.head++
		l.stats.Received.Add(wire.Size)
	}
	order(k.in.head, k.head)
	if k.in.waiting.Load() != 0 && k.in.waiting.CompareAndSwap(1, 0) {
		strike(k.bell, l.scratch[:])
		l.stats.Doorbells.Add(1)
	}
	return n
}

// idle is for a ring that was seen empty: if nobody is there to fill it, the peer is lost. A peer puts its last
// messages in before it says that it is closed, and so before it dies.
func (l *Lane) idle(peer wire.NodeID) {
	k := &l.links[peer]
	dying := l.dying&(1<<peer) != 0
	if !dying && k.in.closed.Load() == 0 {
		return
	}
	switch {
	case k.in.tail.Load() != k.head: // came in between
	case dying:
		l.lose(peer, "peer", fabric.ErrPeerDied)
	default:
		l.lose(peer, "peer", fabric.ErrPeerClosed)
	}
}

// goOn retries what is held back.
func (l *Lane) goOn() {
	for set := l.backlog & l.up; set != 0; set &= set - 1 {
		l.unhold(wire.NodeID(bits.TrailingZeros64(set)))
	}
	l.Flush()
}

// disarm takes the sleep announcements back, empties the bell and looks at the peers' processes.
func (l *Lane) disarm() {
	if l.armed {
		l.armed = false
		for set := l.up; set != 0; set &= set - 1 {
			l.links[bits.TrailingZeros64(set)].in.sleeping.Store(0)
		}
	}
	ready := epollNow(l.epfd, l.events[:])
	for i := range ready {
		if who := ready[i].Fd; who < 0 {
			drain(l.bell[0], l.scratch[:])
		} else {
			l.dying |= 1 << who
			// It stays readable for ever; once is enough.
			_ = unix.EpollCtl(l.epfd, unix.EPOLL_CTL_DEL, l.links[who].pidfd, nil)
		}
	}
}

// FD returns an epoll descriptor that has the bell and the peers' pidfds.
func (l *Lane) FD() int { return l.epfd }

// Arm announces that this end is about to sleep.
func (l *Lane) Arm() bool {
	l.armed = true
	for set := l.up; set != 0; set &= set - 1 {
		order(l.links[bits.TrailingZeros64(set)].in.sleeping, 1)
	}
	something := l.fresh != 0 || l.dying&l.up != 0 || len(l.words) > 0
	for set := l.up; set != 0 && !something; set &= set - 1 {
		k := &l.links[bits.TrailingZeros64(set)]
		something = k.in.tail.Load() != k.head || k.in.closed.Load() != 0
	}
	for set := l.backlog & l.up; set != 0 && !something; set &= set - 1 {
		k := &l.links[bits.TrailingZeros64(set)]
		order(k.out.waiting, 1)
		something = k.out.head.Load()+k.out.size() != k.tail
	}
	if !something {
		l.stats.Armed.Add(1)
	}
	return something
}

// Stats returns the lane's counters.
func (l *Lane) Stats() *fabric.Stats { return &l.stats }

// lose takes a peer off the lane and keeps the reason for Poll to report. Its memory stays mapped until Close.
func (l *Lane) lose(peer wire.NodeID, op string, reason error) {
	if !l.isUp(peer) {
		return
	}
	k := &l.links[peer]
	bit := uint64(1) << peer
	l.up &^= bit
	l.dying &^= bit
	l.posted &^= bit
	l.backlog &^= bit
	l.fresh |= bit
	l.words = slices.DeleteFunc(l.words, func(m wire.Message) bool { return m.From == peer })
	k.lost = &fabric.PeerError{Peer: peer, Op: op, Reason: reason}
	l.stats.LostPeers.Add(1)
	// Should it be alive, it learns that this end is gone; its process no longer matters.
	k.out.closed.Store(1)
	strike(k.bell, l.scratch[:])
	unix.Close(k.pidfd)
	k.pidfd = -1
}
