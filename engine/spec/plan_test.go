package spec

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"ironspan/engine/wire"
)

func TestDeriveHole(t *testing.T) {
	s := &Spec{Name: "x", Fabric: FabricSHM, Poll: PollAuto, Dilate: 1, Timeouts: defaults().Timeouts}
	for i := range 3 {
		n := DefaultNode()
		n.Name, n.Addr, n.Memory, n.VCPUs = "n", fmt.Sprintf("n:%d", i+1), 2<<30, 3
		s.Nodes = append(s.Nodes, n)
	}
	p, err := s.Derive([]Host{{CPUs: 64}, {CPUs: 32, TSCKHz: 5}, {CPUs: 20, CPUID: []byte{1}}})
	if err != nil {
		t.Fatal(err)
	}
	want := [][]GPARange{
		{{0, 2 << 30}},
		{{2 << 30, 3 << 30}, {4 << 30, 5 << 30}},
		{{5 << 30, 7 << 30}},
	}
	for i, n := range p.Nodes {
		if !reflect.DeepEqual(n.GPA, want[i]) {
			t.Errorf("node %d: %x", i, n.GPA)
		}
	}
	if !reflect.DeepEqual(p.Nodes[1].APICIDs, []uint32{4, 5, 6}) {
		t.Errorf("APIC IDs %v: a node starts at a power of two", p.Nodes[1].APICIDs)
	}
	if p.Shards != 4 || p.RAM() != 6<<30 || p.VCPUs() != 9 || p.MaxAPICID() != 10 || p.Nodes[1].TSCKHz != 5 {
		t.Errorf("%d shards, %d RAM, %d vCPUs, %d APIC ID", p.Shards, p.RAM(), p.VCPUs(), p.MaxAPICID())
	}
	if p.Distances[0][0] != 10 || p.Distances[0][2] != 40 {
		t.Errorf("%v", p.Distances)
	}
	if n, ok := p.NodeOfAPICID(6); !ok || n != 1 {
		t.Error(n, ok)
	}
	if n, ok := p.HomeOf(p.Nodes[2].RAM.First); !ok || n != 2 {
		t.Error(n, ok)
	}
	if _, ok := p.HomeOf(wire.PFN(p.Pages())); ok {
		t.Error("a page beyond the end has a home")
	}
}

func TestDenseAPICIDs(t *testing.T) {
	nodes := make([]Node, 3)
	nodes[0].VCPUs, nodes[1].VCPUs, nodes[2].VCPUs = 129, 100, 25
	ids := apicIDs(nodes)
	if ids[1][0] != 129 || ids[2][24] != 253 {
		t.Errorf("%v", ids)
	}
}

// TestPlanProperty derives plans of all sorts: each must hold, survive JSON, and map pages and addresses one to one.
func TestPlanProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := defaults()
		s.Name = "x"
		left := MaxVCPUs
		for i := range rapid.IntRange(1, MaxNodes).Draw(t, "nodes") {
			n := DefaultNode()
			n.Name, n.Addr = "n", fmt.Sprintf("n:%d", i+1)
			lo := 0
			if i == 0 {
				lo = 1
			}
			n.VCPUs = rapid.IntRange(lo, max(lo, min(left, 254))).Draw(t, "vcpus")
			left -= n.VCPUs
			n.Memory = uint64(rapid.IntRange(32, 4096).Draw(t, "memory")) * MemoryAlign
			s.Nodes = append(s.Nodes, n)
		}
		p, err := s.Derive(nil)
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		q, err := DecodePlan(b)
		if err != nil {
			t.Fatal(err)
		}
		if q.Digest() != p.Digest() || p.VM.IsZero() || p.Epoch == 0 {
			t.Fatal("digest changes with JSON")
		}
		page := wire.PFN(rapid.Uint64Range(0, p.Pages()-1).Draw(t, "page"))
		g := PFNToGPA(page)
		back, ok := GPAToPFN(g)
		if !ok || back != page || g >= HoleStart && g < HoleEnd {
			t.Fatalf("page %d at %x is page %d", page, g, back)
		}
		home, _ := p.HomeOf(page)
		in := false
		for _, r := range p.Nodes[home].GPA {
			in = in || g >= r.Start && g < r.End
		}
		if !in {
			t.Fatalf("page %d at %x is not in node %d's addresses", page, g, home)
		}
	})
}

func goodPlan(t testing.TB) *Plan {
	s := defaults()
	s.Name = "x"
	for i := range 2 {
		n := DefaultNode()
		n.Name, n.Addr = "n", fmt.Sprintf("n:%d", i+1)
		s.Nodes = append(s.Nodes, n)
	}
	p, err := s.Derive(nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPlanCheck(t *testing.T) {
	tests := map[string]func(*Plan){
		"version":       func(p *Plan) { p.Version++ },
		"vm":            func(p *Plan) { p.VM = VMID{} },
		"epoch":         func(p *Plan) { p.Epoch = 0 },
		"no nodes":      func(p *Plan) { p.Nodes = nil },
		"name":          func(p *Plan) { p.Name = "\x1b[2J" },
		"append":        func(p *Plan) { p.Append = strings.Repeat("x", 3000) },
		"fabric":        func(p *Plan) { p.Fabric = "x" },
		"shards":        func(p *Plan) { p.Shards = 65 },
		"poll":          func(p *Plan) { p.Poll = "" },
		"dilate":        func(p *Plan) { p.Dilate = 0 },
		"tenure":        func(p *Plan) { p.Tenure.Base = -1 },
		"distances":     func(p *Plan) { p.Distances = nil },
		"distance row":  func(p *Plan) { p.Distances[1] = nil },
		"timeouts":      func(p *Plan) { p.Timeouts.Lost = 0 },
		"overlap":       func(p *Plan) { p.Nodes[1].RAM.First-- },
		"empty range":   func(p *Plan) { p.Nodes[1].RAM.Last = p.Nodes[1].RAM.First },
		"odd range":     func(p *Plan) { p.Nodes[1].RAM.Last-- },
		"vast range":    func(p *Plan) { p.Nodes[1].RAM.Last = 1 << 60 },
		"gpa":           func(p *Plan) { p.Nodes[1].GPA[0].Start += 4096 },
		"gpa missing":   func(p *Plan) { p.Nodes[1].GPA = nil },
		"id":            func(p *Plan) { p.Nodes[1].ID = 0 },
		"node name":     func(p *Plan) { p.Nodes[1].Name = "" },
		"node addr":     func(p *Plan) { p.Nodes[1].Addr = "x" },
		"device":        func(p *Plan) { p.Nodes[1].Device = "/" },
		"cache":         func(p *Plan) { p.Nodes[1].Cache = MinCache - 1 },
		"vast cache":    func(p *Plan) { p.Nodes[1].Cache = MaxMemory + 1 },
		"gid":           func(p *Plan) { p.Nodes[1].GID = -2 },
		"apic id twice": func(p *Plan) { p.Nodes[1].APICIDs = []uint32{0} },
		"apic id 255":   func(p *Plan) { p.Nodes[1].APICIDs = []uint32{255} },
		"no bsp":        func(p *Plan) { p.Nodes[0].APICIDs = nil },
		"bsp id":        func(p *Plan) { p.Nodes[0].APICIDs = []uint32{7} },
		"cpu":           func(p *Plan) { p.Nodes[0].CPUs = []int{-1} },
	}
	if err := goodPlan(t).Check(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range tests {
		p := goodPlan(t)
		spoil(p)
		if p.Check() == nil {
			t.Errorf("%s: not noticed", name)
		}
		b, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := DecodePlan(b); err == nil {
			t.Errorf("%s: decoded", name)
		}
	}
}

// TestPlanCache: the VM's bound is every node's that has none of its own, and there are no more shards than it suffices
// for.
func TestPlanCache(t *testing.T) {
	s, err := Parse("span.yaml", []byte("kernel: k\ncache: 16MiB\nnodes:\n  - addr: a:1\n  - {addr: 'b:1', cache: 12M}\n"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.Derive([]Host{{CPUs: 64}, {CPUs: 64}})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Check(); err != nil {
		t.Error(err)
	}
	if p.Nodes[0].Cache != 16<<20 || p.Nodes[1].Cache != 12<<20 || p.Shards != 3 {
		t.Errorf("caches of %d and %d bytes, %d shards", p.Nodes[0].Cache, p.Nodes[1].Cache, p.Shards)
	}
}

func FuzzDecodePlan(f *testing.F) {
	b, err := json.Marshal(goodPlan(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := DecodePlan(b)
		if err != nil {
			return
		}
		_, _, _ = p.Digest(), p.MaxAPICID(), p.VCPUs()
		if _, ok := p.HomeOf(wire.PFN(p.Pages() - 1)); !ok {
			t.Fatal("the last page has no home")
		}
	})
}
