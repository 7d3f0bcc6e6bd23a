package coherence

import (
	"fmt"
	"math"
	"math/bits"
	"time"

	"ironspan/engine/wire"
)

// tenureMax bounds Tenure.Max and Tenure.Window, far below where the clocks of policy wrap.
const tenureMax = time.Minute

func (t *Tenure) check() error {
	switch {
	case t.Base == 0:
		return nil
	case t.Base < 0 || t.Max < t.Base || t.Max > tenureMax:
		return fmt.Errorf("coherence: tenure from %v to %v, want 0 < base <= max <= %v", t.Base, t.Max, tenureMax)
	case t.Window <= 0 || t.Window > tenureMax:
		return fmt.Errorf("coherence: tenure window %v, want up to %v", t.Window, tenureMax)
	}
	return nil
}

// defaultTenure, in round trips. Measured in engine/sim (TestPageWalk, TestHandOff): base costs a flag that
// two nodes write in turn its hand-over (2: 40 % fewer of them a second; 8: 80 %), and is what a vCPU has to
// get going again before the page is gone, so it wants to be short, but well above the jitter of a fault.
// Max costs nobody but a node that is collecting, and has to cover the collection: an x86 instruction can
// touch ten pages and more (four levels of page table for its code and for its operand, and these pages
// themselves), each of which is fetched after the one before; with less than twice that, nodes block each
// other crosswise and nobody gets all. 64 suffices for 20 pages and four nodes.
func defaultTenure(roundTrip time.Duration) Tenure {
	roundTrip = max(roundTrip, time.Microsecond)
	return Tenure{
		Base:   min(2*roundTrip, tenureMax),
		Max:    min(64*roundTrip, tenureMax),
		Window: min(64*roundTrip, tenureMax),
	}
}

// Two clocks are kept short, to keep page states small. The beginning of a tenure is kept in units of 1024 ns
// in 32 bits, which wrap after 73 minutes: a page that was won that long ago may be withheld once more. The
// time of a page's last move is kept in 16 bits of about a 32nd of a window; when it wraps, a quiet page may
// be taken for a busy one, once.
const clockShift = 10

// policy is Tenure, prepared.
type policy struct {
	max        int64
	levels     [levelMax + 1]int64  // tenure by level
	top        uint8                // highest level in use
	stampShift uint                 // log2 of a stamp's nanoseconds
	window     uint16               // in stamps
	busy       [levelMax + 1]uint16 // window and tenure by level, in stamps
	turn       int64                // how long a node has the right of way
}

func newPolicy(t Tenure) policy {
	if t.Base == 0 {
		return policy{turn: 1, stampShift: 20, window: 1, busy: [levelMax + 1]uint16{1}} // moves count all the same
	}
	p := policy{max: int64(t.Max), turn: max(int64(t.Max)/2, 1)}
	p.stampShift = uint(max(bits.Len64(uint64(t.Window))-6, 0))
	p.window = uint16(int64(t.Window) >> p.stampShift)
	p.busy[0] = p.window
	for l := 1; l <= levelMax; l++ {
		if p.levels[l] = min(int64(t.Base)<<(l-1), p.max); l == levelMax {
			p.levels[l] = p.max
		}
		p.busy[l] = uint16(min(int64(p.window)+p.levels[l]>>p.stampShift, math.MaxInt16))
		if p.top = uint8(l); p.levels[l] == p.max {
			break
		}
	}
	return p
}

func (p *policy) tenure(level uint8) int64 { return p.levels[level] }

// quiet returns for how long the page has not moved, in stamps, and the stamp of now.
func (p *policy) quiet(e *entry, now int64) (stamps, stamp uint16) {
	stamp = max(uint16(now>>p.stampShift), 1)
	return stamp - e.moved, stamp
}

// decayed returns the page's level now, one less for each quiet window. A page that moves as soon as its
// tenure lets it is not quiet, so that time does not count.
func (p *policy) decayed(e *entry, now int64) uint8 {
	stamps, _ := p.quiet(e, now)
	l := e.level()
	if l == 0 || stamps <= p.busy[l] {
		return l
	}
	return l - uint8(min((stamps-p.busy[l])/p.window+1, uint16(l)))
}

// move notes a move of the page now and says whether it is a quick one, one of a ping-pong.
func (p *policy) move(e *entry, now int64) bool {
	stamps, stamp := p.quiet(e, now)
	l := e.level()
	quick := e.moved != 0 && stamps <= p.busy[l]
	if quick {
		l = min(l+1, p.top)
	} else {
		l = p.decayed(e, now)
	}
	e.setLevel(l)
	e.moved = stamp
	return quick
}

// levelOf returns the level of a tenure that came with a grant.
func (p *policy) levelOf(tenure int64) uint8 {
	l := uint8(0)
	for l < p.top && p.levels[l] < tenure {
		l++
	}
	return l
}

// spell is a time in which a node collects pages: from the first with a tenure to be installed to the last, without a
// pause longer than the least tenure between one and the request for the next. Any page that a vCPU waits for
// counts: to lose what is fought over while it waits for something else would cost it the whole collection.
type spell struct {
	asked       int   // requests that are outstanding
	start, last int64 // first and last installation; start is never if there is none yet
}

const never = math.MaxInt64

// ask notes that a page is asked for.
func (s *spell) ask(now, pause int64) {
	if s.asked == 0 && now-s.last > pause {
		s.start = never
	}
	s.asked++
}

// beginTenure is called when a page is installed.
func (a *Agent) beginTenure(now int64, p *local, r *request) {
	s := &a.spell
	s.asked--
	p.marks &^= robbed
	p.setLevel(a.policy.levelOf(r.tenure))
	if p.level() == 0 {
		if s.start != never {
			s.last = now
		}
		return
	}
	p.since = uint32(now >> clockShift)
	if s.start == never {
		s.start = now
	}
	s.last = now
}

// holdUntil returns until when a page is kept, as things stand; not after now if it is to be given up.
//
// A page is kept for the least tenure in any case, so that the vCPU that waited for it gets to use it. What
// was won in the present spell is kept while the node still waits for another page that was taken from it,
// up to the page's own tenure; and after that for as long as the spell took, so that collecting pages takes
// no more than half of the time when nodes take turns. Two nodes that collect at the same time would block each
// other crosswise, so one that collects only insists against nodes that it has the right of way over.
func (a *Agent) holdUntil(now int64, p *local, requester wire.NodeID) int64 {
	l := p.level()
	if l == 0 || p.slot != 0 || a.idle {
		return 0 // no tenure; or the node waits to write, or to be rid of the page, behind the one who wants it; or has no use for it
	}
	base, limit := a.policy.levels[1], a.policy.levels[l]
	tick := now >> clockShift
	since := (tick - int64(uint32(tick)-p.since)) << clockShift
	if now-since >= limit {
		return 0
	}
	end := since + base
	if s := &a.spell; since >= s.start>>clockShift<<clockShift {
		switch {
		case s.asked == 0:
			end = max(end, s.last+max(base, min(s.last-s.start, a.policy.turn)))
		case a.precedes(now, requester):
			end = max(end, now+base)
		}
	}
	return min(end, since+limit)
}

// fewNodes is up to how many nodes take turns by the clock and ask for sets of pages at once.
const fewNodes = 3

// precedes says whether this node has the right of way over another now. It goes round: in its turn a node goes
// before all others, then comes the next one's. The nodes' clocks agree closely enough for that; where they do
// not, both may insist or both may yield for a moment.
//
// With more than a few nodes it does not work out: the home serves requests in order, so one that has the right of
// way waits behind others that do not (TestPageWalk, 4 nodes and 20 pages: 740 steps, against 7400 where everybody
// insists and pages are asked for one after the other).
func (a *Agent) precedes(now int64, other wire.NodeID) bool {
	if a.nodes > fewNodes {
		return true
	}
	turn := int(uint64(now) / uint64(a.policy.turn) % uint64(a.nodes))
	return (int(a.self)-turn+a.nodes)%a.nodes < (int(other)-turn+a.nodes)%a.nodes
}

func ones(set uint64) uint8 { return uint8(bits.OnesCount64(set)) }
