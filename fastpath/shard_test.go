package fastpath

import (
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ironspan/engine/coherence"
	"ironspan/engine/wire"
)

const workersPerNode = 2

// stressTime is how long a random workload runs.
func stressTime(t testing.TB) time.Duration {
	if testing.Short() {
		return 300 * time.Millisecond
	}
	return 3 * time.Second
}

func newTestHistory(t testing.TB, l layout) (*history, int) {
	t.Helper()
	fd, err := unix.MemfdCreate("history", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	h, err := newHistory(fd, l.total(), l.nodes*workersPerNode)
	if err != nil {
		t.Fatal(err)
	}
	return h, fd
}

// guard dumps what the nodes think if the test takes too long: a fault that nobody serves.
func guard(t testing.TB, ns []*testNode, limit time.Duration) (done func()) {
	timer := time.AfterFunc(limit, func() {
		for _, n := range ns {
			for i, a := range n.agents {
				fmt.Printf("node %d shard %d (read while it runs): faults %d\n", n.self, i, n.shards[i].metrics.Faults.Load())
				for p := range wire.PFN(n.total()) {
					if info, ok := a.Inspect(p); ok && (info.Waiting || info.Deferred || info.Busy || info.Queue > 0) {
						fmt.Printf("  page %d: %+v\n", p, info)
					}
				}
			}
		}
		panic("a fault is not served")
	})
	return func() { timer.Stop() }
}

func TestRandomWorkload(t *testing.T) {
	base := layout{nodes: 2, shards: 1, pages: 64, slots: 16, poll: Event, continueWP: true}
	quick := coherence.Tenure{Base: 20 * time.Microsecond, Max: 200 * time.Microsecond, Window: time.Millisecond}
	for name, change := range map[string]func(*layout){
		"two nodes":            func(*layout) {},
		"three nodes":          func(l *layout) { l.nodes, l.prefetch = 3, 4 },
		"tenure":               func(l *layout) { l.tenure = quick },
		"few pages cached":     func(l *layout) { l.nodes, l.cache = 3, 24; l.tenure = quick },
		"two shards":           func(l *layout) { l.shards = 2; l.tenure = quick },
		"huge pages":           func(l *layout) { l.pages = 1024; l.tenure = quick },
		"one slot":             func(l *layout) { l.slots = 1; l.nodes = 3 },
		"polling":              func(l *layout) { l.poll, l.threads = Adaptive, 1 },
		"no continue with wp":  func(l *layout) { l.continueWP = false; l.nodes = 3 },
		"default, three nodes": func(l *layout) { l.nodes = 3; l.tenure = coherence.DefaultTenure(100 * time.Microsecond) },
	} {
		t.Run(name, func(t *testing.T) {
			l := base
			change(&l)
			h, _ := newTestHistory(t, l)
			ns := cluster(t, l)
			defer guard(t, ns, 60*time.Second)()
			for _, n := range ns {
				n.fill()
			}
			seed := uint64(time.Now().UnixNano())
			until := time.Now().Add(stressTime(t))
			var wg sync.WaitGroup
			for w := range h.workers {
				wg.Go(func() {
					if err := ns[w%l.nodes].work(h, w, seed, until); err != nil {
						t.Errorf("seed %d: %v", seed, err)
					}
				})
			}
			wg.Wait()
			for _, n := range ns {
				wg.Go(func() {
					if err := n.verify(h); err != nil {
						t.Errorf("seed %d: %v", seed, err)
					}
				})
			}
			wg.Wait()
			report(t, ns)
		})
	}
}

// report logs what happened, and checks that no message was refused.
func report(t testing.TB, ns []*testNode) {
	t.Helper()
	for _, n := range ns {
		var clean, dirty, fetched uint64
		for i, s := range n.shards {
			snap := s.Snapshot()
			line := fmt.Sprintf("node %d shard %d:", n.self, i)
			for k := range FaultKinds {
				h := snap.Latency[k.String()]
				if h.Count > 0 {
					line += fmt.Sprintf(" %v %d (p50 %v p99 %v)", k, h.Count, h.Quantile(0.5), h.Quantile(0.99))
				}
			}
			t.Logf("%s; faults %d, zero pages %d, leftovers %d, remapped %d, rounds %d, sleeps %d, writes %d, deferred %d, "+
				"followers %d, hot %d, cached %d at most, evicted %d, fetched %d",
				line, snap.Faults, snap.ZeroPages, snap.Leftovers, snap.Remapped, snap.Rounds, snap.Sleeps, snap.Fabric.Write.Ops,
				snap.Agent.Deferred, snap.Agent.FollowerFaults, len(snap.Hot),
				snap.Agent.CachedMost, snap.Agent.EvictionsClean+snap.Agent.EvictionsDirty, snap.Agent.Fetches)
			if n.cache > 0 && snap.Agent.CachedMost > uint64(n.cache) {
				t.Errorf("node %d cached %d pages, the bound is %d", n.self, snap.Agent.CachedMost, n.cache)
			}
			if snap.Fabric.Read.Ops != snap.Agent.Fetches {
				t.Errorf("node %d read %d pages for %d fetches", n.self, snap.Fabric.Read.Ops, snap.Agent.Fetches)
			}
			clean, dirty, fetched = clean+snap.Agent.EvictionsClean, dirty+snap.Agent.EvictionsDirty, fetched+snap.Agent.Fetches
			for st, c := range snap.Agent.Dropped {
				if c != 0 {
					t.Errorf("node %d: %d messages refused: %v", n.self, c, coherence.Status(st))
				}
			}
			if snap.Faults == 0 {
				t.Errorf("node %d had no faults", n.self)
			}
		}
		if n.cache > 0 && (clean == 0 || dirty == 0 || fetched == 0) {
			t.Errorf("node %d parked %d pages in S and %d in M, and fetched %d", n.self, clean, dirty, fetched)
		}
	}
}

func touch(t testing.TB, n *testNode) *toucher {
	t.Helper()
	x, err := newToucher(n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(x.close)
	return x
}

func mustRead(t testing.TB, x *toucher, page wire.PFN, word int, want uint64) {
	t.Helper()
	if v, err := x.read(page, word); err != nil || v != want {
		t.Fatalf("node %d, page %d: %d, %v, want %d", x.n.self, page, v, err, want)
	}
}

func mustWrite(t testing.TB, x *toucher, page wire.PFN, word int, v uint64) {
	t.Helper()
	if err := x.write(page, word, v); err != nil {
		t.Fatal(err)
	}
}

func counted(n *testNode, k FaultKind) uint64 { return n.shards[0].Metrics().Latency[k].count.Load() }

// TestKindsOfFaults takes single pages through every kind of transition and sees how it was counted.
func TestKindsOfFaults(t *testing.T) {
	ns := cluster(t, layout{nodes: 2, shards: 1, pages: 16, slots: 4, poll: Event, continueWP: true})
	defer guard(t, ns, 30*time.Second)()
	a, b := touch(t, ns[0]), touch(t, ns[1])
	const page = 3 // homed at node 0
	expect := func(what string, n int, k FaultKind, f func()) {
		t.Helper()
		before := counted(ns[n], k)
		faults := ns[n].shards[0].Metrics().Faults.Load()
		f()
		// The vCPU is resumed before it is counted.
		for wait := 0; counted(ns[n], k) == before && wait < 1000; wait++ {
			time.Sleep(time.Millisecond)
		}
		if got := counted(ns[n], k) - before; got != 1 {
			t.Errorf("%s: %d %v faults at node %d (%d in all), want 1", what, got, k, n, ns[n].shards[0].Metrics().Faults.Load()-faults)
		}
	}
	mustWrite(t, a, page, 0, 7) // at home, in M: no fault
	if n := ns[0].shards[0].Metrics().Faults.Load(); n != 0 {
		t.Errorf("%d faults at home", n)
	}
	expect("read what the home has", 1, ReadFault, func() { mustRead(t, b, page, 0, 7) })
	mustRead(t, a, page, 0, 7)
	expect("write what is shared", 1, UpgradeFault, func() { mustWrite(t, b, page, 0, 8) })
	expect("home reads it back", 0, ReadFault, func() { mustRead(t, a, page, 0, 8) })
	expect("home writes it", 0, UpgradeFault, func() { mustWrite(t, a, page, 0, 9) })
	expect("write what the home has", 1, WriteFault, func() { mustWrite(t, b, page, 1, 10) })
	mustRead(t, b, page, 0, 9)
	expect("home writes it back", 0, WriteFault, func() { mustWrite(t, a, page, 1, 0) })
	mustWrite(t, a, page, 0, 0)
	expect("read zeros", 1, ZeroFault, func() { mustRead(t, b, page, 1, 0) })
	expect("write zeros away", 1, UpgradeFault, func() { mustWrite(t, b, page, 0, 0) })
	expect("zeros come home", 0, ZeroFault, func() { mustWrite(t, a, page, 2, 1) })
	mustRead(t, a, page, 0, 0)
	mustRead(t, a, page, 1, 0)
	expect("write what nobody touched", 1, ZeroFault, func() { mustWrite(t, b, 5, 0, 1) })
	mustRead(t, b, 5, 0, 1)
	if got := ns[0].shards[0].Metrics().ZeroPages.Load(); got != 2 {
		t.Errorf("%d pages of zeros sent by node 0, want 2", got)
	}
	report(t, ns)
}

// Where cores are scarce, a shard polls for a page that it fetches while all vCPUs wait, and only then.
func TestPollsWhileAllWait(t *testing.T) {
	for name, c := range map[string]struct {
		poll   PollMode
		vcpus  int
		shards int
		polls  bool
	}{
		"all wait":               {Adaptive, 1, 1, true},
		"all wait, one of two":   {Adaptive, 1, 2, true},
		"busy":                   {Busy, 1, 1, true},
		"event":                  {Event, 1, 1, false},
		"one of two waits":       {Adaptive, 2, 1, false},
		"nobody knows who waits": {Adaptive, 0, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			const pages, cache = 256, 64
			ns := cluster(t, layout{
				nodes: 2, shards: c.shards, pages: pages, slots: 64, poll: c.poll, threads: 1 << 20, vcpus: c.vcpus, cache: cache,
				continueWP: true,
			})
			defer guard(t, ns, 30*time.Second)()
			b := touch(t, ns[1])
			for page := range wire.PFN(pages) { // each is asked for, and most of them parked again
				mustWrite(t, b, page, 0, 1)
			}
			for i, s := range ns[1].shards {
				if spins := s.Metrics().Spins.Load(); spins > 0 {
					t.Errorf("shard %d polled %d times for pages that it asked for", i, spins)
				}
			}
			for page := range wire.PFN(pages) {
				mustRead(t, b, page, 0, 1)
			}
			if err := ns[1].stop(); err != nil {
				t.Fatal(err)
			}
			for i, s := range ns[1].shards {
				if spins := s.Metrics().Spins.Load(); spins > 0 != c.polls {
					t.Errorf("shard %d polled %d times", i, spins)
				}
				if s.fetching != 0 || s.Metrics().Latency[FetchFault].Snapshot().Count == 0 {
					t.Errorf("%d pages are still to be fetched, %d were", s.fetching, s.Metrics().Latency[FetchFault].Snapshot().Count)
				}
				if s.vcpus != nil && s.vcpus.waiting.Load() != 0 {
					t.Errorf("%d pages are still waited for", s.vcpus.waiting.Load())
				}
			}
		})
	}
}

// TestParking has a node use more pages of another one than it may hold: what it parks is in the home frame, zeros
// included, and comes back from there without the home's doing, until the home wants it.
func TestParking(t *testing.T) {
	for name, prefetch := range map[string]int{"page by page": 0, "ahead": 16} {
		t.Run(name, func(t *testing.T) {
			const pages, cache = 256, 64
			ns := cluster(t, layout{
				nodes: 2, shards: 1, pages: pages, slots: 64, poll: Event, continueWP: true, cache: cache, prefetch: prefetch,
			})
			defer guard(t, ns, 30*time.Second)()
			home, shard := ns[0].shards[0], ns[1].shards[0]
			a, b := touch(t, ns[0]), touch(t, ns[1])
			value := func(p wire.PFN) uint64 { // most pages are zeros that replace something else
				if p%4 != 0 {
					return 0
				}
				return uint64(p) + 1
			}
			for p := range wire.PFN(pages) {
				mustWrite(t, a, p, 0, 99)
			}
			for p := range wire.PFN(pages) {
				mustWrite(t, b, p, 0, value(p))
			}
			asked := home.Snapshot().Fabric.Received.Ops
			for range 2 {
				for p := range wire.PFN(pages) {
					mustRead(t, b, p, 0, value(p))
				}
			}
			s := shard.Snapshot()
			if got := home.Snapshot().Fabric.Received.Ops - asked; got != 0 {
				t.Errorf("the home got %d messages", got)
			}
			if s.Agent.EvictionsDirty < 3*pages-cache || s.Agent.Fetches < 2*pages-cache {
				t.Errorf("parked %d pages, fetched %d", s.Agent.EvictionsDirty, s.Agent.Fetches)
			}
			fetch, flight := s.Latency[FetchFault.String()], s.Stages[StageFlight.String()]
			if fetch.Count == 0 || prefetch == 0 && fetch.Count != s.Agent.Fetches || flight.Count < fetch.Count {
				t.Errorf("%d faults on parked pages, %d with stages, of %d fetches", fetch.Count, flight.Count, s.Agent.Fetches)
			}
			if (s.Batched > 0) != (prefetch > 0) {
				t.Errorf("%d pages were installed together", s.Batched)
			}
			for p := range wire.PFN(pages) {
				mustRead(t, a, p, 0, value(p))
				mustWrite(t, a, p, 0, 98)
				mustRead(t, b, p, 0, 98)
			}
			for p := range wire.PFN(pages) { // held in S, most of them parked
				mustRead(t, b, p, 0, 98)
			}
			if s := shard.Snapshot(); s.Agent.EvictionsClean < pages-cache {
				t.Errorf("parked %d pages in S", s.Agent.EvictionsClean)
			}
			t.Logf("%d parked, %d fetched, %d installed together", s.Agent.EvictionsDirty, s.Agent.Fetches, s.Batched)
		})
	}
}

// TestLeftoverFrame puts a frame with wrong bytes where a page is going to be installed.
func TestLeftoverFrame(t *testing.T) {
	ns := cluster(t, layout{nodes: 2, shards: 1, pages: 16, slots: 4, poll: Event, continueWP: true})
	defer guard(t, ns, 30*time.Second)()
	a, b := touch(t, ns[0]), touch(t, ns[1])
	mustWrite(t, a, 2, 0, 1)
	ns[1].ram.Page(2)[0] = 0xee // node 1's frame of node 0's page, which it does not have
	mustRead(t, b, 2, 0, 1)
	if got := ns[1].shards[0].Metrics().Leftovers.Load(); got != 1 {
		t.Errorf("%d leftovers", got)
	}
}

// TestLostMapping takes mappings away behind the shard's back, as the kernel may.
func TestLostMapping(t *testing.T) {
	ns := cluster(t, layout{nodes: 2, shards: 1, pages: 16, slots: 4, poll: Event, continueWP: true})
	defer guard(t, ns, 30*time.Second)()
	a, b := touch(t, ns[0]), touch(t, ns[1])
	mustWrite(t, a, 2, 0, 1)
	lose := func(n *testNode) {
		t.Helper()
		if errno := n.ram.Unmap(2); errno != 0 {
			t.Fatal(errno)
		}
	}
	lose(ns[0])
	mustRead(t, a, 2, 0, 1) // M at home
	mustRead(t, b, 2, 0, 1)
	lose(ns[0])
	lose(ns[1])
	mustRead(t, a, 2, 0, 1) // S at both
	mustRead(t, b, 2, 0, 1)
	lose(ns[1])
	mustWrite(t, b, 2, 0, 2) // upgrade of a page whose mapping is gone
	mustRead(t, a, 2, 0, 2)
	lose(ns[1])
	mustWrite(t, a, 2, 0, 3)
	mustRead(t, b, 2, 0, 3)
	if got := ns[0].shards[0].Metrics().Remapped.Load() + ns[1].shards[0].Metrics().Remapped.Load(); got < 4 {
		t.Errorf("%d mappings made again, want at least 4", got)
	}
	report(t, ns)
}

// TestLostFrameIsAnError: a page that the node holds and whose bytes are gone must not come back as zeros.
func TestLostFrameIsAnError(t *testing.T) {
	l := layout{nodes: 2, shards: 1, pages: 16, slots: 4, poll: Event, continueWP: true}
	ns := cluster(t, l)
	a, b := touch(t, ns[0]), touch(t, ns[1])
	mustWrite(t, a, 2, 0, 1)
	mustWrite(t, b, 2, 0, 2)
	if errno := ns[1].ram.Discard(2); errno != 0 {
		t.Fatal(errno)
	}
	read := make(chan struct{})
	go func() {
		_, _ = b.read(2, 0) // released when the userfaultfd is closed
		close(read)
	}()
	select {
	case err := <-ns[1].errs:
		t.Log(err)
	case <-time.After(10 * time.Second):
		t.Error("no error")
	}
	ns[1].uffds[0].Close()
	<-read
}

// TestNoAllocation runs faults of all kinds and sees that nothing in the process allocates but the test.
func TestNoAllocation(t *testing.T) {
	ns := cluster(t, layout{
		nodes: 2, shards: 1, pages: 64, slots: 8, poll: Event, continueWP: true, cache: 48,
		tenure: coherence.Tenure{Base: 5 * time.Microsecond, Max: 20 * time.Microsecond, Window: time.Millisecond},
	})
	defer guard(t, ns, 60*time.Second)()
	a, b := touch(t, ns[0]), touch(t, ns[1])
	round := func(v uint64) error {
		for p := range wire.PFN(128) {
			for _, x := range [...]*toucher{a, b} {
				if _, err := x.read(p, 0); err != nil {
					return err
				}
				if err := x.write(p, 0, v*uint64(p%2)); err != nil {
					return err
				}
			}
		}
		for p := range wire.PFN(128) { // more than fit, and nobody else wants them
			if _, err := b.read(p%64, 0); err != nil {
				return err
			}
		}
		return nil
	}
	if err := round(1); err != nil {
		t.Fatal(err)
	}
	// The runtime allocates a little by itself when it starts threads or collects: take the best of a few.
	best := uint64(1 << 62)
	for i := range 5 {
		var before, after runtime.MemStats
		faults := ns[0].shards[0].Metrics().Faults.Load() + ns[1].shards[0].Metrics().Faults.Load()
		runtime.ReadMemStats(&before)
		if err := round(uint64(i)); err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		faults = ns[0].shards[0].Metrics().Faults.Load() + ns[1].shards[0].Metrics().Faults.Load() - faults
		if faults < 128 {
			t.Fatalf("only %d faults", faults)
		}
		best = min(best, after.Mallocs-before.Mallocs)
		t.Logf("%d faults, %d allocations", faults, after.Mallocs-before.Mallocs)
	}
	if best > 2 {
		t.Errorf("%d allocations", best)
	}
	if s := ns[1].shards[0].Snapshot(); s.Agent.EvictionsDirty == 0 || s.Agent.Fetches == 0 {
		t.Errorf("%d pages parked, %d fetched", s.Agent.EvictionsDirty, s.Agent.Fetches)
	}
}

func TestSnapshotBeforeAndAfterRun(t *testing.T) {
	ns := cluster(t, layout{nodes: 2, shards: 1, pages: 16, slots: 4, poll: Event, continueWP: true})
	b := touch(t, ns[1])
	mustRead(t, b, 0, 0, 0)
	for range 10 {
		if s := ns[1].shards[0].Snapshot(); s.Agent.ReadFaults != 1 || s.Agent.ZeroGrants != 1 {
			t.Fatalf("while it runs: %+v", s.Agent)
		}
	}
	if err := ns[1].stop(); err != nil {
		t.Fatal(err)
	}
	if s := ns[1].shards[0].Snapshot(); s.Agent.ReadFaults != 1 {
		t.Errorf("after it: %+v", s.Agent)
	}
}

func TestBadShardConfigs(t *testing.T) {
	if _, err := NewShard(ShardConfig{}); err == nil {
		t.Error("empty: no error")
	}
	for _, m := range []PollMode{Adaptive, Busy, Event} {
		if got, err := ParsePollMode(m.String()); got != m || err != nil {
			t.Errorf("%v: %v, %v", m, got, err)
		}
	}
	if _, err := ParsePollMode("fast"); err == nil {
		t.Error("fast: no error")
	}
}

func TestSpinTime(t *testing.T) {
	for _, c := range []struct {
		poll    PollMode
		threads int
		cores   int
		spins   bool
	}{
		{Adaptive, 0, 2, false}, {Adaptive, 0, 8, true}, {Adaptive, 8, 8, true}, {Adaptive, 9, 8, false},
		{Adaptive, 2, 2, true}, {Event, 1, 8, false}, {Busy, 0, 2, true}, {Busy, 9, 8, false},
	} {
		if got := spinTime(&ShardConfig{Poll: c.poll, Threads: c.threads}, c.cores) > 0; got != c.spins {
			t.Errorf("%+v: spins %t", c, got)
		}
	}
}
