package sim

import (
	"math/rand/v2"
	"testing"
)

// TestFailures breaks something in every run, and sees to it that it is not for nothing. (A link that nothing is sent
// on any more does not break.)
func TestFailures(t *testing.T) {
	var sum Aftermath
	ended, seeds := 0, uint64(2000)
	if testing.Short() {
		seeds = 600
	}
	for seed := uint64(1); seed <= seeds; seed++ {
		cfg := Random(seed)
		cfg.Crash, cfg.Break = nil, nil
		failures(rand.New(rand.NewPCG(seed, 0xfa11)), &cfg)
		r, err := Run(cfg)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if r.Failed && r.Aftermath.Ops > 0 {
			ended++
		}
		sum.Ops += r.Aftermath.Ops
		sum.Late += r.Aftermath.Late
		sum.Lost += r.Aftermath.Lost
		sum.Torn += r.Aftermath.Torn
		sum.Blocked += r.Aftermath.Blocked
		sum.Kept += r.Aftermath.Kept
		sum.Gone += r.Aftermath.Gone
		sum.Uncertain += r.Aftermath.Uncertain
	}
	t.Logf("%d failures, %d of them noticed while vCPUs were running: %+v", seeds, ended, sum)
	if ended < 100 || sum.Ops == 0 || sum.Late == 0 || sum.Lost == 0 || sum.Torn == 0 || sum.Blocked == 0 ||
		sum.Kept == 0 || sum.Gone == 0 || sum.Uncertain == 0 {
		t.Error("some of that never happens")
	}
}
