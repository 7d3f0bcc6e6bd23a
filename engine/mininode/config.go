package mininode

import (
	"fmt"
	"time"

	"ironspan/engine/coherence"
	"ironspan/engine/lane"
	"ironspan/engine/wire"
	"ironspan/fastpath"
	"ironspan/fastpath/fabric"
	"ironspan/fastpath/fabric/rdma"
	"ironspan/fastpath/uffd"
	"ironspan/kvmhost"
)

// Config is what a node is made of. The first group must be the same on all nodes of a VM.
type Config struct {
	Nodes       int
	Pages       int        // homed at each node, in order
	Shards      int        // 0: 1
	StripeShift uint       // log2 of a stripe's pages; 0: 9, which is 2 MiB
	Slots       int        // receive slots of each shard; 0: 256
	Epoch       wire.Epoch // incarnation of the VM
	Lane        bool       // there is a machine lane: interrupts and device accesses reach other nodes

	Self wire.NodeID

	// Of the protocol; see coherence.Config. Cache is the whole node's, in pages, and divided among its shards.
	Tenure      coherence.Tenure
	ReadAsWrite bool // also where the kernel needs it
	WalksWrite  bool
	Migratory   bool
	Prefetch    int
	CoverFrom   int
	Cache       int

	// Plain leaves out everything that moves pages: RAM is ordinary memory, without userfaultfd, shards and peers.
	Plain bool

	Verbs   *rdma.Options // nil: the shared-memory fabric
	Poll    fastpath.PollMode
	Spin    time.Duration // of fastpath.Adaptive; 0: as usual
	Threads int           // of this machine that want a core; 0: not known. See fastpath.ShardConfig
	Pins    *Pins         // nil: threads go where the scheduler puts them

	Guest Guest

	// OnError is told, on any thread, of a shard that failed and of peers that were lost. It must not block.
	OnError func(error)
}

// Guest is the mini-guest of a node: see minivm.Config. Its image begins at page Image of the node's own range, which no
// other node may touch. Without Code the node has no vCPUs and only serves others.
type Guest struct {
	Image    int
	Code     [][]byte
	Handlers map[uint8][]byte
	// Snoop has the shards keep KVM's shadow page tables from going stale, as guests need that change their page
	// tables: see kvmhost.Snooper. A mini-guest does not, but what it costs can be measured with one.
	Snoop bool
}

// Pins are host CPUs to stay on; -1: any. What VCPUs and Shards are too short for stays on none.
type Pins struct {
	VCPUs, Shards []int
	Lane          int
}

func pinned(list []int, i int) int {
	if i < len(list) {
		return list[i]
	}
	return -1
}

func (c *Config) fill() error {
	if c.Shards == 0 {
		c.Shards = 1
	}
	if c.StripeShift == 0 {
		c.StripeShift = 9
	}
	if c.Slots == 0 {
		c.Slots = 256
	}
	if c.Pins == nil {
		c.Pins = &Pins{Lane: -1}
	}
	if c.OnError == nil {
		c.OnError = func(error) {}
	}
	if c.Nodes < 1 || int(c.Self) >= c.Nodes || c.Pages < 1 || len(c.Guest.Code) > maxVCPUs {
		return fmt.Errorf("mininode: node %d of %d with %d pages and %d vcpus (at most %d)",
			c.Self, c.Nodes, c.Pages, len(c.Guest.Code), maxVCPUs)
	}
	return nil
}

// Addr is the guest-physical address of a page of a node's range.
func (c *Config) Addr(node wire.NodeID, page int) uint64 {
	return uint64(int(node)*c.Pages+page) * wire.PageSize
}

func (c *Config) size() uint64 { return uint64(c.Nodes*c.Pages) * wire.PageSize }

func (c *Config) homes() (ranges []coherence.Range, spans []fabric.Span) {
	for n := range c.Nodes {
		first, last := wire.PFN(n*c.Pages), wire.PFN((n+1)*c.Pages)
		ranges = append(ranges, coherence.Range{First: first, Last: last})
		spans = append(spans, fabric.Span{First: uint64(first) * wire.PageSize, Last: uint64(last) * wire.PageSize})
	}
	return ranges, spans
}

// threads is how many threads of this node run at a time.
func (c *Config) threads() int {
	n := len(c.Guest.Code)
	if !c.Plain {
		n += max(c.Shards, 1)
	}
	if c.Lane {
		n++
	}
	return n
}

// A vCPU's APIC ID has its node above vcpuBits.
const (
	vcpuBits = 4
	maxVCPUs = 1 << vcpuBits
)

// APICID is the APIC ID of a node's vCPU.
func APICID(node wire.NodeID, vcpu int) uint32 { return uint32(node)<<vcpuBits | uint32(vcpu) }

func (c *Config) nodeOf(apicID uint32) (wire.NodeID, bool) {
	node := apicID >> vcpuBits
	return wire.NodeID(node), node < uint32(c.Nodes)
}

// machineLane is the machine lane's number; shards have theirs from 0.
const machineLane = 0xffff

var _ lane.Handler = (*Node)(nil)

// Probe says whether this host can run nodes. Its error is that of kvmhost.Probe or of uffd.Probe.
func Probe() error {
	_, err := kvmhost.Probe()
	if err != nil {
		return err
	}
	_, err = uffd.Probe()
	return err
}

// PrepareRuntime is fastpath.PrepareRuntime for all threads of the nodes, as a node of the product does.
func PrepareRuntime(cs ...Config) (restore func()) {
	threads := 0
	for i := range cs {
		threads += cs[i].threads()
	}
	return fastpath.PrepareRuntime(threads)
}
