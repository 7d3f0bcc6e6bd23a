package coherence

import (
	"math"
	"math/bits"

	"ironspan/engine/wire"
)

const (
	// parkingMax is how many pages are parked at a time, at most: upon one input, and with their bytes on the way.
	parkingMax = 8

	// cacheMargin is the part of a bound by which the high-water mark lies below it, and the low one below that.
	cacheMargin = 16
)

// cache bounds the frames of pages that are homed elsewhere, and chooses which of them to park: a clock over the pages
// in their order. There are no accessed bits; the second chance of a page is that it was installed or upgraded since
// the hand last passed. If that is true of all, the hand rests for the least tenure, so that who waited for them gets to
// use them.
//
// A page counts from the request for it until it is discarded, so a grant always finds a frame, and the frames are
// never more than limit. A fault beyond that waits in the FIFO; what makes room does not wait for faults.
type cache struct {
	frames, limit int // pages held or asked for
	high, low     int // parking begins at high, and ends below low
	parking, most int // pages whose bytes are on their way to their home frames
	draining      bool

	// Bits by index. Of pages held in S: the home frame is known to be good. And of cached pages, without a limit none
	// of them: has a frame; came since the hand last passed.
	good, held, recent []uint64

	hand  uint32 // index from which the hand goes on
	rests bool   // having gone round and spared all, until the Tick at a time
	until int64
}

func newCache(c Config, pages int) cache {
	words := (pages + 63) / 64
	k := cache{
		limit: math.MaxInt, high: math.MaxInt, low: math.MaxInt, most: max(min(parkingMax, c.Slots/4), 1),
		good: make([]uint64, words),
	}
	if c.Cache > 0 {
		k.held, k.recent = make([]uint64, words), make([]uint64, words)
		k.limit = c.Cache
		k.high = k.limit - k.limit/cacheMargin
		k.low = k.high - k.limit/cacheMargin
	}
	return k
}

// won notes that a page was installed or upgraded.
func (c *cache) won(i uint32, cached bool) {
	if cached && c.held != nil {
		c.held[i/64] |= 1 << (i % 64)
		c.recent[i/64] |= 1 << (i % 64)
	}
}

func (c *cache) isGood(i uint32) bool { return c.good[i/64]>>(i%64)&1 == 1 }

// setGood notes whether the home frame is known to be good while this node holds the page in S.
func (c *cache) setGood(i uint32, good bool) {
	if c.good[i/64] &^= 1 << (i % 64); good {
		c.good[i/64] |= 1 << (i % 64)
	}
}

// hasFrame says whether a page can be asked for without a frame too many.
func (a *Agent) hasFrame(page wire.PFN, p *local) bool {
	return a.cache.frames < a.cache.limit || p.mapped() != wire.None || a.isHome(page)
}

// spare says whether a page may be asked for that nobody waits for yet: half of the slots are left to faults, and
// none but faults are worth another page's frame.
func (a *Agent) spare(i uint32) bool {
	return int(a.free.n) > len(a.requests)/2 && (a.cache.frames < a.cache.high || a.isHome(a.pageAt(i)))
}

// discard frees a cached frame. A page that is asked for is about to get another one.
func (a *Agent) discard(page wire.PFN, i uint32) {
	a.emit(OpDiscard, page)
	a.stats.Cached--
	c := &a.cache
	if c.held != nil {
		c.held[i/64] &^= 1 << (i % 64)
		c.recent[i/64] &^= 1 << (i % 64)
	}
	if p := &a.pages[i]; p.slot == 0 || a.parking(p) {
		c.frames--
	}
}

// parking says whether a page's bytes are on their way to its home frame. Until they are there its own frame is kept.
func (a *Agent) parking(p *local) bool {
	return p.slot != 0 && a.requests[p.slot-1].kind == wire.Parked
}

// evictable says whether a cached page is mapped and nothing is under way for it. One whose forward is deferred will go
// by itself. One that waits for a slot to be upgraded may go: it can be behind a fault that waits for its frame.
func (a *Agent) evictable(p *local) bool {
	return p.mapped() != wire.None && p.slot == 0 && !p.is(deferred)
}

// CanEvict says whether a page is cached here, nothing is under way for it, and there is a slot to park it by.
func (a *Agent) CanEvict(page wire.PFN) bool {
	i, ok := a.index(page)
	return ok && !a.isHome(page) && a.evictable(&a.pages[i]) && a.free.n > 0
}

// Evict parks a page, if CanEvict says that it can be.
func (a *Agent) Evict(page wire.PFN) bool {
	if !a.CanEvict(page) {
		return false
	}
	i, _ := a.index(page)
	a.park(i, page)
	return true
}

// park lets go of a page's frame, but not of the right to the page: what a reader has is in the home frame, too, or will
// be when the reader asks for it, and a writer puts it there. The home is not told, and need not be: it goes on treating
// this node as what it is.
func (a *Agent) park(i uint32, page wire.PFN) {
	p := &a.pages[i]
	a.emit(OpUnmap, page)
	p.marks |= parked
	p.setLevel(0)
	if p.mode == wire.Shared {
		a.stats.EvictionsClean++
		a.discard(page, i)
		return
	}
	a.stats.EvictionsDirty++
	a.cache.parking++
	a.oneSided(OpPark, i, page, wire.Parked)
}

// fetch brings the bytes of a parked page back from the home frame, which nobody else writes as long as this node has
// the right to read it. If that goes meanwhile, what arrives is worth nothing.
func (a *Agent) fetch(i uint32, page wire.PFN) {
	a.stats.Fetches++
	a.cache.frames++
	a.oneSided(OpFetch, i, page, wire.Fetched)
}

// oneSided asks the driver for an operation on the page's home frame, with the word to be given when it is over.
func (a *Agent) oneSided(op Op, i uint32, page wire.PFN, over wire.Kind) {
	t := a.take(i, page, over, wire.None)
	act := a.emit(op, page)
	act.Peer = a.homeOf(page)
	act.Msg = wire.Message{
		Kind: over, From: act.Peer, Epoch: a.epoch, Page: page, Requester: a.self, Txn: t.txn, Slot: t.slot,
	}
}

// stepOver takes in that a one-sided operation is over.
func (a *Agent) stepOver(i uint32, m *wire.Message) Status {
	r, s := a.requestOf(m)
	switch {
	case s != OK:
		return s
	case r.kind != m.Kind:
		return BadTxn
	case a.homeOf(m.Page) != m.From:
		return BadSender
	}
	p := &a.pages[i]
	switch {
	case m.Kind == wire.Parked:
		a.discard(m.Page, i)
		a.cache.parking--
	case !r.void:
		p.marks &^= parked
		act := a.emit(OpInstall, m.Page)
		act.Mode = p.mode
		act.Slot = m.Slot
		act.Msg.Kind, act.Msg.Flags = wire.Fetched, wire.FlagData
		a.cached(i)
	default: // the right has gone, and who waits has to ask for it again
		a.cache.frames--
		a.emit(OpWake, m.Page)
	}
	p.slot = 0
	*r = request{}
	a.free.push(m.Slot)
	if p.is(queuedAny) && !a.waiters.push(i) {
		p.marks &^= queuedAny
		a.stats.SlotRefusals++
		a.emit(OpWake, m.Page)
	}
	return OK
}

// cached counts a page that was installed.
func (a *Agent) cached(i uint32) {
	a.stats.Cached++
	a.stats.CachedMost = max(a.stats.CachedMost, a.stats.Cached)
	a.cache.won(i, true)
}

// yield gives up the right to a parked page. Nothing is mapped that would have to be unmapped, and where the home wants
// the bytes passed on, it is told that it has them itself.
func (a *Agent) yield(f *forward) {
	p := &a.pages[f.index]
	p.marks &^= parked
	p.mode = wire.None
	if p.slot != 0 && a.requests[p.slot-1].kind > wire.CoherenceLast {
		a.requests[p.slot-1].void = true
	}
	if f.kind == wire.Inv {
		a.stats.InvalidatesServed++
		a.send(OpSend, f.requester, wire.InvAck, f.page, f.transaction)
		return
	}
	a.stats.ForwardsServed++
	a.send(OpSend, a.homeOf(f.page), wire.WriteBack, f.page, f.transaction).Flags = wire.FlagHome
}

// evict parks pages, a few at a time, once there are too many.
func (a *Agent) evict(now int64) {
	c := &a.cache
	c.draining = c.frames-c.parking >= c.high || c.draining
	for n := 0; c.draining && !c.rests && n < parkingMax && c.parking < c.most && a.free.n > 0; n++ {
		if c.frames-c.parking < c.low {
			c.draining = false
			return
		}
		i, ok, spared := a.victim()
		if !ok { // where none was spared, all are under way, and what comes of them is an input
			c.rests, c.until = spared, now+a.policy.levels[1]
			return
		}
		a.park(i, a.pageAt(i))
	}
}

// victim moves the hand to the next page that it does not spare, and past it, or once round.
func (a *Agent) victim() (i uint32, ok, spared bool) {
	c := &a.cache
	words, start := uint32(len(c.held)), c.hand
	for n := range words + 1 {
		w, ahead := c.hand/64, ^uint64(0)<<(c.hand%64)
		if n == words { // back in the first word
			ahead = 1<<(start%64) - 1
		}
		for ripe := c.held[w] &^ c.recent[w] & ahead; ripe != 0; ripe &= ripe - 1 {
			b := uint32(bits.TrailingZeros64(ripe))
			if i := 64*w + b; a.evictable(&a.pages[i]) {
				c.recent[w] &^= ahead & (1<<b - 1)
				c.hand = (i + 1) % (64 * words)
				return i, true, spared
			}
		}
		spared = spared || c.recent[w]&ahead != 0
		c.recent[w] &^= ahead
		c.hand = 64 * ((w + 1) % words)
	}
	return 0, false, spared
}
