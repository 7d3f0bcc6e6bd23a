package kvmhost

import (
	"errors"
	"fmt"
	"slices"

	"github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"
)

// CPUID policy. A guest sees one kind of processor, so it may only be told of what each node's processors can
// do: nodes exchange their HostCPUID, IntersectCPUID makes one set of them, and forVCPU fills in what differs
// between vCPUs (Intel SDM, volume 2, "CPUID"; AMD APM, volume 3, appendix E).

// CPUIDEntry is one leaf, or one subleaf where Indexed.
type CPUIDEntry struct {
	Function uint32 `json:"function"`
	Index    uint32 `json:"index,omitempty"`
	Indexed  bool   `json:"indexed,omitempty"`
	EAX      uint32 `json:"eax"`
	EBX      uint32 `json:"ebx"`
	ECX      uint32 `json:"ecx"`
	EDX      uint32 `json:"edx"`
}

// CPUIDSet is a processor as CPUID describes it, sorted by function and index.
type CPUIDSet []CPUIDEntry

// Topology places vCPUs in packages by their APIC IDs: the low PackageShift bits number a package's cores. One
// package for each node, with one NUMA domain, one thread per core.
type Topology struct {
	PackageShift    uint8
	CoresPerPackage uint32 // largest of all nodes
}

// PlanAPICIDs numbers the vCPUs of nodes with so many each, and says how they form packages.
func PlanAPICIDs(perNode []int) ([][]uint32, Topology, error) {
	most := 1
	for _, n := range perNode {
		most = max(most, n)
	}
	t := Topology{CoresPerPackage: uint32(most)}
	for 1<<t.PackageShift < most {
		t.PackageShift++
	}
	const maxID = 254 // xAPIC; 255 is the broadcast
	ids := make([][]uint32, len(perNode))
	for node, n := range perNode {
		for i := range n {
			id := uint32(node)<<t.PackageShift | uint32(i)
			if id > maxID {
				return nil, t, fmt.Errorf("kvmhost: vcpu %d of node %d would have apic id %d, the highest is %d: use fewer vcpus or nodes",
					i, node, id, maxID)
			}
			ids[node] = append(ids[node], id)
		}
	}
	return ids, t, nil
}

// HostCPUID is what a guest may use on this server: KVM's supported set without what is left out by policy.
func HostCPUID() (CPUIDSet, error) {
	dev, err := openDevice()
	if err != nil {
		return nil, err
	}
	defer unix.Close(dev)
	entries, err := supportedCPUID(dev)
	if err != nil {
		return nil, fmt.Errorf("kvmhost: supported cpuid: %w", err)
	}
	s := make(CPUIDSet, 0, len(entries))
	for _, e := range entries {
		s = append(s, CPUIDEntry{e.Function, e.Index, e.Flags&cpuidIndexed != 0, e.Eax, e.Ebx, e.Ecx, e.Edx})
	}
	return s.policy(), nil
}

const cpuidIndexed = 1 << 0 // KVM_CPUID_FLAG_SIGNIFCANT_INDEX

// Leaves and bits the policy names.
const (
	leafVendor, leafFeatures, leafCaches, leafMWAIT, leafPower = 0, 1, 4, 5, 6
	leafExtFeatures, leafPMU, leafTopology, leafXSave          = 7, 0xa, 0xb, 0xd
	leafSGX, leafPT, leafTopologyV2, maxBasic                  = 0x12, 0x14, 0x1f, 0x1f

	leafHypervisor = 0x40000000

	leafExtMax, leafExtended, leafAdvPower, leafSizes = 0x80000000, 0x80000001, 0x80000007, 0x80000008
	leafSVM, leafAMDCaches, leafAMDTopology           = 0x8000000a, 0x8000001d, 0x8000001e
	leafSEV, maxExtended                              = 0x8000001f, 0x80000021

	arat         = 1 << 2 // 6.EAX: the APIC timer runs in all C-states
	invariantTSC = 1 << 8 // 8000_0007.EDX

	ecxHypervisor, ecxTSCDeadline, ecxOSXSave = 1 << 31, 1 << 24, 1 << 27
	edxHTT                                    = 1 << 28
	extCmpLegacy                              = 1 << 1
)

// hidden has the feature bits that are taken away.
var hidden = map[uint32]struct{ eax, ebx, ecx, edx uint32 }{
	leafFeatures: {
		// DTES64, MONITOR, DS-CPL, VMX, SMX, EIST, TM2, CNXT-ID, SDBG, PDCM, x2APIC, OSXSAVE (KVM shows the
		// guest's own CR4)
		ecx: 1<<2 | 1<<3 | 1<<4 | 1<<5 | 1<<6 | 1<<7 | 1<<8 | 1<<10 | 1<<11 | 1<<15 | 1<<21 | ecxOSXSave,
		// MCE and MCA (no machine check is ever injected), DS, ACPI, HTT (by topology), TM, PBE
		edx: 1<<7 | 1<<14 | 1<<21 | 1<<22 | edxHTT | 1<<29 | 1<<31,
	},
	leafExtFeatures: {
		ebx: 1<<2 | 1<<12 | 1<<15 | 1<<25, // SGX, RDT-M, RDT-A, PT
		ecx: 1<<4 | 1<<5 | 1<<16 | 1<<30,  // OSPKE (KVM shows CR4), WAITPKG, LA57, SGX_LC
		edx: 1<<5 | 1<<18 | 1<<19 | 1<<15, // UINTR, PCONFIG, arch LBR, hybrid
	},
	leafExtended: {
		// CmpLegacy (by topology), SVM, ExtApicSpace, OSVW, IBS, SKINIT, WDT, LWP, NodeID MSR, PerfCtrCore, PerfCtrNB,
		// PerfTSC, PerfCtrLLC, MONITORX
		ecx: extCmpLegacy | 1<<2 | 1<<3 | 1<<9 | 1<<10 | 1<<12 | 1<<13 | 1<<15 | 1<<19 | 1<<23 | 1<<24 | 1<<27 | 1<<28 | 1<<29,
		edx: 1<<7 | 1<<14, // MCE, MCA
	},
}

// dropped leaves describe what a guest does not get.
var dropped = []uint32{leafMWAIT, leafPMU, leafSGX, leafPT, leafSVM, leafSEV,
	0xf, 0x10, 0x8000001b, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1b, 0x1c, 0x1e, 0x80000020, 0x80000022, 0x80000026}

// policy is the set without what no guest gets.
func (s CPUIDSet) policy() CPUIDSet {
	out := make(CPUIDSet, 0, len(s))
	for _, e := range s {
		switch f := e.Function; {
		case f >= leafHypervisor && f < leafExtMax: // KVM's own: its features share pages with the kernel
			continue
		case f > maxBasic && f < leafHypervisor, f > maxExtended, slices.Contains(dropped, f):
			continue
		}
		h := hidden[e.Function]
		if e.Index != 0 {
			h = struct{ eax, ebx, ecx, edx uint32 }{}
		}
		e.EAX, e.EBX, e.ECX, e.EDX = e.EAX&^h.eax, e.EBX&^h.ebx, e.ECX&^h.ecx, e.EDX&^h.edx
		switch e.Function {
		case leafVendor:
			e.EAX = min(e.EAX, maxBasic)
		case leafExtMax:
			e.EAX = min(e.EAX, maxExtended)
		case leafFeatures:
			e.ECX |= ecxHypervisor | ecxTSCDeadline
		case leafPower:
			e.EAX, e.EBX, e.ECX, e.EDX = arat, 0, 0, 0
		case leafAdvPower:
			e.EAX, e.EBX, e.ECX, e.EDX = 0, 0, 0, invariantTSC
		}
		out = append(out, e)
	}
	out.sort()
	return out
}

func (s CPUIDSet) sort() {
	slices.SortFunc(s, func(a, b CPUIDEntry) int {
		if a.Function != b.Function {
			return cmpUint32(a.Function, b.Function)
		}
		return cmpUint32(a.Index, b.Index)
	})
}

func cmpUint32(a, b uint32) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// find returns the entry, or nil.
func (s CPUIDSet) find(function, index uint32) *CPUIDEntry {
	for i := range s {
		if s[i].Function == function && s[i].Index == index {
			return &s[i]
		}
	}
	return nil
}

// ErrCPUID says that nodes' processors are too different for one guest.
var ErrCPUID = errors.New("kvmhost: processors do not fit together")

// IntersectCPUID is the processor that all sets can stand for. Feature bits are those that all have, sizes the
// smallest; identity is the first set's, and vendors must agree. The order of the sets after the first
// does not matter.
func IntersectCPUID(sets ...CPUIDSet) (CPUIDSet, error) {
	if len(sets) == 0 {
		return nil, fmt.Errorf("%w: none given", ErrCPUID)
	}
	if sets[0].find(leafVendor, 0) == nil || sets[0].find(leafFeatures, 0) == nil {
		return nil, fmt.Errorf("%w: a set without leaf 0 or 1", ErrCPUID)
	}
	out := sets[0].policy() // whoever sent it: what is hidden stays hidden
	for _, s := range sets[1:] {
		s = s.policy()
		a, b := out.find(leafVendor, 0), s.find(leafVendor, 0)
		if b == nil || a.EBX != b.EBX || a.ECX != b.ECX || a.EDX != b.EDX {
			return nil, fmt.Errorf("%w: vendors %s and %s: run a VM on servers of one vendor", ErrCPUID, vendor(a), vendor(b))
		}
		kept := out[:0]
		for _, e := range out {
			if o := s.find(e.Function, e.Index); o != nil {
				kept = append(kept, e.intersect(*o))
			} else if e.Function == leafFeatures || e.Function == leafExtMax {
				return nil, fmt.Errorf("%w: leaf %#x is missing", ErrCPUID, e.Function)
			}
		}
		out = kept
	}
	out.fixXSave()
	return out, nil
}

// intersect joins the same leaf of two processors.
func (e CPUIDEntry) intersect(o CPUIDEntry) CPUIDEntry {
	all := func() {
		e.EAX, e.EBX, e.ECX, e.EDX = e.EAX&o.EAX, e.EBX&o.EBX, e.ECX&o.ECX, e.EDX&o.EDX
	}
	switch e.Function {
	case leafVendor, leafExtMax:
		e.EAX = min(e.EAX, o.EAX)
	case leafFeatures:
		// EAX: identity. EBX: CLFLUSH size, the same on all x86-64, and what forVCPU fills in.
		e.ECX, e.EDX = e.ECX&o.ECX, e.EDX&o.EDX
	case leafExtFeatures:
		eax := min(e.EAX, o.EAX) // highest subleaf of subleaf 0
		all()
		if e.Index == 0 {
			e.EAX = eax
		}
	case leafXSave:
		switch e.Index {
		case 0: // valid XCR0 bits; sizes are worked out by fixXSave
			e.EAX, e.EDX = e.EAX&o.EAX, e.EDX&o.EDX
		case 1: // features of XSAVE; valid IA32_XSS bits
			e.EAX, e.ECX, e.EDX = e.EAX&o.EAX, e.ECX&o.ECX, e.EDX&o.EDX
		default: // size and offset of a component: if they differ, the component cannot be had
			if e != o {
				e.EAX, e.EBX, e.ECX, e.EDX = 0, 0, 0, 0
			}
		}
	case leafExtended:
		e.ECX, e.EDX = e.ECX&o.ECX, e.EDX&o.EDX
	case leafPower, leafAdvPower, 0x80000021:
		all()
	case leafSizes:
		// EAX: physical and linear address bits, guest's physical address bits.
		e.EAX = min(e.EAX&0xff, o.EAX&0xff) | min(e.EAX>>8&0xff, o.EAX>>8&0xff)<<8
		e.EBX &= o.EBX
	case 0x8000001a:
		all()
	}
	return e
}

// fixXSave takes XCR0 and IA32_XSS bits away whose component is missing, and works the sizes out again.
func (s CPUIDSet) fixXSave() {
	main, sub := s.find(leafXSave, 0), s.find(leafXSave, 1)
	if main == nil {
		return
	}
	have := func(bit uint32) bool {
		c := s.find(leafXSave, bit)
		return c != nil && c.EAX != 0
	}
	size := uint32(512 + 64) // legacy area and header
	for bit := uint32(2); bit < 32; bit++ {
		if main.EAX&(1<<bit) != 0 {
			if c := s.find(leafXSave, bit); have(bit) {
				size = max(size, c.EAX+c.EBX)
			} else {
				main.EAX &^= 1 << bit
			}
		}
		if sub != nil && sub.ECX&(1<<bit) != 0 && !have(bit) {
			sub.ECX &^= 1 << bit
		}
	}
	main.EBX, main.ECX = size, size // EBX follows the guest's XCR0 in KVM
}

func vendor(e *CPUIDEntry) string {
	if e == nil {
		return "(none)"
	}
	var b []byte
	for _, r := range []uint32{e.EBX, e.EDX, e.ECX} {
		b = append(b, byte(r), byte(r>>8), byte(r>>16), byte(r>>24))
	}
	return string(b)
}

// forVCPU is the set as the vCPU with that APIC ID reads it.
func (s CPUIDSet) forVCPU(id uint32, t Topology) CPUIDSet {
	cores := max(t.CoresPerPackage, 1)
	logical := uint32(1) << t.PackageShift // APIC IDs of a package
	coreID, pkg := id&(logical-1), id>>t.PackageShift
	out := make(CPUIDSet, 0, len(s)+6)
	amd := s.find(leafVendor, 0) != nil && s.find(leafVendor, 0).ECX == 0x444d4163 // "cAMD"
	for _, e := range s {
		switch e.Function {
		case leafFeatures:
			e.EBX = e.EBX&0xff00 | id<<24 | min(logical, 255)<<16
			if cores > 1 {
				e.EDX |= edxHTT
			}
		case leafCaches:
			if e.EAX&0x1f != 0 {
				e.EAX = e.EAX&0x3fff | sharing(e.EAX, logical)<<14 | (logical-1)&0x3f<<26
			}
		case leafTopology, leafTopologyV2:
			continue
		case leafExtended:
			if amd && cores > 1 {
				e.ECX |= extCmpLegacy
			}
		case leafSizes:
			if amd {
				e.ECX = cores - 1 | uint32(t.PackageShift)<<12
			} else {
				e.ECX = 0
			}
		case leafAMDCaches:
			if e.EAX&0x1f != 0 {
				e.EAX = e.EAX&0x3fff | sharing(e.EAX, logical)<<14
			}
		case leafAMDTopology:
			e.EAX, e.EBX, e.ECX, e.EDX = id, coreID&0xff, pkg&0xff, 0
		}
		out = append(out, e)
	}
	leaves := []uint32{leafTopology}
	if m := s.find(leafVendor, 0); m != nil && m.EAX >= leafTopologyV2 {
		leaves = append(leaves, leafTopologyV2)
	}
	for _, leaf := range leaves {
		out = append(out,
			CPUIDEntry{leaf, 0, true, 0, 1, 0 | 1<<8, id}, // threads: one
			CPUIDEntry{leaf, 1, true, uint32(t.PackageShift), cores, 1 | 2<<8, id},
			CPUIDEntry{leaf, 2, true, 0, 0, 2, id})
	}
	if m := out.find(leafVendor, 0); m != nil {
		m.EAX = max(m.EAX, leafTopology)
	}
	out = append(out, CPUIDEntry{Function: leafHypervisor, EAX: leafHypervisor, EBX: sig("Iron"), ECX: sig("span"), EDX: sig("VM\x00\x00")})
	out.sort()
	return out
}

// sharing is the count of threads behind a cache, less one: the last-level cache serves the package.
func sharing(eax, logical uint32) uint32 {
	if eax>>5&7 >= 3 {
		return logical - 1
	}
	return 0
}

// sig packs four characters.
func sig(s string) uint32 {
	return uint32(s[0]) | uint32(s[1])<<8 | uint32(s[2])<<16 | uint32(s[3])<<24
}

// entries is the set in the kernel's form.
func (s CPUIDSet) entries() []kvm.CPUIDEntry2 {
	out := make([]kvm.CPUIDEntry2, len(s))
	for i, e := range s {
		out[i] = kvm.CPUIDEntry2{Function: e.Function, Index: e.Index, Eax: e.EAX, Ebx: e.EBX, Ecx: e.ECX, Edx: e.EDX}
		if e.Indexed {
			out[i].Flags = cpuidIndexed
		}
	}
	return out
}
