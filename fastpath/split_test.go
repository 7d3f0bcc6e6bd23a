package fastpath

import (
	"testing"
	"time"

	"ironspan/engine/wire"
)

// TestSplit takes a page of a home range that is mapped by huge pages, in either way, and sees that the home has no
// faults on the others of its block, nor the other block any part in it.
func TestSplit(t *testing.T) {
	const block = 512 // pages
	for name, take := range map[string]func(t *testing.T, x *toucher, page wire.PFN){
		"protected": func(t *testing.T, x *toucher, page wire.PFN) { mustRead(t, x, page, 0, uint64(page)) },
		"unmapped":  func(t *testing.T, x *toucher, page wire.PFN) { mustWrite(t, x, page, 1, 1) },
	} {
		for _, wp := range []bool{true, false} {
			t.Run(name+map[bool]string{true: "", false: ", no continue with wp"}[wp], func(t *testing.T) {
				ns := cluster(t, layout{nodes: 2, shards: 1, pages: 2 * block, slots: 4, poll: Event, continueWP: wp})
				if n := ns[0].ram.HugeBytes(); n != 2*block*wire.PageSize {
					t.Skipf("the host gives huge pages for %d bytes", n)
				}
				defer guard(t, ns, 30*time.Second)()
				a, b := touch(t, ns[0]), touch(t, ns[1])
				for p := range wire.PFN(2 * block) {
					mustWrite(t, a, p, 0, uint64(p))
				}
				for _, page := range []wire.PFN{7, 8, block - 1} {
					take(t, b, page)
				}
				for p := range wire.PFN(2 * block) {
					if p != 7 && p != 8 && p != block-1 {
						mustRead(t, a, p, 0, uint64(p))
						mustWrite(t, a, p, 2, uint64(p))
					}
				}
				home := ns[0].shards[0].Snapshot()
				if home.Faults != 0 || home.Stages["split"].Count != 1 {
					t.Errorf("the home had %d faults and split %d blocks, want 0 and 1", home.Faults, home.Stages["split"].Count)
				}
				if ns[0].ram.Whole(0) || !ns[0].ram.Whole(block) {
					t.Errorf("whole: the block %t, the other %t", ns[0].ram.Whole(0), ns[0].ram.Whole(block))
				}
				for p := range wire.PFN(2 * block) {
					mustWrite(t, a, p, 3, 5)
					mustRead(t, b, p, 0, uint64(p))
					mustRead(t, b, p, 3, 5)
				}
				report(t, ns)
			})
		}
	}
}

// TestLostBlock has the kernel drop the mapping of a block. The first fault on one of its pages brings all of them back.
func TestLostBlock(t *testing.T) {
	ns := cluster(t, layout{nodes: 2, shards: 1, pages: 512, slots: 4, poll: Event, continueWP: true})
	if ns[0].ram.HugeBytes() == 0 {
		t.Skip("the host gives no huge pages")
	}
	defer guard(t, ns, 30*time.Second)()
	a := touch(t, ns[0])
	for p := range wire.PFN(512) {
		mustWrite(t, a, p, 0, uint64(p))
	}
	if errno := ns[0].ram.Unmap(9); errno != 0 {
		t.Fatal(errno)
	}
	for p := range wire.PFN(512) {
		mustRead(t, a, p, 0, uint64(p))
		mustWrite(t, a, p, 0, 1)
	}
	if s := ns[0].shards[0].Snapshot(); s.Faults != 1 || s.Stages["split"].Count != 1 {
		t.Errorf("%d faults, %d blocks split, want one of each", s.Faults, s.Stages["split"].Count)
	}
}
