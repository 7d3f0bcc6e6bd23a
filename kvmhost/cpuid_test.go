package kvmhost

import (
	"encoding/json"
	"errors"
	"reflect"
	"testing"
)

// fakeCPUID is a processor with everything that the policy must deal with.
func fakeCPUID(vendor [3]uint32) CPUIDSet {
	all := uint32(0xffffffff)
	return CPUIDSet{
		{Function: 0, EAX: 0x20, EBX: vendor[0], EDX: vendor[1], ECX: vendor[2]},
		{Function: 1, EAX: 0xa00f11, EBX: 0x12340800, ECX: all, EDX: all},
		{Function: 4, Indexed: true, EAX: 0x1c004121},
		{Function: 4, Index: 3, Indexed: true, EAX: 0x1c03c163},
		{Function: 5, EAX: 0x40, EBX: 0x40, ECX: 3, EDX: 0x11},
		{Function: 6, EAX: 0x77, ECX: 1},
		{Function: 7, Indexed: true, EAX: 1, EBX: all, ECX: all, EDX: all},
		{Function: 7, Index: 1, Indexed: true, EAX: all},
		{Function: 0xa, EAX: 0x07300402},
		{Function: 0xd, Indexed: true, EAX: 0xe7, EBX: 0xa80, ECX: 0xa80},
		{Function: 0xd, Index: 1, Indexed: true, EAX: 0xf, ECX: 0x1800},
		{Function: 0xd, Index: 2, Indexed: true, EAX: 0x100, EBX: 0x240},
		{Function: 0xd, Index: 5, Indexed: true, EAX: 0x40, EBX: 0x440},
		{Function: 0xd, Index: 6, Indexed: true, EAX: 0x200, EBX: 0x480},
		{Function: 0xd, Index: 7, Indexed: true, EAX: 0x400, EBX: 0x680},
		{Function: 0xd, Index: 11, Indexed: true, EAX: 0x10, ECX: 1},
		{Function: 0xd, Index: 12, Indexed: true, EAX: 0x18, ECX: 1},
		{Function: 0x14, Indexed: true, EAX: 1},
		{Function: 0x40000000, EAX: 0x40000001, EBX: sig("KVMK"), ECX: sig("VMKV"), EDX: sig("M\x00\x00\x00")},
		{Function: 0x40000001, EAX: 0x01007efb},
		{Function: 0x80000000, EAX: 0x80000028},
		{Function: 0x80000001, EAX: 0xa00f11, ECX: all, EDX: all},
		{Function: 0x80000007, EDX: all},
		{Function: 0x80000008, EAX: 0x3030, EBX: all, ECX: 0x703f},
		{Function: 0x8000000a, EAX: 1, EDX: all},
		{Function: 0x8000001d, Index: 3, Indexed: true, EAX: 0x3c163},
		{Function: 0x8000001e, EAX: 9, EBX: 0x104, ECX: 0x300},
		{Function: 0x8000001f, EAX: 1},
		{Function: 0x80000026, Indexed: true, EAX: 1, EBX: 2},
	}
}

var (
	amdVendor   = [3]uint32{sig("Auth"), sig("enti"), sig("cAMD")}
	intelVendor = [3]uint32{sig("Genu"), sig("ineI"), sig("ntel")}
)

func TestCPUIDPolicy(t *testing.T) {
	s := fakeCPUID(amdVendor).policy()
	for _, f := range []uint32{5, 0xa, 0x14, 0x40000000, 0x40000001, 0x8000000a, 0x8000001f, 0x80000026} {
		if s.find(f, 0) != nil {
			t.Errorf("leaf %#x is shown", f)
		}
	}
	one := s.find(1, 0)
	for bit, want := range map[int]bool{0: true, 3: false, 5: false, 13: true, 21: false, 24: true, 27: false, 31: true} {
		if got := one.ECX>>bit&1 == 1; got != want {
			t.Errorf("leaf 1 ECX bit %d is %v", bit, got)
		}
	}
	if one.EDX&(1<<7|1<<14) != 0 || one.EDX&(1<<9|1<<12) != 1<<9|1<<12 {
		t.Errorf("leaf 1 EDX %#x", one.EDX)
	}
	if e := s.find(6, 0); e.EAX != arat || e.ECX != 0 {
		t.Errorf("leaf 6 %+v", e)
	}
	if e := s.find(7, 0); e.ECX&(1<<16) != 0 || e.EBX&(1<<2) != 0 {
		t.Errorf("leaf 7 %+v", e)
	}
	if e := s.find(0x80000007, 0); e.EDX != invariantTSC {
		t.Errorf("leaf 80000007 %+v", e)
	}
	if e := s.find(0x80000001, 0); e.ECX&(1<<2) != 0 || e.EDX&(1<<29) == 0 {
		t.Errorf("leaf 80000001 %+v", e)
	}
	if !reflect.DeepEqual(s, s.policy()) {
		t.Error("the policy is not idempotent")
	}
}

func TestCPUIDIntersect(t *testing.T) {
	a, b := fakeCPUID(amdVendor).policy(), fakeCPUID(amdVendor).policy()
	b.find(0, 0).EAX = 0xd
	b.find(1, 0).ECX &^= 1 << 12 // FMA
	b.find(1, 0).EAX = 0x800f12
	b.find(7, 0).EBX &^= 1 << 16 // AVX-512F
	b.find(0x80000008, 0).EAX = 0x302e
	b.find(0xd, 0).EAX = 0x7
	b.find(0xd, 12).EAX = 0x20 // of another size

	// Nodes exchange sets as JSON.
	text, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	b = nil
	if err := json.Unmarshal(text, &b); err != nil {
		t.Fatal(err)
	}
	ab, err := IntersectCPUID(a, b)
	if err != nil {
		t.Fatal(err)
	}
	if e := ab.find(1, 0); e.ECX&(1<<12) != 0 || e.EAX != 0xa00f11 {
		t.Errorf("leaf 1 %+v", e)
	}
	if ab.find(0, 0).EAX != 0xd || ab.find(7, 0).EBX&(1<<16) != 0 || ab.find(0x80000008, 0).EAX != 0x302e {
		t.Errorf("intersection %+v", ab)
	}
	if e := ab.find(0xd, 0); e.EAX != 7 || e.ECX != 0x340 {
		t.Errorf("xsave %+v", e)
	}
	if e := ab.find(0xd, 1); e.ECX != 0x800 {
		t.Errorf("xss %+v", e)
	}
	same, err := IntersectCPUID(a)
	if err != nil || len(same) != len(a) {
		t.Errorf("alone: %v, %d leaves of %d", err, len(same), len(a))
	}

	for name, sets := range map[string][]CPUIDSet{
		"vendors": {a, fakeCPUID(intelVendor)}, "none": {}, "empty": {a, {}}, "first empty": {{}, a},
	} {
		if _, err := IntersectCPUID(sets...); !errors.Is(err, ErrCPUID) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCPUIDForVCPU(t *testing.T) {
	ids, topology, err := PlanAPICIDs([]int{1, 3, 2})
	if err != nil {
		t.Fatal(err)
	}
	if want := [][]uint32{{0}, {4, 5, 6}, {8, 9}}; !reflect.DeepEqual(ids, want) || topology != (Topology{2, 3}) {
		t.Fatalf("ids %v, %+v", ids, topology)
	}
	if _, _, err := PlanAPICIDs([]int{100, 100, 100}); err == nil {
		t.Error("300 vcpus fit in 254 ids")
	}
	for _, vendor := range [][3]uint32{amdVendor, intelVendor} {
		s := fakeCPUID(vendor).policy().forVCPU(6, topology)
		if e := s.find(1, 0); e.EBX != 0x06040800 || e.EDX&edxHTT == 0 {
			t.Errorf("leaf 1 %+v", e)
		}
		for _, leaf := range []uint32{0xb, 0x1f} {
			if e := s.find(leaf, 1); e.EAX != 2 || e.EBX != 3 || e.EDX != 6 || e.ECX != 0x201 {
				t.Errorf("leaf %#x %+v", leaf, e)
			}
		}
		if e := s.find(0x40000000, 0); e.EBX != sig("Iron") || e.EAX != 0x40000000 {
			t.Errorf("hypervisor %+v", e)
		}
		if e := s.find(0x8000001e, 0); e.EAX != 6 || e.EBX != 2 || e.ECX != 1 {
			t.Errorf("leaf 8000001e %+v", e)
		}
		if e := s.find(4, 3); e.EAX != 0xc00c163 {
			t.Errorf("leaf 4.3 %#x", e.EAX)
		}
		if e := s.find(4, 0); e.EAX != 0xc000121 {
			t.Errorf("leaf 4.0 %#x", e.EAX)
		}
	}
	if e := fakeCPUID(amdVendor).policy().forVCPU(6, topology).find(0x80000008, 0); e.ECX != 0x2002 {
		t.Errorf("leaf 80000008 %+v", e)
	}
}

func TestTSCToNs(t *testing.T) {
	for _, c := range []struct {
		ticks, khz uint64
		want       int64
	}{
		{0, 2_000_000, 0}, {2, 2_000_000, 1}, {3, 2_000_000, 2}, {2_000_000_000, 2_000_000, 1e9},
		{1 << 62, 1, 1<<63 - 1}, {1<<64 - 1, 3_000_000, 6148914691236517205}, {1<<64 - 1, 1_000_000, 1<<63 - 1},
	} {
		if got := TSCToNs(c.ticks, c.khz); got != c.want {
			t.Errorf("TSCToNs(%d, %d) = %d, want %d", c.ticks, c.khz, got, c.want)
		}
	}
}
