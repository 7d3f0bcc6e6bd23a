package fastpath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ironspan/engine/coherence"
	"ironspan/engine/wire"
	"ironspan/fastpath/fabric"
	"ironspan/fastpath/fabric/shm"
	"ironspan/fastpath/ram"
	"ironspan/fastpath/uffd"
)

// layout is what the nodes of a test have in common.
type layout struct {
	nodes, shards int
	pages         int // homed at each node
	slots         int
	prefetch      int
	poll          PollMode
	threads       int // as in ShardConfig
	vcpus         int // that each node is said to have awake; 0: its shards are not told
	tenure        coherence.Tenure
	cache         int  // pages of other nodes that a shard may hold; 0: no bound
	continueWP    bool // false: as if the kernel had no UFFDIO_CONTINUE_MODE_WP
}

const stripeShift = 2

func (l layout) total() int { return l.nodes * l.pages }

func (l layout) homes() (hs []coherence.Range) {
	for n := range l.nodes {
		hs = append(hs, coherence.Range{First: wire.PFN(n * l.pages), Last: wire.PFN((n + 1) * l.pages)})
	}
	return hs
}

// testNode is a node without vCPUs: goroutines touch its guest view through system calls.
type testNode struct {
	layout
	self   wire.NodeID
	ram    *ram.RAM
	uffds  []*uffd.FD
	slots  []*ram.Slots
	lanes  []*shm.Lane
	agents []*coherence.Agent
	shards []*Shard
	lost   chan *fabric.PeerError
	errs   chan error
	run    sync.WaitGroup
}

func newTestNode(self int, l layout) (*testNode, error) {
	n := &testNode{layout: l, self: wire.NodeID(self), lost: make(chan *fabric.PeerError, 64*l.shards), errs: make(chan error, l.shards)}
	var spans []fabric.Span
	for _, h := range l.homes() {
		spans = append(spans, fabric.Span{First: uint64(h.First) << wire.PageShift, Last: uint64(h.Last) << wire.PageShift})
	}
	var err error
	if n.ram, err = ram.New(ram.Config{
		Size: uint64(l.total()) << wire.PageShift, Home: spans[self], Small: l.shards > 1, // stripes are small
	}); err != nil {
		return nil, err
	}
	if err := n.ram.Populate(nil); err != nil {
		return nil, err
	}
	var vcpus *VCPUs
	if l.vcpus > 0 {
		vcpus = &VCPUs{}
		vcpus.Awake.Store(int32(l.vcpus))
	}
	for i := range l.shards {
		u, err := uffd.Open()
		if err != nil {
			return nil, err
		}
		if err := n.ram.Register(u, i, l.shards, stripeShift); err != nil {
			return nil, err
		}
		slots, err := ram.NewSlots(l.slots)
		if err != nil {
			return nil, err
		}
		agent, err := coherence.New(coherence.Config{
			Self: n.self, Homes: l.homes(), Shard: i, Shards: l.shards, StripeShift: stripeShift, Epoch: 1, Slots: l.slots,
			Tenure: l.tenure, ReadAsWrite: !l.continueWP, Cache: l.cache, Prefetch: l.prefetch,
		})
		if err != nil {
			return nil, err
		}
		lane, err := shm.New(fabric.Config{
			Self: n.self, Nodes: l.nodes, Lane: uint16(i), Epoch: 1, RAM: n.ram.Memory(), Homes: spans, Slots: slots.Memory(),
		}, shm.Options{})
		if err != nil {
			return nil, err
		}
		shard, err := NewShard(ShardConfig{
			Agent: agent, Homes: l.homes(), RAM: n.ram, Slots: slots, Uffd: u, Endpoint: lane, CPU: -1, Poll: l.poll, Threads: l.threads,
			VCPUs: vcpus, OnPeerLost: func(e *fabric.PeerError) { n.lost <- e },
		})
		if err != nil {
			return nil, err
		}
		shard.continueWP = l.continueWP
		n.uffds, n.slots, n.lanes = append(n.uffds, u), append(n.slots, slots), append(n.lanes, lane)
		n.agents, n.shards = append(n.agents, agent), append(n.shards, shard)
	}
	return n, nil
}

func (n *testNode) offers(peer wire.NodeID) (os [][]byte, err error) {
	for _, l := range n.lanes {
		o, err := l.Offer(peer)
		if err != nil {
			return nil, err
		}
		os = append(os, o)
	}
	return os, nil
}

func (n *testNode) connect(peer wire.NodeID, os [][]byte) error {
	for i, l := range n.lanes {
		if err := l.Connect(peer, os[i]); err != nil {
			return err
		}
	}
	return nil
}

func (n *testNode) start() {
	for _, s := range n.shards {
		n.run.Go(func() {
			if err := s.Run(); err != nil {
				n.errs <- err
			}
		})
	}
}

// stop ends the shards and says whether one of them failed.
func (n *testNode) stop() error {
	for _, s := range n.shards {
		s.Stop()
	}
	n.run.Wait()
	select {
	case err := <-n.errs:
		return err
	default:
		return nil
	}
}

func (n *testNode) closeAll() error {
	var errs []error
	for i := range n.shards {
		errs = append(errs, n.uffds[i].Close(), n.lanes[i].Close(), n.shards[i].Close(), n.slots[i].Close())
	}
	return errors.Join(append(errs, n.ram.Close())...)
}

// cluster returns connected nodes in this process, with their shards running.
func cluster(t testing.TB, l layout) []*testNode {
	t.Helper()
	support, err := uffd.Probe()
	if err != nil {
		t.Skip(err)
	}
	if l.continueWP && !support.ContinueWP {
		t.Skip("this kernel cannot continue write-protected")
	}
	var ns []*testNode
	for i := range l.nodes {
		n, err := newTestNode(i, l)
		if err != nil {
			t.Fatal(err)
		}
		ns = append(ns, n)
	}
	for i, a := range ns {
		for j, b := range ns {
			if i == j {
				continue
			}
			o, err := a.offers(wire.NodeID(j))
			if err != nil {
				t.Fatal(err)
			}
			if err := b.connect(wire.NodeID(i), o); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, n := range ns {
		n.start()
	}
	t.Cleanup(func() {
		for _, n := range ns {
			if err := n.stop(); err != nil {
				t.Errorf("node %d: %v", n.self, err)
			}
		}
		for _, n := range ns {
			if err := n.closeAll(); err != nil {
				t.Errorf("node %d: %v", n.self, err)
			}
		}
	})
	return ns
}

// toucher reads and writes guest memory as a vCPU would: the kernel does it, between a pipe and the guest view, and
// takes the faults. A goroutine that waits in a system call stops no garbage collection.
type toucher struct {
	n    *testNode
	pipe [2]int
	buf  [8]byte
}

func newToucher(n *testNode) (*toucher, error) {
	t := &toucher{n: n}
	return t, unix.Pipe2(t.pipe[:], unix.O_CLOEXEC)
}

func (t *toucher) close() {
	unix.Close(t.pipe[0])
	unix.Close(t.pipe[1])
}

func (t *toucher) addr(page wire.PFN, word int) uintptr {
	return t.n.ram.GuestAddr(page) + uintptr(word)*8
}

func (t *toucher) read(page wire.PFN, word int) (uint64, error) {
	if _, _, errno := unix.Syscall(unix.SYS_WRITE, uintptr(t.pipe[1]), t.addr(page, word), 8); errno != 0 {
		return 0, fmt.Errorf("read page %d: %w", page, errno)
	}
	_, err := unix.Read(t.pipe[0], t.buf[:])
	return binary.LittleEndian.Uint64(t.buf[:]), err
}

func (t *toucher) write(page wire.PFN, word int, v uint64) error {
	binary.LittleEndian.PutUint64(t.buf[:], v)
	if _, err := unix.Write(t.pipe[1], t.buf[:]); err != nil {
		return err
	}
	if _, _, errno := unix.Syscall(unix.SYS_READ, uintptr(t.pipe[0]), t.addr(page, word), 8); errno != 0 {
		return fmt.Errorf("write page %d: %w", page, errno)
	}
	return nil
}

// history is what is known about the registers of a test: word w of page p is written by worker w alone, with 1, 2,
// 3... A write to version v begins after begun is v and ends before done is v. So whoever reads done, then the
// register, then begun must find the register in between, or a mixture of what is in between: that is what makes it
// linearizable. The words are shared between processes.
type history struct {
	workers int
	words   []atomic.Uint64
}

func (h *history) begun(page wire.PFN, worker int) *atomic.Uint64 {
	return &h.words[2*(int(page)*h.workers+worker)]
}
func (h *history) done(page wire.PFN, worker int) *atomic.Uint64 {
	return &h.words[2*(int(page)*h.workers+worker)+1]
}

// mark makes a register of a version, such that registers with bytes of two versions can be told from those of one.
func mark(v uint64) uint64 { return v | v<<32 ^ v<<56 }

func unmark(x uint64) (v uint64, whole bool) {
	v = x & 0xffffffff
	return v, mark(v) == x
}

// mixed says whether x is made of bytes of versions from least to most. That is what a read may find while a write is on
// its way: the kernel copies to user space with REP MOVSB where the processor is quick at that (FSRM), which stores bytes,
// and not a word at once.
func mixed(x, least, most uint64) bool {
	var found uint8
	for v := least; v <= most; v++ {
		for i, d := 0, x^mark(v); i < 8; i, d = i+1, d>>8 {
			if d&0xff == 0 {
				found |= 1 << i
			}
		}
	}
	return found == 0xff
}

// patternWord is a word that nobody writes after the start; it proves the rest of the page.
const patternWord = 511

func pattern(page wire.PFN) uint64 {
	if page%3 == 0 {
		return 0 // these pages are all zeros until somebody writes
	}
	return uint64(page) * 0x9e3779b97f4a7c15
}

// fill writes the pattern into the home frames, before the shards start.
func (n *testNode) fill() {
	for p := n.homes()[n.self].First; p < n.homes()[n.self].Last; p++ {
		binary.LittleEndian.PutUint64(n.ram.Page(p)[patternWord*8:], pattern(p))
	}
}

// work reads and writes random words until the time is over. A few pages get most of the accesses.
func (n *testNode) work(h *history, worker int, seed uint64, until time.Time) error {
	t, err := newToucher(n)
	if err != nil {
		return err
	}
	defer t.close()
	rng := rand.New(rand.NewPCG(seed, uint64(worker)))
	seen := make(map[[2]int]uint64)
	for ops := 0; ops%16 != 0 || time.Now().Before(until); ops++ {
		page := wire.PFN(rng.IntN(n.total()))
		if rng.IntN(4) != 0 {
			page = wire.PFN(rng.IntN(8) * n.total() / 8)
		}
		switch rng.IntN(8) {
		case 0, 1, 2:
			v := h.begun(page, worker).Add(1)
			if err := t.write(page, worker, mark(v)); err != nil {
				return err
			}
			h.done(page, worker).Store(v)
		case 3:
			x, err := t.read(page, patternWord)
			if err != nil {
				return err
			}
			if x != pattern(page) {
				return fmt.Errorf("node %d: page %d has the bytes of another: %#x, want %#x", n.self, page, x, pattern(page))
			}
		default:
			other := rng.IntN(h.workers)
			least := max(h.done(page, other).Load(), seen[[2]int{int(page), other}])
			x, err := t.read(page, other)
			if err != nil {
				return err
			}
			most := h.begun(page, other).Load()
			v, whole := unmark(x)
			switch {
			case whole && v >= least && v <= most:
				seen[[2]int{int(page), other}] = v
			case !mixed(x, least, most):
				return fmt.Errorf("node %d, worker %d: word %d of page %d is %#x (whole %t), want version %d to %d",
					n.self, worker, other, page, x, whole, least, most)
			}
		}
	}
	return nil
}

func TestMixed(t *testing.T) {
	for _, tt := range []struct {
		x           uint64
		least, most uint64
		want        bool
	}{
		{mark(61), 61, 62, true},
		{mark(62), 61, 62, true},
		{mark(61)&^0xffffffff | 62, 61, 62, true},
		{mark(61)&^0xffffffff | 62, 62, 62, false},
		{mark(61)&^0xffffffff | 62, 61, 61, false},
		{mark(255)&^0xff | mark(256)&0xff, 255, 256, true},
		{mark(60), 61, 62, false},
		{mark(63), 61, 62, false},
		{0, 0, 0, true},
		{0, 2, 1, false},
	} {
		if got := mixed(tt.x, tt.least, tt.most); got != tt.want {
			t.Errorf("mixed(%#x, %d, %d) = %t", tt.x, tt.least, tt.most, got)
		}
	}
}

// verify reads every word of every page once all work is done.
func (n *testNode) verify(h *history) error {
	t, err := newToucher(n)
	if err != nil {
		return err
	}
	defer t.close()
	for page := range wire.PFN(n.total()) {
		for w := range h.workers {
			x, err := t.read(page, w)
			if err != nil {
				return err
			}
			if v, whole := unmark(x); !whole || v != h.done(page, w).Load() {
				return fmt.Errorf("node %d: at the end, word %d of page %d is %#x, want version %d", n.self, w, page, x, h.done(page, w).Load())
			}
		}
		if x, err := t.read(page, patternWord); err != nil || x != pattern(page) {
			return fmt.Errorf("node %d: at the end, the pattern of page %d is %#x: %v", n.self, page, x, err)
		}
	}
	return nil
}
