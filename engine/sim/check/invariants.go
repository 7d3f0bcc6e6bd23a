package check

import (
	"strings"

	"ironspan/engine/coherence"
	"ironspan/engine/wire"
)

// check holds the state against the invariants.
func (w *world) check() {
	for p := range w.cfg.Homes {
		w.checkPage(wire.PFN(p))
	}
}

func (w *world) checkPage(p wire.PFN) {
	writers, readers := 0, 0
	moving := false // somebody waits or has something to do
	for n := range w.nodes {
		x := &w.nodes[n].pages[p]
		switch x.guest {
		case wire.Modified:
			writers++
		case wire.Shared:
			readers++
		}
		if x.guest != wire.None && x.frame != current {
			w.fail("node %d has page %d in %v, but not its last written bytes", n, p, x.guest)
		}
		mine, _ := w.agents[n].Inspect(p)
		if mine.Mode != x.guest {
			w.fail("node %d has page %d in %v, its agent thinks %v", n, p, x.guest, mine.Mode)
		}
		if (x.reader == blocked || x.writer == blocked) && !mine.Waiting {
			w.fail("a vCPU of node %d waits for page %d, its agent does not", n, p)
		}
		if home := w.cfg.homeOf(p); mine.Right > mine.Mode && wire.NodeID(n) != home && !mine.Waiting && mine.Right == wire.Modified &&
			w.at(home, p).frame != current {
			w.fail("node %d has parked page %d, and its home frame does not hold the last written bytes", n, p)
		}
		moving = moving || mine.Waiting || mine.Deferred
	}
	if writers > 1 || writers == 1 && readers > 0 {
		w.fail("page %d has %d writers and %d readers", p, writers, readers)
	}
	moving = w.checkLinks(p) || moving
	w.checkCached(p)
	w.checkDirectory(p, moving)
}

// checkCached counts the frames of pages homed elsewhere, and looks for one that belongs to nobody.
func (w *world) checkCached(p wire.PFN) {
	for n := range w.nodes {
		x := &w.nodes[n].pages[p]
		if w.cfg.homeOf(p) != wire.NodeID(n) && x.guest == wire.None != (x.frame == absent) && !w.parking(wire.NodeID(n), p) {
			w.fail("node %d has page %d in %v, but a frame for it: %v", n, p, x.guest, x.frame != absent)
		}
		cached := 0
		for q, home := range w.cfg.Homes {
			if home != n && w.nodes[n].pages[q].frame != absent {
				cached++
			}
		}
		if w.cfg.Cache > 0 && cached > w.cfg.Cache {
			w.fail("node %d has frames for %d pages of others", n, cached)
		}
	}
}

// parking says whether a node keeps a frame only until its bytes are in the home frame.
func (w *world) parking(n wire.NodeID, p wire.PFN) bool {
	r, _ := w.agents[n].Roles(p)
	return strings.HasPrefix(r.Requester, "parking")
}

// checkLinks looks at the messages about a page, and says whether there are any.
func (w *world) checkLinks(p wire.PFN) (some bool) {
	home := w.cfg.homeOf(p)
	toHome, fromHome := false, false
	for from := range w.links {
		requests := 0
		for to, l := range w.links[from] {
			for i := range l {
				m := &l[i].msg
				if m.Page != p {
					some = some || m.Args[2]>>p&1 == 1
					continue
				}
				some = true
				if m.Flags&wire.FlagData != 0 || m.Kind == wire.Parked {
					toHome = toHome || wire.NodeID(to) == home
					fromHome = fromHome || wire.NodeID(from) == home
				}
				if m.Kind <= wire.Upgrade || m.Kind > wire.CoherenceLast {
					requests++
				}
			}
		}
		if requests > 0 {
			if mine, _ := w.agents[from].Inspect(p); requests > 1 || !mine.Waiting {
				w.fail("node %d has %d requests under way for page %d", from, requests, p)
			}
		}
	}
	if toHome && (fromHome || w.at(home, p).guest != wire.None) {
		w.fail("home frame of page %d is written while it is in use", p)
	}
	return some
}

func (w *world) checkDirectory(p wire.PFN, moving bool) {
	home := w.cfg.homeOf(p)
	info, _ := w.agents[home].Inspect(p)
	if info.Busy {
		return
	}
	if (info.Shared || info.Owner == home) && w.at(home, p).frame != current {
		w.fail("home frame of page %d does not hold its last written bytes, but the directory says so", p)
	}
	for n := range w.nodes {
		mine, _ := w.agents[n].Inspect(p)
		has, right := mine.Right, right(&info, wire.NodeID(n))
		if has > right || has != right && !moving {
			w.fail("node %d has page %d in %v, the directory gives it %v", n, p, has, right)
		}
	}
}

// right is what the directory gives a node.
func right(info *coherence.PageInfo, n wire.NodeID) wire.Mode {
	switch {
	case info.Shared && info.Sharers>>n&1 == 1:
		return wire.Shared
	case !info.Shared && info.Owner == n:
		return wire.Modified
	}
	return wire.None
}

// refault faults where the mapping is good: the vCPU is to be woken, and nothing else to happen.
func (w *world) refault(n wire.NodeID) {
	a := w.agents[n]
	for p := range w.cfg.Homes {
		x := &w.nodes[n].pages[p]
		if x.guest == wire.None || a.Mode(wire.PFN(p)) != x.guest {
			continue
		}
		s := a.Fault(w.nodes[n].now, wire.PFN(p), x.guest == wire.Modified)
		acts := a.Actions()
		if s != coherence.OK || len(acts) != 1 || acts[0].Op != coherence.OpWake || acts[0].Mode != x.guest {
			w.fail("node %d: a stale fault on page %d: %v, %d actions", n, p, s, len(acts))
		}
		a.Clear()
	}
}

// served says whether every vCPU has what it wanted and nothing is under way.
func (w *world) served() bool {
	for n := range w.nodes {
		for p := range w.nodes[n].pages {
			if x := &w.nodes[n].pages[p]; x.reader != elsewhere || x.writer != elsewhere {
				return false
			}
			if info, _ := w.agents[n].Inspect(wire.PFN(p)); info.Waiting || info.Deferred || info.Busy || info.Queue > 0 {
				return false
			}
		}
		for to := range w.links[n] {
			if len(w.links[n][to])+len(w.words[n][to]) > 0 {
				return false
			}
		}
	}
	return true
}
