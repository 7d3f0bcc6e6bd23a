package engine

import (
	"context"
	"errors"
	"math/bits"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ironspan/engine/coherence"
	"ironspan/engine/control"
	"ironspan/engine/spec"
	"ironspan/engine/wire"
	"ironspan/fastpath"
	"ironspan/fastpath/fabric"
	"ironspan/fastpath/fabric/rdma"
	"ironspan/fastpath/fabric/shm"
	"ironspan/fastpath/ram"
	"ironspan/fastpath/uffd"
	"ironspan/kvmhost"
)

const (
	// slotsPerShard bounds what a node has outstanding in a shard: a page for each vCPU, and some.
	slotsPerShard = 256

	// maxStripes bounds the mappings that striping makes of guest RAM, well below vm.max_map_count.
	maxStripes = 4096

	// prefetch is how many pages a node asks for ahead of faults in sequence, at most.
	prefetch = 64

	// machineLane is the machine lane's number; shards have theirs from 0.
	machineLane = 0xffff
)

// memoryHalf is the part of a node that keeps guest memory: RAM, lanes, and the shards that drive them.
type memoryHalf struct {
	ram    *ram.RAM
	slots  []*ram.Slots
	uffds  []*uffd.FD
	agents []*coherence.Agent
	shards []*fastpath.Shard
	lanes  []fabric.Lane // one for each shard, then the machine lane
	rdma   *rdma.Adapter // fabric verbs only

	homes []coherence.Range
	pins  pins
	spin  bool // threads may poll
	vcpus fastpath.VCPUs
	runs  sync.WaitGroup
}

// newMemory allocates and populates RAM, and makes everything that does not need peers.
func newMemory(ctx context.Context, n *node) (_ *memoryHalf, err error) {
	p, me := n.plan, n.me()
	m := &memoryHalf{}
	defer func() {
		if err != nil {
			m.closeUserfault()
			err = errors.Join(err, m.close())
		}
	}()
	var spans []fabric.Span
	for _, pn := range p.Nodes {
		m.homes = append(m.homes, coherence.Range{First: pn.RAM.First, Last: pn.RAM.Last})
		spans = append(spans, fabric.Span{First: uint64(pn.RAM.First) * wire.PageSize, Last: uint64(pn.RAM.Last) * wire.PageSize})
	}
	m.pins = plannedPins(p, me)
	threads := m.threads(p)
	m.spin = p.Poll == spec.PollBusy || p.Poll != spec.PollEvent && threads <= cpus()

	if m.ram, err = ram.New(ram.Config{Size: p.RAM(), Home: spans[n.self]}); err != nil {
		return m, err
	}
	last := time.Now()
	err = m.ram.Populate(func(done, total uint64) {
		if done == total || time.Since(last) > time.Second/2 {
			last = time.Now()
			n.progress(control.Event{Kind: control.KindProgress, Phase: control.PhasePopulate, Done: done, Total: total})
		}
	})
	if err != nil {
		return m, err
	}
	if err := ctx.Err(); err != nil {
		return m, err
	}
	home := m.ram.Home()
	n.log.Info("memory is there", "bytes", home.Last-home.First, "in_huge_pages", m.ram.HugeBytes())

	support, err := uffd.Probe()
	if err != nil {
		return m, err
	}
	host, err := kvmhost.Probe()
	if err != nil {
		return m, err
	}
	shift := stripeShift(p)
	for s := range p.Shards {
		u, err := uffd.Open()
		if err != nil {
			return m, err
		}
		m.uffds = append(m.uffds, u)
		if err := m.ram.Register(u, s, p.Shards, shift); err != nil {
			return m, err
		}
		slots, err := ram.NewSlots(slotsPerShard)
		if err != nil {
			return m, err
		}
		m.slots = append(m.slots, slots)
		agent, err := coherence.New(coherence.Config{
			Self: n.self, Homes: m.homes, Shard: s, Shards: p.Shards, StripeShift: shift, Epoch: p.Epoch,
			Slots: slotsPerShard, Tenure: tenure(p.Tenure, host.WalksWrite), ReadAsWrite: !support.ContinueWP,
			WalksWrite: host.WalksWrite, Migratory: true, Prefetch: prefetch,
			CoverFrom: coherence.DefaultCoverFrom,
			Cache:     int(me.Cache / wire.PageSize / uint64(p.Shards)),
		})
		if err != nil {
			return m, err
		}
		m.agents = append(m.agents, agent)
	}

	if p.Fabric == spec.FabricVerbs {
		n.state(control.PhaseRegister, me.Device)
		if m.rdma, err = openAdapter(me); err != nil {
			return m, err
		}
	}
	for s := range p.Shards {
		cfg := fabric.Config{
			Self: n.self, Nodes: len(p.Nodes), Lane: uint16(s), Epoch: p.Epoch,
			RAM: m.ram.Memory(), Homes: spans, Slots: m.slots[s].Memory(),
		}
		if err := m.addLane(cfg); err != nil {
			return m, err
		}
	}
	if err := m.addLane(fabric.Config{Self: n.self, Nodes: len(p.Nodes), Lane: machineLane, Epoch: p.Epoch}); err != nil {
		return m, err
	}

	var vcpus *fastpath.VCPUs
	if p.Fabric == spec.FabricVerbs { // no other node needs the cores of those that wait
		vcpus = &m.vcpus
	}
	for s, agent := range m.agents {
		shard, err := fastpath.NewShard(fastpath.ShardConfig{
			Agent: agent, Homes: m.homes, RAM: m.ram, Slots: m.slots[s], Uffd: m.uffds[s], Endpoint: m.lanes[s],
			CPU: m.pins.shard(s), Poll: pollMode(p.Poll), Threads: threads, VCPUs: vcpus,
			OnPeerLost: n.FabricLost,
		})
		if err != nil {
			return m, err
		}
		m.shards = append(m.shards, shard)
	}
	return m, nil
}

func (m *memoryHalf) addLane(cfg fabric.Config) error {
	var l fabric.Lane
	var err error
	if m.rdma != nil {
		l, err = m.rdma.NewLane(cfg)
	} else {
		l, err = shm.New(cfg, shm.Options{})
	}
	if err != nil {
		return err
	}
	m.lanes = append(m.lanes, l)
	return nil
}

// threads is how many threads of this VM want a core of this server.
func (m *memoryHalf) threads(p *spec.Plan) int {
	perNode := p.Shards + 1
	if p.Fabric == spec.FabricSHM {
		return p.VCPUs() + len(p.Nodes)*perNode // all nodes are here
	}
	most := 0
	for _, n := range p.Nodes {
		most = max(most, len(n.APICIDs))
	}
	return most + perNode
}

// startShards lets the shards serve, with clocks that began at zero. A shard that fails ends the VM.
func (m *memoryHalf) startShards(n *node, zero time.Time) {
	for _, s := range m.shards {
		s.SetZero(zero)
		m.runs.Go(func() {
			if err := s.Run(); err != nil {
				n.end(control.Outcome{Kind: control.Failed, Reason: err.Error()})
			}
		})
	}
}

// stopShards ends the shards' threads and waits for them.
func (m *memoryHalf) stopShards() {
	for _, s := range m.shards {
		s.Stop()
	}
	m.runs.Wait()
}

// closeUserfault makes guest memory ordinary memory and wakes whoever waits for a page. The shards must have
// been stopped. What the guest then reads is stale, so its vCPUs must be stopped as well.
func (m *memoryHalf) closeUserfault() {
	for _, u := range m.uffds {
		u.Close()
	}
}

// close frees everything. Shards, vCPUs and the machine lane's thread must have ended.
func (m *memoryHalf) close() error {
	var errs []error
	for _, s := range m.shards {
		errs = append(errs, s.Close())
	}
	for _, l := range m.lanes {
		errs = append(errs, l.Close())
	}
	if m.rdma != nil {
		errs = append(errs, m.rdma.Close())
	}
	for _, s := range m.slots {
		errs = append(errs, s.Close())
	}
	m.closeUserfault()
	if m.ram != nil {
		errs = append(errs, m.ram.Close())
	}
	return errors.Join(errs...)
}

// memorySlots are the guest's memory as KVM is told: all of the VM's RAM, in one piece or two around the hole. view is
// where the first byte of RAM is mapped.
func memorySlots(p *spec.Plan, view uintptr) []kvmhost.Slot {
	var out []kvmhost.Slot
	for _, r := range (spec.PFNRange{Last: wire.PFN(p.Pages())}).GPAs() {
		page, _ := spec.GPAToPFN(r.Start)
		out = append(out, kvmhost.Slot{GPA: uint64(r.Start), Size: r.Size(), HVA: view + uintptr(page)<<wire.PageShift})
	}
	return out
}

// snoop lets the shards tell the VM of each page that leaves this node.
func (m *memoryHalf) snoop(vm *kvmhost.VM) {
	for i, shard := range m.shards {
		s := vm.Snooper(i)
		shard.SetForget(func(page wire.PFN) unix.Errno {
			return s.Forget(uint64(spec.PFNToGPA(page)), m.ram.Page(page)[kvmhost.SnoopOffset])
		})
	}
}

// stripeShift is the log2 of a stripe's pages: as small as keeps the number of stripes, each a mapping of its own,
// in bounds, and no smaller than a large page.
func stripeShift(p *spec.Plan) uint {
	const largePage = 9
	return max(largePage, uint(bits.Len64(p.Pages()/maxStripes)))
}

// tenure derives the protocol's constants from the two that a user may set. Longer tenures than the least serve the
// collection of many pages for one instruction, which is only needed where walks of page tables count as writes;
// elsewhere what is held longer is a lock or a flag that somebody waits for.
func tenure(t spec.Tenure, walksWrite bool) coherence.Tenure {
	longest := t.Max.Std()
	if !walksWrite {
		longest = t.Base.Std()
	}
	return coherence.Tenure{Base: t.Base.Std(), Max: longest, Window: max(t.Max.Std(), time.Millisecond)}
}

func pollMode(p spec.Poll) fastpath.PollMode {
	switch p {
	case spec.PollBusy:
		return fastpath.Busy
	case spec.PollEvent:
		return fastpath.Event
	}
	return fastpath.Adaptive
}

// pins says on which host CPU each thread stays; -1 is any.
type pins struct {
	vcpus, shards []int
	lane          int
}

// plannedPins takes the plan's CPUs, vCPUs first, then shards, then the machine lane. Without any it chooses CPUs of
// their own for all threads if there are enough and no other node shares them.
func plannedPins(p *spec.Plan, me *spec.PlanNode) pins {
	list := me.CPUs
	need := len(me.APICIDs) + p.Shards + 1
	var set unix.CPUSet
	if len(list) == 0 && p.Fabric == spec.FabricVerbs && unix.SchedGetaffinity(0, &set) == nil && set.Count() >= need {
		for c := 0; len(list) < need; c++ {
			if set.IsSet(c) {
				list = append(list, c)
			}
		}
	}
	take := func() int {
		if len(list) == 0 {
			return -1
		}
		c := list[0]
		list = list[1:]
		return c
	}
	out := pins{}
	for range me.APICIDs {
		out.vcpus = append(out.vcpus, take())
	}
	for range p.Shards {
		out.shards = append(out.shards, take())
	}
	out.lane = take()
	return out
}

func (p *pins) vcpu(i int) int  { return p.vcpus[i] }
func (p *pins) shard(i int) int { return p.shards[i] }
