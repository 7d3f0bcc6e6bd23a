package nodetest_test

import (
	"encoding/binary"
	"testing"
	"time"

	"ironspan/engine/nodetest"
	"ironspan/engine/wire"
	"ironspan/kvmhost/minivm"
)

// The memory of TestBlocksAreSplitUnderTheGuest, by node: a block with the image and the flag, and three blocks that
// both guests write to.
const (
	blockPages = 512
	flagPage   = 256
	areaPages  = 3 * blockPages
	nodePages  = blockPages + areaPages

	takenEvery = 3 // pages

	badPort    = 0xf0
	roundsPort = 0xf8
	donePort   = 0xf4
)

// sweep has the guest go over the area of node 0, every few pages, with each page's address in RBX.
func sweep(a *minivm.Asm, name string, first uint64, every int32, body func(*minivm.Asm)) {
	a.MovImm(minivm.RBX, first).MovImm(minivm.RSI, first+areaPages*wire.PageSize).Label(name)
	body(a)
	a.AddImm(minivm.RBX, every*wire.PageSize).Cmp(minivm.RBX, minivm.RSI).Jcc(minivm.Below, name)
}

// TestBlocksAreSplitUnderTheGuest: a guest goes on writing to its own memory, mapped by huge pages, while another server's takes
// every third page out of it and writes there, too. Nobody's writes are lost, whatever comes between a block's split
// and its guest.
func TestBlocksAreSplitUnderTheGuest(t *testing.T) {
	cfg := nodetest.Config{Pages: nodePages, Image: 16, Slots: 32, Prefetch: 16}
	area := cfg.Addr(0, blockPages)
	flag := cfg.Addr(1, flagPage)

	owner := minivm.NewAsm().MovImm(minivm.RCX, 0).Label("round").AddImm(minivm.RCX, 1)
	sweep(owner, "write", area, 1, func(a *minivm.Asm) {
		a.Load(minivm.RAX, minivm.RBX, 0).AddImm(minivm.RAX, 1).Store(minivm.RBX, 0, minivm.RAX)
	})
	owner.MovImm(minivm.RBX, flag).Load(minivm.RAX, minivm.RBX, 0).CmpImm(minivm.RAX, 0).Jcc(minivm.Equal, "round")
	owner.Mov(minivm.RAX, minivm.RCX).Out32(roundsPort)
	owner.MovImm(minivm.RDI, 0) // the sum of what the other has written
	sweep(owner, "check", area, 1, func(a *minivm.Asm) {
		a.Load(minivm.RAX, minivm.RBX, 0).Cmp(minivm.RAX, minivm.RCX).Jcc(minivm.NotEqual, "bad")
		a.Load(minivm.RAX, minivm.RBX, 8).Add(minivm.RDI, minivm.RAX)
	})
	owner.CmpImm(minivm.RDI, areaPages/takenEvery).Jcc(minivm.NotEqual, "bad").Jmp("done")
	owner.Label("bad").Mov(minivm.RAX, minivm.RBX).Out32(badPort)
	owner.Label("done").Out8(donePort).Label("end").Jmp("end")

	taker := minivm.NewAsm()
	sweep(taker, "take", area, takenEvery, func(a *minivm.Asm) { a.LockInc(minivm.RBX, 8) })
	taker.MovImm(minivm.RBX, flag).LockInc(minivm.RBX, 0).Label("end").Jmp("end")

	cfg.Code = [][][]byte{{owner.Bytes()}, {taker.Bytes()}}
	ns := nodetest.New(t, cfg)
	ns[0].OnPort(badPort, 4, func(b []byte) { t.Errorf("wrong bytes in the page at %#x", binary.LittleEndian.Uint32(b)) })
	ns[0].OnPort(roundsPort, 4, func(b []byte) { t.Logf("the guest wrote %d times to each page", binary.LittleEndian.Uint32(b)) })
	ns[0].OnPort(donePort, 1, func([]byte) {
		for _, n := range ns {
			n.StopVM()
		}
	})
	for _, n := range ns {
		n.Run()
	}
	for i, n := range ns {
		if err := n.Wait(time.Minute); err != nil {
			t.Fatalf("node %d: %v", i, err)
		}
	}
	home := ns[0].Shard.Snapshot()
	t.Logf("%d faults, %d blocks split, %v at most", home.Faults, home.Stages["split"].Count, time.Duration(home.Stages["split"].Max))
	if ns[0].RAM.HugeBytes() != nodePages*wire.PageSize {
		t.Skipf("the host gives huge pages for %d bytes only", ns[0].RAM.HugeBytes())
	}
	if home.Stages["split"].Count != areaPages/blockPages || !ns[0].RAM.Whole(0) || home.Remapped != 0 {
		t.Errorf("%d blocks split, the untouched one whole: %t, %d pages unmapped behind the shard's back",
			home.Stages["split"].Count, ns[0].RAM.Whole(0), home.Remapped)
	}
}
