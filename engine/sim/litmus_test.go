package sim

import (
	"math/rand/v2"
	"testing"
	"time"

	"ironspan/engine/coherence"
	"ironspan/engine/litmus"
	"ironspan/engine/wire"
)

// tried is a cluster that is there for a litmus test alone: the threads on nodes of their own as far as there are, or
// (seeds that can be divided by 3) all on one, and the variables' homes all over. Store buffers only show between the
// vCPUs of one node: a right that goes to another node empties them.
func tried(seed uint64, shape *litmus.Shape, split litmus.Split, buffers bool) Config {
	nodes := 2 + int(seed%3)
	cfg := Config{
		Seed: seed, Nodes: nodes, VCPUs: litmus.MaxThreads, Shards: 1, Slots: 4, Ops: 1,
		Latency: [2]time.Duration{time.Microsecond, 20 * time.Microsecond}, FaultLatency: 2 * time.Microsecond,
		Evict: 0.05, Deadline: time.Minute, Migratory: seed%2 == 0,
		Litmus: &Litmus{Shape: shape, Split: split, Rounds: 100, Buffers: buffers, Retire: 100 * time.Microsecond},
	}
	if seed%4 > 1 {
		cfg.Tenure = coherence.DefaultTenure(20 * time.Microsecond)
	}
	const each = 4
	for n := range nodes {
		cfg.Homes = append(cfg.Homes, coherence.Range{First: wire.PFN(each * n), Last: wire.PFN(each * (n + 1))})
	}
	for v := range cfg.Litmus.Pages {
		for half := range 2 {
			home := (int(seed) + v + half) % nodes
			cfg.Litmus.Pages[v][half] = wire.PFN(each*home + v)
		}
	}
	for t := range shape.Threads {
		p := Place{t % nodes, t / nodes}
		if seed%3 == 0 {
			p = Place{0, t}
		}
		cfg.Litmus.Threads = append(cfg.Litmus.Threads, p)
	}
	read := []Access{{Page: each - 1}} // which is no variable's
	cfg.Workload = func(*rand.Rand, int, int, int) ([]Access, time.Duration) { return read, 0 }
	return cfg
}

// TestLitmus runs every shape. With store buffers each outcome is to be one of x86-TSO, without them a sequentially
// consistent one; and it says how many of those that may be there have been.
func TestLitmus(t *testing.T) {
	seeds := uint64(6)
	if testing.Short() {
		seeds = 3
	}
	for i := range litmus.Shapes {
		shape := &litmus.Shapes[i]
		allowed, plain := model(modelKey{shape: shape}), model(modelKey{shape: shape, sequential: true})
		seen, relaxed, rounds := map[litmus.Outcome]bool{}, 0, 0
		for seed := uint64(1); seed <= seeds; seed++ {
			for _, buffers := range []bool{true, false} {
				r, err := Run(tried(seed, shape, litmus.Split{}, buffers))
				if err != nil {
					t.Fatalf("seed %d: buffers %v: %v", seed, buffers, err)
				}
				relaxed += r.Outcomes.Relaxed
				rounds += r.Outcomes.Rounds
				for o := range r.Outcomes.Seen {
					seen[o] = true
				}
				if !buffers && r.Outcomes.Relaxed > 0 {
					t.Errorf("seed %d: %s was relaxed without store buffers", seed, shape.Name)
				}
			}
			if shape.Locked() {
				continue
			}
			if _, err := Run(tried(seed, shape, litmus.Split{true, false, true}, true)); err != nil {
				t.Fatalf("seed %d: split: %v", seed, err)
			}
		}
		t.Logf("%-15s %d rounds, %2d of %2d outcomes of x86-TSO, %2d of them sequentially consistent; %d rounds relaxed",
			shape.Name, rounds, len(seen), len(allowed), len(plain), relaxed)
		if some := len(allowed) > len(plain); some != (relaxed > 0) {
			t.Errorf("%s: %d rounds relaxed; that there are outcomes which take store buffers is %v", shape.Name, relaxed, some)
		}
	}
}

// TestLitmusBlind has nobody but the model judge.
func TestLitmusBlind(t *testing.T) {
	for seed := uint64(1); seed <= 4; seed++ {
		for i := range litmus.Shapes {
			cfg := tried(seed, &litmus.Shapes[i], litmus.Split{}, true)
			cfg.blind = true
			if _, err := Run(cfg); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
	}
}

// TestSequential: of store buffering, all orders of its instructions have somebody see a store.
func TestSequential(t *testing.T) {
	sb := &litmus.Shapes[0]
	both := litmus.Outcome{Mem: [litmus.MaxVars]litmus.Value{litmus.Both(1), litmus.Both(1)}} // and nothing seen
	if m := model(modelKey{shape: sb, sequential: true}); len(m) != 3 || m[both] {
		t.Errorf("%v", m)
	}
	if m := model(modelKey{shape: sb}); len(m) != 4 || !m[both] {
		t.Errorf("%v", m)
	}
}
