package coherence

import (
	"math"
	"math/bits"

	"ironspan/engine/wire"
)

const (
	// puttingMax is how many pages are given back at a time, at most.
	puttingMax = 8

	// cacheMargin is the part of a bound by which the high-water mark lies below it, and the low one below that.
	cacheMargin = 16
)

// cache bounds the frames of pages that are homed elsewhere, and chooses which of them to give back: a clock over
// the pages in their order. There are no accessed bits; the second chance of a page is that it was installed or
// upgraded since the hand last passed.
//
// A page counts from the request for it until it is discarded, so a grant always finds a frame, and the frames are
// never more than limit. A fault beyond that waits in the FIFO; what gives pages back does not wait for faults.
type cache struct {
	frames, limit int // pages held or asked for
	high, low     int // giving back begins at high, and ends below low
	putting, most int // pages that are being given back
	draining      bool

	hand         uint32   // index from which the hand goes on
	held, recent []uint64 // bit by index: held in S or M; since the hand last passed. None without a limit
}

func newCache(c Config, pages int) cache {
	if c.Cache == 0 {
		return cache{limit: math.MaxInt, high: math.MaxInt, low: math.MaxInt, most: puttingMax}
	}
	words := (pages + 63) / 64
	k := cache{
		limit: c.Cache, most: max(min(puttingMax, c.Slots/4), 1),
		held: make([]uint64, words), recent: make([]uint64, words),
	}
	k.high = k.limit - k.limit/cacheMargin
	k.low = k.high - k.limit/cacheMargin
	return k
}

// won notes that a page was installed or upgraded.
func (c *cache) won(i uint32, cached bool) {
	if cached && c.held != nil {
		c.held[i/64] |= 1 << (i % 64)
		c.recent[i/64] |= 1 << (i % 64)
	}
}

// hasFrame says whether a page can be asked for without a frame too many.
func (a *Agent) hasFrame(page wire.PFN, p *local) bool {
	return a.cache.frames < a.cache.limit || p.mode != wire.None || a.isHome(page)
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
	if p := &a.pages[i]; p.slot == 0 || a.putting(p) {
		c.frames--
	}
}

// putting says whether a page is being given back.
func (a *Agent) putting(p *local) bool { return p.slot != 0 && a.requests[p.slot-1].kind == wire.Put }

// evictable says whether nothing is under way for a cached page. One whose forward is deferred will go by itself.
func (a *Agent) evictable(p *local) bool {
	return p.mode != wire.None && p.slot == 0 && !p.is(queuedAny|deferred)
}

// CanEvict says whether a page is cached here, nothing is under way for it, and there is a slot to give it back.
func (a *Agent) CanEvict(page wire.PFN) bool {
	i, ok := a.index(page)
	return ok && !a.isHome(page) && a.evictable(&a.pages[i]) && a.free.n > 0
}

// Evict gives a page back to its home, if CanEvict says that it can be. The node keeps it until the home says that it
// is its turn, so it is held like any other until then.
func (a *Agent) Evict(page wire.PFN) bool {
	if !a.CanEvict(page) {
		return false
	}
	i, _ := a.index(page)
	a.put(i, page)
	return true
}

func (a *Agent) put(i uint32, page wire.PFN) {
	a.cache.putting++
	a.send(OpSend, a.homeOf(page), wire.Put, page, a.take(i, page, wire.Put, wire.None))
}

// evict gives pages back, a few at a time, once there are too many.
func (a *Agent) evict() {
	c := &a.cache
	c.draining = c.frames-c.putting >= c.high || c.draining
	for c.draining && c.putting < c.most && a.free.n > 0 {
		if c.frames-c.putting < c.low {
			c.draining = false
			return
		}
		i, ok := a.victim()
		if !ok {
			return // all are under way: what comes of them is an input
		}
		a.put(i, a.pageAt(i))
	}
}

// victim moves the hand to the next page that it does not spare, and past it.
func (a *Agent) victim() (uint32, bool) {
	c := &a.cache
	words := uint32(len(c.held))
	for range 2*words + 1 { // in the first round, all may be recent
		w, ahead := c.hand/64, ^uint64(0)<<(c.hand%64)
		for ripe := c.held[w] &^ c.recent[w] & ahead; ripe != 0; ripe &= ripe - 1 {
			b := uint32(bits.TrailingZeros64(ripe))
			if i := 64*w + b; a.evictable(&a.pages[i]) {
				c.recent[w] &^= ahead & (1<<b - 1)
				c.hand = (i + 1) % (64 * words)
				return i, true
			}
		}
		c.recent[w] &^= ahead
		c.hand = 64 * ((w + 1) % words)
	}
	return 0, false
}

// stepPutAck takes in that it is the turn of a page to be given back, and what the home thinks this node has of it. It
// has that, because whatever the home sent it before came first; nothing, if somebody else asked for the page before.
func (a *Agent) stepPutAck(i uint32, m *wire.Message) Status {
	r, s := a.requestOf(m)
	p := &a.pages[i]
	switch {
	case s != OK:
		return s
	case r.kind != wire.Put:
		return BadTxn
	case a.homeOf(m.Page) != m.From:
		return BadSender
	case p.mode != m.Mode || p.is(deferred):
		return BadState
	}
	t := transaction{requester: a.self, txn: m.Txn, slot: m.Slot}
	switch m.Mode {
	case wire.Modified:
		a.stats.EvictionsDirty++
		a.emit(OpUnmap, m.Page)
		a.send(OpSendPage, m.From, wire.WriteBack, m.Page, t)
		a.discard(m.Page, i)
	case wire.Shared:
		a.stats.EvictionsClean++
		a.emit(OpUnmap, m.Page)
		a.discard(m.Page, i)
		a.send(OpSend, m.From, wire.Done, m.Page, t)
	default:
		a.stats.EvictionsLost++
	}
	p.mode = wire.None
	p.setLevel(0)
	p.slot = 0
	*r = request{}
	a.free.push(m.Slot)
	a.cache.putting--
	if p.is(queuedAny) && !a.waiters.push(i) {
		p.marks &^= queuedAny
		a.stats.SlotRefusals++
		a.emit(OpWake, m.Page)
	}
	return OK
}
