package coherence

import (
	"fmt"
	"math/bits"
	"strings"

	"ironspan/engine/wire"
)

// cluster is agents joined by links on which messages wait until a test delivers them. It has no memory:
// whether bytes are right is for engine/sim to see.
type cluster struct {
	agents []*Agent
	links  [][][]wire.Message // [from][to]
	over   [][]wire.Message   // [node]: one-sided operations that a test lets be over
	mapped []map[wire.PFN]wire.Mode
	frames []int             // cached
	zero   map[wire.PFN]bool // pages that the drivers take for zeros
	now    int64
	log    strings.Builder
}

func newCluster(tb tester, nodes, pages int, change func(*Config)) *cluster {
	tb.Helper()
	c := &cluster{zero: map[wire.PFN]bool{}}
	var homes []Range
	for n := range nodes {
		homes = append(homes, Range{wire.PFN(n * pages), wire.PFN((n + 1) * pages)})
	}
	for n := range nodes {
		cfg := Config{Self: wire.NodeID(n), Homes: homes, Shards: 1, Epoch: 1, Slots: 2}
		if change != nil {
			change(&cfg)
		}
		a, err := New(cfg)
		if err != nil {
			tb.Fatal(err)
		}
		c.agents = append(c.agents, a)
		c.links = append(c.links, make([][]wire.Message, nodes))
		c.over = append(c.over, nil)
		m := map[wire.PFN]wire.Mode{}
		for p := homes[n].First; p < homes[n].Last; p++ {
			if a.Mode(p) != wire.None {
				m[p] = wire.Modified
			}
		}
		c.mapped = append(c.mapped, m)
		c.frames = append(c.frames, 0)
	}
	return c
}

// perform notes a node's actions and does them: mappings change, messages go on their links.
func (c *cluster) perform(n int) {
	a := c.agents[n]
	for _, act := range a.Actions() {
		fmt.Fprintf(&c.log, "  %d: ", n)
		mode := c.mapped[n][act.Page]
		want := func(ok bool) {
			if !ok {
				fmt.Fprintf(&c.log, "(but node %d has page %d in %v!) ", n, act.Page, mode)
			}
		}
		switch act.Op {
		case OpSend, OpSendPage:
			verb := "send"
			if act.Op == OpSendPage {
				verb = "send page,"
				act.Msg.Flags = wire.FlagData
				if c.zero[act.Page] {
					act.Msg.Flags = wire.FlagZero
				}
				want(mode != wire.Modified)
			}
			fmt.Fprintf(&c.log, "%s %s to %d\n", verb, describe(&act.Msg), act.Peer)
			c.links[n][act.Peer] = append(c.links[n][act.Peer], act.Msg)
		case OpPark, OpFetch: // the driver's word comes on the link from the home, behind or before anything else
			want(mode == wire.None && int(act.Peer) != n)
			fmt.Fprintf(&c.log, "%s page %d at %d, slot %d\n", [...]string{OpPark: "park", OpFetch: "fetch"}[act.Op], act.Page, act.Peer, act.Msg.Slot)
			c.over[n] = append(c.over[n], act.Msg)
		case OpProtect:
			want(mode == wire.Modified)
			c.mapped[n][act.Page] = wire.Shared
			fmt.Fprintf(&c.log, "protect %d\n", act.Page)
		case OpUnmap:
			want(mode != wire.None)
			c.mapped[n][act.Page] = wire.None
			fmt.Fprintf(&c.log, "unmap %d\n", act.Page)
		case OpDiscard:
			want(mode == wire.None && !a.isHome(act.Page))
			c.frames[n]--
			fmt.Fprintf(&c.log, "discard %d\n", act.Page)
		case OpInstall:
			want(mode == wire.None)
			c.mapped[n][act.Page] = act.Mode
			from := fmt.Sprintf("slot %d", act.Slot)
			if a.isHome(act.Page) {
				from = "home frame"
			} else {
				c.frames[n]++
				want(c.frames[n] <= a.cache.limit)
			}
			if act.Msg.Flags == wire.FlagZero {
				from += ", zeroed"
			}
			fmt.Fprintf(&c.log, "install %d in %v from %s\n", act.Page, act.Mode, from)
		case OpZeroFrame:
			want(mode == wire.None && a.isHome(act.Page))
			fmt.Fprintf(&c.log, "zero home frame %d\n", act.Page)
		case OpUnprotect:
			want(mode == wire.Shared)
			c.mapped[n][act.Page] = wire.Modified
			fmt.Fprintf(&c.log, "unprotect %d\n", act.Page)
		case OpWake:
			want(mode == act.Mode)
			fmt.Fprintf(&c.log, "wake %d, in %v\n", act.Page, act.Mode)
		default:
			fmt.Fprintf(&c.log, "action %d!\n", act.Op)
		}
	}
	a.Clear()
}

func describe(m *wire.Message) string {
	s := fmt.Sprintf("%v page %d for %d.%d slot %d", m.Kind, m.Page, m.Requester, m.Txn, m.Slot)
	if m.Kind == wire.Grant {
		s += fmt.Sprintf(" in %v", m.Mode)
	}
	if m.Acks > 0 {
		s += fmt.Sprintf(" after acks of %s", bitsOf(m.Args[1]))
	}
	if m.Args[0] != 0 {
		s += fmt.Sprintf(" tenure %d", m.Args[0])
	}
	if m.Args[2] != 0 {
		s += fmt.Sprintf(" covering %s", bitsOf(m.Args[2]))
	}
	return s
}

func bitsOf(set uint64) string {
	var s []string
	for ; set != 0; set &= set - 1 {
		s = append(s, fmt.Sprint(bits.TrailingZeros64(set)))
	}
	return strings.Join(s, ",")
}

func (c *cluster) fault(n int, page wire.PFN, write bool) Status {
	s := c.agents[n].Fault(c.now, page, write)
	c.perform(n)
	return s
}

// evict says whether a node parks a page.
func (c *cluster) evict(n int, page wire.PFN) bool {
	ok := c.agents[n].Evict(page)
	c.perform(n)
	return ok
}

// step hands a message to a node without a link.
func (c *cluster) step(to int, m *wire.Message) Status {
	s := c.agents[to].Step(c.now, m)
	c.perform(to)
	return s
}

// deliver delivers the oldest message of a link.
func (c *cluster) deliver(from, to int) (wire.Message, Status) {
	m := c.links[from][to][0]
	c.links[from][to] = c.links[from][to][1:]
	return m, c.step(to, &m)
}

// finish lets the oldest one-sided operation of a node be over.
func (c *cluster) finish(n int) (wire.Message, Status) {
	m := c.over[n][0]
	c.over[n] = c.over[n][1:]
	return m, c.step(n, &m)
}

// tick lets time pass; every agent whose deadline it was is told.
func (c *cluster) tick(now int64) {
	c.now = now
	for n, a := range c.agents {
		if a.Next() <= now {
			a.Tick(now)
			c.perform(n)
		}
	}
}

// drain delivers, and lets time pass where all waits for it, until nothing is left to do.
func (c *cluster) drain(each func(m wire.Message, s Status)) {
	for {
		busy := false
		for from := range c.links {
			for to := range c.links[from] {
				for len(c.links[from][to]) > 0 {
					busy = true
					m, s := c.deliver(from, to)
					each(m, s)
				}
			}
		}
		for n := range c.over {
			for len(c.over[n]) > 0 {
				busy = true
				m, s := c.finish(n)
				each(m, s)
			}
		}
		next := int64(never)
		for _, a := range c.agents {
			next = min(next, a.Next())
		}
		switch {
		case busy:
		case next == never:
			return
		default:
			c.tick(max(next, c.now))
		}
	}
}

// problem checks what must always hold, as far as it can be seen without memory.
func (c *cluster) problem(rest bool) string {
	if i := strings.IndexByte(c.log.String(), '!'); i >= 0 {
		return c.log.String()
	}
	home := c.agents[0]
	for p := wire.PFN(0); p < home.total; p++ {
		writers, readers := 0, 0
		h := c.agents[home.homeOf(p)]
		info, _ := h.Inspect(p)
		for n, a := range c.agents {
			m := c.mapped[n][p]
			if rest && (a.cache.frames != c.frames[n] || a.cache.parking != 0 || int(a.stats.Cached) != c.frames[n]) {
				return fmt.Sprintf("node %d has %d frames at rest, its agent counts %d (%d), %d of them being parked", n, c.frames[n], a.cache.frames, a.stats.Cached, a.cache.parking)
			}
			switch m {
			case wire.Modified:
				writers++
			case wire.Shared:
				readers++
			}
			if a.Mode(p) != m {
				return fmt.Sprintf("node %d has page %d in %v, its agent thinks %v", n, p, m, a.Mode(p))
			}
			mine, _ := a.Inspect(p)
			if rest && (mine.Waiting || mine.Deferred || mine.Busy || mine.Queue > 0) {
				return fmt.Sprintf("node %d, page %d at rest: %+v", n, p, mine)
			}
			right := wire.None
			if info.Shared && info.Sharers>>n&1 == 1 {
				right = wire.Shared
			} else if !info.Shared && int(info.Owner) == n {
				right = wire.Modified
			}
			if (mine.Right != right || m != right && !a.pages[must(a.index(p))].is(parked)) && rest || m > right && !info.Busy {
				return fmt.Sprintf("node %d has page %d in %v (right to %v), the directory gives it %v", n, p, m, mine.Right, right)
			}
		}
		if writers > 1 || writers == 1 && readers > 0 {
			return fmt.Sprintf("page %d has %d writers and %d readers", p, writers, readers)
		}
	}
	return ""
}

func must(i uint32, ok bool) uint32 {
	if !ok {
		panic("a page of another shard")
	}
	return i
}

// tester is what testing.T, testing.B and rapid.T have in common, and the tests need.
type tester interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}
