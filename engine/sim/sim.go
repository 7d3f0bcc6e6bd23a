// Package sim drives a cluster of coherence.Agents, the same objects that serve a real VM, through seeded
// random runs, and checks after every step what must always hold.
//
// A run is a discrete-event simulation on one goroutine. Nodes are joined by links, one for each ordered pair and FIFO
// like a queue pair, whose random latencies let messages of different pairs overtake each other at will. Each node
// performs its agent's actions as a driver would, with a page's bytes standing in as one word: guest mappings, home
// frames, cached frames, receive slots, one-sided writes that land before the message behind them. Virtual CPUs read
// and write at random, fault where their mapping does not let them, and refault when they are woken; their fault events
// can be stale by the time the agent sees them. Nodes crash and queue pairs break with packets on them, which ends the
// VM: until then, and afterwards, nobody may read anything wrong.
//
// The simulator knows what each read has to see, and checks that. Two judges do not know, and see nothing but what
// vCPUs did: porcupine looks for an order of each page's accesses (History), and engine/litmus says which outcomes
// x86-TSO lets small programs have, which some vCPUs run, with store buffers or without (Litmus).
//
// Everything that is random comes from the seed, so a failed run is replayed by its seed.
package sim

import (
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"ironspan/engine/coherence"
	"ironspan/engine/wire"
)

// Access is one page that an operation touches.
type Access struct {
	Page  wire.PFN
	Write bool
}

// Workload gives the n-th operation of a virtual CPU: pages that it needs all at the same time, as one
// instruction does, and the time it computes before it. The slice is only used until the next call.
type Workload func(rng *rand.Rand, node, vcpu, n int) (ops []Access, think time.Duration)

// Config is a cluster and what happens to it.
type Config struct {
	Seed  uint64
	Nodes int
	Homes []coherence.Range // len(Homes) == Nodes

	Shard, Shards int
	StripeShift   uint
	Slots         int
	Tenure        coherence.Tenure
	ReadAsWrite   bool
	WalksWrite    bool
	Migratory     bool
	Prefetch      int
	CoverFrom     int
	Cache         int // pages homed elsewhere that each node may hold; 0: no bound

	VCPUs    int // of each node
	Ops      int // of each vCPU; 0: until Deadline
	Workload Workload
	Zeros    float64 // share of the writes that leave a page of zeros

	// A packet takes a time about Latency, as Spread has it. A fault takes up to FaultLatency to get to its agent, and a
	// vCPU the same to get going again. An agent takes Service for each input, and takes them one at a time.
	Latency      [2]time.Duration
	Spread       Spread
	FaultLatency time.Duration
	Service      time.Duration
	Clogged      float64       // share of the links that are ten times slower
	Slow         float64       // share of the nodes where everything takes SlowBy times as long
	SlowBy       int           // 0: 1
	Idle         float64       // share of the messages upon which the node's vCPUs count as halted, or as running again
	Evict        float64       // share of the messages upon which the node parks a page, any one
	Repeat       float64       // share of the messages that come twice; the agent has to refuse the second
	Deadline     time.Duration // simulated time after which the run is cut off

	// History has porcupine judge the vCPUs' accesses, for which there should not be too many on a page at a time.
	History bool

	// Litmus, if not nil, has some of the vCPUs run threads that tell memory models apart.
	Litmus *Litmus

	// blind switches off what the simulator checks with its own knowledge, for tests of the judges that have none.
	blind bool

	// What fails. From the failure until each end of a broken link learns of it, and from the first to learn until
	// each node has stopped its vCPUs, it takes Detect[0] to Detect[1].
	Crash  []Crash
	Break  []Break
	Detect [2]time.Duration
}

// Result is what a run did.
type Result struct {
	Events   int
	Time     time.Duration // simulated
	Ops      [][]int       // done, by node and vCPU
	Faults   int           // that agents were told of
	WorstNs  int64         // longest time from a request to its page
	Kinds    Kinds         // what the transactions cost
	Stats    []coherence.Stats
	HotPages []coherence.HotPage // up to 32 of each home

	Histories Histories
	Outcomes  *Outcomes // of Litmus
	Failed    bool      // somebody noticed a failure, which ended the VM
	Aftermath Aftermath
}

// cluster is a run.
type cluster struct {
	cfg     Config
	rng     *rand.Rand
	now     int64
	queue   events
	seq     uint64
	nodes   []*node
	links   [][]link // from, to
	homes   []*node  // by page
	truth   []uint64 // by page: what a read of it has to see
	last    uint64   // last value written
	busy    int      // vCPUs that are not done
	history history  // if wanted
	trial   *trial   // likewise
	failed  bool     // something has failed: the VM is about to end, or has
	ending  bool     // and somebody knows
	costs   costs
	result  Result
	err     error
}

type link struct {
	arrival int64 // of the last packet: no later one arrives before
	slow    int64

	sent, arrived uint64 // packets
	doomed        bool   // breaks over the next packet
	broken        bool   // nothing is sent any more
	deaf          bool   // the receiver knows: nothing arrives any more
	last          uint64 // if broken: the packet after which all are lost
	torn          bool   // if broken: of the first that is lost, a part lands
}

// event is something that happens at a time. Exactly one of the fields below node is meant, by what.
type event struct {
	at    int64
	seq   uint64 // events of the same time happen in the order in which they were planned
	what  what
	node  int
	vcpu  int
	page  wire.PFN
	flag  bool   // fault: write; land: into the home frame
	slot  uint32 // land
	peer  int    // land, message: who sent it; learn: who is lost
	nth   uint64 // land, message: packet of its link
	val   uint64 // land
	late  bool   // land: the peer's home frame is read only now
	msg   wire.Message
	chain int // messages of its transaction that led to this one, itself included
}

type what uint8

const (
	evRun      what = iota // a vCPU goes on
	evFault                // the agent learns of a fault
	evLand                 // a one-sided write arrives
	evOneSided             // an operation on a home frame arrives there, of which the node that asked for it gets word
	evMessage              // a message arrives, or that word
	evTick                 // the agent's deadline
	evRetire               // a store leaves its buffer, perhaps
	evServe                // the agent takes the next input
	evCrash
	evBreak
	evLearn // a node learns that it has lost a peer
	evStop  // a node's vCPUs stop for good
)

// Run does what cfg says. An error is a violation of an invariant.
func Run(cfg Config) (*Result, error) {
	c := &cluster{
		cfg: cfg, rng: rand.New(rand.NewPCG(cfg.Seed, 0x1f0a5)),
		costs: costs{open: map[costKey]*cost{}, now: map[askKey]*cost{}},
	}
	c.truth = make([]uint64, cfg.Homes[cfg.Nodes-1].Last)
	c.homes = make([]*node, len(c.truth))
	if cfg.History {
		c.history = make(history, len(c.truth))
	}
	for n := range cfg.Nodes {
		if err := c.addNode(n); err != nil {
			return nil, err
		}
	}
	for range cfg.Nodes {
		row := make([]link, cfg.Nodes)
		for i := range row {
			row[i].slow = 1
			if c.rng.Float64() < cfg.Clogged {
				row[i].slow = cloggedBy
			}
		}
		c.links = append(c.links, row)
	}
	if cfg.Litmus != nil {
		c.addTrial()
	}
	c.planFailures()
	c.loop()
	c.result.Time = time.Duration(c.now)
	for _, n := range c.nodes {
		ops := make([]int, len(n.vcpus))
		for i := range n.vcpus {
			ops[i] = n.vcpus[i].done
		}
		c.result.Ops = append(c.result.Ops, ops)
		c.result.Stats = append(c.result.Stats, *n.agent.Stats())
		c.result.HotPages = n.agent.HotPages(c.result.HotPages, 32)
	}
	c.result.Kinds = c.costs.sum()
	c.result.Failed = c.ending
	if c.err == nil {
		c.result.Histories, c.err = c.history.judge()
	}
	if c.err != nil {
		return &c.result, fmt.Errorf("sim: at %v, event %d: %w", time.Duration(c.now), c.result.Events, c.err)
	}
	return &c.result, nil
}

func (c *cluster) loop() {
	deadline := int64(math.MaxInt64)
	if c.cfg.Deadline > 0 {
		deadline = int64(c.cfg.Deadline)
	}
	for c.err == nil {
		e, ok := c.queue.pop()
		if !ok {
			if c.failed {
				c.afterLoss()
			} else {
				c.checkAtRest()
			}
			return
		}
		if e.at > deadline {
			if c.cfg.Ops > 0 || c.failed {
				c.fail("%d vcpus are not done at the deadline: live-lock", c.busy)
			}
			return
		}
		c.now = e.at
		c.result.Events++
		n := c.nodes[e.node]
		if n.crashed {
			continue
		}
		switch e.what {
		case evRun:
			if !n.stopped {
				c.run(n, e.vcpu)
			}
		case evLand:
			c.landed(n, &e)
		case evOneSided:
			c.oneSided(n, &e)
		case evMessage:
			if c.arrives(&e) {
				c.input(n, &e)
			}
		case evFault, evTick:
			c.input(n, &e)
		case evServe:
			c.serve(n)
		case evCrash:
			c.crash(n)
		case evBreak:
			c.breakUnderWay(n.id, e.peer)
		case evLearn:
			c.learn(n, e.peer)
		case evRetire:
			c.retire(n, e.vcpu)
		case evStop:
			c.drainNode(n)
			n.stopped = true
		}
	}
}

// fail notes the first violation that the simulator itself sees.
func (c *cluster) fail(format string, args ...any) {
	if c.err == nil && !c.cfg.blind {
		c.err = fmt.Errorf(format, args...)
	}
}

// input gives an agent something to do: at once, or in its turn if that takes time.
func (c *cluster) input(n *node, e *event) {
	if c.cfg.Service == 0 {
		c.take(n, e)
		return
	}
	if n.inbox = append(n.inbox, *e); len(n.inbox) == 1 {
		c.plan(int64(c.cfg.Service)*n.slow, event{what: evServe, node: n.id})
	}
}

// serve ends an agent's work at the first input, and begins that at the next.
func (c *cluster) serve(n *node) {
	e := n.inbox[0]
	if n.inbox = n.inbox[1:]; len(n.inbox) > 0 {
		c.plan(int64(c.cfg.Service)*n.slow, event{what: evServe, node: n.id})
	}
	if e.what != evMessage || !c.links[e.peer][n.id].deaf {
		c.take(n, &e)
	}
}

func (c *cluster) take(n *node, e *event) {
	switch e.what {
	case evFault:
		c.fault(n, e.page, e.flag)
	case evMessage:
		c.message(n, e)
	case evTick:
		n.tickAt = math.MaxInt64
		n.agent.Tick(c.now)
		c.perform(n)
	}
}

// between returns a random time from lo to hi.
func (c *cluster) between(lo, hi time.Duration) int64 {
	if hi <= lo {
		return int64(lo)
	}
	return int64(lo) + c.rng.Int64N(int64(hi-lo)+1)
}

func (c *cluster) plan(delay int64, e event) {
	e.at = c.now + delay
	e.seq = c.seq
	c.seq++
	c.queue.push(e)
}

// transmit puts a packet on a link: it arrives in its time, and a message not before the one before it.
func (c *cluster) transmit(from, to int, e event) {
	l := &c.links[from][to]
	if l.broken {
		return
	}
	l.sent++
	e.peer, e.nth = from, l.sent
	at := max(c.now+c.latency()*l.slow, l.arrival)
	l.arrival = at
	if l.doomed {
		c.plan(c.rng.Int64N(at-c.now+1), event{what: evBreak, node: from, peer: to})
	}
	e.node = to
	// A page does not wait for the messages before it, nor does word of an operation: see package fabric, Ordering.
	if e.what == evLand || e.what == evOneSided || e.msg.Kind > wire.CoherenceLast {
		at = c.now + c.rng.Int64N(at-c.now+1)
	}
	c.plan(at-c.now, e)
}

// pace is a random time from lo to hi, as the node goes.
func (c *cluster) pace(n *node, lo, hi time.Duration) int64 { return c.between(lo, hi) * n.slow }

// events is a heap by time and order of planning.
type events []event

func (h events) less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].seq < h[j].seq
}

func (h *events) push(e event) {
	*h = append(*h, e)
	for i := len(*h) - 1; i > 0; {
		up := (i - 1) / 2
		if !h.less(i, up) {
			break
		}
		(*h)[i], (*h)[up] = (*h)[up], (*h)[i]
		i = up
	}
}

func (h *events) pop() (event, bool) {
	if len(*h) == 0 {
		return event{}, false
	}
	top := (*h)[0]
	n := len(*h) - 1
	(*h)[0] = (*h)[n]
	*h = (*h)[:n]
	for i := 0; ; {
		c := 2*i + 1
		if c >= n {
			break
		}
		if c+1 < n && h.less(c+1, c) {
			c++
		}
		if !h.less(c, i) {
			break
		}
		(*h)[i], (*h)[c] = (*h)[c], (*h)[i]
		i = c
	}
	return top, true
}
