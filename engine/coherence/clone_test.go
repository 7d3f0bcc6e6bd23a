package coherence

import (
	"bytes"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"ironspan/engine/wire"
)

// TestStateIsWhole fails when a field is added about which it is not decided whether a state is made of it: a
// model checker whose states lack something explores less than it says. Written says what AppendState writes,
// in whatever form; left out is what is configuration, follows from the rest or influences nothing.
func TestStateIsWhole(t *testing.T) {
	for _, x := range []struct {
		of               any
		written, leftOut string
	}{
		{
			Agent{}, "pages requests free waiters deferrals dir records spell companions streams idle cache",
			"self nodes others epoch homes total shards shard shift mask readAsWrite walksWrite migrate prefetch coverFrom home " +
				"dirBase slots policy lastTxn trial hot actions stats",
		},
		{local{}, "since slot mode marks", ""},
		{request{}, "need got tenure txn kind want granted tellHome void carried", "page index"},
		{entry{}, "sharers tail moved owner bits", ""},
		{record{}, "transaction next kind phase", "index"},
		{transaction{}, "txn slot requester", ""},
		{deferral{}, "due forward", "came"},
		{forward{}, "page tenure transaction kind", "index"},
		{fifo{}, "ring n", "head"},
		{spell{}, "asked start last", ""},
		{companions{}, "n next set", ""},
		{companion{}, "index trust", ""},
		{streams{}, "next set", ""},
		{cache{}, "hand recent draining good rests until", "limit high low most frames held parking"},
		{stream{}, "last stride window write", ""},
	} {
		decided := strings.Fields(x.written + " " + x.leftOut)
		slices.Sort(decided)
		var fields []string
		for _, f := range reflect.VisibleFields(reflect.TypeOf(x.of)) {
			if len(f.Index) == 1 {
				fields = append(fields, f.Name)
			}
		}
		slices.Sort(fields)
		if !slices.Equal(fields, decided) {
			t.Errorf("%T has fields %v, decided is about %v", x.of, fields, decided)
		}
	}
}

// TestSetState takes states out of clusters that run at random, puts them into new agents, and expects these to
// be at the same.
func TestSetState(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	change := func(c *Config) {
		c.Slots = 4
		c.Tenure = Tenure{Base: 4096, Max: 16384, Window: 1 << 20}
		c.WalksWrite, c.Migratory, c.Prefetch, c.Cache = true, true, 2, 2
	}
	const nodes, pages = 3, 2
	identity, same := []wire.NodeID{0, 1, 2}, []wire.PFN{0, 1, 2, 3, 4, 5}
	var naming Naming
	for range 50 {
		c := newCluster(t, nodes, pages, change)
		c.now = 1 << 41
		copies := newCluster(t, nodes, pages, change)
		for range 60 {
			from, to := rng.IntN(nodes), rng.IntN(nodes)
			switch {
			case rng.IntN(8) == 0:
				c.evict(from, wire.PFN(rng.IntN(nodes*pages)))
			case len(c.over[to]) > 0 && rng.IntN(3) == 0:
				if m, s := c.finish(to); s != OK {
					t.Fatalf("%v refused: %v", m.Kind, s)
				}
			case rng.IntN(8) == 0:
				c.tick(c.now + int64(rng.IntN(3))*4096)
			case len(c.links[from][to]) > 0:
				if m, s := c.deliver(from, to); s != OK {
					t.Fatalf("refused %s: %v", describe(&m), s)
				}
			default:
				c.fault(from, wire.PFN(rng.IntN(nodes*pages)), rng.IntN(2) == 0)
			}
			var state, again []byte
			naming.Reset(identity, same)
			for _, a := range c.agents {
				state = a.AppendState(state, c.now, &naming)
			}
			rest := state
			for _, a := range copies.agents {
				rest = a.SetState(rest, c.now)
			}
			if len(rest) != 0 {
				t.Fatalf("%d bytes of the state are left", len(rest))
			}
			naming.Reset(identity, same)
			for _, a := range copies.agents {
				again = a.AppendState(again, c.now, &naming)
			}
			if !bytes.Equal(state, again) {
				t.Fatalf("state\n%v\nis written again as\n%v", state, again)
			}
			for n, a := range copies.agents {
				for _, p := range same {
					got, _ := a.Roles(p)
					want, _ := c.agents[n].Roles(p)
					gotInfo, _ := a.Inspect(p)
					wantInfo, _ := c.agents[n].Inspect(p)
					if got != want || gotInfo != wantInfo {
						t.Fatalf("node %d, page %d: %+v %+v, want %+v %+v", n, p, got, gotInfo, want, wantInfo)
					}
				}
			}
		}
	}
}
