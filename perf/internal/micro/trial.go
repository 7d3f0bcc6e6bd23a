package micro

import (
	"encoding/binary"
	"fmt"
	"math"
	"time"

	"ironspan/engine/mininode"
	"ironspan/engine/wire"
	"ironspan/fastpath"
	"ironspan/kvmhost"
)

// Trial is one round of a benchmark: nodes, and what their guests do.
type Trial struct {
	Config mininode.Config // what nodes have in common; Pages: 0 for a layout that has Data
	Data   int             // pages of each node that others may take
	Cache  int             // of node 0: see mininode.Config; 0: no bound

	VCPUs      []VCPU // those of a node in order
	Batches    int
	Interrupts bool // guests take interrupts; one vCPU for each node
	Echo       bool // node 1 answers each interrupt by one to node 0, from its handler
	Snoop      bool // as production has it where KVM shadows
	Counts     bool // samples are counts, and not cycles

	// Prepare is called where node 0 is, before guests run, and what it returns when they have ended.
	Prepare func(*share) (after func(), err error)
	// Meet is called where node 0 is, at each meeting of the vCPUs, while all of them wait; the first is number 0.
	Meet func(s *share, meeting int)
	// Collect adds figures to the outcome, where node 0 is.
	Collect func(*share, *Outcome)
}

// VCPU is one vCPU's part. Body is one batch of it; all bodies of a trial meet equally often.
type VCPU struct {
	Node int
	Body func(*writer)
}

// Outcome is what a trial measured.
type Outcome struct {
	Samples [][]int64     `json:"samples"` // of each vCPU of the trial, in nanoseconds unless counts, in their order
	Nodes   []NodeOutcome `json:"nodes"`   // by node
	Values  []float64     `json:"values,omitempty"`
}

// NodeOutcome is what a node's shards counted.
type NodeOutcome struct {
	Shards []fastpath.Snapshot `json:"shards"`
}

// faults are those that the node's guest took.
func (n *NodeOutcome) faults() (sum uint64) {
	for i := range n.Shards {
		sum += n.Shards[i].Faults
	}
	return sum
}

// agent sums up a counter of the protocol.
func (n *NodeOutcome) agent(of func(*fastpath.Snapshot) uint64) (sum uint64) {
	for i := range n.Shards {
		sum += of(&n.Shards[i])
	}
	return sum
}

// fill completes the trial's configuration.
func (t *Trial) fill() {
	c := &t.Config
	if c.Pages == 0 {
		const stripe = 512
		c.Pages = (dataPage + t.Data + stripe - 1) / stripe * stripe
	}
	c.Epoch = 0xbe7c
	if t.Interrupts {
		c.Lane = true
	}
	if t.Batches == 0 {
		t.Batches = 1
	}
}

// node is the configuration of one node.
func (t *Trial) node(self int) mininode.Config {
	c := t.Config
	c.Self = wire.NodeID(self)
	if self == 0 {
		c.Cache = t.Cache
	}
	c.Guest = mininode.Guest{Image: imagePage, Snoop: t.Snoop, Handlers: t.handlers(self)}
	for _, v := range t.VCPUs {
		if v.Node == self {
			c.Guest.Code = append(c.Guest.Code, t.program(self, len(c.Guest.Code), v.Body))
		}
	}
	return c
}

// samples reads what a vCPU wrote down. The guest has ended; but what it left is checked like all that a guest leaves.
func (t *Trial) samples(n *mininode.Node, vcpu int) ([]int64, error) {
	from := t.area(int(n.Config.Self), vcpu)
	area := n.RAM.Service()[from:][:tableAt]
	end := binary.LittleEndian.Uint64(area)
	first := from + samplesAt
	if end < first || end > from+tableAt || (end-first)%8 != 0 {
		return nil, fmt.Errorf("micro: vcpu %d of node %d has its samples end at %#x: they begin at %#x and have %d bytes",
			vcpu, n.Config.Self, end, first, tableAt-samplesAt)
	}
	khz := n.VM.TSCKHz()
	out := make([]int64, (end-first)/8)
	for i := range out {
		word := binary.LittleEndian.Uint64(area[samplesAt+8*i:])
		if t.Counts {
			out[i] = int64(min(word, math.MaxInt64))
		} else {
			out[i] = kvmhost.TSCToNs(word, khz)
		}
	}
	return out, nil
}

// tableOf is the area's table of a vCPU, as the host writes it.
func (s *share) tableOf(node, vcpu int) []byte {
	at := s.trial.area(node, vcpu) + tableAt
	return s.nodes[node].RAM.Service()[at:][:8*maxTable]
}

// setTable puts addresses into the table of a node's vCPU.
func (s *share) setTable(node, vcpu int, addrs []uint64) {
	b := s.tableOf(node, vcpu)
	for i, a := range addrs {
		binary.LittleEndian.PutUint64(b[8*i:], a)
	}
}

// ticks is how far this server's time stamp counter goes in d.
func ticks(d time.Duration) uint64 {
	support, err := kvmhost.Probe()
	if err != nil {
		return 0 // no guest runs, then
	}
	return uint64(d) * support.TSCKHz / 1_000_000
}
