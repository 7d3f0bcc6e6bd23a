package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"ironspan/engine/cluster"
	"ironspan/engine/control"
	"ironspan/engine/lane"
	"ironspan/engine/spec"
	"ironspan/engine/wire"
	"ironspan/fastpath"
	"ironspan/fastpath/fabric"
	"ironspan/kvmhost"
	"ironspan/kvmhost/apic"
	"ironspan/kvmhost/bus"
	"ironspan/kvmhost/devices"
)

// node is this server's share of one VM, from Prepare to Release.
type node struct {
	opts     Options
	job      *control.Job
	plan     *spec.Plan
	self     wire.NodeID
	log      *slog.Logger
	progress control.Progress

	// What prepare built, in this order; release takes it down in the reverse one.
	mesh     *cluster.Mesh
	memory   *memoryHalf
	lane     *lane.Lane
	bus      *bus.Bus
	platform *platform // node 0 only
	vm       *kvmhost.VM
	vmDone   chan struct{} // closed when the vCPUs have left their guest; nil before start

	started   atomic.Int64 // unix nanoseconds, 0 before start
	endedAt   atomic.Int64
	awakeNs   atomic.Int64 // for how long idle cores were to wake quickly
	endOnce   sync.Once
	ended     chan struct{}
	outcome   control.Outcome // valid once ended is closed
	watching  sync.WaitGroup
	apicIndex map[uint32]int // local vCPU index by APIC ID
	ready     atomic.Bool    // bus, platform and vm are there: the lane may use them
}

func newNode(opts Options, job *control.Job, progress control.Progress) *node {
	n := &node{
		opts: opts, job: job, plan: job.Plan, self: job.Node, progress: progress,
		log:       opts.Log.With("vm", job.Plan.Name, "node", job.Node),
		ended:     make(chan struct{}),
		apicIndex: map[uint32]int{},
	}
	for i, id := range n.me().APICIDs {
		n.apicIndex[id] = i
	}
	return n
}

func (n *node) me() *spec.PlanNode { return &n.plan.Nodes[n.self] }

func (n *node) state(phase, text string) {
	n.progress(control.Event{Kind: control.KindState, Phase: phase, Text: text})
}

// end ends the VM's share on this node, for the first of all reasons. It does not wait.
func (n *node) end(o control.Outcome) {
	n.endOnce.Do(func() {
		n.outcome = o
		n.endedAt.Store(time.Now().UnixNano())
		close(n.ended)
		n.log.Info("VM ends on this node", "outcome", o.String())
	})
}

// prepare builds everything up to vCPUs that could run. What it built so far is released by release.
func (n *node) prepare(ctx context.Context) (err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	n.watching.Go(func() {
		select {
		case <-n.ended:
			cancel(errors.New(n.outcome.String()))
		case <-ctx.Done():
		}
	})
	defer func() {
		if err == nil {
			return
		}
		select {
		case <-n.ended: // that is why, then
			err = errors.New("engine: " + n.outcome.String())
		default:
			n.end(control.Outcome{Kind: control.Failed, Reason: err.Error()})
		}
	}()

	if err := n.checkHost(); err != nil {
		return err
	}
	fastpath.PrepareRuntime(len(n.me().APICIDs) + n.plan.Shards + 1)
	if n.memory, err = newMemory(ctx, n); err != nil {
		return err
	}
	n.state(control.PhaseConnect, fmt.Sprintf("%d nodes", len(n.plan.Nodes)))
	if n.mesh, err = n.opts.Listener.Join(ctx, cluster.ConfigFor(n.plan, n.self, n.log)); err != nil {
		return err
	}
	n.watching.Go(n.watchMesh)
	if err := n.connect(ctx); err != nil {
		return err
	}
	n.state(control.PhaseConnected, "")
	offset, err := n.startLane(ctx)
	if err != nil {
		return err
	}
	// The guest's TSC is the one clock that all nodes have.
	guest := kvmhost.HostTSC() + uint64(offset)
	zero := time.Now().Add(-time.Duration(kvmhost.TSCToNs(guest, n.me().TSCKHz)))
	if err := n.newVM(offset); err != nil {
		return err
	}
	n.memory.startShards(n, zero)
	n.ready.Store(true) // before any peer's vCPUs can run
	if err := n.mesh.Barrier(ctx, "prepared"); err != nil {
		return err
	}
	n.state(control.PhasePrepared, "")
	return ctx.Err()
}

// maxSkew is how much the nodes' TSC frequencies may differ, in parts of a million: the guest is told one.
const maxSkew = 1000

func (n *node) checkHost() error {
	if _, err := kvmhost.Probe(); err != nil {
		return err
	}
	first, mine := n.plan.Nodes[0].TSCKHz, n.me().TSCKHz
	if d := max(first, mine) - min(first, mine); d*1_000_000 > first*maxSkew {
		return fmt.Errorf("engine: this server's TSC runs at %d kHz and node 0's at %d: they may differ by %d ppm, "+
			"because the guest knows one frequency: use servers of one kind", mine, first, maxSkew)
	}
	return nil
}

// watchMesh ends the VM when a peer is lost or leaves.
func (n *node) watchMesh() {
	for {
		select {
		case l := <-n.mesh.Lost():
			if !l.Goodbye {
				n.end(control.LostNode(l.Node, fmt.Sprintf("%s: %s", l.Name, l.Reason)))
				return
			}
			kind := control.OutcomeKind(l.Kind)
			switch kind {
			case control.PoweredOff, control.GuestReset, control.GuestCrash, control.NodeLost:
			default:
				kind = control.Stopped
			}
			n.end(control.Outcome{Kind: kind, Reason: fmt.Sprintf("node %d: %s", l.Node, l.Reason)})
			return
		case <-n.ended:
			return
		}
	}
}

// connect exchanges the lanes' offers with all peers and connects them.
func (n *node) connect(ctx context.Context) error {
	lanes := n.memory.lanes
	offers := map[wire.NodeID][]byte{}
	for p := range n.plan.Nodes {
		peer := wire.NodeID(p)
		if peer == n.self {
			continue
		}
		all := make([][]byte, len(lanes))
		for i, l := range lanes {
			var err error
			if all[i], err = l.Offer(peer); err != nil {
				return err
			}
		}
		b, err := json.Marshal(all)
		if err != nil {
			return fmt.Errorf("engine: offers: %w", err)
		}
		offers[peer] = b
	}
	theirs, err := n.mesh.Exchange(ctx, "lanes", offers)
	if err != nil {
		return err
	}
	for peer, b := range theirs {
		var all [][]byte
		if err := json.Unmarshal(b, &all); err != nil || len(all) != len(lanes) {
			return fmt.Errorf("engine: node %d offers %d lanes, want %d: %w", peer, len(all), len(lanes), fabric.ErrOffer)
		}
		for i, l := range lanes {
			if err := l.Connect(peer, all[i]); err != nil {
				return fmt.Errorf("engine: connect lane %d with node %d: %w", i, peer, err)
			}
		}
	}
	return n.mesh.Barrier(ctx, "connected")
}

// startLane starts the machine lane and measures the guest clock's offset.
func (n *node) startLane(ctx context.Context) (offset int64, err error) {
	pin := n.memory.pins
	n.lane, err = lane.New(lane.Config{
		Self: n.self, Nodes: len(n.plan.Nodes), Epoch: n.plan.Epoch,
		Endpoint: n.memory.lanes[len(n.memory.lanes)-1], Handler: n,
		NodeOf: n.plan.NodeOfAPICID, VCPUs: len(n.me().APICIDs), Spin: n.memory.spin, CPU: pin.lane,
	})
	if err != nil {
		return 0, err
	}
	support, err := kvmhost.Probe()
	if err != nil {
		return 0, err
	}
	if n.self == lane.Platform {
		if support.TSCOffset {
			offset = -int64(kvmhost.HostTSC()) // the guest's time starts at 0
		}
		n.lane.SetOffset(offset)
	}
	// Whoever answers clock samples has its offset from here on, before the first sample can come.
	n.lane.Start()
	if err := n.mesh.Barrier(ctx, "lane"); err != nil {
		return 0, err
	}
	if n.self == lane.Platform {
		return offset, nil
	}
	offset, trip, err := n.lane.SyncClock(ctx)
	if err != nil {
		return 0, err
	}
	if !support.TSCOffset && max(offset, -offset) <= int64(trip/2)+1 {
		// Guests have the host's TSC here, and as far as can be told node 0's as well: it is the same host.
		offset = 0
		n.lane.SetOffset(0)
	}
	n.log.Info("clock compared", "offset_ticks", offset, "error_ns", kvmhost.TSCToNs(trip/2, n.me().TSCKHz))
	return offset, nil
}

// newVM creates the vCPUs, and at node 0 the devices and the guest's image in memory.
func (n *node) newVM(offset int64) error {
	n.bus = bus.New()
	if err := devices.AddStateless(n.bus); err != nil {
		return fmt.Errorf("engine: %w", err)
	}
	cpuid, err := n.intersectCPUID()
	if err != nil {
		return err
	}
	cfg := kvmhost.Config{
		Slots: memorySlots(n.plan, n.memory.ram.GuestView()), Bus: n.bus, Remote: remote{n}, CPUID: cpuid, Topology: topology(n.plan),
		TSCKHz: n.me().TSCKHz, TSCOffset: offset, Stretch: stretch(dilated(n.plan.Nodes[0].TSCKHz, n.plan.Dilate)),
	}
	cfg.Awake = &n.memory.vcpus.Awake
	cfg.Idle = func(idle bool) {
		for _, s := range n.memory.shards {
			s.SetIdle(idle)
		}
	}
	if n.self == lane.Platform {
		cfg.EOI = func(vector uint8) { n.platform.ioapic.EOI(vector) }
	}
	for i, id := range n.me().APICIDs {
		cfg.VCPUs = append(cfg.VCPUs, kvmhost.VCPUConfig{APICID: id, CPU: n.memory.pins.vcpu(i), BSP: n.self == lane.Platform && i == 0})
	}
	snoop, err := n.snoops()
	if err != nil {
		return err
	}
	if snoop {
		cfg.Snoopers = len(n.memory.shards)
		cfg.ServiceSlots = memorySlots(n.plan, n.memory.ram.ServiceView())
	}
	if n.vm, err = kvmhost.New(cfg); err != nil {
		return err
	}
	if snoop {
		n.memory.snoop(n.vm)
	}
	if n.self != lane.Platform {
		return nil
	}
	n.platform, err = newPlatform(n.bus, n.vm, n.job.Console,
		func() { n.end(control.Outcome{Kind: control.PoweredOff}) },
		func() {
			n.end(control.Outcome{Kind: control.GuestReset, Reason: "the guest asked for a reset: it rebooted or panicked, see its console"})
		})
	if err != nil {
		return fmt.Errorf("engine: %w", err)
	}
	loaded, err := bootGuest(n.plan, n.job, n.memory.ram.Service())
	if err != nil {
		return err
	}
	debug.FreeOSMemory() // the images' copies, which are large
	return n.vm.SetBootState(0, loaded.State)
}

// snoops says whether KVM's shadow page tables have to be kept from going stale: see kvmhost.Snooper.
func (n *node) snoops() (bool, error) {
	support, err := kvmhost.Probe()
	if err != nil {
		return false, err
	}
	if len(n.plan.Nodes) == 1 || support.Translation == kvmhost.Nested {
		return false, nil
	}
	if !support.Snoop {
		if n.opts.StaticTables {
			return false, nil
		}
		return false, errors.New("engine: this server's KVM translates by shadow page tables and has no system management " +
			"mode, so it cannot be told when another server changes a page table: use a KVM with nested paging, or one node")
	}
	return true, nil
}

// intersectCPUID is the processor that the guest sees: what all nodes' can do.
func (n *node) intersectCPUID() (kvmhost.CPUIDSet, error) {
	var sets []kvmhost.CPUIDSet
	for _, p := range n.plan.Nodes {
		var s kvmhost.CPUIDSet
		if err := json.Unmarshal(p.CPUID, &s); err != nil {
			return nil, fmt.Errorf("engine: CPUID of node %d: %w", p.ID, err)
		}
		sets = append(sets, s)
	}
	return kvmhost.IntersectCPUID(sets...)
}

// topology is how the plan's APIC IDs form packages, one for each node.
func topology(p *spec.Plan) kvmhost.Topology {
	most := 1
	for _, n := range p.Nodes {
		most = max(most, len(n.APICIDs))
	}
	return kvmhost.Topology{PackageShift: uint8(bits.Len(uint(most - 1))), CoresPerPackage: uint32(most)}
}

// start lets the vCPUs run.
func (n *node) start() error {
	select {
	case <-n.ended:
		return errors.New("engine: " + n.outcome.String())
	default:
	}
	n.started.Store(time.Now().UnixNano())
	n.vmDone = make(chan struct{})
	go func() {
		defer close(n.vmDone)
		err := n.vm.Run(context.Background())
		var exit *kvmhost.ExitError
		switch {
		case errors.As(err, &exit):
			n.end(control.Outcome{Kind: control.GuestCrash, Reason: exit.Error()})
		case err != nil:
			n.end(control.Outcome{Kind: control.Failed, Reason: err.Error()})
		}
	}()
	n.watching.Go(func() {
		<-n.ended
		n.vm.Stop()
		n.lane.Halt()
	})
	n.watching.Go(n.watchWaiting)
	if n.plan.Poll != spec.PollEvent {
		n.watching.Go(n.keepAwake)
	}
	n.state(control.PhaseBooting, "")
	return nil
}

// vcpuPatience is how long a stopped vCPU is given to leave its guest before its userfaults are cut off. It is in
// the guest for an instant only, unless it waits for a page.
const vcpuPatience = 200 * time.Millisecond

// release takes down what prepare and start built. The order matters: vCPUs first, then what serves them.
func (n *node) release(ctx context.Context) error {
	n.end(control.Outcome{Kind: control.Stopped, Reason: "released"})
	if n.mesh != nil {
		n.mesh.Leave(string(n.outcome.Kind), n.outcome.String())
	}
	var errs []error
	if n.vm != nil {
		n.vm.Stop()
	}
	if n.lane != nil {
		n.lane.Halt()
	}
	if n.memory != nil {
		n.memory.stopShards()
	}
	if n.vmDone != nil {
		select {
		case <-n.vmDone:
		case <-time.After(vcpuPatience):
		}
		n.memory.closeUserfault() // frees a vCPU that waits for a page nobody will send
		select {
		case <-n.vmDone:
		case <-ctx.Done():
			return fmt.Errorf("engine: a vCPU does not leave its guest: %w", context.Cause(ctx))
		}
	}
	if n.lane != nil {
		n.lane.Wait() // its thread uses vCPUs and devices
	}
	n.watching.Wait()
	if n.vm != nil {
		errs = append(errs, n.vm.Close())
	}
	if n.platform != nil {
		n.platform.close()
	}
	if n.memory != nil {
		errs = append(errs, n.memory.close())
	}
	if n.lane != nil {
		n.lane.Close()
	}
	debug.FreeOSMemory()
	return errors.Join(errs...)
}

// flushConsole waits, a little, until what the guest has written is on its way to the user.
func (n *node) flushConsole() {
	if n.ready.Load() && n.platform != nil {
		n.platform.flush()
	}
}

// Deliver implements lane.Handler.
func (n *node) Deliver(m apic.Message) {
	if n.ready.Load() {
		n.vm.Accept(m)
	}
}

// Access implements lane.Handler.
func (n *node) Access(port bool, addr uint64, data []byte, write bool) bool {
	switch {
	case !n.ready.Load():
		return false
	case port && write:
		return n.bus.WritePort(uint16(addr), data)
	case port:
		return n.bus.ReadPort(uint16(addr), data)
	case write:
		return n.bus.WriteMMIO(addr, data)
	}
	return n.bus.ReadMMIO(addr, data)
}

// EOI implements lane.Handler.
func (n *node) EOI(vector uint8) {
	if n.ready.Load() {
		n.platform.ioapic.EOI(vector)
	}
}

// meshGrace is how long a broken lane waits for the mesh to say why: a peer that died, or one that left and said
// for what reason, is better known there.
const meshGrace = time.Second

// FabricLost implements lane.Handler, and is what shards call, too.
func (n *node) FabricLost(e *fabric.PeerError) {
	n.log.Warn("lane lost a peer", "peer", e.Peer, "error", e)
	time.AfterFunc(meshGrace, func() { n.end(control.LostNode(e.Peer, e.Error())) })
}

// remote is the other nodes, as kvmhost sees them.
type remote struct{ *node }

func (r remote) Interrupt(m apic.Message) {
	vcpu, ok := r.apicIndex[m.Source]
	if !ok {
		vcpu = -1
	}
	r.lane.SendInterrupt(vcpu, m)
}

func (r remote) PortIO(vcpu int, port uint16, data []byte, write bool) bool {
	return r.lane.RemoteAccess(vcpu, true, uint64(port), data, write)
}

func (r remote) MMIO(vcpu int, gpa uint64, data []byte, write bool) bool {
	return r.lane.RemoteAccess(vcpu, false, gpa, data, write)
}

func (r remote) EOI(vector uint8) { r.lane.SendEOI(-1, vector) }
