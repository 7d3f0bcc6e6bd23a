package sim

import (
	"math"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"ironspan/engine/coherence"
	"ironspan/engine/wire"
)

// roundTrip of the clusters below: request, page, fault and resumption.
const roundTrip = 60 * time.Microsecond

// contestTime is how long, in simulated time, nodes fight.
const contestTime = 300 * time.Millisecond

// contest is a cluster in which nodes fight over the k pages from first on: half of them at home
// at node 0, half at node 1. Odd seeds have links that all take the same time, the worst case for a
// live-lock, even ones have jitter.
func contest(seed uint64, nodes, vcpus, k int, tenure coherence.Tenure) (cfg Config, first wire.PFN) {
	cfg = Config{
		Seed: seed, Nodes: nodes, Shards: 1, Slots: 16, VCPUs: vcpus, Tenure: tenure, WalksWrite: true,
		Latency:      [2]time.Duration{20 * time.Microsecond, 20 * time.Microsecond},
		FaultLatency: 10 * time.Microsecond,
		Deadline:     contestTime,
	}
	if seed%2 == 0 {
		cfg.Latency = [2]time.Duration{10 * time.Microsecond, 30 * time.Microsecond}
	}
	for n := range nodes {
		cfg.Homes = append(cfg.Homes, coherence.Range{First: wire.PFN(n * k), Last: wire.PFN((n + 1) * k)})
	}
	return cfg, wire.PFN(k / 2)
}

// pageWalk: every step of a vCPU, one instruction and what comes with it, takes 20 us and needs k pages in M
// at the same time. That is what page walks do to the pages of kernel page tables where they count as writes.
func pageWalk(seed uint64, nodes, vcpus, k int, tenure coherence.Tenure) Config {
	cfg, first := contest(seed, nodes, vcpus, k, tenure)
	ops := make([]Access, k)
	for i := range ops {
		ops[i] = Access{Page: first + wire.PFN(i), Write: true}
	}
	cfg.Workload = func(*rand.Rand, int, int, int) ([]Access, time.Duration) { return ops, 20 * time.Microsecond }
	return cfg
}

// steps returns the number of operations of all vCPUs, and of those of the node with the fewest.
func steps(r *Result) (all, least int) {
	least = 1 << 30
	for _, node := range r.Ops {
		sum := 0
		for _, n := range node {
			sum += n
		}
		all += sum
		least = min(least, sum)
	}
	return all, least
}

// TestPageWalk: without tenure, nodes that need the same ten pages at a time rob each other before anybody
// gets to use them; with the default, together they do half of what one vCPU could do alone (the other half
// goes into moving the pages), and share it fairly.
func TestPageWalk(t *testing.T) {
	const alone = int(contestTime / (20 * time.Microsecond)) // what a vCPU does that has all pages
	t.Logf("steps in %v; a vcpu alone does %d", contestTime, alone)
	for _, c := range []struct{ nodes, vcpus, k int }{{2, 1, 10}, {2, 2, 10}, {3, 1, 10}, {4, 1, 10}, {2, 1, 20}, {4, 1, 20}} {
		for seed := uint64(1); seed <= 2; seed++ {
			run := func(tenure coherence.Tenure) (*Result, int, int) {
				r, err := Run(pageWalk(seed, c.nodes, c.vcpus, c.k, tenure))
				if err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				all, least := steps(r)
				return r, all, least
			}
			_, none, noneLeast := run(coherence.Tenure{})
			r, all, least := run(coherence.DefaultTenure(roundTrip))
			t.Logf("%d nodes, %d vcpus each, %2d pages, seed %d: without tenure %5d, of which the last node %4d; with %5d and %5d; a page wanted %v at most",
				c.nodes, c.vcpus, c.k, seed, none, noneLeast, all, least, time.Duration(r.WorstNs))
			if all < c.vcpus*alone*4/10 || least < all/c.nodes/2 {
				t.Errorf("%d nodes, %d pages, seed %d: too little progress, or unfair: %d steps, the last node %d", c.nodes, c.k, seed, all, least)
			}
			if all < 20*none {
				t.Errorf("%d nodes, %d pages, seed %d: tenure helps little: %d steps, without %d", c.nodes, c.k, seed, all, none)
			}
		}
	}
}

// TestHandOver is the other side of tenure: two nodes write a flag in turn, each after it has seen the
// other's. That wants the page to move at once, and should not pay much for what page walks need.
func TestHandOver(t *testing.T) {
	for seed := uint64(1); seed <= 2; seed++ {
		run := func(tenure coherence.Tenure) (handOvers int) {
			cfg, page := contest(seed, 2, 1, 2, tenure)
			var writing [2]bool
			turn := 0
			ops := make([]Access, 1)
			cfg.Workload = func(_ *rand.Rand, n, _, _ int) ([]Access, time.Duration) {
				switch {
				case writing[n]: // has done so
					writing[n] = false
					turn = 1 - n
					handOvers++
				case turn == n: // has seen so
					writing[n] = true
				}
				ops[0] = Access{Page: page, Write: writing[n]}
				return ops, time.Microsecond
			}
			if _, err := Run(cfg); err != nil {
				t.Fatal(err)
			}
			return handOvers
		}
		none, some := run(coherence.Tenure{}), run(coherence.DefaultTenure(roundTrip))
		t.Logf("seed %d: %d hand-overs in %v without tenure, %d with", seed, none, contestTime, some)
		if some < none/3 {
			t.Errorf("seed %d: tenure costs too much: %d hand-overs, without %d", seed, some, none)
		}
	}
}

// TestCosts prints what each kind of transaction costs, and holds the protocol to it.
func TestCosts(t *testing.T) {
	cfg := Random(1)
	cfg.Nodes, cfg.VCPUs, cfg.Ops, cfg.Slots = 4, 2, 2000, 8
	cfg.Shard, cfg.Shards, cfg.StripeShift = 0, 1, 0
	cfg.ReadAsWrite, cfg.WalksWrite, cfg.Migratory, cfg.Prefetch = false, false, false, 0
	cfg.Zeros, cfg.Evict, cfg.Cache = 0, 0.02, 0
	cfg.Crash, cfg.Break = nil, nil
	cfg.Tenure = coherence.Tenure{}
	cfg.Homes = nil
	for n := range cfg.Nodes {
		cfg.Homes = append(cfg.Homes, coherence.Range{First: wire.PFN(16 * n), Last: wire.PFN(16 * (n + 1))})
	}
	ops := make([]Access, 1)
	cfg.Workload = func(rng *rand.Rand, _, _, _ int) ([]Access, time.Duration) {
		ops[0] = Access{Page: wire.PFN(rng.IntN(64)), Write: rng.IntN(3) == 0}
		return ops, 5 * time.Microsecond
	}
	r, err := Run(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if testing.Verbose() {
		if err := r.Kinds.Write(os.Stdout); err != nil {
			t.Fatal(err)
		}
	}
	for i, k := range r.Kinds.Add(nil).Add(r.Kinds) {
		one := r.Kinds[i]
		if k.Count != 2*one.Count || math.Abs(k.Messages-one.Messages) > 1e-9 || k.MaxHops != one.MaxHops {
			t.Errorf("twice the same is %+v, once is %+v", k, one)
		}
	}
	most := map[string]struct {
		messages float64
		hops     int
	}{
		"GetS, from home": {2, 2}, "GetS, from owner": {5, 3}, "GetS by home, from owner": {2, 2},
		"GetM, from home": {2, 2}, "GetM, from owner": {4, 3}, "GetM by home, from owner": {2, 2},
		"GetM, sharers": {7, 3}, "GetM by home, sharers": {6, 2},
		"Upgrade, no data, from home": {2, 2}, "Upgrade, no data, sharers": {7, 3},
		"Upgrade, lost its copy, from owner": {4, 3}, "Upgrade, lost its copy, sharers": {7, 3},
		"Upgrade, lost its copy, from home": {2, 2},
		"GetS, parked by owner":             {4, 4}, "GetM, parked by owner": {4, 4},
		"GetS by home, parked by owner": {2, 2}, "GetM by home, parked by owner": {2, 2},
		"Upgrade, lost its copy, parked by owner": {4, 4},
	}
	rare := map[string]bool{
		"Upgrade, lost its copy, sharers":         true, // somebody reads between the writer it lost to and itself
		"Upgrade, lost its copy, parked by owner": true, // the writer it lost to parks the page in that time
	}
	seen := map[string]bool{}
	for _, k := range r.Kinds {
		m, ok := most[k.Name]
		if !ok {
			t.Errorf("%s: not expected", k.Name)
		}
		if k.Messages > m.messages || k.MaxHops > m.hops {
			t.Errorf("%s: %.2f messages and %d hops, want at most %.0f and %d", k.Name, k.Messages, k.MaxHops, m.messages, m.hops)
		}
		seen[k.Name] = true
	}
	for name := range most {
		if !seen[name] && !rare[name] {
			t.Errorf("%s: never happened", name)
		}
	}
}
