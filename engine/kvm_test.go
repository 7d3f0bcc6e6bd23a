package engine

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ironspan/engine/coherence"
	"ironspan/engine/leaktest"
	"ironspan/engine/nodetest"
	"ironspan/engine/wire"
	"ironspan/kvmhost/minivm"
)

// The memory of a duo: two nodes of duoPages each. A guest's own image lies in its own node's range, so that each
// can run whatever the other does; shared pages lie behind the images.
const (
	duoPages = 1536
	duoSlots = 32

	duoImage  = 16  // pages from the start of a node's range to its guest's image
	duoShared = 64  // to its shared pages
	duoBulk   = 128 // to the pages that the other guest fills
	bulkPages = 64

	duoSweep   = 256 // to the pages that guests sweep over, more of them than a node may cache
	sweepPages = 1024

	reportPort = 0xf0 // 32 bits, one result after the other
	donePort   = 0xf4
)

// duoAddr is the guest-physical address of a page of a node's range.
func duoAddr(node, page int) uint64 { return uint64(node*duoPages+page) * wire.PageSize }

// duoNode is a node with one vCPU.
type duoNode struct {
	*nodetest.Node
	reports []uint32 // written on the vCPU's thread, read when it has ended
}

// newDuo connects two nodes, whose guests run the programs, and starts their shards.
func newDuo(t *testing.T, c nodetest.Config, programs [2][]byte) (duo [2]*duoNode) {
	t.Helper()
	nodetest.Need(t)
	leaktest.Check(t)
	c.Pages, c.Image, c.Slots = duoPages, duoImage, duoSlots
	c.Code = [][][]byte{{programs[0]}, {programs[1]}}
	for i, n := range nodetest.New(t, c) {
		if n.Image.End > duoAddr(i, duoShared) {
			t.Fatalf("the image ends at %#x, among the shared pages", n.Image.End)
		}
		d := &duoNode{Node: n}
		n.OnPort(reportPort, 4, func(b []byte) { d.reports = append(d.reports, binary.LittleEndian.Uint32(b)) })
		n.OnPort(donePort, 1, func([]byte) { n.StopVM() })
		duo[i] = d
	}
	return duo
}

const (
	adds   = 3000 // of the shared counter, by each guest
	rounds = 25   // of messages, in each direction
	seed0  = 0x1234567890abcdef
	seed1  = 0xfedcba0987654321
	stride = 0x9e3779b97f4a7c15
)

// duoProgram is what guest me does: it adds to a counter that the other adds to as well; exchanges messages with it,
// with data and flags on pages of either node; and fills 64 pages homed at the other and looks through those that the
// other has filled. It reports the counter and the number of wrong words in messages and in pages.
func duoProgram(me int) []byte {
	const (
		failures, round, value, step = minivm.R14, minivm.R8, minivm.R9, minivm.R10
		at, left, acc, aux           = minivm.RDI, minivm.RCX, minivm.RAX, minivm.RSI
	)
	shared := func(node, page int) uint64 { return duoAddr(node, duoShared+page) }
	seeds := [2]uint64{seed0, seed1}
	a := minivm.NewAsm()
	meetings := 0
	meet := func() {
		meetings++
		again := fmt.Sprint("meet", meetings)
		a.MovImm(minivm.RBX, shared(1, 0)).LockInc(minivm.RBX, 0)
		a.Label(again).Pause().Load(acc, minivm.RBX, 0).CmpImm(acc, int32(2*meetings)).Jcc(minivm.Below, again)
	}

	meet()
	a.MovImm(at, shared(0, 1)).MovImm(left, adds)
	a.Label("add").MovImm(acc, 1).LockXadd(at, 8, acc)
	a.MovImm(aux, 50).Label("linger").Pause().Dec(aux).Jcc(minivm.NotEqual, "linger")
	a.Dec(left).Jcc(minivm.NotEqual, "add")
	meet()
	a.MovImm(at, shared(0, 1)).Load(acc, at, 8).Out32(reportPort)

	// Node me's messages: the data on a page homed there, the flag on one homed at the other.
	const words, apart = 8, 504
	send := func() {
		a.MovImm(at, shared(me, 2)).MovImm(aux, shared(1-me, 3)).MovImm(value, seeds[me]).Add(value, round)
		for w := range int32(words) {
			a.Store(at, w*apart, value).Add(value, step)
		}
		a.Store(aux, 0, round)
	}
	receive := func() {
		a.MovImm(at, shared(1-me, 2)).MovImm(aux, shared(me, 3)).MovImm(value, seeds[1-me]).Add(value, round)
		a.Label("await").Pause().Load(acc, aux, 0).Cmp(acc, round).Jcc(minivm.Below, "await")
		for w := range int32(words) {
			good := fmt.Sprint("good", w)
			a.Load(acc, at, w*apart).Cmp(acc, value).Jcc(minivm.Equal, good).AddImm(failures, 1).Label(good).Add(value, step)
		}
	}
	a.MovImm(failures, 0).MovImm(round, 1).MovImm(step, stride).Label("round")
	if me == 0 {
		send()
		receive()
	} else {
		receive()
		send()
	}
	a.AddImm(round, 1).CmpImm(round, rounds).Jcc(minivm.BelowEqual, "round").Mov(acc, failures).Out32(reportPort)

	const bulkWords = bulkPages * wire.PageSize / 8
	a.MovImm(at, duoAddr(1-me, duoBulk)).MovImm(left, bulkWords).MovImm(value, seeds[me]).MovImm(step, stride)
	a.Label("fill").Store(at, 0, value).Add(value, step).AddImm(at, 8).Dec(left).Jcc(minivm.NotEqual, "fill")
	meet()
	a.MovImm(at, duoAddr(me, duoBulk)).MovImm(left, bulkWords).MovImm(value, seeds[1-me]).MovImm(failures, 0)
	a.Label("look").Load(acc, at, 0).Cmp(acc, value).Jcc(minivm.Equal, "same").AddImm(failures, 1).Label("same")
	a.Add(value, step).AddImm(at, 8).Dec(left).Jcc(minivm.NotEqual, "look").Mov(acc, failures).Out32(reportPort)
	return a.Out8(donePort).Label("end").Pause().Jmp("end").Bytes()
}

var duoTenure = coherence.Tenure{Base: 200 * time.Microsecond, Max: 2 * time.Millisecond, Window: 5 * time.Millisecond}

// TestGuestsShareMemory is the memory of one machine, seen by two guests under two KVM VMs.
func TestGuestsShareMemory(t *testing.T) {
	for _, c := range []struct {
		name   string
		config nodetest.Config
	}{
		{"reads share", nodetest.Config{}},
		{"reads ask to write", nodetest.Config{ReadAsWrite: true}},
		{"with tenure", nodetest.Config{Tenure: duoTenure}},
		{"with few pages cached", nodetest.Config{Tenure: duoTenure, Cache: 24}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ns := newDuo(t, c.config, [2][]byte{duoProgram(0), duoProgram(1)})
			began := time.Now()
			for _, n := range ns {
				n.Run()
			}
			for i, n := range ns {
				if err := n.Wait(30 * time.Second); err != nil {
					t.Fatalf("node %d: %v; it reported %d", i, err, n.reports)
				}
			}
			took := time.Since(began)
			for i, n := range ns {
				if want := []uint32{2 * adds, 0, 0}; !slices.Equal(n.reports, want) {
					t.Errorf("guest %d reported %d, want %d (the counter, wrong words in messages, wrong words in pages)", i, n.reports, want)
				}
			}
			for i, n := range ns {
				s := n.Shard.Snapshot()
				remote := s.Agent.GrantsShared + s.Agent.GrantsModified - s.Agent.HomeGrants
				t.Logf("node %d: %v, %d faults, %d remote, %d moves, %d pages sent", i, took.Round(time.Millisecond), s.Faults, remote, s.Agent.Moves, s.Agent.PagesSent)
				if least := uint64(bulkPages); s.Faults < least || remote < least || s.Agent.PagesSent == 0 {
					t.Errorf("node %d: %d faults, %d remote, %d pages sent: that is too little", i, s.Faults, remote, s.Agent.PagesSent)
				}
				for status, d := range s.Agent.Dropped {
					if d != 0 {
						t.Errorf("node %d refused %d: %v", i, d, coherence.Status(status))
					}
				}
				n.StopShards()
			}
			word := func(addr uint64) []uint64 { return duoWords(ns, addr) }
			counter := word(duoAddr(0, duoShared+1) + 8)
			if len(counter) == 0 || slices.ContainsFunc(counter, func(v uint64) bool { return v != 2*adds }) {
				t.Errorf("who holds the counter's page has %d there, want %d", counter, 2*adds)
			}
			for i, seed := range [2]uint64{seed0, seed1} {
				for w := range uint64(bulkPages * wire.PageSize / 8) {
					addr, want := duoAddr(1-i, duoBulk)+8*w, seed+w*stride
					got := word(addr)
					if len(got) == 0 || slices.ContainsFunc(got, func(v uint64) bool { return v != want }) {
						t.Fatalf("%#x, which guest %d filled, has %#x, want %#x", addr, i, got, want)
					}
				}
			}
		})
	}
}

// duoWords returns what is at an address, at each node that has its page; at its home, if none has.
func duoWords(ns [2]*duoNode, addr uint64) (values []uint64) {
	page := wire.PFN(addr / wire.PageSize)
	at := func(n *duoNode) uint64 { return binary.LittleEndian.Uint64(n.RAM.Page(page)[addr%wire.PageSize:]) }
	for _, n := range ns {
		if n.Agent.Mode(page) != wire.None {
			values = append(values, at(n))
		}
	}
	if len(values) == 0 {
		values = append(values, at(ns[page/duoPages]))
	}
	return values
}

// sweepRounds is how often each guest adds to a counter on each page, of either node.
const sweepRounds = 2

// sweepProgram is what guest me does: it fills pages homed at the other, both ends of each; looks through those that
// the other has filled, and through its own again; and adds to a counter on each of them all, as the other does. It
// reports the number of wrong words.
func sweepProgram(me int) []byte {
	const (
		failures, value, step, round = minivm.R14, minivm.R9, minivm.R10, minivm.R8
		at, left, acc                = minivm.RDI, minivm.RCX, minivm.RAX
	)
	seeds := [2]uint64{seed0, seed1}
	a := minivm.NewAsm().MovImm(step, stride).MovImm(failures, 0)
	meetings := 0
	meet := func() {
		meetings++
		again := fmt.Sprint("meet", meetings)
		a.MovImm(minivm.RBX, duoAddr(1, duoShared)).LockInc(minivm.RBX, 0)
		a.Label(again).Pause().Load(acc, minivm.RBX, 0).CmpImm(acc, int32(2*meetings)).Jcc(minivm.Below, again)
	}
	loops := 0
	sweep := func(node int, seed uint64, each func(name string)) {
		loops++
		again := fmt.Sprint("sweep", loops)
		a.MovImm(at, duoAddr(node, duoSweep)).MovImm(left, sweepPages).MovImm(value, seed).Label(again)
		each(again)
		a.Add(value, step).AddImm(at, wire.PageSize).Dec(left).Jcc(minivm.NotEqual, again)
	}
	look := func(name string) {
		for _, disp := range []int32{0, wire.PageSize - 8} {
			good := fmt.Sprint(name, disp)
			a.Load(acc, at, disp).Cmp(acc, value).Jcc(minivm.Equal, good).AddImm(failures, 1).Label(good)
		}
	}
	sweep(1-me, seeds[me], func(string) { a.Store(at, 0, value).Store(at, wire.PageSize-8, value) })
	meet()
	sweep(me, seeds[1-me], look)
	sweep(1-me, seeds[me], look)
	meet()
	a.MovImm(round, sweepRounds).Label("round")
	for _, node := range []int{me, 1 - me} {
		sweep(node, 0, func(string) { a.MovImm(acc, 1).LockXadd(at, 8, acc) })
	}
	a.Dec(round).Jcc(minivm.NotEqual, "round")
	return a.Mov(acc, failures).Out32(reportPort).Out8(donePort).Label("end").Pause().Jmp("end").Bytes()
}

// frames is how many pages of memory a node's RAM takes up, its own and cached ones.
func (n *duoNode) frames(t *testing.T) int64 {
	var st unix.Stat_t
	if err := unix.Fstat(n.RAM.FD(), &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512 / wire.PageSize
}

// TestGuestsCacheLittle: two guests go over four times as many pages of each other's as their nodes may cache. The
// nodes never hold more, and nothing is lost.
func TestGuestsCacheLittle(t *testing.T) {
	const bound = sweepPages / 4
	for _, c := range []struct {
		name   string
		config nodetest.Config
	}{
		{"as they come", nodetest.Config{}},
		{"with tenure, ahead of faults", nodetest.Config{Tenure: duoTenure, Prefetch: duoSlots, CoverFrom: 2, Migratory: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.config.Cache = bound
			ns := newDuo(t, c.config, [2][]byte{sweepProgram(0), sweepProgram(1)})
			began := time.Now()
			for _, n := range ns {
				n.Run()
			}
			var most [2]int64
			for i, n := range ns {
				for !n.Ran() && time.Since(began) < 60*time.Second {
					for j, m := range ns {
						most[j] = max(most[j], m.frames(t))
					}
					time.Sleep(time.Millisecond)
				}
				if err := n.Wait(time.Second); err != nil {
					t.Fatalf("node %d: %v; it reported %d", i, err, n.reports)
				}
				if want := []uint32{0}; !slices.Equal(n.reports, want) {
					t.Errorf("guest %d reported %d wrong words", i, n.reports)
				}
			}
			took := time.Since(began)
			for i, n := range ns {
				s := n.Shard.Snapshot().Agent
				t.Logf("node %d: %v, %d pages evicted clean, %d dirty, %d fetched; %d cached at most, %d now; %d frames seen at most", i,
					took.Round(time.Millisecond), s.EvictionsClean, s.EvictionsDirty, s.Fetches, s.CachedMost, s.Cached, most[i])
				if s.EvictionsDirty < sweepPages-bound || s.EvictionsClean == 0 {
					t.Errorf("node %d evicted too little", i)
				}
				if s.CachedMost > bound || s.CachedMost < bound/2 || most[i] > duoPages+bound {
					t.Errorf("node %d: the bound is %d pages, and %d of its own", i, bound, duoPages)
				}
				for status, d := range s.Dropped {
					if d != 0 {
						t.Errorf("node %d refused %d: %v", i, d, coherence.Status(status))
					}
				}
			}
			for _, n := range ns {
				n.StopShards()
			}
			for node, seed := range [2]uint64{seed1, seed0} {
				for p := range sweepPages {
					addr, filled := duoAddr(node, duoSweep+p), seed+uint64(p)*stride
					for _, w := range []struct{ disp, want uint64 }{{0, filled}, {8, 2 * sweepRounds}, {wire.PageSize - 8, filled}} {
						if got := duoWords(ns, addr+w.disp); slices.ContainsFunc(got, func(v uint64) bool { return v != w.want }) {
							t.Fatalf("%#x holds %#x, want %#x", addr+w.disp, got, w.want)
						}
					}
				}
			}
		})
	}
}

// TestStopFreesAFaultingGuest: a vCPU that waits for a page of a node that does not answer leaves its guest when it is
// stopped and its userfaultfd closed.
func TestStopFreesAFaultingGuest(t *testing.T) {
	touch := minivm.NewAsm().MovImm(minivm.RBX, duoAddr(1, duoBulk)).Out8(reportPort+8).Store(minivm.RBX, 0, minivm.RBX).
		Out32(reportPort).Out8(donePort).Label("end").Jmp("end").Bytes()
	ns := newDuo(t, nodetest.Config{}, [2][]byte{touch, minivm.NewAsm().Label("end").Jmp("end").Bytes()})
	n := ns[0]
	ns[1].StopShards()
	n.Run()
	eventually(t, "a fault", func() bool { return n.Shard.Metrics().Faults.Load() > 0 })
	time.Sleep(20 * time.Millisecond)
	if n.Ran() {
		t.Fatalf("the guest ended without its page: %v", n.Wait(0))
	}
	began := time.Now()
	n.StopVM()
	n.StopShards()
	if err := n.CloseUserfault(); err != nil {
		t.Fatal(err)
	}
	if err := n.Wait(time.Second); err != nil {
		t.Fatal(err)
	}
	t.Logf("free after %v", time.Since(began).Round(time.Microsecond))
	if len(n.reports) != 0 {
		t.Errorf("the guest went on: it reported %d", n.reports)
	}
}
