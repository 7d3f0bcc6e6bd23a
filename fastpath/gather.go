package fastpath

import (
	"golang.org/x/sys/unix"

	"ironspan/engine/coherence"
	"ironspan/engine/wire"
)

// gathered are pages that lie together, arrived in slots that lie together, and are to be installed by one call: what
// was asked for ahead of a sequence of faults. Nobody waits for them.
type gathered struct {
	first wire.PFN
	slot  uint32
	n     int // 0: nothing is gathered
	mode  wire.Mode
}

// gather installs the page of a slot, or puts it off until the pages next to it are known, too, if nobody waits for it.
func (s *Shard) gather(now int64, a *coherence.Action) {
	g := &s.gathered
	next := uint32(g.n)
	if g.n > 0 && (a.Page != g.first+wire.PFN(g.n) || a.Slot != g.slot+next || a.Mode != g.mode) {
		s.settle()
	}
	if g.n == 0 {
		*g = gathered{first: a.Page, slot: a.Slot, mode: a.Mode}
	}
	g.n++
	if s.pending.waits(a.Page) {
		s.settle()
		s.resumed(now, a)
	}
}

// holds says whether an action may be performed before what is gathered is installed: it neither knows these pages nor
// lets anybody write to their slots, as a request does, and a fetch.
func (g *gathered) holds(a *coherence.Action) bool {
	return a.Op == coherence.OpInstall || a.Op == coherence.OpSend && a.Msg.Kind == wire.Done
}

// settle installs what is gathered.
func (s *Shard) settle() {
	g := s.gathered
	s.gathered.n = 0
	if g.n > 1 {
		s.metrics.Batched.Add(uint64(g.n))
	}
	for done, leftovers := 0, 0; done < g.n; {
		page := g.first + wire.PFN(done)
		n, errno := s.u.CopyRange(s.ram.GuestAddr(page), s.slots.Addr(g.slot+uint32(done)), uintptr(g.n-done)*wire.PageSize,
			g.mode == wire.Shared)
		done += int(n / wire.PageSize)
		if errno == 0 {
			continue
		}
		page = g.first + wire.PFN(done)
		if errno != unix.EEXIST || leftovers == leftoverTries*g.n {
			s.fail("install", page, errno)
			return
		}
		// A frame is there, with bytes of an earlier stay.
		leftovers++
		s.metrics.Leftovers.Add(1)
		s.check("discard", page, s.ram.Discard(page))
	}
}

// flush sends what was posted, after what has arrived is installed: the peers may then write to its slots again.
func (s *Shard) flush() {
	s.settle()
	s.ep.Flush()
}
