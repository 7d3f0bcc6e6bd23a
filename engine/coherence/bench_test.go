package coherence

import (
	"reflect"
	"syscall"
	"testing"
	"time"

	"ironspan/engine/wire"
)

// two returns the agents of a VM with two nodes, 1024 pages at each.
func two(tb tester, t Tenure) [2]*Agent {
	tb.Helper()
	var out [2]*Agent
	for n := range out {
		a, err := New(Config{
			Self: wire.NodeID(n), Homes: []Range{{0, 1024}, {1024, 2048}}, Shards: 1, Epoch: 1, Slots: 8, Tenure: t,
		})
		if err != nil {
			tb.Fatal(err)
		}
		out[n] = a
	}
	return out
}

// deliver performs what the agents want until nothing is left: messages only, there is no memory.
func deliver(tb tester, agents []*Agent, now int64) {
	tb.Helper()
	for again := true; again; {
		again = false
		for _, a := range agents {
			acts := a.Actions()
			var over [32]wire.Message // as many as any of these agents has slots
			n := 0
			for i := range acts {
				switch acts[i].Op {
				case OpPark, OpFetch:
					over[n] = acts[i].Msg
					n++
				case OpSendPage:
					acts[i].Msg.Flags = wire.FlagData
					fallthrough
				case OpSend:
					again = true
					if s := agents[acts[i].Peer].Step(now, &acts[i].Msg); s != OK {
						tb.Fatalf("%+v: %v", acts[i].Msg, s)
					}
				}
			}
			a.Clear()
			for i := range over[:n] {
				again = true
				if s := a.Step(now, &over[i]); s != OK {
					tb.Fatalf("%+v: %v", over[i], s)
				}
			}
		}
	}
}

func TestSizes(t *testing.T) {
	if s := reflect.TypeOf(entry{}).Size(); s > 16 {
		t.Errorf("directory entry has %d bytes", s)
	}
	if s := reflect.TypeOf(local{}).Size(); s > 8 {
		t.Errorf("page state has %d bytes", s)
	}
}

// TestNoAllocation goes through every kind of transaction, with tenure, and counts.
func TestNoAllocation(t *testing.T) {
	agents := make([]*Agent, 4)
	var homes []Range
	for n := range agents {
		homes = append(homes, Range{wire.PFN(n * 64), wire.PFN(n*64 + 64)})
	}
	for n := range agents {
		a, err := New(Config{
			Self: wire.NodeID(n), Homes: homes, Shards: 1, Epoch: 1, Slots: 2, Cache: 3,
			Tenure: Tenure{Base: 2000, Max: 8000, Window: 50000},
		})
		if err != nil {
			t.Fatal(err)
		}
		agents[n] = a
	}
	now, seed := int64(0), uint32(1)
	round := func() {
		for range 50 {
			for n := range agents {
				for range 4 {
					seed = seed*1664525 + 1013904223
					agents[n].Fault(now, wire.PFN(seed>>8%8*32+seed>>16%2), seed>>24&1 == 0)
				}
			}
			deliver(t, agents, now)
			now += 3000
			for _, a := range agents {
				a.Tick(now)
			}
			deliver(t, agents, now)
		}
	}
	round()
	if n := testing.AllocsPerRun(20, round); n != 0 {
		t.Errorf("%v allocations a round", n)
	}
	s := agents[0].Stats()
	if s.Deferred == 0 || s.UpgradesBare == 0 || s.SlotWaits == 0 || s.Forwards == 0 ||
		s.EvictionsClean == 0 || s.EvictionsDirty == 0 || s.FrameWaits == 0 {
		t.Errorf("the rounds do not get everywhere: %+v", s)
	}
}

// cpuTime returns what the process has used of processors. On a machine that is shared it says more about
// the code than the wall does; ReportMetric shows both.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// reportCPU reports the processor time of the iterations since start.
func reportCPU(b *testing.B, start time.Duration) {
	b.Helper()
	b.ReportMetric(float64(cpuTime(b)-start)/float64(b.N), "cpu-ns/op")
}

// grants is a set of n requests of node 1 for pages of node 0, and what node 0 grants.
func grants(b *testing.B, kind wire.Kind, mode wire.Mode, t Tenure) {
	agents := two(b, t)
	home := agents[0]
	m := wire.Message{Kind: kind, From: 1, Requester: 1, Mode: mode, Epoch: 1, Slot: 3}
	b.ReportAllocs()
	start := cpuTime(b)
	for i := 0; b.Loop(); i++ {
		m.Page = wire.PFN(i % 1024)
		m.Txn++
		if i%1024 == 0 { // all pages at home again
			for j := range home.dir {
				home.dir[j] = entry{owner: 0, moved: home.dir[j].moved, bits: home.dir[j].bits & 0xf0}
				home.pages[j] = local{mode: wire.Modified}
			}
		}
		if home.Step(int64(i)*100, &m) != OK {
			b.Fatal("refused")
		}
		home.Clear()
	}
	reportCPU(b, start)
}

// BenchmarkStepGrant is the home's part of a fault: request in, page and grant out.
func BenchmarkStepGrant(b *testing.B) {
	b.Run("modified", func(b *testing.B) { grants(b, wire.GetM, wire.Modified, Tenure{}) })
	b.Run("shared", func(b *testing.B) { grants(b, wire.GetS, wire.Shared, Tenure{}) })
	b.Run("tenure", func(b *testing.B) { grants(b, wire.GetM, wire.Modified, DefaultTenure(15*time.Microsecond)) })
}

// BenchmarkFetch is a whole fault at both ends: fault, request, grant, installation; and the way back.
func BenchmarkFetch(b *testing.B) {
	agents := two(b, Tenure{})
	b.ReportAllocs()
	start := cpuTime(b)
	for i := 0; b.Loop(); i++ {
		page := wire.PFN(i % 1024)
		agents[1-i/1024%2].Fault(int64(i), page, true)
		deliver(b, agents[:], int64(i))
	}
	reportCPU(b, start)
}

// BenchmarkForward is an owner's part: a forward in, page and grant out.
func BenchmarkForward(b *testing.B) {
	agents := two(b, Tenure{})
	a := agents[1]
	m := wire.Message{Kind: wire.FwdGetM, From: 0, Requester: 0, Mode: wire.Modified, Epoch: 1, Slot: 3}
	b.ReportAllocs()
	start := cpuTime(b)
	for i := 0; b.Loop(); i++ {
		m.Page = wire.PFN(i % 1024)
		m.Txn++
		a.pages[m.Page].mode = wire.Modified
		if a.Step(int64(i), &m) != OK {
			b.Fatal("refused")
		}
		a.Clear()
	}
	reportCPU(b, start)
}
