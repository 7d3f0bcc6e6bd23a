package coherence

import (
	"encoding/binary"
	"fmt"
	"math"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"ironspan/engine/wire"
)

// TestOrders lets rapid choose the order in which messages of different links arrive, faults happen and
// time passes. What it finds it makes small.
func TestOrders(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := rapid.IntRange(2, 4).Draw(t, "nodes")
		slots := rapid.IntRange(1, 2).Draw(t, "slots")
		tenure := rapid.Bool().Draw(t, "tenure")
		readAsWrite := rapid.Bool().Draw(t, "readAsWrite")
		migratory := rapid.Bool().Draw(t, "migratory")
		prefetch := rapid.IntRange(0, slots).Draw(t, "prefetch")
		cache := rapid.IntRange(0, 3).Draw(t, "cache")
		c := newCluster(t, nodes, 1, func(c *Config) {
			c.Slots = slots
			c.ReadAsWrite = readAsWrite
			c.Migratory = migratory
			c.Prefetch = prefetch
			c.Cache = cache
			if tenure {
				c.Tenure = Tenure{Base: 10 * time.Microsecond, Max: 40 * time.Microsecond, Window: 100 * time.Microsecond}
			}
		})
		sound := func(rest bool) {
			if p := c.problem(rest); p != "" {
				t.Fatal(p)
			}
		}
		fine := func(m wire.Message, s Status) {
			if s != OK {
				t.Fatalf("refused %s from %d: %v", describe(&m), m.From, s)
			}
		}
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			type link struct{ from, to int }
			var full []link
			for from := range c.links {
				for to, l := range c.links[from] {
					if len(l) > 0 {
						full = append(full, link{from, to})
					}
				}
			}
			for n := range c.over {
				if len(c.over[n]) > 0 {
					full = append(full, link{n, n}) // a word of its own driver
				}
			}
			k := rapid.IntRange(0, 3+3*len(full)).Draw(t, "what")
			switch {
			case k == 0:
				c.tick(c.now + rapid.Int64Range(0, 20000).Draw(t, "time"))
			case k <= 2:
				n := rapid.IntRange(0, nodes-1).Draw(t, "node")
				p := rapid.IntRange(0, nodes-1).Draw(t, "page")
				if s := c.fault(n, wire.PFN(p), rapid.Bool().Draw(t, "write")); s != OK {
					t.Fatal(s)
				}
			case k == 3:
				c.evict(rapid.IntRange(0, nodes-1).Draw(t, "node"), wire.PFN(rapid.IntRange(0, nodes-1).Draw(t, "page")))
			default:
				if l := full[(k-4)/3]; l.from == l.to {
					fine(c.finish(l.to))
				} else {
					fine(c.deliver(l.from, l.to))
				}
			}
			sound(false)
		}
		c.drain(fine)
		sound(true)
	})
}

// state is all of an agent but its counters.
func state(a *Agent) Agent {
	s := *a
	s.stats = Stats{}
	s.pages = slices.Clone(a.pages)
	s.requests = slices.Clone(a.requests)
	s.free.ring = slices.Clone(a.free.ring)
	s.waiters.ring = slices.Clone(a.waiters.ring)
	s.deferrals = slices.Clone(a.deferrals)
	s.dir = slices.Clone(a.dir)
	s.records = slices.Clone(a.records)
	s.actions = slices.Clone(a.actions)
	s.cache.good = slices.Clone(a.cache.good)
	s.cache.held = slices.Clone(a.cache.held)
	s.cache.recent = slices.Clone(a.cache.recent)
	return s
}

// besiege lets node 1 of 3 be attacked: the bytes say what happens, faults of its own and messages that are
// any combination of fields, most of them near what would be right. Nothing may panic, a refused input may
// not change anything, and no action may contradict the mapping.
func besiege(t tester, data []byte) {
	homes := []Range{{0, 2}, {2, 4}, {4, 6}}
	a, err := New(Config{
		Self: 1, Homes: homes, Shards: 1, Epoch: 1, Slots: 2, Cache: 3,
		Tenure: Tenure{Base: 2000, Max: 8000, Window: 50000},
	})
	if err != nil {
		t.Fatalf("%v", err)
	}
	mapped := map[wire.PFN]wire.Mode{2: wire.Modified, 3: wire.Modified}
	now := int64(1000)
	for len(data) >= 12 {
		b := data[:12]
		data = data[12:]
		now += int64(b[11]) * 16
		before := state(a)
		var s Status
		what := "tick"
		switch {
		case b[0]&3 == 0:
			what = "fault"
			s = a.Fault(now, wire.PFN(b[1]%8), b[2]&1 == 1)
		case b[0] == 1:
			a.Tick(now)
		case b[0] == 2:
			what = "eviction"
			a.Evict(wire.PFN(b[1] % 8))
		default:
			m := wire.Message{
				Kind: wire.Kind(b[1] % 14), From: wire.NodeID(b[2] % 4), Requester: wire.NodeID(b[3] % 4),
				Mode: wire.Mode(b[4] % 3), Flags: wire.Flags(b[5] % 4), Acks: b[6] % 3, Epoch: 1,
				Txn: uint32(b[7] % 16), Slot: uint32(b[8] % 3), Page: wire.PFN(b[9] % 7),
			}
			if b[0]&4 != 0 { // right as to the fields that depend on the kind
				right(&m, b[10])
			} else {
				m.Args = [4]uint64{uint64(b[10]), uint64(b[10] >> 4)}
				m.Epoch = wire.Epoch(b[0] >> 7)
			}
			what = fmt.Sprintf("%+v", m)
			s = a.Step(now, &m)
		}
		if s != OK {
			if after := state(a); !reflect.DeepEqual(before, after) {
				t.Fatalf("%s refused (%v), but:\n%+v\n%+v", what, s, before, after)
			}
		}
		for i := range a.Actions() {
			act := &a.Actions()[i]
			if !sensible(act, mapped) {
				t.Fatalf("%s: action %+v on a page in %v", what, *act, mapped[act.Page])
			}
		}
		a.Clear()
		if a.cache.frames > a.cache.limit || int(a.stats.Cached) > a.cache.frames {
			t.Fatalf("%s: %d frames of %d, %d held", what, a.cache.frames, a.cache.limit, a.stats.Cached)
		}
		for p := range wire.PFN(6) {
			if a.Mode(p) != mapped[p] {
				t.Fatalf("%s: page %d is in %v, the agent thinks %v", what, p, mapped[p], a.Mode(p))
			}
		}
		for _, lost := range []uint64{0, 1, 4, 5} {
			a.Losses(lost, func(r Range, f Fate) {
				for p := r.First; p < r.Last; p++ {
					own := a.isHome(p)
					if !own && lost&bit(a.homeOf(p)) == 0 || f == Lost && mapped[p] != wire.None || (f == Kept) == own && f != Uncertain {
						t.Fatalf("%s: without %b page %d is %v, mapped in %v", what, lost, p, f, mapped[p])
					}
				}
			})
		}
		if w := a.Oldest(); w.Txn != 0 && (w.Page >= 6 || w.For > 2) {
			t.Fatalf("%s: waits for %+v", what, w)
		}
	}
}

// right gives a message what its kind has to have.
func right(m *wire.Message, seed byte) {
	m.Mode, m.Acks, m.Flags = wire.None, 0, 0
	switch m.Kind {
	case wire.GetS, wire.FwdGetS:
		m.Mode = wire.Shared
	case wire.GetM, wire.Upgrade, wire.FwdGetM:
		m.Mode = wire.Modified
	case wire.WriteBack:
		m.Flags = wire.FlagData << (seed % 3)
	case wire.Grant:
		m.Mode = wire.Shared + wire.Mode(seed&1)
		m.Flags = wire.Flags(seed >> 1 % 3)
		m.Args[0] = uint64(seed) << 6
		m.Args[1] = uint64(seed >> 3 & 7)
		m.Acks = ones(m.Args[1])
	}
	if m.Kind == wire.FwdGetS || m.Kind == wire.FwdGetM {
		m.Args[0] = uint64(seed) << 6
	}
	switch m.Kind {
	case wire.GetS, wire.GetM, wire.Upgrade, wire.Done:
		m.Requester = m.From
	case wire.Fetched, wire.Parked:
		m.Requester = 1
	}
}

// sensible does an action to the mapping, if it can be done.
func sensible(act *Action, mapped map[wire.PFN]wire.Mode) bool {
	mode, cached := mapped[act.Page], act.Page < 2 || act.Page >= 4
	switch act.Op {
	case OpSend:
		return act.Peer != 1 && act.Peer < 3
	case OpSendPage:
		return act.Peer != 1 && act.Peer < 3 && mode != wire.Modified && act.Msg.Slot < 2
	case OpProtect:
		mapped[act.Page] = wire.Shared
		return mode == wire.Modified
	case OpUnmap:
		mapped[act.Page] = wire.None
		return mode != wire.None
	case OpDiscard:
		return mode == wire.None && cached
	case OpInstall:
		mapped[act.Page] = act.Mode
		return mode == wire.None && act.Mode != wire.None && act.Slot < 2
	case OpZeroFrame:
		return mode == wire.None && !cached
	case OpUnprotect:
		mapped[act.Page] = wire.Modified
		return mode == wire.Shared
	case OpWake:
		return mode == act.Mode
	case OpPark:
		return mode == wire.None && cached
	case OpFetch:
		return mode == wire.None && cached && act.Msg.Slot < 2
	}
	return false
}

func TestBesieged(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		besiege(t, rapid.SliceOfN(rapid.Byte(), 0, 12*80).Draw(t, "data"))
	})
}

func FuzzBesieged(f *testing.F) {
	f.Add([]byte{0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6, 7, 0, 1, 0, 0, 0, 1, 0, 0, 3, 0})
	f.Add([]byte{ // a page that is granted, parked, and fetched
		0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6, 7, 0, 1, 0, 0, 0, 1, 1, 0, 3, 0,
		2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6, 12, 0, 1, 0, 0, 0, 2, 1, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0,
		6, 11, 0, 1, 0, 0, 0, 3, 1, 0, 0, 0,
	})
	f.Fuzz(func(t *testing.T, data []byte) { besiege(t, data) })
}

// TestIndex checks that index is a bijection from the shard's pages to a dense range, in order.
func TestIndex(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		shards := rapid.IntRange(1, 5).Draw(t, "shards")
		shift := rapid.UintRange(0, 4).Draw(t, "shift")
		var homes []Range
		total := wire.PFN(0)
		for range rapid.IntRange(1, 5).Draw(t, "nodes") {
			n := wire.PFN(rapid.IntRange(0, 70).Draw(t, "pages"))
			homes = append(homes, Range{total, total + n})
			total += n
		}
		if total == 0 {
			t.Skip()
		}
		for shard := range shards {
			a, err := New(Config{Homes: homes, Shard: shard, Shards: shards, StripeShift: shift, Slots: 1, Epoch: 1})
			if err != nil {
				t.Fatal(err)
			}
			var next uint64
			for p := wire.PFN(0); p < total+3; p++ {
				i, ok := a.index(p)
				if ours := p < total && int(p>>shift)%shards == shard; ok != ours {
					t.Fatalf("page %d of shard %d: index says %v", p, shard, ok)
				}
				if a.firstIndex(p) < next && p <= total {
					t.Fatalf("first index of page %d is %d, want at least %d", p, a.firstIndex(p), next)
				}
				if !ok {
					continue
				}
				if a.firstIndex(p) != uint64(i) || a.pageAt(i) != p || uint64(i) < next || int(i) >= len(a.pages) {
					t.Fatalf("page %d: index %d, first %d, back %d, want from %d", p, i, a.firstIndex(p), a.pageAt(i), next)
				}
				next = uint64(i) + 1
				h := a.homeOf(p)
				if p < homes[h].First || p >= homes[h].Last {
					t.Fatalf("page %d is homed at %d", p, h)
				}
				if a.isHome(p) {
					_ = a.entry(i) // must be in range
				}
			}
		}
	})
}

// TestHeap checks that deferrals come out by time.
func TestHeap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var a Agent
		dues := rapid.SliceOf(rapid.Int64Range(0, 20)).Draw(t, "dues")
		for _, d := range dues {
			a.pushDeferral(deferral{due: d})
		}
		slices.Sort(dues)
		for _, want := range dues {
			if got := a.popDeferral().due; got != want {
				t.Fatalf("got %d, want %d", got, want)
			}
		}
	})
}

// TestTenureBound: whatever a node does, no page is kept for longer than the tenure that came with it, and
// Tick comes to an end.
func TestTenureBound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := two(t, Tenure{Base: 3000, Max: 50000, Window: 100000})[1]
		base := rapid.Int64Range(0, math.MaxInt64/2).Draw(t, "start")
		now := base
		p := &a.pages[0]
		tenure := rapid.Int64Range(0, 60000).Draw(t, "tenure")
		a.beginTenure(now, p, &request{tenure: min(tenure, a.policy.max)})
		for range rapid.IntRange(0, 20).Draw(t, "steps") {
			now += rapid.Int64Range(0, 5000).Draw(t, "time")
			switch rapid.IntRange(0, 2).Draw(t, "what") {
			case 0:
				a.spell.ask(now, a.policy.levels[1])
			case 1:
				if a.spell.asked > 0 {
					a.beginTenure(now, &a.pages[1], &request{tenure: 50000})
				}
			}
			until := a.holdUntil(now, p, 1)
			bound := base + a.policy.levels[a.policy.levelOf(tenure)]
			if until > now && (until > bound || now >= bound) {
				t.Fatalf("at %d kept until %d, won at %d with %d", now-base, until-base, 0, tenure)
			}
		}
	})
}

// TestLevels follows a page through a fight and a peace.
func TestLevels(t *testing.T) {
	p := newPolicy(Tenure{Base: time.Microsecond, Max: 5 * time.Microsecond, Window: 100 * time.Microsecond})
	var e entry
	now := int64(time.Second)
	if p.move(&e, now) || e.level() != 0 {
		t.Fatalf("the first move is taken for a quick one: level %d", e.level())
	}
	for i, want := range []time.Duration{1, 2, 4, 5, 5} {
		now += 50_000
		if !p.move(&e, now) {
			t.Fatalf("move %d is not quick", i)
		}
		if got := time.Duration(p.tenure(e.level())); got != want*time.Microsecond {
			t.Fatalf("after %d quick moves tenure %v, want %vµs", i+1, got, int64(want))
		}
	}
	if got := p.decayed(&e, now+250_000); got != e.level()-2 {
		t.Errorf("after two and a half quiet windows level %d, was %d", got, e.level())
	}
	now += int64(time.Second)
	if p.move(&e, now) || e.level() != 0 {
		t.Errorf("after a second of peace level %d", e.level())
	}
}

func TestHotPages(t *testing.T) {
	a := two(t, Tenure{})[0]
	for i := range uint32(1000) {
		a.hot.add(i)
		if i%10 == 0 {
			a.hot.add(500)
			a.hot.add(501)
			a.hot.add(501)
		}
	}
	got := a.HotPages(nil, 2)
	if len(got) != 2 || got[0].Page != 501 || got[1].Page != 500 {
		t.Fatalf("hottest pages %+v", got)
	}
	if got[0].Moves-got[0].Over > 201 || got[0].Moves < 201 {
		t.Errorf("page 501 moved 201 times, the sketch says %d, %d of them perhaps others'", got[0].Moves, got[0].Over)
	}
	if n := len(a.HotPages(nil, 10000)); n > sketchWays<<sketchBits {
		t.Errorf("%d pages in the sketch", n)
	}
}

func TestConfig(t *testing.T) {
	good := func() Config {
		return Config{Homes: []Range{{0, 4}, {4, 8}}, Shards: 1, Slots: 1, Epoch: 1}
	}
	if _, err := New(good()); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Config){
		"no nodes":        func(c *Config) { c.Homes = nil },
		"too many nodes":  func(c *Config) { c.Homes = make([]Range, wire.MaxNodes+1) },
		"self":            func(c *Config) { c.Self = 2 },
		"gap":             func(c *Config) { c.Homes[1].First = 5 },
		"backwards":       func(c *Config) { c.Homes[1].Last = 3 },
		"no memory":       func(c *Config) { c.Homes = []Range{{}, {}} },
		"shard":           func(c *Config) { c.Shard = 1 },
		"negative shard":  func(c *Config) { c.Shard = -1 },
		"shift":           func(c *Config) { c.StripeShift = 40 },
		"no slots":        func(c *Config) { c.Slots = 0 },
		"cache":           func(c *Config) { c.Cache = -1 },
		"slots":           func(c *Config) { c.Slots = MaxSlots + 1 },
		"tenure":          func(c *Config) { c.Tenure = Tenure{Base: 2, Max: 1, Window: 1} },
		"negative tenure": func(c *Config) { c.Tenure = Tenure{Base: -2, Max: 1, Window: 1} },
		"long tenure":     func(c *Config) { c.Tenure = Tenure{Base: 2, Max: time.Hour, Window: 1} },
		"no window":       func(c *Config) { c.Tenure = Tenure{Base: 2, Max: 3} },
	} {
		c := good()
		change(&c)
		if _, err := New(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestStatus keeps names and verdicts together.
func TestStatus(t *testing.T) {
	seen := map[string]bool{}
	for s := OK; s < NumStatus; s++ {
		if seen[s.String()] || s.String() == "" {
			t.Errorf("status %d is named %q", uint8(s), s)
		}
		seen[s.String()] = true
	}
	if n := testing.AllocsPerRun(100, func() { _ = BadField.String() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestWire sends every message of a run through its encoding.
func TestWire(t *testing.T) {
	c := newCluster(t, 3, 2, func(c *Config) { c.Tenure = Tenure{Base: 1000, Max: 4000, Window: 50000} })
	seed := uint64(1)
	for range 500 {
		seed = seed*6364136223846793005 + 1442695040888963407
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], seed>>8)
		c.now += 500
		c.fault(int(b[0]%3), wire.PFN(b[1]%6), b[2]&1 == 0)
		c.drain(func(m wire.Message, s Status) {
			var buf [wire.Size]byte
			var back wire.Message
			m.Encode(buf[:])
			if err := back.Decode(buf[:]); err != nil || back != m || s != OK {
				t.Fatalf("%+v comes back as %+v: %v; %v", m, back, err, s)
			}
		})
	}
}
