// Package nodetest makes nodes of one VM in one process, for tests with mini-guests: all of a node but the machine lane
// and the control plane, with one shard, over the shared-memory fabric, on this host's KVM.
package nodetest

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"ironspan/engine/coherence"
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

const epoch = wire.Epoch(0x5eed)

// Config is what nodes are made of. Each is home to as many pages, in order.
type Config struct {
	Pages int // homed at each node
	Image int // page of a node's range at which its guest's image begins; only that node touches it
	Slots int

	Tenure      coherence.Tenure
	ReadAsWrite bool // also where the kernel needs it
	Migratory   bool
	Prefetch    int

	Code [][][]byte // the programs: of each node's vCPUs. A node without only serves the others
}

// Addr is the guest-physical address of a page of a node's range.
func (c *Config) Addr(node, page int) uint64 { return uint64(node*c.Pages+page) * wire.PageSize }

// Node is a node that runs until the test ends.
type Node struct {
	RAM   *ram.RAM
	Uffd  *uffd.FD
	Agent *coherence.Agent
	Shard *fastpath.Shard
	Bus   *bus.Bus      // may be filled until Run
	VM    *kvmhost.VM   // nil without programs
	Image *minivm.Image // likewise

	t       testing.TB
	self    int
	lane    *shm.Lane
	serving sync.WaitGroup
	ran     chan error // what VM.Run returned; nil before
}

// Need skips the test where this host cannot run such nodes.
func Need(t testing.TB) *uffd.Support {
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

// New makes and connects the nodes and starts their shards. Their guests wait for Run.
func New(t testing.TB, c Config) []*Node {
	t.Helper()
	support := Need(t)
	c.ReadAsWrite = c.ReadAsWrite || !support.ContinueWP
	procs, threads := runtime.GOMAXPROCS(0), 0
	for _, vcpus := range c.Code {
		threads += len(vcpus) + 1
	}
	// As a node does it: a locked thread that wakes should find a processor.
	runtime.GOMAXPROCS(max(procs, runtime.NumCPU()+threads+1))
	t.Cleanup(func() { runtime.GOMAXPROCS(procs) })

	var homes []coherence.Range
	var spans []fabric.Span
	for i := range c.Code {
		first, last := wire.PFN(i*c.Pages), wire.PFN((i+1)*c.Pages)
		homes = append(homes, coherence.Range{First: first, Last: last})
		spans = append(spans, fabric.Span{First: uint64(first) * wire.PageSize, Last: uint64(last) * wire.PageSize})
	}
	var ns []*Node
	for i := range c.Code {
		n := &Node{t: t, self: i, Bus: bus.New()}
		n.build(&c, homes, spans)
		ns = append(ns, n)
	}
	for i, n := range ns {
		for j, peer := range ns {
			if i == j {
				continue
			}
			offer, err := peer.lane.Offer(wire.NodeID(i))
			n.must(err)
			n.must(n.lane.Connect(wire.NodeID(j), offer))
		}
	}
	zero := time.Now()
	for _, n := range ns {
		n.Shard.SetZero(zero)
		n.serving.Go(func() {
			if err := n.Shard.Run(); err != nil {
				t.Errorf("node %d: %v", n.self, err)
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

func (n *Node) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatalf("node %d: %v", n.self, err)
	}
}

func (n *Node) closing(f func() error) {
	n.t.Cleanup(func() {
		if err := f(); err != nil {
			n.t.Errorf("node %d: %v", n.self, err)
		}
	})
}

func (n *Node) build(c *Config, homes []coherence.Range, spans []fabric.Span) {
	n.t.Helper()
	self, nodes := wire.NodeID(n.self), len(homes)
	size := c.Addr(nodes, 0)
	var err error
	n.RAM, err = ram.New(ram.Config{Size: size, Home: spans[self]})
	n.must(err)
	n.closing(n.RAM.Close)
	n.must(n.RAM.Populate(nil))
	n.Uffd, err = uffd.Open()
	n.must(err)
	n.closing(n.Uffd.Close)
	n.must(n.RAM.Register(n.Uffd, 0, 1, 9))
	slots, err := ram.NewSlots(c.Slots)
	n.must(err)
	n.closing(slots.Close)
	n.Agent, err = coherence.New(coherence.Config{
		Self: self, Homes: homes, Shards: 1, StripeShift: 9, Epoch: epoch, Slots: c.Slots,
		Tenure: c.Tenure, ReadAsWrite: c.ReadAsWrite, Migratory: c.Migratory, Prefetch: c.Prefetch,
	})
	n.must(err)
	n.lane, err = shm.New(fabric.Config{
		Self: self, Nodes: nodes, Epoch: epoch, RAM: n.RAM.Memory(), Homes: spans, Slots: slots.Memory(),
	}, shm.Options{})
	n.must(err)
	n.closing(n.lane.Close)
	n.Shard, err = fastpath.NewShard(fastpath.ShardConfig{
		Agent: n.Agent, Homes: homes, RAM: n.RAM, Slots: slots, Uffd: n.Uffd, Endpoint: n.lane, CPU: -1,
		Poll: fastpath.Event, OnPeerLost: func(e *fabric.PeerError) { n.t.Errorf("node %d: %v", self, e) },
	})
	n.must(err)
	n.closing(n.Shard.Close)

	if len(c.Code[self]) == 0 {
		return
	}
	// The image goes through the service view, before anybody serves faults.
	view := boot.RAM(size).View(n.RAM.Service())
	n.Image, err = minivm.Build(view, minivm.Config{Base: c.Addr(n.self, c.Image), Map: size, Code: c.Code[self]})
	n.must(err)
	var vcpus []kvmhost.VCPUConfig
	for i := range c.Code[self] {
		vcpus = append(vcpus, kvmhost.VCPUConfig{APICID: uint32(n.self<<4 + i), CPU: -1, BSP: i == 0})
	}
	n.VM, err = kvmhost.New(kvmhost.Config{
		Slots: []kvmhost.Slot{{GPA: 0, Size: size, HVA: n.RAM.GuestAddr(0)}},
		VCPUs: vcpus, Bus: n.Bus, Topology: kvmhost.Topology{CoresPerPackage: uint32(len(vcpus)), PackageShift: 4},
	})
	n.must(err)
	n.closing(n.VM.Close)
	for i, s := range n.Image.States {
		n.must(n.VM.SetBootState(i, s))
	}
}

// OnPort has f called, on the vCPU's thread, with what the guest writes to a port.
func (n *Node) OnPort(port uint16, width uint32, f func(data []byte)) {
	n.t.Helper()
	n.must(n.Bus.AddPort(fmt.Sprintf("port %#x", port), port, width, onWrite(f)))
}

// onWrite is a device that only listens.
type onWrite func(data []byte)

func (onWrite) Read(uint64, []byte)           {}
func (f onWrite) Write(_ uint64, data []byte) { f(data) }

// Run starts the guest, if there is one.
func (n *Node) Run() {
	if n.VM == nil {
		return
	}
	n.ran = make(chan error, 1)
	go func() { n.ran <- n.VM.Run(context.Background()) }()
}

// Ran delivers what the guest's run returned. Once: Wait takes it, too.
func (n *Node) Ran() <-chan error { return n.ran }

// Wait is for the end of the guest.
func (n *Node) Wait(limit time.Duration) error {
	if n.VM == nil {
		return nil
	}
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

// StopVM ends the guest. It does not wait.
func (n *Node) StopVM() {
	if n.VM != nil {
		n.VM.Stop()
	}
}

// StopShard ends the node's service of faults. Then what is in RAM is still.
func (n *Node) StopShard() {
	n.Shard.Stop()
	n.serving.Wait()
}

// stop ends guest and shard, in the order in which a node does it.
func (n *Node) stop() {
	n.StopVM()
	n.StopShard()
	n.Uffd.Close()
	if n.ran != nil {
		if err := n.Wait(5 * time.Second); err != nil {
			n.t.Error(err)
		}
	}
}
