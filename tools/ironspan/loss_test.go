package main

import (
	"encoding/json"
	"os"
	"strconv"

	"github.com/rogpeppe/go-internal/testscript"

	"ironspan/engine/control"
	"ironspan/engine/spec"
	"ironspan/engine/wire"
	"ironspan/fastpath/uffd"
	"ironspan/kvmhost"
	"ironspan/kvmhost/minivm"
)

// lossGuest boots at node 0 of two with the least memory. It writes 80 of node 1's pages and reads 20, says so, and
// then goes slowly on reading: whenever node 1 is lost, it soon waits for a page. Its steps are longer than those of any
// sequence, so that nothing is asked for ahead of it.
func lossGuest() []byte {
	const top, step = 2*spec.MinBootMemory - wire.PageSize, -65 * wire.PageSize
	a := minivm.NewAsm().MovImm(minivm.RBX, top).MovImm(minivm.RCX, 80)
	a.Label("write").Store(minivm.RBX, 8, minivm.RBX).AddImm(minivm.RBX, step).Dec(minivm.RCX).Jcc(minivm.NotEqual, "write")
	a.MovImm(minivm.RCX, 20)
	a.Label("read").Load(minivm.RAX, minivm.RBX, 8).AddImm(minivm.RBX, step).Dec(minivm.RCX).Jcc(minivm.NotEqual, "read")
	for _, c := range []byte("ready") {
		a.MovImm(minivm.RAX, uint64(c)).Out8(0x3f8)
	}
	a.Label("more").Load(minivm.RAX, minivm.RBX, 8).AddImm(minivm.RBX, step).MovImm(minivm.RCX, 10_000_000)
	a.Label("wait").Pause().Dec(minivm.RCX).Jcc(minivm.NotEqual, "wait").Jmp("more")
	return minivm.Kernel(a.Bytes())
}

// runsGuests says whether this host can run a guest on two of its node processes.
func runsGuests() bool {
	if _, err := kvmhost.Probe(); err != nil {
		return false
	}
	_, err := uffd.Probe()
	return err == nil
}

// cmdLosses checks a report: losses FILE NODE PAGES KEPT OTHERS. The node with so many pages is lost, at least KEPT of
// them were elsewhere, and with it OTHERS of the other's.
func cmdLosses(ts *testscript.TestScript, neg bool, args []string) {
	number := func(s string) uint64 {
		n, err := strconv.ParseUint(s, 10, 64)
		ts.Check(err)
		return n
	}
	node, pages, kept, others := wire.NodeID(number(args[1])), number(args[2]), number(args[3]), number(args[4])
	b, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	var rep control.RunReport
	ts.Check(json.Unmarshal(b, &rep))
	l := rep.Losses
	if l == nil || len(l.Nodes) != 1 || l.Nodes[0] != node || l.AtMost || len(l.Silent) > 0 {
		ts.Fatalf("losses %+v", l)
	}
	for _, m := range l.Memory {
		listed := uint64(0)
		for _, r := range m.LostRanges {
			listed += r.Size() / wire.PageSize
		}
		own := m.Node == node
		if listed != m.Lost || own && (m.Kept < kept || m.Lost+m.Kept+m.Uncertain != pages) || !own && m.Lost != others {
			ts.Fatalf("losses %+v, %d pages listed", l, listed)
		}
	}
}
