package control

import (
	"encoding/json"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"ironspan/engine/spec"
	"ironspan/engine/wire"
)

// lossPlan has three nodes with 1, 3 and 1 GiB, so node 1's memory is on both sides of the hole below 4 GiB.
func lossPlan() *spec.Plan {
	p := &spec.Plan{}
	next := wire.PFN(0)
	for i, gib := range []wire.PFN{1, 3, 1} {
		last := next + gib<<18
		p.Nodes = append(p.Nodes, spec.PlanNode{ID: wire.NodeID(i), Name: string(rune('a' + i)), RAM: spec.PFNRange{First: next, Last: last}})
		next = last
	}
	return p
}

func set(pairs ...uint64) PageSet {
	var runs []PageRun
	for i := 0; i < len(pairs); i += 2 {
		runs = append(runs, PageRun{wire.PFN(pairs[i]), pairs[i+1]})
	}
	return NewPageSet(runs, 0)
}

const gib = 1 << 18 // in pages

func TestMergeLosses(t *testing.T) {
	all := func(parts ...*LossPart) map[wire.NodeID]*LossPart {
		m := map[wire.NodeID]*LossPart{}
		for n, p := range parts {
			m[wire.NodeID(n)] = p
		}
		return m
	}
	for _, tt := range []struct {
		name  string
		lost  []wire.NodeID
		parts map[wire.NodeID]*LossPart
		says  string
		want  []MemoryLoss
	}{
		{
			"two keep overlapping parts, one of which the other does not know of", []wire.NodeID{1},
			all(&LossPart{Kept: set(gib, gib), Lost: set(5, 1, 7, 2)}, nil, &LossPart{Kept: set(gib+10, gib), Uncertain: set(gib, 5, 4*gib-1, 1)}),
			"node 1 (b) is lost; 524,280 pages (2048 MiB) had their only copy there: 524,277 of its own memory, 3 of node 0's; first: 0x8000a000-0xbfffffff ...; 1 page is uncertain",
			[]MemoryLoss{
				{Node: 0, Name: "a", Lost: 3, LostRanges: []spec.GPARange{{Start: 0x5000, End: 0x6000}, {Start: 0x7000, End: 0x9000}}},
				{
					Node: 1, Name: "b", Lost: 2*gib - 11, Uncertain: 1, Kept: gib + 10,
					LostRanges:      []spec.GPARange{{Start: 0x8000a000, End: spec.HoleStart}, {Start: spec.HoleEnd, End: 0x13ffff000}},
					UncertainRanges: []spec.GPARange{{Start: 0x13ffff000, End: 0x140000000}},
				},
			},
		},
		{
			"two are lost", []wire.NodeID{1, 2},
			all(&LossPart{Kept: set(gib, 3*gib, 4*gib+1, gib-1)}),
			"nodes 1 (b), 2 (c) are lost; 1 page (4 KiB) had its only copy there: 1 of node 2's own memory; first: 0x140000000-0x140000fff",
			[]MemoryLoss{{Node: 1, Name: "b", Kept: 3 * gib}, {Node: 2, Name: "c", Lost: 1, Kept: gib - 1, LostRanges: []spec.GPARange{{Start: 0x140000000, End: 0x140001000}}}},
		},
		{
			"everything is kept", []wire.NodeID{2},
			all(&LossPart{Kept: set(4*gib, gib)}, &LossPart{}),
			"node 2 (c) is lost; no page was lost", []MemoryLoss{{Node: 2, Name: "c", Kept: gib}},
		},
		{
			"nobody is lost", nil,
			all(&LossPart{}, &LossPart{Uncertain: set(gib, 2)}, &LossPart{}),
			"no page was lost; 2 pages are uncertain",
			[]MemoryLoss{{Node: 1, Name: "b", Uncertain: 2, UncertainRanges: []spec.GPARange{{Start: 0x40000000, End: 0x40002000}}}},
		},
		{
			"nobody says anything", []wire.NodeID{2},
			all(),
			"node 2 (c) is lost; at most 262,144 pages (1024 MiB) had their only copy there: 262,144 of its own memory; first: 0x140000000-0x17fffffff; node 0 does not say what it has; node 1 does not say what it has",
			[]MemoryLoss{{Node: 2, Name: "c", Lost: gib, LostRanges: []spec.GPARange{{Start: 0x140000000, End: 0x180000000}}}},
		},
		{
			"a list that was cut", []wire.NodeID{2},
			all(&LossPart{Kept: set(4*gib, gib), Lost: PageSet{Pages: 100, Runs: []PageRun{{5, 1}}, Cut: true}}, &LossPart{Kept: PageSet{Pages: 1, Cut: true}}),
			"node 2 (c) is lost; at most 100 pages (400 KiB) had their only copy there: 100 of node 0's; first: 0x5000-0x5fff",
			[]MemoryLoss{
				{Node: 0, Name: "a", Lost: 100, LostRanges: []spec.GPARange{{Start: 0x5000, End: 0x6000}}, Cut: true},
				{Node: 2, Name: "c", Kept: gib},
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for n, p := range tt.parts {
				if p != nil {
					if err := p.check(lossPlan(), n, tt.lost); err != nil {
						t.Error(err)
					}
				}
			}
			l := mergeLosses(lossPlan(), tt.lost, tt.parts)
			if got := l.String(); got != tt.says {
				t.Errorf("says %q\nwant %q", got, tt.says)
			}
			if !reflect.DeepEqual(l.Memory, tt.want) {
				t.Errorf("memory %+v\nwant %+v", l.Memory, tt.want)
			}
		})
	}
}

// TestSpans holds sets of ranges against bitmaps.
func TestSpans(t *testing.T) {
	const pages = 40
	rng := rand.New(rand.NewPCG(1, 2))
	bits := func(s spans) (b uint64) {
		for _, r := range s {
			for p := r.First; p < r.Last; p++ {
				b |= 1 << p
			}
		}
		return b
	}
	random := func() (s spans) {
		for range rng.IntN(6) {
			first := wire.PFN(rng.IntN(pages))
			s = append(s, spec.PFNRange{First: first, Last: first + 1 + wire.PFN(rng.IntN(6))})
		}
		return s
	}
	for range 2000 {
		x, y := random(), random()
		a, b := x.joined(), y.joined()
		for what, c := range map[string]struct {
			got  spans
			want uint64
		}{"joined": {a, bits(x)}, "minus": {a.minus(b), bits(x) &^ bits(y)}, "within": {a.within(b), bits(x) & bits(y)}} {
			if bits(c.got) != c.want || len(c.got.joined()) != len(c.got) {
				t.Fatalf("%v and %v %s: %v", x, y, what, c.got)
			}
		}
	}
}

func TestPageSet(t *testing.T) {
	s := NewPageSet([]PageRun{{9, 1}, {3, 2}, {5, 4}, {20, 1}}, 7)
	b, err := json.Marshal(s)
	if want := `{"pages":15,"runs":[[3,7],[20,1]],"cut":true}`; err != nil || string(b) != want {
		t.Errorf("%s, %v, want %s", b, err, want)
	}
	var many []PageRun
	for i := range MaxPageRuns + 3 {
		many = append(many, PageRun{wire.PFN(2 * i), 1})
	}
	if s := NewPageSet(many, 0); len(s.Runs) != MaxPageRuns || !s.Cut || s.Pages != MaxPageRuns+3 {
		t.Errorf("%d runs, cut %t, %d pages", len(s.Runs), s.Cut, s.Pages)
	}
}

// TestLossPartRefused: nothing that a node says is taken that its plan does not allow for.
func TestLossPartRefused(t *testing.T) {
	lost := []wire.NodeID{1}
	for _, c := range []struct{ part, says string }{
		{`{}`, ""},
		{`{"kept":{"pages":3,"runs":[[262144,3]]},"lost":{"pages":1,"runs":[[0,1]]},"uncertain":{"pages":2,"runs":[[7,1],[262150,1]]}}`, ""},
		{`{"kept":{"pages":3,"runs":[[0,3]]}}`, "nothing to say about"},
		{`{"lost":{"pages":3,"runs":[[262144,3]]}}`, "nothing to say about"},
		{`{"uncertain":{"pages":1,"runs":[[1048576,1]]}}`, "nothing to say about"},
		{`{"lost":{"pages":2,"runs":[[0,1]]}}`, "1 pages are listed of 2"},
		{`{"lost":{"pages":2,"runs":[[0,1]],"cut":true}}`, ""},
		{`{"lost":{"pages":2,"runs":[[0,3]]}}`, "does not belong"},
		{`{"lost":{"pages":2,"runs":[[0,0],[1,2]]}}`, "does not belong"},
		{`{"lost":{"pages":2,"runs":[[1,1],[0,1]]}}`, "does not belong"},
		{`{"lost":{"pages":2,"runs":[[0,2],[1,1]]}}`, "does not belong"},
		{`{"lost":{"pages":5,"runs":[[18446744073709551615,5]]}}`, "does not belong"},
		{`{"lost":{"pages":18446744073709551615}}`, "18446744073709551615 pages of"},
		{`{"lost":{"pages":2,"runs":[[0,18446744073709551615]]}}`, "does not belong"},
		{`{"lost":{"pages":1,"runs":[[1]]}}`, "[first, pages]"},
		{`{"lost":{"pages":1,"runs":[[1,1,1]]}}`, "[first, pages]"},
	} {
		var p LossPart
		err := json.Unmarshal([]byte(c.part), &p)
		if err == nil {
			err = p.check(lossPlan(), 0, lost)
		}
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.part, err)
		}
	}
}

func TestParseLost(t *testing.T) {
	for list, ok := range map[string]bool{"": true, "1": true, "1,2": true, "2,1": true, "0": false, "3": false, "1,1": false, "-1": false, "1,": false, "x": false, "65537": false} {
		if got, e := parseLost(lossPlan(), 0, list); (e == nil) != ok || ok && (len(got) == 0) != (list == "") {
			t.Errorf("%q: %v, %v", list, got, e)
		}
	}
}

// FuzzLossPart: what a node says was lost is refused, or gives a report in which every page of the lost memory is in
// one place.
func FuzzLossPart(f *testing.F) {
	f.Add([]byte(`{"kept":{"pages":3,"runs":[[262144,3]]},"lost":{"pages":1,"runs":[[0,1]]},"uncertain":{"pages":2,"runs":[[7,1],[262150,1]]}}`), "1")
	f.Add([]byte(`{"kept":{"pages":4,"runs":[[1048570,1]],"cut":true},"uncertain":{"pages":1,"runs":[[262150,1]]}}`), "1,2")
	f.Add([]byte(`{"lost":{"pages":18446744073709551615,"runs":[[18446744073709551615,18446744073709551615]]}}`), "2")
	plan := lossPlan()
	f.Fuzz(func(t *testing.T, b []byte, list string) {
		var p LossPart
		lost, e := parseLost(plan, 0, list)
		if e != nil || json.Unmarshal(b, &p) != nil || p.check(plan, 0, lost) != nil {
			return
		}
		l := mergeLosses(plan, lost, map[wire.NodeID]*LossPart{0: &p, 1: {}, 2: {}})
		if l.String() == "" {
			t.Fatal("says nothing")
		}
		sum := uint64(0)
		for _, m := range l.Memory {
			ram := plan.Nodes[m.Node].RAM.Pages()
			if m.Lost+m.Uncertain+m.Kept > 2*ram || m.Kept > 0 && m.Lost+m.Uncertain+m.Kept != ram {
				t.Fatalf("%+v of %d pages", m, ram)
			}
			sum += m.Lost
		}
		if sum != l.Pages {
			t.Fatalf("%d pages, in all %d", l.Pages, sum)
		}
	})
}
