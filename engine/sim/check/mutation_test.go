package check

import (
	"errors"
	"slices"
	"testing"

	"ironspan/engine/coherence"
	"ironspan/engine/wire"
)

// mutants are bugs of agents, as the world sees them.
var mutants = []struct {
	name string
	tamper
}{
	{"request lost", tamper{message: without(wire.GetM)}},
	{"forward lost", tamper{message: without(wire.FwdGetS)}},
	{"invalidation lost", tamper{message: without(wire.Inv)}},
	{"acknowledgement lost", tamper{message: without(wire.InvAck)}},
	{"write-back lost", tamper{message: without(wire.WriteBack)}},
	{"done lost", tamper{message: without(wire.Done)}},
	{"request sent twice", tamper{forge: again(wire.GetS)}},
	{"grant sent twice", tamper{forge: again(wire.Grant)}},

	{"page sent before it is unmapped", tamper{actions: later(coherence.OpUnmap, wire.Grant)}},
	{"page sent before it is write-protected", tamper{actions: later(coherence.OpProtect, wire.Grant)}},
	{"acknowledged before it is unmapped", tamper{actions: later(coherence.OpUnmap, wire.InvAck)}},
	{"frame discarded before it is sent", tamper{actions: discardFirst}},
	{"owner goes on writing after a read forward", tamper{actions: leaveOut(coherence.OpProtect)}},
	{"mapping stays", tamper{actions: leaveOut(coherence.OpUnmap)}},
	{"page written back without its bytes", tamper{actions: emptyWriteBack}},
	{"read copy installed writable", tamper{actions: installWritable}},
	{"home grants from a stale frame", tamper{actions: grantStale}},
	{"home's own copy is forgotten", tamper{actions: keepOwn}},
	{"upgrade granted although a write came between", tamper{actions: bareUpgrade}},
	{"forward sent to a node that is not the owner", tamper{actions: misdirect}},

	{"one sharer not invalidated", tamper{actions: spareSharer}},
	{"acknowledgements not awaited", tamper{message: await(func(uint64) uint64 { return 0 })}},
	{"one acknowledgement is enough", tamper{message: await(func(set uint64) uint64 { return set & -set })}},
	{"acknowledgement counted twice", tamper{forge: ackForAnother}},
	{"directory entry not locked", tamper{forge: doneAtOnce, message: without(wire.Done)}},
	{"read granted for writing", tamper{message: writable}},

	{"page taken for zeros", tamper{message: toFlag(wire.FlagData, wire.FlagZero)}},
	{"zeros taken for a page", tamper{message: toFlag(wire.FlagZero, wire.FlagData)}},
	{"home frame not zeroed", tamper{actions: leaveOut(coherence.OpZeroFrame)}},

	{"frame discarded before it is parked", tamper{actions: discardAtOnce}},
	{"page parked before it is unmapped", tamper{actions: parkFirst}},
	{"frame of a dropped copy is kept", tamper{actions: keepFrame}},
	{"owner parks nothing", tamper{actions: leaveOut(coherence.OpPark)}},
	{"home not told that it has a parked page itself", tamper{message: returnWithout}},
	{"home told that it has a page that its owner has", tamper{actions: returnAnyway}},

	{"message overtakes another on its link", tamper{overtake: true}},
	{"end of tenure missed", tamper{noTicks: true}},
}

// TestMutants puts one bug after the other into the cluster, and looks for it in one configuration after the
// other until it is found.
func TestMutants(t *testing.T) {
	t.Logf("%-46s %-60s %8s %6s  %s", "mutant", "found in", "states", "trace", "as")
	for _, m := range mutants {
		found := false
		for _, cfg := range smallClusters {
			cfg.tamper = &m.tamper
			r, err := Run(cfg)
			var v *Violation
			if errors.As(err, &v) {
				t.Logf("%-46s %-60v %8d %6d  %v", m.name, &cfg, r.States, v.Steps, v)
				found = true
				break
			}
			if err != nil {
				t.Fatalf("%s in %v: %v", m.name, &cfg, err)
			}
		}
		if !found {
			t.Errorf("%s: not found", m.name)
		}
	}
}

func without(kind wire.Kind) func(*wire.Message) bool {
	return func(m *wire.Message) bool { return m.Kind != kind }
}

func again(kind wire.Kind) func(*Config, *wire.Message) (wire.Message, wire.NodeID) {
	return func(c *Config, m *wire.Message) (wire.Message, wire.NodeID) {
		to := m.Requester
		if to == m.From {
			to = c.homeOf(m.Page)
		}
		if m.Kind != kind {
			return wire.Message{}, to
		}
		return *m, to
	}
}

func await(change func(set uint64) uint64) func(*wire.Message) bool {
	return func(m *wire.Message) bool {
		if m.Kind == wire.Grant && m.Args[1] != 0 {
			m.Args[1] = change(m.Args[1])
			m.Acks = uint8(min(m.Args[1], 1))
		}
		return true
	}
}

func writable(m *wire.Message) bool {
	if m.Kind == wire.Grant {
		m.Mode = wire.Modified
	}
	return true
}

func toFlag(from, to wire.Flags) func(*wire.Message) bool {
	return func(m *wire.Message) bool {
		if m.Flags == from {
			m.Flags = to
		}
		return true
	}
}

// ackForAnother acknowledges for the third node, too.
func ackForAnother(c *Config, m *wire.Message) (forged wire.Message, to wire.NodeID) {
	for n := range wire.NodeID(c.Nodes) {
		if m.Kind == wire.InvAck && n != m.From && n != m.Requester {
			forged = *m
			forged.From = n
		}
	}
	return forged, m.Requester
}

// doneAtOnce lets the home take a transaction for done as soon as it has begun it.
func doneAtOnce(c *Config, m *wire.Message) (forged wire.Message, to wire.NodeID) {
	home := c.homeOf(m.Page)
	begins := m.Kind == wire.FwdGetS || m.Kind == wire.FwdGetM || m.Kind == wire.Grant && m.Args[1] != 0
	if begins && m.From == home && m.Requester != home {
		forged = wire.Message{
			Kind: wire.Done, From: m.Requester, Requester: m.Requester,
			Txn: m.Txn, Slot: m.Slot, Page: m.Page, Epoch: m.Epoch,
		}
	}
	return forged, home
}

// returnWithout loses the word of an owner that had parked the page.
func returnWithout(m *wire.Message) bool { return m.Flags != wire.FlagHome }

type actions = func(*world, wire.NodeID, []coherence.Action) []coherence.Action

func sends(a *coherence.Action, kind wire.Kind) bool {
	return (a.Op == coherence.OpSend || a.Op == coherence.OpSendPage) && a.Msg.Kind == kind
}

// later puts an action behind the message that it has to precede.
func later(op coherence.Op, kind wire.Kind) actions {
	return func(_ *world, _ wire.NodeID, acts []coherence.Action) []coherence.Action {
		for i := range len(acts) - 1 {
			if acts[i].Op == op && sends(&acts[i+1], kind) {
				acts[i], acts[i+1] = acts[i+1], acts[i]
			}
		}
		return acts
	}
}

func discardFirst(_ *world, _ wire.NodeID, acts []coherence.Action) []coherence.Action {
	for i := 1; i < len(acts); i++ {
		if acts[i].Op == coherence.OpDiscard && acts[i-1].Op == coherence.OpSendPage {
			acts[i], acts[i-1] = acts[i-1], acts[i]
		}
	}
	return acts
}

// discardAtOnce discards a page before it is parked.
func discardAtOnce(_ *world, _ wire.NodeID, acts []coherence.Action) []coherence.Action {
	for i := range acts {
		if acts[i].Op == coherence.OpPark {
			return slices.Insert(acts, i, coherence.Action{Op: coherence.OpDiscard, Page: acts[i].Page})
		}
	}
	return acts
}

// parkFirst parks a page that the guest may still write.
func parkFirst(_ *world, _ wire.NodeID, acts []coherence.Action) []coherence.Action {
	for i := range len(acts) - 1 {
		if acts[i].Op == coherence.OpUnmap && acts[i+1].Op == coherence.OpPark {
			acts[i], acts[i+1] = acts[i+1], acts[i]
		}
	}
	return acts
}

// keepFrame forgets to discard a reader's copy that is parked.
func keepFrame(_ *world, _ wire.NodeID, acts []coherence.Action) []coherence.Action {
	if n := len(acts); n == 2 && acts[0].Op == coherence.OpUnmap && acts[1].Op == coherence.OpDiscard {
		return acts[:1]
	}
	return acts
}

// returnAnyway says that the home has the page, without having put it there.
func returnAnyway(_ *world, _ wire.NodeID, acts []coherence.Action) []coherence.Action {
	for i := range acts {
		if a := &acts[i]; sends(a, wire.Grant) && a.Msg.From != 0 && a.Peer != 0 {
			a.Op, a.Peer, a.Msg.Kind, a.Msg.Flags = coherence.OpSend, 0, wire.WriteBack, wire.FlagHome
			a.Msg.Mode, a.Msg.Acks, a.Msg.Args = wire.None, 0, [4]uint64{}
		}
	}
	return acts
}

func leaveOut(op coherence.Op) actions {
	return func(_ *world, _ wire.NodeID, acts []coherence.Action) []coherence.Action {
		return slices.DeleteFunc(acts, func(a coherence.Action) bool { return a.Op == op })
	}
}

// keepOwn leaves the home's own copy mapped if others have one, too.
func keepOwn(w *world, n wire.NodeID, acts []coherence.Action) []coherence.Action {
	return slices.DeleteFunc(acts, func(a coherence.Action) bool {
		return a.Op == coherence.OpUnmap && w.cfg.homeOf(a.Page) == n && w.at(n, a.Page).guest == wire.Shared
	})
}

func each(change func(w *world, a *coherence.Action)) actions {
	return func(w *world, _ wire.NodeID, acts []coherence.Action) []coherence.Action {
		for i := range acts {
			change(w, &acts[i])
		}
		return acts
	}
}

var emptyWriteBack = each(func(_ *world, a *coherence.Action) {
	if sends(a, wire.WriteBack) {
		a.Op = coherence.OpSend
		a.Msg.Flags = wire.FlagData
	}
})

var installWritable = each(func(_ *world, a *coherence.Action) {
	if a.Op == coherence.OpInstall {
		a.Mode = wire.Modified
	}
})

// grantStale lets the home answer a reader although another node owns the page.
var grantStale = each(func(_ *world, a *coherence.Action) {
	if sends(a, wire.FwdGetS) && a.Msg.Requester != a.Msg.From {
		a.Op = coherence.OpSendPage
		a.Peer = a.Msg.Requester
		a.Msg.Kind = wire.Grant
	}
})

// bareUpgrade keeps back the page from a node that lost its copy while its upgrade waited.
var bareUpgrade = each(func(w *world, a *coherence.Action) {
	if sends(a, wire.Grant) {
		if r, _ := w.agents[a.Peer].Roles(a.Page); r.Requester == "Upgrade asked" {
			a.Op = coherence.OpSend
			a.Msg.Flags = 0
		}
	}
})

var misdirect = each(func(w *world, a *coherence.Action) {
	if sends(a, wire.FwdGetM) {
		a.Peer = wire.NodeID(w.cfg.Nodes-1) - a.Peer%wire.NodeID(w.cfg.Nodes-1)
	}
})

// spareSharer neither invalidates the last sharer nor lets anybody wait for it.
func spareSharer(w *world, _ wire.NodeID, acts []coherence.Action) []coherence.Action {
	last, spared := wire.NodeID(w.cfg.Nodes-1), false
	for i := range acts {
		if m := &acts[i].Msg; sends(&acts[i], wire.Grant) && m.Args[1]>>last&1 == 1 {
			m.Args[1] &^= 1 << last
			m.Acks--
			spared = true
		}
	}
	return slices.DeleteFunc(acts, func(a coherence.Action) bool { return spared && sends(&a, wire.Inv) && a.Peer == last })
}
