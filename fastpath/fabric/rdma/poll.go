package rdma

import (
	"math/bits"

	"ironspan/engine/wire"
	"ironspan/fastpath/fabric"
	"ironspan/verbs"
)

// Poll hands out messages and words, notes completions, posts the receives anew and goes on with what waits.
func (l *Lane) Poll(ms []wire.Message) (n int, lost *fabric.PeerError) {
	l.resting = false
	words := 0
	for n < len(ms) {
		if l.due != 0 {
			l.tell(&ms[n])
			n++
			words++
			continue
		}
		if l.packet.left > 0 {
			if l.take(&ms[n]) {
				n++
			}
			continue
		}
		if l.wcAt == l.wcEnd && !l.collect(min(len(ms)-n, len(l.wcs))) {
			break
		}
		w := &l.wcs[l.wcAt]
		l.wcAt++
		l.complete(w)
	}
	l.goOn()
	l.stats.Received.Ops.Add(uint64(n - words))
	l.stats.Received.Bytes.Add(uint64(n-words) * wire.Size)
	if len(l.lost) > 0 {
		lost = l.lost[0]
		copy(l.lost, l.lost[1:])
		l.lost = l.lost[:len(l.lost)-1]
	}
	return n, lost
}

// collect polls for up to most completions, all of which are handled; false if there are none. Requests come first: of a
// peer that is lost, they know the reason.
func (l *Lane) collect(most int) bool {
	l.wcAt, l.wcEnd = 0, 0
	if l.open != 0 {
		l.gather(&l.out, most)
	}
	l.gather(&l.in, most)
	return l.wcEnd > 0
}

// gather appends completions of a queue to those to be handled, up to most in all.
func (l *Lane) gather(q *queue, most int) {
	n, err := q.cq.Poll(l.wcs[l.wcEnd:most])
	if err != nil {
		l.loseAll(err)
		return
	}
	q.seen = q.seen || n > 0
	l.wcEnd += n
}

// eventsKept is how many events may wait in the channel until they are taken: nobody needs to read them, as FD is watched
// for new ones, and to do so one at a time, while somebody waits for what they announced, is slower.
const eventsKept = 32

// Arm asks for an event at the next completion of each queue that has one to come, and looks whether one is there
// already; where the event is still to come that was asked for before, it does neither.
func (l *Lane) Arm() bool {
	if l.wcAt != l.wcEnd || l.packet.left > 0 || l.due != 0 || len(l.busy) > 0 || len(l.lost) > 0 {
		return true
	}
	look := l.events >= eventsKept
	if look { // one may be taken, too, whose completion nobody has seen
		l.events = 0
		if _, err := l.ch.Drain(); err != nil {
			l.loseAll(err)
			return true
		}
	}
	l.wcAt, l.wcEnd = 0, 0
	if l.open != 0 {
		l.watch(&l.out, look)
	}
	if l.watch(&l.in, look); l.wcEnd > 0 || len(l.lost) > 0 {
		return true
	}
	l.resting = true
	l.stats.Armed.Add(1)
	return false
}

// watch asks for the queue's event, if none is to come, and looks for completions that will raise none; or for any, with
// look.
func (l *Lane) watch(q *queue, look bool) {
	if q.watched() && !look {
		return
	}
	if q.watched() || l.arm(q) {
		l.gather(q, len(l.wcs))
	}
}

func (l *Lane) arm(q *queue) bool {
	if q.armed {
		l.events++
	}
	q.armed, q.seen = false, false
	if err := q.cq.Arm(); err != nil {
		l.loseAll(err)
		return false
	}
	q.armed = true
	return true
}

// complete takes one completion.
func (l *Lane) complete(w *verbs.WC) {
	k := &l.links[w.ID>>idPeerShift]
	switch isRecv, ok := w.ID&idRecv != 0, w.Status == verbs.StatusSuccess; {
	case k.state != linkUp: // flushed behind the loss
	case isRecv && ok:
		l.received(k, w)
	case isRecv:
		l.lose(k, "poll", w.Err("receive"))
	case ok:
		l.sent(k, uint32(w.ID&idMask))
	default:
		l.lose(k, "send", w.Err("send"))
	}
}

// sent notes that the first upTo requests are over, of which the last asked for this completion.
func (l *Lane) sent(k *link, upTo uint32) {
	if upTo-k.finished > k.posted-k.finished {
		return // not one of ours
	}
	if k.finished = upTo; upTo == k.posted {
		l.open &^= 1 << k.id
	}
	over := k.mark(upTo)
	k.pagesDone, k.wordsDone = over.pages, over.words
	if k.wordsTold != k.wordsDone {
		l.due |= 1 << k.id
	}
	l.note(k)
}

// tell hands out a word; there is one that is due.
func (l *Lane) tell(m *wire.Message) {
	k := &l.links[bits.TrailingZeros64(l.due)]
	*m = k.words[k.wordsTold%uint64(len(k.words))]
	if k.wordsTold++; k.wordsTold == k.wordsDone {
		l.due &^= 1 << k.id
	}
}

// received takes in a packet, or a page with its grant: credits, and messages if there are any, which take hands out.
func (l *Lane) received(k *link, w *verbs.WC) {
	buf := uint32(w.ID & idMask)
	credits := int(w.Imm & immCredits)
	switch {
	case w.Opcode == verbs.OpRecvImm && w.Len == wire.PageSize:
		l.packet = arrival{link: k, buf: buf, left: 1, imm: w.Imm, brief: true}
		return
	case w.Flags&verbs.WithImm == 0 || w.Opcode != verbs.OpRecv || w.Imm&^(immCredits|immGoodbye) != 0 ||
		k.credits+credits > k.most || w.Len%wire.Size != 0 || w.Len > recvSize:
		l.lose(k, "poll", fabric.ErrGarbled)
		return
	case w.Imm&immGoodbye != 0:
		l.lose(k, "closed", fabric.ErrPeerClosed)
		return
	}
	k.credits += credits
	if w.Len == 0 {
		l.receiveAgain(k, buf)
		return
	}
	l.packet = arrival{link: k, buf: buf, at: k.recvAt + uint64(buf)*recvSize, left: int(w.Len / wire.Size)}
}

// take decodes the next message of the packet into m; false if its sender is lost. After the last one the receive
// buffer is posted again.
func (l *Lane) take(m *wire.Message) bool {
	in := &l.packet
	k := in.link
	if k.state != linkUp {
		in.left = 0
		return false
	}
	ok := false
	if in.brief {
		ok = l.expand(k.id, in.imm, m)
	} else {
		ok = m.Decode(l.mem.Bytes()[in.at:in.at+wire.Size]) == nil && m.From == k.id
	}
	if !ok {
		in.left = 0
		l.lose(k, "poll", fabric.ErrGarbled)
		return false
	}
	in.at += wire.Size
	if in.left--; in.left == 0 {
		k.owed++
		l.receiveAgain(k, in.buf)
	}
	return true
}

func (l *Lane) receiveAgain(k *link, buf uint32) {
	k.recvs.Add(k.recvID(buf), l.recvSGE(k, buf))
	l.note(k)
}

// note remembers that the present Poll has to go on with k, or the next one.
func (l *Lane) note(k *link) {
	if !k.busy {
		k.busy = true
		l.busy = append(l.busy, k.id)
	}
}

// goOn posts receives anew, before the credits for them leave, and then what may go out now.
func (l *Lane) goOn() {
	for _, id := range l.busy {
		k := &l.links[id]
		k.busy = false
		if k.state != linkUp {
			continue
		}
		if k.recvs.Len() > 0 {
			if _, err := k.recvs.Post(); err != nil {
				l.lose(k, "poll", err)
				continue
			}
		}
		l.pump(k)
		l.emitCredits(k) // without room, the completion that makes some brings us back here
	}
	l.busy = l.busy[:0]
	if len(l.dirty) > 0 {
		l.Flush()
	}
}

// reap rings the doorbells and looks once for completions that free bounce pages of k; what else it finds
// waits for Poll. It says whether k has a free page.
func (l *Lane) reap(k *link) bool {
	l.Flush()
	if l.wcAt > 0 { // make room behind what waits
		l.wcEnd = copy(l.wcs, l.wcs[l.wcAt:l.wcEnd])
		l.wcAt = 0
	}
	if l.gather(&l.out, len(l.wcs)); k.state != linkUp {
		return false
	}
	keep := 0
	for i := range l.wcEnd {
		w := l.wcs[i]
		if w.ID&idRecv == 0 && w.Status == verbs.StatusSuccess {
			if o := &l.links[w.ID>>idPeerShift]; o.state == linkUp {
				l.sent(o, uint32(w.ID&idMask))
			}
			continue
		}
		l.wcs[keep] = w
		keep++
	}
	l.wcEnd = keep
	return k.pagesUsed-k.pagesDone < uint64(l.opt.Bounce)
}

// lose ends the link with a peer, once: nothing goes there or comes from there any more.
func (l *Lane) lose(k *link, op string, reason error) {
	if k.state == linkLost {
		return
	}
	k.state = linkLost
	k.heldLen, k.packetLen = 0, 0
	l.due &^= 1 << k.id
	l.open &^= 1 << k.id
	if k.qp != nil {
		k.batch.Reset()
		k.recvs.Reset()
		_ = k.qp.Fail() // it ends the peer's access; if the device cannot, the link is no better for it
	}
	l.lost = append(l.lost, &fabric.PeerError{Peer: k.id, Op: op, Reason: reason})
	l.stats.LostPeers.Add(1)
}

// loseAll ends all links: the device or the completion queue failed.
func (l *Lane) loseAll(reason error) {
	for i := range l.links {
		if k := &l.links[i]; k.id != l.cfg.Self && k.state != linkLost {
			l.lose(k, "poll", reason)
		}
	}
}
