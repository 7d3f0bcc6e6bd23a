package check

import (
	"fmt"
	"slices"
	"strings"

	"ironspan/engine/coherence"
	"ironspan/engine/wire"
)

// Inputs that are no messages. The last three are another page's input, upon which a page that is queued gets its
// turn, one is asked for along, or a grant covers one.
const (
	readFault   = "read fault"
	writeFault  = "write fault"
	eviction    = "eviction"
	returned    = "WriteBack, parked"
	endOfTenure = "end of tenure"
	slotFree    = "slot free"
	faultBeside = "fault beside"
	grantBeside = "grant beside"
)

// inputOf names a message as an input.
func inputOf(m *wire.Message) string {
	if m.Flags == wire.FlagHome {
		return returned
	}
	return m.Kind.String()
}

// input gives an agent an input, which is about a page or, if that is -1, about none, and performs what it wants
// done.
func (w *world) input(n wire.NodeID, page int, name string, give func() coherence.Status) coherence.Status {
	a := w.agents[n]
	w.cfg.table.before(w, n)
	s := give()
	acts := a.Actions()
	if t := w.cfg.tamper; t != nil && t.actions != nil {
		acts = t.actions(w, n, slices.Clone(acts))
	}
	for i := range acts {
		w.act(n, &acts[i])
	}
	w.cfg.table.record(w, n, page, name)
	a.Clear()
	return s
}

// act performs an action, if it goes together with the mapping.
func (w *world) act(n wire.NodeID, act *coherence.Action) {
	x := w.at(n, act.Page)
	atHome := w.cfg.homeOf(act.Page) == n
	if w.trace != nil {
		w.say("    %s", describeAction(act))
	}
	sensible := true
	switch act.Op {
	case coherence.OpSend, coherence.OpSendPage:
		sensible = w.send(n, act, x)
	case coherence.OpPark, coherence.OpFetch:
		sensible = x.guest == wire.None && act.Peer == w.cfg.homeOf(act.Page) && act.Peer != n && act.Msg.From == act.Peer
		k := packet{msg: act.Msg}
		if act.Op == coherence.OpPark {
			k.bytes = x.frame
		}
		w.links[n][act.Peer] = append(w.links[n][act.Peer], k)
	case coherence.OpProtect:
		sensible = x.guest == wire.Modified
		x.guest = wire.Shared
	case coherence.OpUnmap:
		sensible = x.guest != wire.None
		x.guest = wire.None
	case coherence.OpDiscard:
		sensible = x.guest == wire.None && !atHome
		x.frame = absent
	case coherence.OpZeroFrame:
		sensible = x.guest == wire.None && atHome
		x.frame = w.zeros(act.Page)
	case coherence.OpInstall:
		sensible = x.guest == wire.None && act.Mode != wire.None && w.install(n, act, x, atHome)
		x.guest = act.Mode
		x.wake()
	case coherence.OpUnprotect:
		sensible = x.guest == wire.Shared
		x.guest = wire.Modified
		x.wake()
	case coherence.OpWake:
		sensible = x.guest == act.Mode
		x.wake()
	default:
		sensible = false
	}
	if !sensible {
		w.fail("node %d, which has page %d in %v: %s", n, act.Page, x.guest, describeAction(act))
	}
}

// zeros is what a frame holds that was zeroed.
func (w *world) zeros(p wire.PFN) content {
	if w.zero[p] {
		return current
	}
	return stale
}

func (w *world) install(n wire.NodeID, act *coherence.Action, x *page, atHome bool) bool {
	slot := &w.nodes[n].slots[act.Slot]
	filled := slot.bytes != absent
	switch {
	case act.Msg.Flags&wire.FlagZero != 0:
		x.frame = w.zeros(act.Page)
		filled = true
	case atHome:
		filled = x.frame != absent
	default:
		x.frame = slot.bytes
	}
	*slot = receiveSlot{}
	return filled
}

// wake lets the page's vCPUs try again. A reader that finds its page has read it.
func (x *page) wake() {
	if x.reader == blocked {
		x.reader = woken
	}
	if x.reader == woken && x.guest != wire.None {
		x.reader = elsewhere
	}
	if x.writer == blocked {
		x.writer = woken
	}
}

// send puts a message on its link. It is sensible if it promises no more than is so already.
func (w *world) send(n wire.NodeID, act *coherence.Action, x *page) (sensible bool) {
	k := packet{msg: act.Msg}
	m := &k.msg
	sensible = act.Peer != n && int(act.Peer) < len(w.nodes) && m.From == n && m.Page == act.Page
	if act.Op == coherence.OpSendPage {
		sensible = sensible && x.guest != wire.Modified && x.frame != absent
		if x.frame == current && w.zero[m.Page] {
			m.Flags |= wire.FlagZero
		} else {
			m.Flags |= wire.FlagData
			k.bytes = x.frame
		}
	}
	switch m.Kind {
	case wire.InvAck:
		sensible = sensible && x.guest == wire.None
	case wire.WriteBack:
		sensible = sensible && x.guest <= w.agents[n].Mode(m.Page)
	case wire.Done: // the page is installed
		sensible = sensible && x.guest == w.agents[n].Mode(m.Page)
	case wire.Grant:
		mine := wire.None // what this node may still have
		if m.Mode == wire.Shared || m.Args[1]>>n&1 == 1 {
			mine = wire.Shared
		}
		sensible = sensible && x.guest <= mine
	}
	if t := w.cfg.tamper; t != nil {
		if t.forge != nil {
			if forged, to := t.forge(w.cfg, m); forged.Kind != 0 {
				w.post(to, packet{msg: forged})
			}
		}
		if t.message != nil && !t.message(m) {
			return sensible
		}
		if m.Flags&wire.FlagData == 0 {
			k.bytes = absent
		}
	}
	w.post(act.Peer, k)
	return sensible
}

func (w *world) post(to wire.NodeID, k packet) {
	link := &w.links[k.msg.From][to]
	*link = append(*link, k)
	if t := w.cfg.tamper; t != nil && t.overtake {
		l := *link
		copy(l[1:], l)
		l[0] = k
	}
}

var opNames = [...]string{
	coherence.OpSend: "send", coherence.OpSendPage: "send page", coherence.OpProtect: "protect",
	coherence.OpUnmap: "unmap", coherence.OpDiscard: "discard", coherence.OpInstall: "install",
	coherence.OpZeroFrame: "zero home frame", coherence.OpUnprotect: "unprotect", coherence.OpWake: "wake",
	coherence.OpPark: "park", coherence.OpFetch: "fetch",
}

func describeAction(act *coherence.Action) string {
	switch act.Op {
	case coherence.OpSend, coherence.OpSendPage:
		return fmt.Sprintf("%s to node %d: %s", opNames[act.Op], act.Peer, describe(&act.Msg))
	case coherence.OpInstall, coherence.OpWake:
		return fmt.Sprintf("%s page %d in %v", opNames[act.Op], act.Page, act.Mode)
	}
	return fmt.Sprintf("%s page %d", opNames[act.Op], act.Page)
}

func describe(m *wire.Message) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v", m.Kind)
	if m.Kind == wire.Grant {
		fmt.Fprintf(&b, "(%v)", m.Mode)
	}
	fmt.Fprintf(&b, " of page %d for node %d", m.Page, m.Requester)
	switch {
	case m.Flags&wire.FlagData != 0:
		b.WriteString(", with its bytes")
	case m.Flags&wire.FlagZero != 0:
		b.WriteString(", zeros")
	case m.Flags&wire.FlagHome != 0:
		b.WriteString(", which has its bytes")
	}
	if m.Args[1] != 0 {
		fmt.Fprintf(&b, ", after the acknowledgements of nodes %b", m.Args[1])
	}
	if m.Args[2] != 0 {
		fmt.Fprintf(&b, ", covering pages %b", m.Args[2])
	}
	return b.String()
}
