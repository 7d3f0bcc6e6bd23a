package sim

import (
	"flag"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"ironspan/engine/coherence"
	"ironspan/engine/wire"
)

var (
	seedFlag  = flag.Uint64("seed", 0, "replay the run of this seed only")
	seedsFlag = flag.Int("seeds", 300, "number of seeds to run")
)

// TestSim runs many small clusters. To replay a failure: go test ./engine/sim -run 'TestSim$' -seed N.
func TestSim(t *testing.T) {
	first, last := uint64(1), uint64(*seedsFlag)
	if *seedFlag != 0 {
		first, last = *seedFlag, *seedFlag
	}
	if testing.Short() {
		last = min(last, max(first, 100))
	}
	var events, faults, ops int
	total := coherence.Stats{}
	var large, failed, judged, unknown, rounds uint64
	for seed := first; seed <= last; seed++ {
		r, err := Run(Random(seed))
		if err != nil {
			t.Fatalf("seed %d: %v (replay with -seed %d)", seed, err, seed)
		}
		if len(r.Ops) > 16 {
			large++
		}
		if r.Failed {
			failed++
		}
		judged += uint64(r.Histories.Accesses)
		unknown += uint64(r.Histories.Unknown)
		if r.Outcomes != nil {
			rounds += uint64(r.Outcomes.Rounds)
		}
		events += r.Events
		faults += r.Faults
		for n := range r.Stats {
			for _, done := range r.Ops[n] {
				ops += done
			}
			s := &r.Stats[n]
			total.EarlyAcks += s.EarlyAcks
			total.Deferred += s.Deferred
			total.FollowerFaults += s.FollowerFaults
			total.SlotWaits += s.SlotWaits
			total.StaleFaults += s.StaleFaults
			total.UpgradesBare += s.UpgradesBare
			total.UpgradesCarried += s.UpgradesCarried
			total.ZeroGrants += s.ZeroGrants
			total.Queued += s.Queued
			total.FrameWaits += s.FrameWaits
			total.EvictionsClean += s.EvictionsClean
			total.EvictionsDirty += s.EvictionsDirty
			total.Fetches += s.Fetches
			total.Covered += s.Covered
			total.Returns += s.Returns
		}
	}
	if unknown > 0 {
		t.Errorf("porcupine reached no verdict on %d pages", unknown)
	}
	t.Logf("%d seeds, %d events, %d accesses, %d faults", last-first+1, events, ops, faults)
	for _, x := range []struct {
		what string
		n    uint64
	}{
		{"early acks", total.EarlyAcks}, {"deferrals", total.Deferred}, {"followers", total.FollowerFaults},
		{"waits for slots", total.SlotWaits}, {"stale faults", total.StaleFaults},
		{"bare upgrades", total.UpgradesBare}, {"carried upgrades", total.UpgradesCarried},
		{"zero pages", total.ZeroGrants}, {"queued requests", total.Queued},
		{"waits for frames", total.FrameWaits}, {"clean evictions", total.EvictionsClean},
		{"dirty evictions", total.EvictionsDirty}, {"fetches", total.Fetches}, {"pages covered", total.Covered},
		{"forwards to who had parked the page", total.Returns},
		{"clusters of more than 16 nodes", large}, {"failures", failed},
		{"accesses that porcupine judged", judged}, {"litmus rounds", rounds},
	} {
		t.Logf("%8d %s", x.n, x.what)
		if x.n == 0 && *seedFlag == 0 && *seedsFlag >= 99 {
			t.Errorf("no run had any %s: the workload does not get there", x.what)
		}
	}
}

// TestManyNodes has as many nodes as a VM can have, all after the same few pages; and after thousands, with more of
// them than a node may cache.
func TestManyNodes(t *testing.T) {
	for _, x := range []struct{ each, stride, pages, cache, ops int }{
		{each: 1, stride: 21, pages: 4, ops: 40},
		{each: 64, stride: 1, pages: 64 * wire.MaxNodes, cache: 64, ops: 200},
	} {
		cfg := Random(3)
		cfg.Nodes, cfg.VCPUs, cfg.Ops, cfg.Slots = wire.MaxNodes, 1, x.ops, 2
		cfg.Shard, cfg.Shards, cfg.StripeShift, cfg.Cache = 0, 1, 0, x.cache
		cfg.Homes, cfg.Crash, cfg.Break = nil, nil, nil
		for n := range cfg.Nodes {
			cfg.Homes = append(cfg.Homes, coherence.Range{First: wire.PFN(n * x.each), Last: wire.PFN((n + 1) * x.each)})
		}
		ops := make([]Access, 1)
		cfg.Workload = func(rng *rand.Rand, _, _, _ int) ([]Access, time.Duration) {
			ops[0] = Access{Page: wire.PFN(x.stride * rng.IntN(x.pages)), Write: rng.IntN(8) == 0}
			return ops, 5 * time.Microsecond
		}
		r, err := Run(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if evicted := r.Stats[0].EvictionsClean; (evicted > 0) != (x.cache > 0) {
			t.Errorf("%d pages, %d of them cached: %d clean evictions", x.pages, x.cache, evicted)
		}
	}
}

// TestReplay checks that a seed is all there is to a run, of any sort.
func TestReplay(t *testing.T) {
	var large, failed, judged, tried bool
	for seed := uint64(1); seed <= 40 || !(large && failed && judged && tried); seed++ {
		a, errA := Run(Random(seed))
		b, errB := Run(Random(seed))
		if errA != nil || errB != nil || !reflect.DeepEqual(a, b) {
			t.Fatalf("two runs of seed %d differ, or fail:\n%v %+v\n%v %+v", seed, errA, a, errB, b)
		}
		large = large || len(a.Ops) > 16
		failed = failed || a.Failed
		judged = judged || a.Histories.Pages > 0
		tried = tried || a.Outcomes != nil
	}
}
