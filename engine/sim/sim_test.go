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

// random draws a cluster and a workload from a seed.
func random(seed uint64) Config {
	rng := rand.New(rand.NewPCG(seed, 0xc0ff1e))
	cfg := Config{
		Seed: seed, Nodes: 2 + rng.IntN(3), Shards: 1 + rng.IntN(3), StripeShift: uint(rng.IntN(3)),
		Slots: 1 + rng.IntN(6), ReadAsWrite: rng.IntN(4) == 0, VCPUs: 1 + rng.IntN(3), Zeros: 0.2,
		Latency:      [2]time.Duration{time.Microsecond, time.Duration(2+rng.IntN(30)) * time.Microsecond},
		FaultLatency: time.Duration(1+rng.IntN(10)) * time.Microsecond,
		Clogged:      []float64{0, 0, 0.2}[rng.IntN(3)],
		Idle:         []float64{0, 0.05}[rng.IntN(2)],
		Repeat:       0.1,
		Deadline:     time.Minute,
	}
	if rng.IntN(4) == 0 {
		cfg.Nodes = 5 + rng.IntN(12)
	}
	cfg.Shard = rng.IntN(cfg.Shards)
	if rng.IntN(3) > 0 {
		cfg.Tenure = coherence.DefaultTenure(time.Duration(1+rng.IntN(50)) * time.Microsecond)
	}
	cfg.WalksWrite, cfg.Migratory = rng.IntN(2) == 0, rng.IntN(3) > 0
	cfg.Prefetch = min(cfg.Slots, []int{0, 2, 16}[rng.IntN(3)])
	var pages []wire.PFN
	first := wire.PFN(0)
	for range cfg.Nodes {
		last := first + wire.PFN(rng.IntN(8))
		cfg.Homes = append(cfg.Homes, coherence.Range{First: first, Last: last})
		first = last
	}
	last := &cfg.Homes[cfg.Nodes-1].Last
	*last += wire.PFN(cfg.Shards) << cfg.StripeShift // at least one page of ours
	for p := wire.PFN(0); p < *last; p++ {
		if int(p>>cfg.StripeShift)%cfg.Shards == cfg.Shard {
			pages = append(pages, p)
		}
	}
	rng.Shuffle(len(pages), func(i, j int) { pages[i], pages[j] = pages[j], pages[i] })
	pages = pages[:1+rng.IntN(len(pages))]
	cfg.Evict = []float64{0, 0, 0.05, 0.3}[rng.IntN(4)]
	cfg.Cache = []int{0, 0, 1 + rng.IntN(4), 1 + rng.IntN(16)}[rng.IntN(4)]
	cfg.Ops = 1200 / (cfg.Nodes * cfg.VCPUs)
	writes := 0.1 + 0.8*rng.Float64()
	think := time.Duration(rng.IntN(20)) * time.Microsecond
	ops := make([]Access, 1)
	cfg.Workload = func(rng *rand.Rand, _, _, _ int) ([]Access, time.Duration) {
		ops[0] = Access{Page: pages[rng.IntN(len(pages))], Write: rng.Float64() < writes}
		return ops, think
	}
	return cfg
}

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
	for seed := first; seed <= last; seed++ {
		r, err := Run(random(seed))
		if err != nil {
			t.Fatalf("seed %d: %v (replay with -seed %d)", seed, err, seed)
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
			total.EvictionsLost += s.EvictionsLost
		}
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
		{"dirty evictions", total.EvictionsDirty}, {"evictions that came too late", total.EvictionsLost},
	} {
		t.Logf("%8d %s", x.n, x.what)
		if x.n == 0 && *seedFlag == 0 && *seedsFlag >= 99 {
			t.Errorf("no run had any %s: the workload does not get there", x.what)
		}
	}
}

// TestManyNodes has as many nodes as a VM can have, all after the same few pages.
func TestManyNodes(t *testing.T) {
	cfg := random(3)
	cfg.Nodes, cfg.VCPUs, cfg.Ops, cfg.Slots = wire.MaxNodes, 1, 40, 2
	cfg.Shard, cfg.Shards, cfg.StripeShift = 0, 1, 0
	cfg.Homes = nil
	for n := range cfg.Nodes {
		cfg.Homes = append(cfg.Homes, coherence.Range{First: wire.PFN(n), Last: wire.PFN(n + 1)})
	}
	ops := make([]Access, 1)
	cfg.Workload = func(rng *rand.Rand, _, _, _ int) ([]Access, time.Duration) {
		ops[0] = Access{Page: wire.PFN(21 * rng.IntN(4)), Write: rng.IntN(8) == 0}
		return ops, 5 * time.Microsecond
	}
	if _, err := Run(cfg); err != nil {
		t.Fatal(err)
	}
}

// TestReplay checks that a seed is all there is to a run.
func TestReplay(t *testing.T) {
	a, err := Run(random(5))
	if err != nil {
		t.Fatal(err)
	}
	b, err := Run(random(5))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(a, b) {
		t.Fatalf("two runs of a seed differ:\n%+v\n%+v", a, b)
	}
}
