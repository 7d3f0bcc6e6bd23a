package rdma

import (
	"errors"
	"fmt"
	"time"

	"ironspan/engine/wire"
	"ironspan/fastpath/fabric"
	"ironspan/verbs"
)

const (
	// creditRecvs are the receives on top of those for messages: for SENDs that only return credits, of which
	// two can be under way, and the goodbye.
	creditRecvs = 4
	// packetMessages is how many messages a SEND carries at most: what rxe takes inline, 512 bytes, and less than what
	// ConnectX does.
	packetMessages = 8
	// runPages is how many neighbouring pages of a peer's memory one request is about at most, when they are posted one
	// after the other. On rxe one acknowledgement is then enough for all. A fault may wait for the first of them, so they
	// are no more than a device moves in a few microseconds.
	runPages = 8
	// recvSize is the size of a receive buffer.
	recvSize = packetMessages * wire.Size

	immCredits = 1<<16 - 1
	immGoodbye = 1 << 16

	// farewell bounds how long Close waits for the goodbyes to be acknowledged.
	farewell = 500 * time.Millisecond
)

// A work request's id names the peer (bits 56-63), what it is (bit 55) and the receive buffer, or the number of
// requests posted to that peer so far (bits 0-31).
const (
	idPeerShift = 56
	idRecv      = 1 << 55
	idMask      = 1<<32 - 1
)

type linkState uint8

const (
	linkNone linkState = iota // no queue pair, or not connected yet
	linkUp
	linkLost
)

// Lane is a node's end of a lane over RDMA. It implements fabric.Lane.
type Lane struct {
	cfg     fabric.Config
	opt     Options
	adapter *Adapter

	ch    *verbs.Channel
	in    queue         // of receives
	out   queue         // of requests
	mem   *verbs.Memory // receive buffers, then bounce pages, of all peers
	memMR *verbs.MR
	home  *verbs.MR // nil without memory
	slots *verbs.MR
	links []link // by node
	// questions are what this node asked for, by slot, for the brief answers.
	questions []question

	resting bool          // Arm was called, and Poll not since
	events  int           // that came, or will, and were not taken from the channel
	open    uint64        // links with requests that are not known to be over, by bit
	dirty   []wire.NodeID // links with something in their batch; each once
	busy    []wire.NodeID // links that the next end of a Poll has to go on with; each once
	due     uint64        // links with words to hand out, by bit
	lost    []*fabric.PeerError

	// Completions polled and not handled yet: wcs[wcAt:wcEnd].
	wcs         []verbs.WC
	wcAt, wcEnd int
	packet      arrival

	stats fabric.Stats
	done  bool
}

// queue is a completion queue, and what is known of the event that it was asked for.
type queue struct {
	cq    *verbs.CQ
	armed bool // an event is to come of the next completion
	seen  bool // completions were polled since, so it has come, or will
}

// watched says whether the event is still to come.
func (q *queue) watched() bool { return q.armed && !q.seen }

// arrival is a packet some of whose messages Poll has not handed out yet.
type arrival struct {
	link  *link
	buf   uint32 // receive buffer
	at    uint64 // of the next message, in Lane.mem
	left  int    // messages; 0: there is no such packet
	imm   uint32 // the one message, if it is brief
	brief bool
}

// link is the connection with one peer.
type link struct {
	id    wire.NodeID
	state linkState
	qp    *verbs.QP
	offer []byte // ours, once made
	batch *verbs.Batch
	recvs *verbs.RecvBatch
	dirty bool
	busy  bool

	ram, slots remoteRegion // what the peer offered

	recvAt uint64 // in Lane.mem: this link's receive buffers
	pageAt uint64 // and its bounce pages

	// The send queue. All numbers count up and wrap.
	posted    uint32 // requests added to the batch or posted
	finished  uint32 // of these, those that are known to be over
	signalled uint32 // posted, at the last request that asked for a completion
	run       run    // the last request
	marks     []mark // of the requests that ask for one; see mark

	// Bounce pages, and words, are taken, sent and done with in the same order. These numbers never wrap.
	pagesUsed uint64 // taken: by requests, and by posts that wait
	pagesSent uint64 // of these, those that requests were made for
	pagesDone uint64 // of these, those free again

	words     []wire.Message // ring
	wordsUsed uint64         // taken: by requests, and by posts that wait
	wordsSent uint64         // of these, those that requests were made for
	wordsDone uint64         // of these, those that are due
	wordsTold uint64         // of these, those that Poll has handed out

	// The packet that the next Flush sends, if it holds anything: its credit is taken, its room reserved.
	packet    [recvSize]byte
	packetLen int
	packetMax int // what the queue pair takes inline

	credits int // packets that the peer has receives for
	most    int // credits when none is out
	owed    int // receives posted again and not told the peer yet

	held     []heldPost // ring
	heldHead int
	heldLen  int
}

// mark is what a completion tells the end of: all bounce pages and words sent up to its request. That of the n-th
// request is marks[n], modulo the depth of the send queue, which is a power of two.
type mark struct{ pages, words uint64 }

func (k *link) mark(n uint32) *mark { return &k.marks[n%uint32(len(k.marks))] }

// remoteRegion is memory of the peer: offsets from first, last excluded, are at addr.
type remoteRegion struct {
	first, last uint64
	addr        uint64
	rkey        uint32
}

// at translates the offset of a page; false if the region does not hold it.
func (r *remoteRegion) at(off uint64) (verbs.Remote, bool) {
	if off%wire.PageSize != 0 || off < r.first || off >= r.last {
		return verbs.Remote{}, false
	}
	return verbs.Remote{Addr: r.addr + (off - r.first), RKey: r.rkey}, true
}

// run is the last request of the batch, if it is about pages of the peer's. It may take more of them.
type run struct {
	verb   fabric.Verb
	pages  int          // 0: there is no such request
	next   verbs.Remote // the page after them
	closed bool         // it takes none
}

// remote is the only page of a run of one.
func (r *run) remote() verbs.Remote {
	return verbs.Remote{Addr: r.next.Addr - wire.PageSize, RKey: r.next.RKey}
}

// access is a one-sided operation on a page of the peer.
type access struct {
	verb   fabric.Verb // Write or Read
	bounce bool        // a write from a bounce page
	word   bool        // its end is to be told
	local  verbs.SGE
	remote verbs.Remote
}

// heldPost is a post that waits: a message if the access' verb is Send.
type heldPost struct {
	access
	msg [wire.Size]byte
}

var _ fabric.Lane = (*Lane)(nil)

// NewLane makes a lane on the adapter's device.
func (a *Adapter) NewLane(cfg fabric.Config) (_ *Lane, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	opt := a.opt
	if err := opt.fill(slotCount(&cfg)); err != nil {
		return nil, err
	}
	if cfg.Slots.Len == 0 && cfg.RAM.Len == 0 {
		opt.Bounce = 0 // nothing to write to
	}
	l := &Lane{
		cfg: cfg, opt: opt, adapter: a,
		links: make([]link, cfg.Nodes), questions: make([]question, slotCount(&cfg)),
		dirty: make([]wire.NodeID, 0, cfg.Nodes),
		busy:  make([]wire.NodeID, 0, cfg.Nodes),
		lost:  make([]*fabric.PeerError, 0, cfg.Nodes),
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("rdma: lane %d: %w", cfg.Lane, err), l.free())
		}
	}()
	if err := l.makeMemory(); err != nil {
		return nil, err
	}
	if l.ch, err = a.dev.CreateChannel(); err != nil {
		return nil, err
	}
	// Deep enough for all requests, and receives, of all peers to be flushed at once.
	peers := max(cfg.Nodes-1, 1)
	requests, receives := opt.SendWR*peers, (opt.Depth+creditRecvs)*peers
	if l.in.cq, err = a.dev.CreateCQ(receives, l.ch); err != nil {
		return nil, err
	}
	if l.out.cq, err = a.dev.CreateCQ(requests, l.ch); err != nil {
		return nil, err
	}
	l.wcs = make([]verbs.WC, requests+receives)
	for n := range l.links {
		l.links[n].init(wire.NodeID(n), l)
	}
	a.mu.Lock()
	a.lanes[l] = struct{}{}
	a.mu.Unlock()
	return l, nil
}

func (k *link) init(id wire.NodeID, l *Lane) {
	k.id = id
	if id == l.cfg.Self {
		return
	}
	n := uint64(id)
	if id > l.cfg.Self {
		n--
	}
	k.recvAt = n * uint64(l.opt.Depth+creditRecvs) * recvSize
	k.pageAt = l.recvBytes() + n*uint64(l.opt.Bounce)*wire.PageSize
	k.marks = make([]mark, l.opt.SendWR)
	k.words = make([]wire.Message, slotCount(&l.cfg))
	k.held = make([]heldPost, l.opt.Backlog)
}

// recvBytes is the room for all receive buffers, in whole pages.
func (l *Lane) recvBytes() uint64 {
	n := uint64(l.cfg.Nodes-1) * uint64(l.opt.Depth+creditRecvs) * recvSize
	return (n + wire.PageSize - 1) &^ (wire.PageSize - 1)
}

func (l *Lane) makeMemory() (err error) {
	peers := uint64(l.cfg.Nodes - 1)
	size := l.recvBytes() + peers*uint64(l.opt.Bounce)*wire.PageSize
	if l.mem, err = verbs.AllocMemory(int(max(size, wire.PageSize))); err != nil {
		return err
	}
	if l.memMR, err = l.adapter.pd.RegMemory(l.mem, verbs.LocalWrite); err != nil {
		return err
	}
	if l.home, err = l.adapter.homeMR(&l.cfg); err != nil {
		return err
	}
	if s := l.cfg.Slots; s.Len != 0 {
		l.slots, err = l.adapter.pd.RegMR(s.Addr, s.Len, verbs.LocalWrite|verbs.RemoteWrite)
	}
	return err
}

// Adapter is the lane's adapter.
func (l *Lane) Adapter() *Adapter { return l.adapter }

// FD is the completion channel's descriptor. It stays readable: see fabric.Endpoint.
func (l *Lane) FD() int { return l.ch.FD() }

// Stats returns the counters.
func (l *Lane) Stats() *fabric.Stats { return &l.stats }

// Close says goodbye to the peers, ends all links and frees the lane's resources. Posts that wait are lost.
func (l *Lane) Close() error {
	if l.done {
		return nil
	}
	l.done = true
	l.goodbye()
	err := l.free()
	l.adapter.mu.Lock()
	delete(l.adapter.lanes, l)
	own := l.adapter.own
	l.adapter.mu.Unlock()
	if own {
		err = errors.Join(err, l.adapter.dev.Close())
	}
	return err
}

// goodbye tells every peer that this end closes, and waits for a moment until they have it.
func (l *Lane) goodbye() {
	waiting := 0
	for i := range l.links {
		k := &l.links[i]
		if k.state != linkUp || !k.room(l) {
			continue
		}
		k.posted++
		if !k.batch.SendInlineImm(k.sendID(), verbs.Signaled, nil, immGoodbye) {
			continue
		}
		if _, err := k.batch.Post(); err == nil {
			waiting++
		} else {
			k.state = linkLost
		}
	}
	// Each goodbye is the last request of its queue: its completion, or any failure, ends the wait.
	for end := time.Now().Add(farewell); waiting > 0 && time.Now().Before(end); {
		if err := l.out.cq.Arm(); err != nil {
			return
		}
		n, err := l.out.cq.Poll(l.wcs)
		if err != nil {
			return
		}
		for _, w := range l.wcs[:n] {
			k := &l.links[w.ID>>idPeerShift]
			if k.state == linkUp && (w.Status != verbs.StatusSuccess || uint32(w.ID&idMask) == k.posted) {
				k.state = linkLost
				waiting--
			}
		}
		if n == 0 {
			if _, err := l.ch.Wait(time.Until(end)); err != nil {
				return
			}
			if _, err := l.ch.Drain(); err != nil {
				return
			}
		}
	}
}

// free gives everything back; what is nil was never made.
func (l *Lane) free() error {
	var errs []error
	for i := range l.links {
		if q := l.links[i].qp; q != nil {
			errs = append(errs, q.Close())
		}
		l.links[i].state = linkLost
	}
	for _, q := range []queue{l.in, l.out} {
		if q.cq != nil {
			errs = append(errs, q.cq.Close())
		}
	}
	if l.ch != nil {
		errs = append(errs, l.ch.Close())
	}
	for _, m := range []*verbs.MR{l.memMR, l.slots} { // the home frames' is the adapter's
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	if l.mem != nil {
		errs = append(errs, l.mem.Close())
	}
	return errors.Join(errs...)
}
