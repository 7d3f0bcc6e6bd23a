package engine

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ironspan/engine/coherence"
	"ironspan/engine/leaktest"
	"ironspan/engine/wire"
	"ironspan/fastpath"
	"ironspan/fastpath/fabric"
	"ironspan/fastpath/fabric/shm"
	"ironspan/fastpath/ram"
	"ironspan/fastpath/uffd"
	"ironspan/kvmhost"
	"ironspan/kvmhost/boot"
	"ironspan/kvmhost/bus"
	"ironspan/kvmhost/minivm"
)

// The memory of a duo: two nodes of duoPages each. A guest's own image lies in its own node's range, so that each
// can run whatever the other does; shared pages lie behind the images.
const (
	duoPages = 1536
	duoRAM   = 2 * duoPages * wire.PageSize
	duoSlots = 32

	duoImage  = 16  // pages from the start of a node's range to its guest's image
	duoShared = 64  // to its shared pages
	duoBulk   = 128 // to the pages that the other guest fills
	bulkPages = 64

	duoSweep   = 256 // to the pages that guests sweep over, more of them than a node may cache
	sweepPages = 1024

	testEpoch  = 7
	reportPort = 0xf0 // 32 bits, one result after the other
	donePort   = 0xf4
)

// duoAddr is the guest-physical address of a page of a node's range.
func duoAddr(node, page int) uint64 { return uint64(node*duoPages+page) * wire.PageSize }

func duoHomes() []coherence.Range {
	return []coherence.Range{{First: 0, Last: duoPages}, {First: duoPages, Last: 2 * duoPages}}
}

// duoNode is a node with one vCPU: all of a node but the machine lane and the control plane.
type duoNode struct {
	t     *testing.T
	ram   *ram.RAM
	uffd  *uffd.FD
	slots *ram.Slots
	agent *coherence.Agent
	lane  *shm.Lane
	shard *fastpath.Shard
	bus   *bus.Bus
	vm    *kvmhost.VM

	serving sync.WaitGroup
	ran     chan error // what vm.Run returned; nil before
	reports []uint32   // written on the vCPU's thread, read after ran
}

func needKVM(t *testing.T) *uffd.Support {
	t.Helper()
	if _, err := kvmhost.Probe(); errors.Is(err, kvmhost.ErrNotSupported) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	support, err := uffd.Probe()
	if err != nil {
		t.Skip(err)
	}
	return &support
}

// newDuo connects two nodes, whose guests run the programs, and starts their shards.
func newDuo(t *testing.T, change func(*coherence.Config), programs [2][]byte) [2]*duoNode {
	t.Helper()
	support := needKVM(t)
	leaktest.Check(t)
	procs := runtime.GOMAXPROCS(0)
	raiseProcs(2 * 2)
	t.Cleanup(func() { runtime.GOMAXPROCS(procs) })
	var ns [2]*duoNode
	for i := range ns {
		ns[i] = newDuoNode(t, i, !support.ContinueWP, change, programs[i])
	}
	for i, n := range ns {
		offer, err := ns[1-i].lane.Offer(wire.NodeID(i))
		if err != nil {
			t.Fatal(err)
		}
		if err := n.lane.Connect(wire.NodeID(1-i), offer); err != nil {
			t.Fatal(err)
		}
	}
	zero := time.Now()
	for i, n := range ns {
		n.shard.SetZero(zero)
		n.serving.Go(func() {
			if err := n.shard.Run(); err != nil {
				t.Errorf("node %d: %v", i, err)
			}
		})
	}
	t.Cleanup(func() { // first of all: before anything is closed
		for _, n := range ns {
			n.stop()
		}
	})
	return ns
}

func newDuoNode(t *testing.T, self int, readAsWrite bool, change func(*coherence.Config), program []byte) *duoNode {
	t.Helper()
	n := &duoNode{t: t, bus: bus.New()}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("node %d: %v", self, err)
		}
	}
	closing := func(f func() error) {
		t.Cleanup(func() {
			if err := f(); err != nil {
				t.Errorf("node %d: %v", self, err)
			}
		})
	}
	var spans []fabric.Span
	for _, h := range duoHomes() {
		spans = append(spans, fabric.Span{First: uint64(h.First) * wire.PageSize, Last: uint64(h.Last) * wire.PageSize})
	}
	var err error
	n.ram, err = ram.New(ram.Config{Size: duoRAM, Home: spans[self]})
	must(err)
	closing(n.ram.Close)
	must(n.ram.Populate(nil))
	n.uffd, err = uffd.Open()
	must(err)
	closing(n.uffd.Close)
	must(n.ram.Register(n.uffd, 0, 1, 9))
	n.slots, err = ram.NewSlots(duoSlots)
	must(err)
	closing(n.slots.Close)
	cfg := coherence.Config{
		Self: wire.NodeID(self), Homes: duoHomes(), Shards: 1, StripeShift: 9, Epoch: testEpoch, Slots: duoSlots,
		ReadAsWrite: readAsWrite,
	}
	change(&cfg)
	n.agent, err = coherence.New(cfg)
	must(err)
	n.lane, err = shm.New(fabric.Config{
		Self: wire.NodeID(self), Nodes: 2, Epoch: testEpoch, RAM: n.ram.Memory(), Homes: spans, Slots: n.slots.Memory(),
	}, shm.Options{})
	must(err)
	closing(n.lane.Close)
	n.shard, err = fastpath.NewShard(fastpath.ShardConfig{
		Agent: n.agent, Homes: duoHomes(), RAM: n.ram, Slots: n.slots, Uffd: n.uffd, Endpoint: n.lane, CPU: -1,
		Poll: fastpath.Event, OnPeerLost: func(e *fabric.PeerError) { t.Errorf("node %d: %v", self, e) },
	})
	must(err)
	closing(n.shard.Close)

	// The image goes through the service view, before anybody serves faults.
	view := boot.RAM(duoRAM).View(n.ram.Service())
	image, err := minivm.Build(view, minivm.Config{Base: duoAddr(self, duoImage), Map: duoRAM, Code: [][]byte{program}})
	must(err)
	if image.End > duoAddr(self, duoShared) {
		t.Fatalf("the image ends at %#x, among the shared pages", image.End)
	}
	must(n.bus.AddPort("report", reportPort, 4, onWrite(func(b []byte) { n.reports = append(n.reports, binary.LittleEndian.Uint32(b)) })))
	must(n.bus.AddPort("done", donePort, 1, onWrite(func([]byte) { n.vm.Stop() })))
	n.vm, err = kvmhost.New(kvmhost.Config{
		Slots: []kvmhost.Slot{{GPA: 0, Size: duoRAM, HVA: n.ram.GuestAddr(0)}},
		VCPUs: []kvmhost.VCPUConfig{{APICID: uint32(self), CPU: -1, BSP: true}},
		Bus:   n.bus, Topology: kvmhost.Topology{CoresPerPackage: 1},
	})
	must(err)
	closing(n.vm.Close)
	must(n.vm.SetBootState(0, image.States[0]))
	return n
}

// onWrite is a device that only listens.
type onWrite func(data []byte)

func (onWrite) Read(uint64, []byte)           {}
func (f onWrite) Write(_ uint64, data []byte) { f(data) }

func (n *duoNode) run() {
	n.ran = make(chan error, 1)
	go func() { n.ran <- n.vm.Run(context.Background()) }()
}

// wait is for the end of the guest.
func (n *duoNode) wait(limit time.Duration) error {
	select {
	case err := <-n.ran:
		n.ran = nil
		var exit *kvmhost.ExitError
		if errors.As(err, &exit) {
			return fmt.Errorf("%w\n%s", err, exit.Dump())
		}
		return err
	case <-time.After(limit):
		return errors.New("the guest does not end")
	}
}

// stop ends guest and shard, in the order of node.release.
func (n *duoNode) stop() {
	n.vm.Stop()
	n.stopShard()
	n.uffd.Close()
	if n.ran != nil {
		if err := n.wait(5 * time.Second); err != nil {
			n.t.Error(err)
		}
	}
}

func (n *duoNode) stopShard() {
	n.shard.Stop()
	n.serving.Wait()
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
		change func(*coherence.Config)
	}{
		{"reads share", func(*coherence.Config) {}},
		{"reads ask to write", func(c *coherence.Config) { c.ReadAsWrite = true }},
		{"with tenure", func(c *coherence.Config) { c.Tenure = duoTenure }},
		{"with few pages cached", func(c *coherence.Config) { c.Tenure, c.Cache = duoTenure, 24 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			ns := newDuo(t, c.change, [2][]byte{duoProgram(0), duoProgram(1)})
			began := time.Now()
			for _, n := range ns {
				n.run()
			}
			for i, n := range ns {
				if err := n.wait(30 * time.Second); err != nil {
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
				s := n.shard.Snapshot()
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
				n.stopShard()
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
	at := func(n *duoNode) uint64 { return binary.LittleEndian.Uint64(n.ram.Page(page)[addr%wire.PageSize:]) }
	for _, n := range ns {
		if n.agent.Mode(page) != wire.None {
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
func (n *duoNode) frames() int64 {
	var st unix.Stat_t
	if err := unix.Fstat(n.ram.FD(), &st); err != nil {
		n.t.Fatal(err)
	}
	return st.Blocks * 512 / wire.PageSize
}

// TestGuestsCacheLittle: two guests go over four times as many pages of each other's as their nodes may cache. The
// nodes never hold more, and nothing is lost.
func TestGuestsCacheLittle(t *testing.T) {
	const bound = sweepPages / 4
	for _, c := range []struct {
		name   string
		change func(*coherence.Config)
	}{
		{"as they come", func(*coherence.Config) {}},
		{"with tenure, ahead of faults", func(c *coherence.Config) { c.Tenure, c.Prefetch, c.Migratory = duoTenure, duoSlots, true }},
	} {
		t.Run(c.name, func(t *testing.T) {
			ns := newDuo(t, func(cfg *coherence.Config) {
				cfg.Cache = bound
				c.change(cfg)
			}, [2][]byte{sweepProgram(0), sweepProgram(1)})
			began := time.Now()
			for _, n := range ns {
				n.run()
			}
			var most [2]int64
			for i, n := range ns {
				for len(n.ran) == 0 && time.Since(began) < 60*time.Second {
					for j, m := range ns {
						most[j] = max(most[j], m.frames())
					}
					time.Sleep(time.Millisecond)
				}
				if err := n.wait(time.Second); err != nil {
					t.Fatalf("node %d: %v; it reported %d", i, err, n.reports)
				}
				if want := []uint32{0}; !slices.Equal(n.reports, want) {
					t.Errorf("guest %d reported %d wrong words", i, n.reports)
				}
			}
			took := time.Since(began)
			for i, n := range ns {
				s := n.shard.Snapshot().Agent
				t.Logf("node %d: %v, %d pages evicted clean, %d dirty, %d too late; %d cached at most, %d now; %d frames seen at most", i,
					took.Round(time.Millisecond), s.EvictionsClean, s.EvictionsDirty, s.EvictionsLost, s.CachedMost, s.Cached, most[i])
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
				n.stopShard()
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
	ns := newDuo(t, func(*coherence.Config) {}, [2][]byte{touch, minivm.NewAsm().Label("end").Jmp("end").Bytes()})
	n := ns[0]
	ns[1].stopShard()
	n.run()
	eventually(t, "a fault", func() bool { return n.shard.Metrics().Faults.Load() > 0 })
	select {
	case err := <-n.ran:
		t.Fatalf("the guest ended without its page: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	began := time.Now()
	n.vm.Stop()
	n.stopShard()
	if err := n.uffd.Close(); err != nil {
		t.Fatal(err)
	}
	if err := n.wait(time.Second); err != nil {
		t.Fatal(err)
	}
	t.Logf("free after %v", time.Since(began).Round(time.Microsecond))
	if len(n.reports) != 0 {
		t.Errorf("the guest went on: it reported %d", n.reports)
	}
}
