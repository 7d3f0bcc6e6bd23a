package sim

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"ironspan/engine/coherence"
	"ironspan/engine/wire"
)

var (
	seedFlag  = flag.Uint64("seed", 0, "replay the run of this seed only")
	seedsFlag = flag.Int("seeds", 400, "number of seeds to run")
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
			ops += len(r.Ops[n]) * 0
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
		}
	}
	t.Logf("%d seeds, %d events, %d faults", last-first+1, events, faults)
	t.Logf("%+v", total)
	if *seedFlag == 0 && *seedsFlag >= 100 {
		for what, n := range map[string]uint64{
			"early acks": total.EarlyAcks, "deferrals": total.Deferred, "followers": total.FollowerFaults,
			"waits for slots": total.SlotWaits, "stale faults": total.StaleFaults,
			"bare upgrades": total.UpgradesBare, "carried upgrades": total.UpgradesCarried,
			"zero pages": total.ZeroGrants, "queued requests": total.Queued,
		} {
			if n == 0 {
				t.Errorf("no run had any %s: the workload does not get there", what)
			}
		}
	}
	_ = fmt.Sprint
	_ = os.Stdout
}
