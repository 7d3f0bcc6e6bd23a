// Package mininode makes nodes that run mini-guests (package minivm) and have no control plane: all of a node that a
// guest can notice, and nothing that starts it. Tests and measurements use them, several in one process or one in each
// of several.
//
// A node's life: [New]; [Node.Offers] carried to the peers and [Node.Connect] with theirs; [Node.Start]; [Node.Run] and
// [Node.Wait] for its guest, if it has one; [Node.Stop], on all nodes before any [Node.Close]. [NewCluster] does the
// first half for nodes that are all in this process.
package mininode

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ironspan/engine/coherence"
	"ironspan/engine/lane"
	"ironspan/engine/wire"
	"ironspan/fastpath"
	"ironspan/fastpath/cpulatency"
	"ironspan/fastpath/fabric"
	"ironspan/fastpath/fabric/rdma"
	"ironspan/fastpath/fabric/shm"
	"ironspan/fastpath/ram"
	"ironspan/fastpath/uffd"
	"ironspan/kvmhost"
	"ironspan/kvmhost/apic"
	"ironspan/kvmhost/boot"
	"ironspan/kvmhost/bus"
	"ironspan/kvmhost/minivm"
)

// Node is one node. What is exported is for looking at, Bus for filling as well, until Run.
type Node struct {
	Config Config // as filled in
	RAM    *ram.RAM
	Uffds  []*uffd.FD // one for each shard
	Agents []*coherence.Agent
	Shards []*fastpath.Shard
	Lane   *lane.Lane // nil without one
	Bus    *bus.Bus
	VM     *kvmhost.VM   // nil without a guest
	Image  *minivm.Image // likewise

	adapter *rdma.Adapter // nil: the shared-memory fabric
	slots   []*ram.Slots
	lanes   []fabric.Lane       // one for each shard, then the machine lane
	latency *cpulatency.Request // nil: idle cores sleep as the kernel likes
	vcpus   fastpath.VCPUs
	serving sync.WaitGroup
	ran     chan error // what VM.Run returned; nil before Run and after Wait
}

// New makes a node: its memory is populated and its guest's image is in it.
func New(c Config) (_ *Node, err error) {
	if err := c.fill(); err != nil {
		return nil, err
	}
	n := &Node{Config: c, Bus: bus.New()}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("mininode: node %d: %w", c.Self, err), n.Close())
		}
	}()
	if err := n.keepAwake(); err != nil {
		return nil, err
	}
	_, spans := c.homes()
	if n.RAM, err = ram.New(ram.Config{Size: c.size(), Home: spans[c.Self]}); err != nil {
		return nil, err
	}
	if err := n.RAM.Populate(nil); err != nil {
		return nil, err
	}
	if c.Verbs != nil {
		if n.adapter, err = rdma.Open(*c.Verbs); err != nil {
			return nil, err
		}
	}
	if !c.Plain {
		if err := n.buildShards(); err != nil {
			return nil, err
		}
	}
	if c.Lane {
		if err := n.buildLane(); err != nil {
			return nil, err
		}
	}
	if len(c.Guest.Code) > 0 {
		if err := n.buildGuest(); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// keepAwake has idle cores wake quickly, as the product does while pages move, if this process may.
func (n *Node) keepAwake() error {
	if n.Config.Poll == fastpath.Event {
		return nil
	}
	var err error
	if n.latency, err = cpulatency.Open(); err != nil {
		return nil
	}
	return n.latency.Hold(true)
}

func (n *Node) buildShards() error {
	c := &n.Config
	homes, spans := c.homes()
	support, err := uffd.Probe()
	if err != nil {
		return err
	}
	var vcpus *fastpath.VCPUs
	if c.Verbs != nil { // as the product does
		vcpus = &n.vcpus
	}
	for s := range c.Shards {
		u, err := uffd.Open()
		if err != nil {
			return err
		}
		n.Uffds = append(n.Uffds, u)
		if err := n.RAM.Register(u, s, c.Shards, c.StripeShift); err != nil {
			return err
		}
		slots, err := ram.NewSlots(c.Slots)
		if err != nil {
			return err
		}
		n.slots = append(n.slots, slots)
		agent, err := coherence.New(coherence.Config{
			Self: c.Self, Homes: homes, Shard: s, Shards: c.Shards, StripeShift: c.StripeShift, Epoch: c.Epoch, Slots: c.Slots,
			Tenure: c.Tenure, ReadAsWrite: c.ReadAsWrite || !support.ContinueWP, WalksWrite: c.WalksWrite,
			Migratory: c.Migratory, Prefetch: c.Prefetch, CoverFrom: c.CoverFrom, Cache: c.Cache / c.Shards,
		})
		if err != nil {
			return err
		}
		n.Agents = append(n.Agents, agent)
		l, err := n.addLane(fabric.Config{
			Self: c.Self, Nodes: c.Nodes, Lane: uint16(s), Epoch: c.Epoch, RAM: n.RAM.Memory(), Homes: spans, Slots: slots.Memory(),
		})
		if err != nil {
			return err
		}
		shard, err := fastpath.NewShard(fastpath.ShardConfig{
			Agent: agent, Homes: homes, RAM: n.RAM, Slots: slots, Uffd: u, Endpoint: l, CPU: pinned(c.Pins.Shards, s),
			Poll: c.Poll, Spin: c.Spin, Threads: c.Threads, VCPUs: vcpus, OnPeerLost: n.FabricLost,
		})
		if err != nil {
			return err
		}
		n.Shards = append(n.Shards, shard)
	}
	return nil
}

func (n *Node) buildLane() error {
	c := &n.Config
	l, err := n.addLane(fabric.Config{Self: c.Self, Nodes: c.Nodes, Lane: machineLane, Epoch: c.Epoch})
	if err != nil {
		return err
	}
	n.Lane, err = lane.New(lane.Config{
		Self: c.Self, Nodes: c.Nodes, Epoch: c.Epoch, Endpoint: l, Handler: n, NodeOf: c.nodeOf, VCPUs: len(c.Guest.Code),
		Spin: c.Poll != fastpath.Event && c.Threads > 0 && c.Threads <= cores(), CPU: c.Pins.Lane,
	})
	return err
}

// cores is how many CPUs this process may use.
func cores() int {
	var set unix.CPUSet
	if unix.SchedGetaffinity(0, &set) != nil {
		return 1
	}
	return set.Count()
}

func (n *Node) addLane(cfg fabric.Config) (l fabric.Lane, err error) {
	if n.adapter != nil {
		l, err = n.adapter.NewLane(cfg)
	} else {
		l, err = shm.New(cfg, shm.Options{})
	}
	if err != nil {
		return nil, err
	}
	n.lanes = append(n.lanes, l)
	return l, nil
}

// buildGuest makes the VM and writes its image, through the service view, before anybody serves faults.
func (n *Node) buildGuest() (err error) {
	c, g := &n.Config, &n.Config.Guest
	view := boot.RAM(c.size()).View(n.RAM.Service())
	n.Image, err = minivm.Build(view, minivm.Config{
		Base: c.Addr(c.Self, g.Image), Map: c.size(), Code: g.Code, Handlers: g.Handlers,
	})
	if err != nil {
		return err
	}
	if end := c.Addr(c.Self, c.Pages); n.Image.End > end {
		return fmt.Errorf("the guest's image ends at %#x, beyond the node's range, which ends at %#x", n.Image.End, end)
	}
	cfg := kvmhost.Config{
		Slots: []kvmhost.Slot{{GPA: 0, Size: c.size(), HVA: n.RAM.GuestView()}},
		Bus:   n.Bus, Topology: kvmhost.Topology{CoresPerPackage: uint32(len(g.Code)), PackageShift: vcpuBits},
	}
	for i := range g.Code {
		cfg.VCPUs = append(cfg.VCPUs, kvmhost.VCPUConfig{APICID: APICID(c.Self, i), CPU: pinned(c.Pins.VCPUs, i), BSP: i == 0})
	}
	cfg.Awake = &n.vcpus.Awake
	if len(n.Shards) > 0 {
		cfg.Idle = func(idle bool) {
			for _, s := range n.Shards {
				s.SetIdle(idle)
			}
		}
	}
	if n.Lane != nil {
		cfg.Remote = remote{n}
	}
	if g.Snoop {
		cfg.Snoopers = len(n.Shards)
		cfg.ServiceSlots = []kvmhost.Slot{{GPA: 0, Size: c.size(), HVA: n.RAM.ServiceView()}}
	}
	if n.VM, err = kvmhost.New(cfg); err != nil {
		return err
	}
	if g.Snoop {
		for i, shard := range n.Shards {
			s := n.VM.Snooper(i)
			shard.SetForget(func(page wire.PFN) unix.Errno {
				return s.Forget(uint64(page)*wire.PageSize, n.RAM.Page(page)[kvmhost.SnoopOffset])
			})
		}
	}
	for i, s := range n.Image.States {
		if err := n.VM.SetBootState(i, s); err != nil {
			return err
		}
	}
	return nil
}

// Offers are what a peer has to know to connect: one for each lane.
func (n *Node) Offers(peer wire.NodeID) ([][]byte, error) {
	offers := make([][]byte, len(n.lanes))
	for i, l := range n.lanes {
		var err error
		if offers[i], err = l.Offer(peer); err != nil {
			return nil, fmt.Errorf("mininode: node %d: %w", n.Config.Self, err)
		}
	}
	return offers, nil
}

// Connect links this node with the peer whose offers to it these are.
func (n *Node) Connect(peer wire.NodeID, offers [][]byte) error {
	if len(offers) != len(n.lanes) {
		return fmt.Errorf("mininode: node %d offers %d lanes to node %d, which has %d", peer, len(offers), n.Config.Self, len(n.lanes))
	}
	for i, l := range n.lanes {
		if err := l.Connect(peer, offers[i]); err != nil {
			return fmt.Errorf("mininode: node %d: connect lane %d with node %d: %w", n.Config.Self, i, peer, err)
		}
	}
	return nil
}

// Start lets the shards and the machine lane serve, when all peers are connected. zero is the zero of the clock by which
// nodes take turns: the same instant on all of them.
func (n *Node) Start(zero time.Time) {
	for _, s := range n.Shards {
		s.SetZero(zero)
		n.serving.Go(func() {
			if err := s.Run(); err != nil {
				n.Config.OnError(fmt.Errorf("node %d: %w", n.Config.Self, err))
			}
		})
	}
	if n.Lane != nil {
		n.Lane.Start()
	}
}

// OnPort has f called, on the vCPU's thread, with what the guest writes to a port.
func (n *Node) OnPort(port uint16, width uint32, f func(data []byte)) error {
	return n.Bus.AddPort(fmt.Sprintf("port %#x", port), port, width, onWrite(f))
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

// Ran says that the guest has ended: Wait will not wait.
func (n *Node) Ran() bool { return n.ran == nil || len(n.ran) > 0 }

// Wait is for the end of the guest.
func (n *Node) Wait(ctx context.Context) error {
	if n.ran == nil {
		return nil
	}
	select {
	case err := <-n.ran:
		n.ran = nil
		var exit *kvmhost.ExitError
		if errors.As(err, &exit) {
			return fmt.Errorf("node %d: %w\n%s", n.Config.Self, err, exit.Dump())
		}
		return err
	case <-ctx.Done():
		return fmt.Errorf("mininode: the guest of node %d does not end: %w", n.Config.Self, context.Cause(ctx))
	}
}

// StopVM ends the guest. It does not wait.
func (n *Node) StopVM() {
	if n.VM != nil {
		n.VM.Stop()
	}
}

// StopShards ends the node's service of faults and its machine lane. Then what is in RAM is still.
func (n *Node) StopShards() {
	for _, s := range n.Shards {
		s.Stop()
	}
	if n.Lane != nil {
		n.Lane.Halt()
	}
	n.serving.Wait()
	if n.Lane != nil {
		n.Lane.Wait()
	}
}

// patience is how long a stopped guest may take to end, which nothing can keep from it once its faults are cut off.
const patience = 5 * time.Second

// Stop ends guest and service, in the order in which a node of the product does it: a vCPU that still waits for a page
// is let go last.
func (n *Node) Stop() error {
	n.StopVM()
	n.StopShards()
	if err := n.CloseUserfault(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return n.Wait(ctx)
}

// CloseUserfault makes guest memory ordinary memory and wakes whoever waits for a page. The shards must have been
// stopped.
func (n *Node) CloseUserfault() error {
	var errs []error
	for _, u := range n.Uffds {
		errs = append(errs, u.Close())
	}
	return errors.Join(errs...)
}

// Close frees everything. The node must have been stopped, and its peers as well.
func (n *Node) Close() error {
	var errs []error
	if n.VM != nil {
		errs = append(errs, n.VM.Close())
	}
	for _, s := range n.Shards {
		errs = append(errs, s.Close())
	}
	for _, l := range n.lanes {
		errs = append(errs, l.Close())
	}
	if n.adapter != nil {
		errs = append(errs, n.adapter.Close())
	}
	if n.Lane != nil {
		n.Lane.Close()
	}
	for _, s := range n.slots {
		errs = append(errs, s.Close())
	}
	errs = append(errs, n.CloseUserfault())
	if n.RAM != nil {
		errs = append(errs, n.RAM.Close())
	}
	if n.latency != nil {
		errs = append(errs, n.latency.Close())
	}
	return errors.Join(errs...)
}

// Deliver implements lane.Handler.
func (n *Node) Deliver(m apic.Message) {
	if n.VM != nil {
		n.VM.Accept(m)
	}
}

// Access implements lane.Handler.
func (n *Node) Access(port bool, addr uint64, data []byte, write bool) bool {
	switch {
	case port && write:
		return n.Bus.WritePort(uint16(addr), data)
	case port:
		return n.Bus.ReadPort(uint16(addr), data)
	case write:
		return n.Bus.WriteMMIO(addr, data)
	}
	return n.Bus.ReadMMIO(addr, data)
}

// EOI implements lane.Handler. There is no IOAPIC.
func (n *Node) EOI(uint8) {}

// FabricLost implements lane.Handler, and is what shards call, too.
func (n *Node) FabricLost(e *fabric.PeerError) {
	n.Config.OnError(fmt.Errorf("node %d: %w", n.Config.Self, e))
}

// remote is the other nodes, as kvmhost sees them.
type remote struct{ *Node }

func (r remote) Interrupt(m apic.Message) {
	vcpu := int(m.Source & (maxVCPUs - 1))
	if vcpu >= len(r.Config.Guest.Code) {
		vcpu = -1
	}
	r.Lane.SendInterrupt(vcpu, m)
}

func (r remote) PortIO(vcpu int, port uint16, data []byte, write bool) bool {
	return r.Lane.RemoteAccess(vcpu, true, uint64(port), data, write)
}

func (r remote) MMIO(vcpu int, gpa uint64, data []byte, write bool) bool {
	return r.Lane.RemoteAccess(vcpu, false, gpa, data, write)
}

func (r remote) EOI(vector uint8) { r.Lane.SendEOI(-1, vector) }
