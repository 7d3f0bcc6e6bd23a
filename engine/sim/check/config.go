package check

import (
	"fmt"
	"strings"
	"time"

	"ironspan/engine/coherence"
	"ironspan/engine/wire"
)

// Config is a cluster small enough to be gone through.
type Config struct {
	Nodes int
	Homes []int // of each page, ascending
	Slots int

	// Reads and Writes are how often vCPUs of each node begin to read a page that they may not read, and to
	// write.
	Reads, Writes []int
	Zeros         bool // a write can also leave a page of zeros

	Tenure      coherence.Tenure
	Idle        bool // the vCPUs of a node can all be halted at any time
	ReadAsWrite bool
	WalksWrite  bool
	Migratory   bool
	Prefetch    int
	CoverFrom   int

	// Evictions are how often each node parks a page, any that it can at any moment; none if nil. Cache bounds the
	// pages homed elsewhere that a node holds, if it is not 0, and the agents choose what to park.
	Evictions []int
	Cache     int

	// Prompt makes a vCPU that was woken go on before anything else happens. Where it can lose its page first, it
	// can fault any number of times, and that is too much where an agent remembers faults (companions, prefetch).
	Prompt bool

	// States bounds the search; 0: 1<<26.
	States int

	tamper *tamper
	table  *Table
}

// tamper is a bug, put in between the agents and the world: the fields that are set are used. It has to depend
// on the state alone.
type tamper struct {
	// actions changes what a node does upon an input.
	actions func(w *world, node wire.NodeID, acts []coherence.Action) []coherence.Action
	// message changes a message as it goes on its link; false loses it.
	message func(m *wire.Message) bool
	// forge makes up another one to be sent along, if its kind is not zero.
	forge func(c *Config, m *wire.Message) (forged wire.Message, to wire.NodeID)
	// overtake puts a message before those that wait on its link.
	overtake bool
	// noTicks means that no deadline is met.
	noTicks bool
}

// String names the cluster by what it is.
func (c *Config) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d nodes, pages of %v, slots %d, reads %v, writes %v", c.Nodes, c.Homes, c.Slots, c.Reads, c.Writes)
	for _, option := range []struct {
		on   bool
		name string
	}{
		{c.Zeros, "zeros"}, {c.Tenure.Base > 0, fmt.Sprintf("tenure %d", c.Tenure.Max/step)}, {c.Idle, "idle"},
		{c.ReadAsWrite, "read as write"}, {c.WalksWrite, "walks write"}, {c.Migratory, "migratory"},
		{c.Prefetch > 0, "prefetch"}, {c.CoverFrom > 0, fmt.Sprintf("cover from %d", c.CoverFrom)}, {c.Evictions != nil, fmt.Sprintf("evictions %v", c.Evictions)},
		{c.Cache > 0, fmt.Sprintf("cache %d", c.Cache)}, {c.Prompt, "prompt"},
	} {
		if option.on {
			b.WriteString(", " + option.name)
		}
	}
	return b.String()
}

func (c *Config) homeOf(page wire.PFN) wire.NodeID { return wire.NodeID(c.Homes[page]) }

// turn is how long a node has the right of way, as the agents have it.
func (c *Config) turn() int64 { return max(int64(c.Tenure.Max)/2, 1) }

// start is the time at which clocks begin: the first node's turn, and in the middle of a stamp.
func (c *Config) start() int64 {
	round := c.turn() * int64(c.Nodes)
	return (1<<41 + 1<<29) / round * round
}

func (c *Config) agents() ([]*coherence.Agent, error) {
	homes := make([]coherence.Range, c.Nodes)
	for p := range c.Homes {
		for n := c.Homes[p]; n < c.Nodes; n++ {
			homes[n].Last++
			if n > c.Homes[p] {
				homes[n].First++
			}
		}
	}
	var agents []*coherence.Agent
	for n := range c.Nodes {
		a, err := coherence.New(coherence.Config{
			Self: wire.NodeID(n), Homes: homes, Shards: 1, Epoch: 1, Slots: c.Slots, Tenure: c.Tenure,
			ReadAsWrite: c.ReadAsWrite, WalksWrite: c.WalksWrite, Migratory: c.Migratory, Prefetch: c.Prefetch, Cache: c.Cache,
			CoverFrom: c.CoverFrom,
		})
		if err != nil {
			return nil, err
		}
		agents = append(agents, a)
	}
	return agents, nil
}

// step is by how much a clock goes on: the least tenure. It is a multiple of the agents' unit of time, so ages are
// exact.
const step = 4096 * time.Nanosecond

// renaming is a permutation of nodes and one of pages.
type renaming struct {
	nodes, nodesBack []wire.NodeID
	pages, pagesBack []wire.PFN
}

// renamings returns the symmetries of the cluster, the identity first.
func (c *Config) renamings() []renaming {
	var all []renaming
	permute(c.Nodes, func(nodes []int) {
		permute(len(c.Homes), func(pages []int) {
			if c.symmetry(nodes, pages) {
				all = append(all, newRenaming(nodes, pages))
			}
		})
	})
	return all
}

func (c *Config) symmetry(nodes, pages []int) bool {
	for old, name := range nodes {
		if old != name && (c.Tenure.Base > 0 || c.tamper != nil) ||
			c.Reads[old] != c.Reads[name] || c.Writes[old] != c.Writes[name] ||
			c.Evictions != nil && c.Evictions[old] != c.Evictions[name] {
			return false
		}
	}
	for old, name := range pages {
		if old != name && (c.Prefetch > 0 || c.Cache > 0 || c.tamper != nil) || nodes[c.Homes[old]] != c.Homes[name] {
			return false
		}
	}
	return true
}

func newRenaming(nodes, pages []int) renaming {
	r := renaming{
		make([]wire.NodeID, len(nodes)), make([]wire.NodeID, len(nodes)),
		make([]wire.PFN, len(pages)), make([]wire.PFN, len(pages)),
	}
	for old, name := range nodes {
		r.nodes[old], r.nodesBack[name] = wire.NodeID(name), wire.NodeID(old)
	}
	for old, name := range pages {
		r.pages[old], r.pagesBack[name] = wire.PFN(name), wire.PFN(old)
	}
	return r
}

// back returns what an event is called by the old names.
func (r *renaming) back(e event) event {
	e.node, e.peer, e.page = r.nodesBack[e.node], r.nodesBack[e.peer], r.pagesBack[e.page]
	return e
}

// permute calls f with every permutation of 0 to n-1, in lexical order.
func permute(n int, f func([]int)) {
	var grow func(perm []int)
	grow = func(perm []int) {
		if len(perm) == n {
			f(perm)
			return
		}
	next:
		for x := range n {
			for _, y := range perm {
				if x == y {
					continue next
				}
			}
			grow(append(perm, x))
		}
	}
	grow(make([]int, 0, n))
}
