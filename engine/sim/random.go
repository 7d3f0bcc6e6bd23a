package sim

import (
	"math"
	"math/rand/v2"
	"time"

	"ironspan/engine/coherence"
	"ironspan/engine/wire"
)

// Random draws a cluster and a workload from a seed: the runs that tests and soak have in common.
func Random(seed uint64) Config {
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
	if rng.IntN(6) == 0 {
		failures(rng, &cfg)
	}
	return cfg
}

// failures draws one failure, or two, at times from the beginning to after most runs' end.
func failures(rng *rand.Rand, cfg *Config) {
	logUniform := func(lo, hi time.Duration) time.Duration {
		return time.Duration(float64(lo) * math.Pow(float64(hi)/float64(lo), rng.Float64()))
	}
	cfg.Detect[1] = logUniform(10*time.Microsecond, 3*time.Millisecond)
	for range 1 + rng.IntN(4)/3 {
		at := logUniform(10*time.Microsecond, 20*time.Millisecond)
		a, b := rng.IntN(cfg.Nodes), rng.IntN(cfg.Nodes-1)
		if rng.IntN(2) == 0 {
			cfg.Crash = append(cfg.Crash, Crash{a, at})
			continue
		}
		if b >= a {
			b++
		}
		cfg.Break = append(cfg.Break, Break{a, b, at})
	}
}
