package check

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ironspan/engine/coherence"
)

// all gives every node the same budget.
func all(nodes, x int) []int { return slices.Repeat([]int{x}, nodes) }

// tenure gives every page that has moved twice a tenure: the least, or up to that many times as long.
func tenure(times time.Duration) coherence.Tenure {
	return coherence.Tenure{Base: step, Max: times * step, Window: time.Minute}
}

// smallClusters take a second together, and all but the last are enough to find every mutant.
var smallClusters = []Config{
	{Nodes: 2, Homes: []int{0}, Slots: 1, Reads: all(2, 1), Writes: all(2, 1)},
	{Nodes: 4, Homes: []int{0}, Slots: 1, Reads: []int{0, 1, 1, 0}, Writes: []int{0, 0, 0, 1}},
	{Nodes: 3, Homes: []int{0}, Slots: 1, Reads: []int{0, 0, 1}, Writes: []int{0, 1, 0}, Zeros: true},
	{Nodes: 2, Homes: []int{0, 1}, Slots: 1, Reads: all(2, 1), Writes: all(2, 1)},
	{Nodes: 2, Homes: []int{0}, Slots: 1, Reads: all(2, 0), Writes: all(2, 2), Tenure: tenure(1)},
	{Nodes: 2, Homes: []int{0}, Slots: 1, Reads: all(2, 1), Writes: all(2, 1), Evictions: all(2, 1)},
	{Nodes: 3, Homes: []int{0}, Slots: 1, Reads: []int{0, 0, 1}, Writes: []int{0, 1, 0}, Evictions: []int{0, 1, 1}, Zeros: true},
	{Nodes: 2, Homes: []int{0, 0}, Slots: 1, Reads: []int{0, 2}, Writes: all(2, 1), CoverFrom: 1},
	{Nodes: 3, Homes: []int{0}, Slots: 1, Reads: all(3, 1), Writes: all(3, 1), Zeros: true},
}

// mediumClusters add what the small ones do not get to: with them the tables are whole.
var mediumClusters = []Config{
	{Nodes: 2, Homes: []int{0, 1}, Slots: 1, Reads: all(2, 1), Writes: all(2, 2)},
	{Nodes: 3, Homes: []int{0}, Slots: 1, Reads: all(3, 1), Writes: all(3, 1), Migratory: true},
	{Nodes: 2, Homes: []int{0}, Slots: 1, Reads: all(2, 1), Writes: all(2, 2), Tenure: tenure(1)},
	{Nodes: 3, Homes: []int{0}, Slots: 1, Reads: all(3, 1), Writes: all(3, 1), ReadAsWrite: true},
	{Nodes: 3, Homes: []int{0, 1}, Slots: 1, Reads: []int{1, 1, 0}, Writes: all(3, 1)},
	{Nodes: 3, Homes: []int{0}, Slots: 1, Reads: []int{0, 0, 1}, Writes: all(3, 1), Tenure: tenure(1)},
	{Nodes: 3, Homes: []int{0}, Slots: 1, Reads: []int{1, 0, 1}, Writes: []int{0, 1, 1}, Tenure: tenure(1)},
	{Nodes: 2, Homes: []int{0, 0, 0}, Slots: 4, Reads: all(2, 2), Writes: []int{0, 1}, Prefetch: 2},
	{Nodes: 2, Homes: []int{0}, Slots: 1, Reads: all(2, 2), Writes: all(2, 2), Evictions: all(2, 2)},
	{Nodes: 3, Homes: []int{0}, Slots: 1, Reads: all(3, 1), Writes: all(3, 1), Evictions: all(3, 1)},
	{Nodes: 2, Homes: []int{0, 1}, Slots: 1, Reads: all(2, 1), Writes: all(2, 1), Evictions: all(2, 1)},
	{Nodes: 2, Homes: []int{0}, Slots: 1, Reads: all(2, 1), Writes: all(2, 2), Tenure: tenure(1), Evictions: all(2, 1)},
	{Nodes: 2, Homes: []int{0, 0}, Slots: 1, Reads: all(2, 1), Writes: all(2, 1), Cache: 1},
	{Nodes: 2, Homes: []int{0, 0}, Slots: 2, Reads: all(2, 2), Writes: all(2, 2), CoverFrom: 1},
	{Nodes: 3, Homes: []int{0, 0}, Slots: 2, Reads: []int{0, 1, 2}, Writes: []int{1, 0, 1}, CoverFrom: 2},
}

// largeClusters are all that there is time for.
var largeClusters = []Config{
	{Nodes: 3, Homes: []int{0}, Slots: 1, Reads: all(3, 2), Writes: all(3, 2), Zeros: true},
	{Nodes: 3, Homes: []int{0}, Slots: 1, Reads: all(3, 2), Writes: all(3, 2), Migratory: true},
	{Nodes: 4, Homes: []int{0}, Slots: 1, Reads: all(4, 1), Writes: all(4, 1), Zeros: true},
	{Nodes: 5, Homes: []int{0}, Slots: 1, Reads: all(5, 1), Writes: []int{0, 0, 0, 1, 1}},
	{Nodes: 3, Homes: []int{0}, Slots: 1, Reads: []int{0, 1, 1}, Writes: all(3, 1), Tenure: tenure(1), Migratory: true},
	{Nodes: 3, Homes: []int{0}, Slots: 1, Reads: all(3, 1), Writes: all(3, 2), ReadAsWrite: true},
	{Nodes: 2, Homes: []int{0}, Slots: 1, Reads: all(2, 4), Writes: all(2, 4), Zeros: true},
	{Nodes: 2, Homes: []int{0, 1}, Slots: 1, Reads: all(2, 2), Writes: all(2, 2)},
	{Nodes: 2, Homes: []int{0, 1}, Slots: 2, Reads: all(2, 3), Writes: all(2, 3)},
	{Nodes: 2, Homes: []int{0, 1}, Slots: 2, Reads: all(2, 2), Writes: all(2, 2), Zeros: true},
	{Nodes: 2, Homes: []int{0, 0}, Slots: 2, Reads: all(2, 2), Writes: all(2, 2)},
	{Nodes: 3, Homes: []int{0, 0}, Slots: 2, Reads: all(3, 1), Writes: all(3, 1)},
	{Nodes: 3, Homes: []int{0, 1}, Slots: 2, Reads: all(3, 1), Writes: all(3, 1)},
	{Nodes: 3, Homes: []int{0, 1}, Slots: 1, Reads: all(3, 1), Writes: all(3, 1), Zeros: true},
	{Nodes: 2, Homes: []int{0}, Slots: 1, Reads: all(2, 1), Writes: all(2, 2), Tenure: tenure(1), Idle: true},
	{Nodes: 2, Homes: []int{0}, Slots: 1, Reads: all(2, 1), Writes: all(2, 2), Tenure: tenure(2)},
	{Nodes: 3, Homes: []int{0}, Slots: 1, Reads: all(3, 0), Writes: all(3, 1), Tenure: tenure(2)},
	{Nodes: 2, Homes: []int{0, 0}, Slots: 2, Reads: all(2, 0), Writes: all(2, 2), Tenure: tenure(2)},
	{Nodes: 2, Homes: []int{0, 0}, Slots: 4, Reads: all(2, 0), Writes: all(2, 4), Tenure: tenure(1), WalksWrite: true, Prompt: true},
	{Nodes: 2, Homes: []int{0, 0, 0}, Slots: 4, Reads: all(2, 2), Writes: all(2, 2), Prefetch: 2, Prompt: true},
	{Nodes: 3, Homes: []int{0}, Slots: 1, Reads: all(3, 1), Writes: all(3, 1), Evictions: []int{0, 2, 2}, Zeros: true},
	{Nodes: 3, Homes: []int{0}, Slots: 1, Reads: all(3, 1), Writes: all(3, 1), Evictions: []int{0, 1, 1}, Migratory: true},
	{Nodes: 3, Homes: []int{0}, Slots: 1, Reads: []int{0, 0, 1}, Writes: []int{0, 1, 1}, Evictions: []int{0, 1, 1}, Tenure: tenure(1)},
	{Nodes: 4, Homes: []int{0}, Slots: 1, Reads: []int{0, 1, 1, 1}, Writes: []int{0, 0, 1, 1}, Evictions: []int{0, 1, 1, 1}},
	{Nodes: 2, Homes: []int{0, 1}, Slots: 2, Reads: all(2, 1), Writes: all(2, 1), Evictions: all(2, 2), Zeros: true},
	{Nodes: 2, Homes: []int{0, 1}, Slots: 2, Reads: all(2, 2), Writes: all(2, 2), Evictions: all(2, 2)},
	{Nodes: 3, Homes: []int{0, 1}, Slots: 1, Reads: []int{0, 0, 1}, Writes: all(3, 1), Evictions: all(3, 1)},
	{Nodes: 2, Homes: []int{0, 0}, Slots: 2, Reads: all(2, 1), Writes: all(2, 2), Evictions: []int{0, 2}},
	{Nodes: 2, Homes: []int{0, 0, 0}, Slots: 2, Reads: all(2, 1), Writes: all(2, 1), Cache: 2},
	{Nodes: 3, Homes: []int{0, 0}, Slots: 1, Reads: []int{0, 1, 1}, Writes: []int{1, 1, 1}, Cache: 1},
	{Nodes: 2, Homes: []int{0, 0}, Slots: 2, Reads: all(2, 0), Writes: all(2, 2), Cache: 1, Tenure: tenure(1)},
	{Nodes: 2, Homes: []int{0, 0, 0}, Slots: 4, Reads: all(2, 2), Writes: all(2, 2), Prefetch: 2, Cache: 2, Prompt: true},
	{Nodes: 3, Homes: []int{0, 0}, Slots: 2, Reads: []int{0, 1, 2}, Writes: []int{1, 1, 1}, CoverFrom: 1},
	{Nodes: 3, Homes: []int{0, 0}, Slots: 2, Reads: []int{1, 0, 2}, Writes: []int{0, 1, 2}, CoverFrom: 1},
	{Nodes: 2, Homes: []int{0, 0}, Slots: 2, Reads: all(2, 2), Writes: all(2, 2), Evictions: []int{0, 2}, CoverFrom: 1},
	{Nodes: 2, Homes: []int{0, 0}, Slots: 2, Reads: []int{0, 2}, Writes: []int{2, 1}, Tenure: tenure(1), CoverFrom: 1},
	{Nodes: 2, Homes: []int{0, 0, 0}, Slots: 4, Reads: all(2, 2), Writes: all(2, 2), Prefetch: 2, Prompt: true, CoverFrom: 2},
	{Nodes: 2, Homes: []int{0, 0, 0}, Slots: 4, Reads: all(2, 0), Writes: all(2, 3), Tenure: tenure(1), WalksWrite: true, Cache: 2, Prompt: true},
}

// outcome is what became of a search, in which there is to be nothing wrong.
type outcome struct {
	cfg Config
	r   *Result
	err error
}

func goThrough(cfg Config) outcome {
	r, err := Run(cfg)
	return outcome{cfg, r, err}
}

func (o *outcome) report(t *testing.T) {
	t.Helper()
	var v *Violation
	if errors.As(o.err, &v) {
		t.Fatalf("%v:\n%s\n%v", &o.cfg, strings.Join(v.Trace, "\n"), v)
	}
	if o.err != nil {
		t.Fatalf("%v: %v", &o.cfg, o.err)
	}
	t.Logf("%9d states %9d transitions %3d deep %3d to drain %7.1f s  %v",
		o.r.States, o.r.Transitions, o.r.Depth, o.r.Drain, o.r.Time.Seconds(), &o.cfg)
}

// searched is the searches of some clusters, each done once, and what agents did there.
func searched(clusters []Config) func() ([]outcome, *Table) {
	return sync.OnceValues(func() (outcomes []outcome, table *Table) {
		table = NewTable()
		for _, cfg := range clusters {
			cfg.table = table
			outcomes = append(outcomes, goThrough(cfg))
		}
		return outcomes, table
	})
}

var small, medium = searched(smallClusters), searched(mediumClusters)

func TestSmall(t *testing.T) {
	outcomes, _ := small()
	for i := range outcomes {
		outcomes[i].report(t)
	}
}

func TestMedium(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	outcomes, _ := medium()
	for i := range outcomes {
		outcomes[i].report(t)
	}
}

func TestLarge(t *testing.T) {
	if testing.Short() {
		t.Skip("takes minutes")
	}
	outcomes := make([]outcome, len(largeClusters))
	t.Run("search", func(t *testing.T) {
		for i, cfg := range largeClusters {
			t.Run(cfg.String(), func(t *testing.T) {
				t.Parallel()
				outcomes[i] = goThrough(cfg)
				outcomes[i].report(t)
			})
		}
	})
	var sum coherence.Stats
	for _, o := range outcomes {
		if o.r == nil {
			t.Skip("not all were searched")
		}
		for _, s := range o.r.Stats {
			sum.EarlyAcks += s.EarlyAcks
			sum.Deferred += s.Deferred
			sum.FollowerFaults += s.FollowerFaults
			sum.SlotWaits += s.SlotWaits
			sum.UpgradesBare += s.UpgradesBare
			sum.UpgradesCarried += s.UpgradesCarried
			sum.ZeroGrants += s.ZeroGrants
			sum.Queued += s.Queued
			sum.Migrations += s.Migrations
			sum.Companions += s.Companions
			sum.Prefetches += s.Prefetches
			sum.FrameWaits += s.FrameWaits
			sum.EvictionsClean += s.EvictionsClean
			sum.EvictionsDirty += s.EvictionsDirty
			sum.Fetches += s.Fetches
			sum.Covered += s.Covered
			sum.Returns += s.Returns
		}
	}
	for what, n := range map[string]uint64{
		"early acks": sum.EarlyAcks, "deferrals": sum.Deferred, "followers": sum.FollowerFaults, "waits for slots": sum.SlotWaits,
		"bare upgrades": sum.UpgradesBare, "carried upgrades": sum.UpgradesCarried, "zero pages": sum.ZeroGrants,
		"queued requests": sum.Queued, "migrations": sum.Migrations, "companions": sum.Companions, "prefetches": sum.Prefetches,
		"waits for frames": sum.FrameWaits, "clean evictions": sum.EvictionsClean, "dirty evictions": sum.EvictionsDirty,
		"fetches": sum.Fetches, "pages covered": sum.Covered, "forwards to who had parked the page": sum.Returns,
	} {
		if n == 0 {
			t.Errorf("no cluster had any %s", what)
		}
	}
}

// TestFolding lets two worlds walk the same random way. One is folded and unfolded before each step, and so
// goes on with other names, ages and numbers. If that loses anything, they part.
func TestFolding(t *testing.T) {
	walks := 300
	if testing.Short() {
		walks = 20
	}
	for _, cfg := range slices.Concat(smallClusters, mediumClusters, largeClusters) {
		rng := rand.New(rand.NewPCG(1, 2))
		for range walks {
			walk(t, cfg, rng)
		}
	}
}

func walk(t *testing.T, cfg Config, rng *rand.Rand) {
	t.Helper()
	plain, stored := must(newWorld(&cfg)), must(newWorld(&cfg))
	fold := folder{renamings: cfg.renamings()}
	for range 100 {
		b, r := fold.fold(plain)
		stored.unfold(b)
		b = bytes.Clone(b)
		if again, _ := fold.fold(stored); !bytes.Equal(again, b) {
			t.Fatalf("%v: an unfolded state is folded into another", &cfg)
		}
		events := stored.events(nil)
		if len(events) == 0 {
			return
		}
		e := events[rng.IntN(len(events))]
		stored.apply(e)
		plain.apply(r.back(e))
		want, _ := fold.fold(plain)
		want = bytes.Clone(want)
		if got, _ := fold.fold(stored); !bytes.Equal(got, want) || plain.err != nil || stored.err != nil {
			t.Fatalf("%v: after %v the states differ (%v, %v)", &cfg, e, plain.err, stored.err)
		}
	}
}
