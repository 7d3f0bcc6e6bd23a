package fastpath

import (
	"testing"
	"time"

	"ironspan/engine/wire"
)

// TestSequencesAreInstalledTogether scans pages of another node, which come ahead of the faults, some pages of zeros
// and some that are here already among them; then what is here is taken back, in the midst of the next scan.
func TestSequencesAreInstalledTogether(t *testing.T) {
	const pages = 512
	ns := cluster(t, layout{nodes: 2, shards: 1, pages: pages, slots: 64, prefetch: 16, poll: Event, continueWP: true})
	defer guard(t, ns, 30*time.Second)()
	a, b := touch(t, ns[0]), touch(t, ns[1])
	value := func(round, p int) uint64 {
		if p%37 == 5 {
			return 0
		}
		return uint64(round<<20 | p)
	}
	for round := 1; round <= 4; round++ {
		for p := range pages {
			mustWrite(t, a, wire.PFN(p), 0, value(round, p))
		}
		mustRead(t, b, 100, 0, value(round, 100))
		for p := range pages {
			mustRead(t, b, wire.PFN(p), 0, value(round, p))
		}
	}
	s := ns[1].shards[0].Snapshot()
	if s.Batched < 2*pages || s.Faults > pages {
		t.Errorf("%d of %d pages were installed together, after %d faults", s.Batched, 4*pages, s.Faults)
	}
	t.Logf("%d faults, %d pages installed together", s.Faults, s.Batched)
	report(t, ns)
}
