package lane

import (
	"math"
	"math/bits"
	"sync/atomic"
	"time"

	"ironspan/engine/wire"
)

// clockSamples is how many round trips the offset is chosen from. The best of them counts, and what spoils a
// sample (a thread that was not running, a packet sent again) is rare enough for one in a hundred to be good.
const clockSamples = 100

// clock compares this node's time-stamp counter with the guest's as the platform's node has it.
//
// A sample is a ping that carries the host TSC here at sending, t0, and a pong with the guest TSC there, g; the
// pong arrives at t1. The guest TSC here has to be g at the middle of t0 and t1, give or take half of t1-t0. So
// the offset to add to the host TSC is g - (t0+t1)/2, best known from the shortest round trip.
//
// The lane's thread owns it, but for the atomics, which others read.
type clock struct {
	offset atomic.Int64  // guest TSC = host TSC + offset
	best   atomic.Uint64 // ticks of the shortest round trip the offset comes from
	drift  atomic.Int64  // ticks: what the last good sample says the offset should be, less the offset
	wanted atomic.Int32  // samples still to take before the offset stands
	synced chan struct{} // capacity 1: the offset stands

	seq     uint32
	sentAt  time.Time
	t0      uint64
	waiting bool
}

func (c *clock) init() { c.synced = make(chan struct{}, 1) }

// begin asks for a new offset. The lane must be running or about to.
func (c *clock) begin() {
	c.best.Store(math.MaxUint64)
	c.wanted.Store(clockSamples)
}

// pongPatience is how long an unanswered sample blocks the next one. A queue pair loses nothing: this is for
// peers that drop what they do not like.
const pongPatience = time.Second

// due says whether it is time to send a sample.
func (c *clock) due(now time.Time) bool {
	if c.waiting {
		return now.Sub(c.sentAt) > pongPatience
	}
	if c.wanted.Load() > 0 {
		return true
	}
	return c.running() && now.Sub(c.sentAt) >= driftEvery
}

// running says that an offset was measured, so that drift is watched.
func (c *clock) running() bool { return c.seq > 0 }

// wait is the longest sleep that does not miss a sample.
func (c *clock) wait(now time.Time) time.Duration {
	switch {
	case c.waiting:
		return pongPatience
	case c.running():
		return max(0, driftEvery-now.Sub(c.sentAt))
	}
	return time.Hour
}

// sent notes that a sample leaves, at host TSC t0, and returns its number.
func (c *clock) sent(now time.Time, t0 uint64) uint32 {
	c.seq++
	c.sentAt, c.t0, c.waiting = now, t0, true
	return c.seq
}

// pong takes a sample's answer, which arrived at host TSC t1, and reports whether it was expected.
func (c *clock) pong(m *wire.Message, t1 uint64) bool {
	t0, g := m.Args[0], m.Args[1]
	if !c.waiting || m.Txn != c.seq || t0 != c.t0 || t0 > t1 {
		return false
	}
	c.waiting = false
	trip := t1 - t0
	measured := int64(g) - int64(midpoint(t0, t1))
	if w := c.wanted.Load(); w > 0 {
		if trip < c.best.Load() {
			c.best.Store(trip)
			c.offset.Store(measured)
		}
		if c.wanted.Add(-1) == 0 {
			c.synced <- struct{}{}
		}
		return true
	}
	// A sample that took much longer than the best says nothing about drift.
	if trip <= 2*c.best.Load() {
		c.drift.Store(measured - c.offset.Load())
	}
	return true
}

// midpoint is (a+b)/2 without overflow.
func midpoint(a, b uint64) uint64 {
	sum, carry := bits.Add64(a, b, 0)
	return sum>>1 | carry<<63
}
