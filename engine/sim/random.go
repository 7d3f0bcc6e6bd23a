package sim

import (
	"math/rand/v2"
	"slices"
	"time"

	"ironspan/engine/coherence"
	"ironspan/engine/litmus"
	"ironspan/engine/wire"
)

// Random draws a cluster, a workload and what fails from a seed: the runs that tests and soak have in common. Most are
// small, so that races are dense and runs short; one in 25 has up to 64 nodes and thousands of pages.
func Random(seed uint64) Config {
	rng := rand.New(rand.NewPCG(seed, 0xc0ff1e))
	cfg := Config{
		Seed: seed, Nodes: 2 + rng.IntN(3), Shards: 1 + rng.IntN(3), StripeShift: uint(rng.IntN(3)),
		Slots: 1 + rng.IntN(6), ReadAsWrite: rng.IntN(4) == 0, VCPUs: 1 + rng.IntN(3), Zeros: 0.2,
		Latency:      [2]time.Duration{time.Microsecond, time.Duration(2+rng.IntN(30)) * time.Microsecond},
		Spread:       []Spread{Uniform, Uniform, LogNormal, Bimodal}[rng.IntN(4)],
		FaultLatency: time.Duration(1+rng.IntN(10)) * time.Microsecond,
		Service:      time.Duration([]int{0, 0, 300, 2000}[rng.IntN(4)]),
		Clogged:      []float64{0, 0, 0.2}[rng.IntN(3)],
		Slow:         []float64{0, 0, 0.3}[rng.IntN(3)],
		SlowBy:       2 + rng.IntN(20),
		Idle:         []float64{0, 0.05}[rng.IntN(2)],
		Repeat:       0.1,
		Deadline:     time.Minute,
	}
	accesses, rangeMax := 1200, 8
	switch x := rng.IntN(100); {
	case x < 4:
		cfg.Nodes, cfg.Slots = 17+rng.IntN(wire.MaxNodes-16), 1+rng.IntN(32)
		accesses, rangeMax = 4000, 100
	case x < 25:
		cfg.Nodes = 5 + rng.IntN(12)
	}
	cfg.Shard = rng.IntN(cfg.Shards)
	if rng.IntN(3) > 0 {
		cfg.Tenure = coherence.DefaultTenure(time.Duration(1+rng.IntN(50)) * time.Microsecond)
	}
	cfg.WalksWrite, cfg.Migratory = rng.IntN(2) == 0, rng.IntN(3) > 0
	cfg.Prefetch = min(cfg.Slots, []int{0, 2, 16}[rng.IntN(3)])
	cfg.CoverFrom = []int{0, 1, coherence.DefaultCoverFrom}[rng.IntN(3)]
	cfg.Evict = []float64{0, 0, 0.05, 0.3}[rng.IntN(4)]
	cfg.Cache = []int{0, 0, 1 + rng.IntN(4), 1 + rng.IntN(16)}[rng.IntN(4)]
	cfg.History = cfg.Nodes*cfg.VCPUs <= 12 && rng.IntN(3) == 0
	cfg.Ops = accesses / (cfg.Nodes * cfg.VCPUs)
	pages := memory(rng, &cfg, rangeMax)
	if rng.IntN(8) == 0 {
		litmusTest(rng, &cfg, pages)
	}
	cfg.Workload = workload(rng, &cfg, pages)
	if cfg.Litmus != nil {
		cfg.Workload = cfg.Litmus.sparing(cfg.Workload)
	}
	if rng.IntN(6) == 0 {
		failures(rng, &cfg)
	}
	return cfg
}

// memory draws the nodes' ranges and returns the shard's pages, shuffled; there is at least one.
func memory(rng *rand.Rand, cfg *Config, rangeMax int) (pages []wire.PFN) {
	first := wire.PFN(0)
	for range cfg.Nodes {
		last := first + wire.PFN(rng.IntN(rangeMax))
		cfg.Homes = append(cfg.Homes, coherence.Range{First: first, Last: last})
		first = last
	}
	last := &cfg.Homes[cfg.Nodes-1].Last
	*last += wire.PFN(cfg.Shards) << cfg.StripeShift
	for p := wire.PFN(0); p < *last; p++ {
		if int(p>>cfg.StripeShift)%cfg.Shards == cfg.Shard {
			pages = append(pages, p)
		}
	}
	rng.Shuffle(len(pages), func(i, j int) { pages[i], pages[j] = pages[j], pages[i] })
	return pages
}

// workload draws what vCPUs do: accesses to any of the first few pages, or mostly to a few of many, or runs through
// them.
func workload(rng *rand.Rand, cfg *Config, pages []wire.PFN) Workload {
	writes := 0.1 + 0.8*rng.Float64()
	think := time.Duration(rng.IntN(20)) * time.Microsecond
	hot := pages[:1+rng.IntN(min(len(pages), 16))]
	ops := make([]Access, 1)
	one := func(rng *rand.Rand, page wire.PFN) ([]Access, time.Duration) {
		ops[0] = Access{Page: page, Write: rng.Float64() < writes}
		return ops, think
	}
	switch rng.IntN(6) {
	case 0:
		return func(rng *rand.Rand, _, _, _ int) ([]Access, time.Duration) {
			if rng.IntN(4) > 0 {
				return one(rng, hot[rng.IntN(len(hot))])
			}
			return one(rng, pages[rng.IntN(len(pages))])
		}
	case 1:
		sorted := slices.Sorted(slices.Values(pages))
		at := make([]int, cfg.Nodes*cfg.VCPUs)
		return func(rng *rand.Rand, node, vcpu, _ int) ([]Access, time.Duration) {
			i := &at[node*cfg.VCPUs+vcpu]
			if *i = (*i + 1) % len(sorted); rng.IntN(16) == 0 {
				*i = rng.IntN(len(sorted))
			}
			return one(rng, sorted[*i])
		}
	}
	pages = pages[:1+rng.IntN(len(pages))]
	return func(rng *rand.Rand, _, _, _ int) ([]Access, time.Duration) {
		return one(rng, pages[rng.IntN(len(pages))])
	}
}

// litmusTest draws a shape and where its threads and variables are, if there is room for them. The rest is drawn, but
// for the workload.
func litmusTest(rng *rand.Rand, cfg *Config, pages []wire.PFN) {
	l := &Litmus{
		Shape: &litmus.Shapes[rng.IntN(len(litmus.Shapes))], Rounds: 30,
		Buffers: rng.IntN(4) > 0, Retire: logUniform(rng.Float64(), time.Microsecond, 300*time.Microsecond),
	}
	if len(pages) < 2*litmus.MaxVars {
		return
	}
	for v := range l.Shape.Vars() {
		l.Pages[v] = [2]wire.PFN{pages[2*v], pages[2*v+1]}
		l.Split[v] = l.Buffers && !l.Shape.Locked() && rng.IntN(4) == 0
	}
	threads := len(l.Shape.Threads)
	cfg.VCPUs = max(cfg.VCPUs, (threads+cfg.Nodes-1)/cfg.Nodes)
	apart := cfg.Nodes
	if rng.IntN(3) == 0 { // all on one node, where store buffers show
		cfg.VCPUs, apart = max(cfg.VCPUs, threads), 1
	}
	for _, n := range rng.Perm(apart * cfg.VCPUs)[:threads] {
		l.Threads = append(l.Threads, Place{n % apart, n / apart})
	}
	if cfg.Cache > 0 && l.Split != (litmus.Split{}) {
		cfg.Cache = max(cfg.Cache, 4*cfg.VCPUs) // an instruction that stores to two pages needs both at a time
	}
	cfg.Litmus, cfg.History, cfg.Ops = l, false, cfg.Ops/4
}

// sparing is the workload without writes to the variables.
func (l *Litmus) sparing(others Workload) Workload {
	variable := map[wire.PFN]bool{}
	for v := range l.Shape.Vars() {
		variable[l.Pages[v][0]], variable[l.Pages[v][1]] = true, true
	}
	return func(rng *rand.Rand, node, vcpu, n int) ([]Access, time.Duration) {
		ops, think := others(rng, node, vcpu, n)
		for i := range ops {
			ops[i].Write = ops[i].Write && !variable[ops[i].Page]
		}
		return ops, think
	}
}

// failures draws one failure, or two, at times from the beginning to after most runs' end.
func failures(rng *rand.Rand, cfg *Config) {
	cfg.Detect[1] = logUniform(rng.Float64(), 10*time.Microsecond, 3*time.Millisecond)
	for range 1 + rng.IntN(4)/3 {
		at := logUniform(rng.Float64(), 10*time.Microsecond, 20*time.Millisecond)
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
