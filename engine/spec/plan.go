package spec

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"

	"ironspan/engine/wire"
)

// Layout of guest-physical memory. RAM is dense in page numbers; in guest-physical addresses it leaves out the
// hole that the platform's registers (LAPIC, IOAPIC, PCI) live in.
const (
	HoleStart GPA = 3 << 30
	HoleEnd   GPA = 4 << 30

	// PlanVersion is the version of Plan's JSON form. A node refuses another.
	PlanVersion = 1

	// LocalDistance and RemoteDistance are the entries of the SLIT. Anything above 30 tells Linux not to
	// drag tasks and their memory between nodes for small imbalances.
	LocalDistance  = 10
	RemoteDistance = 40

	// MaxAPICID is the highest local APIC ID in use: 255 is xAPIC's broadcast.
	MaxAPICID = 254
)

// GPA is a guest-physical address.
type GPA uint64

// VMID names one VM on all its nodes. It is drawn at random for every run.
type VMID [16]byte

// NewVMID draws a VMID.
func NewVMID() VMID {
	var id VMID
	rand.Read(id[:]) // never fails: crypto/rand.Read aborts the program instead
	return id
}

// String returns the ID in hex.
func (id VMID) String() string { return hex.EncodeToString(id[:]) }

// IsZero reports whether the ID was never drawn.
func (id VMID) IsZero() bool { return id == VMID{} }

// MarshalText implements encoding.TextMarshaler.
func (id VMID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *VMID) UnmarshalText(b []byte) error {
	if hex.DecodedLen(len(b)) != len(id) || len(b)%2 != 0 {
		return fmt.Errorf("spec: a VM id is %d hex digits, not %d characters", 2*len(id), len(b))
	}
	if _, err := hex.Decode(id[:], b); err != nil {
		return fmt.Errorf("spec: VM id: %w", err)
	}
	return nil
}

// PFNRange is a range of RAM pages; Last is exclusive.
type PFNRange struct {
	First wire.PFN `json:"first"`
	Last  wire.PFN `json:"last"`
}

// Pages returns the number of pages in the range.
func (r PFNRange) Pages() uint64 { return uint64(r.Last - r.First) }

// Bytes returns the range's size in bytes.
func (r PFNRange) Bytes() uint64 { return r.Pages() * wire.PageSize }

// GPARange is a range of guest-physical addresses; End is exclusive.
type GPARange struct {
	Start GPA `json:"start"`
	End   GPA `json:"end"`
}

// Size returns the range's size in bytes.
func (r GPARange) Size() uint64 { return uint64(r.End - r.Start) }

// Plan is everything the nodes of a VM have to agree on, derived from a Spec. It is the same at every node.
type Plan struct {
	Version   int        `json:"version"`
	VM        VMID       `json:"vm"`
	Epoch     wire.Epoch `json:"epoch"`
	Name      string     `json:"name"`
	Append    string     `json:"append"` // the user's part of the guest's command line
	Fabric    Fabric     `json:"fabric"`
	Shards    int        `json:"shards"`
	Poll      Poll       `json:"poll"`
	Dilate    float64    `json:"dilate"`
	Tenure    Tenure     `json:"tenure"`
	Timeouts  Timeouts   `json:"timeouts"`
	Nodes     []PlanNode `json:"nodes"`
	Distances [][]uint8  `json:"distances"` // SLIT, by node
}

// PlanNode is one node's share of a VM.
type PlanNode struct {
	ID      wire.NodeID `json:"id"`
	Name    string      `json:"name"` // the name its certificate must carry
	Addr    string      `json:"addr"` // host:port of its daemon
	RAM     PFNRange    `json:"ram"`  // pages homed here
	GPA     []GPARange  `json:"gpa"`  // the same as guest-physical addresses: two ranges if it spans the hole
	APICIDs []uint32    `json:"apic_ids"`
	Cache   uint64      `json:"cache,omitempty"` // bytes of other nodes' pages that it may hold; 0: no bound
	CPUs    []int       `json:"cpus,omitempty"`  // host CPUs to pin to: vCPUs first, then shards
	Device  string      `json:"device"`          // RDMA device, or auto
	GID     int         `json:"gid"`             // GID index, or GIDAuto
	CPUID   []byte      `json:"cpuid,omitempty"` // from the node's Info, for the intersection
	TSCKHz  uint64      `json:"tsc_khz,omitempty"`
}

// Host is what has to be known of a node's host to derive a plan.
type Host struct {
	CPUs   int
	CPUID  []byte
	TSCKHz uint64
}

// Derive makes the plan of one run of a VM: it lays out memory, numbers vCPUs, and draws the VM's id and epoch.
// hosts has an entry for each node, or is nil when nothing is known of them.
func (s *Spec) Derive(hosts []Host) (*Plan, error) {
	if hosts != nil && len(hosts) != len(s.Nodes) {
		return nil, fmt.Errorf("spec: %d hosts for %d nodes", len(hosts), len(s.Nodes))
	}
	if len(s.Nodes) == 0 || len(s.Nodes) > MaxNodes {
		return nil, fmt.Errorf("spec: a VM has 1 to %d nodes, not %d", MaxNodes, len(s.Nodes))
	}
	if err := s.checkTotals(); err != nil {
		return nil, err
	}
	p := &Plan{
		Version: PlanVersion, VM: NewVMID(), Epoch: newEpoch(), Name: s.Name, Append: s.Append, Fabric: s.Fabric,
		Shards: s.Shards, Poll: s.Poll, Dilate: s.Dilate, Tenure: s.Tenure, Timeouts: s.Timeouts,
	}
	if p.Shards == 0 {
		p.Shards = s.autoShards(hosts)
	}
	var next wire.PFN
	ids := apicIDs(s.Nodes)
	for i, n := range s.Nodes {
		ram := PFNRange{First: next, Last: next + wire.PFN(n.Memory/wire.PageSize)}
		next = ram.Last
		pn := PlanNode{
			ID: wire.NodeID(i), Name: n.Name, Addr: n.Addr, RAM: ram, GPA: ram.GPAs(), APICIDs: ids[i],
			CPUs: n.CPUs, Device: n.Device, GID: n.GID, Cache: s.cacheOf(&n),
		}
		if hosts != nil {
			pn.CPUID, pn.TSCKHz = hosts[i].CPUID, hosts[i].TSCKHz
		}
		p.Nodes = append(p.Nodes, pn)
		row := make([]uint8, len(s.Nodes))
		for j := range row {
			row[j] = RemoteDistance
		}
		row[i] = LocalDistance
		p.Distances = append(p.Distances, row)
	}
	return p, nil
}

// newEpoch draws the epoch a VM starts with. Membership changes count up from it, so it leaves room above. It is
// random so that a message that outlived an earlier VM between the same nodes is not mistaken for one of this.
func newEpoch() wire.Epoch {
	var b [4]byte
	rand.Read(b[:])
	return wire.Epoch(binary.LittleEndian.Uint32(b[:])>>1 | 1)
}

// cacheOf returns the bound of a node's cache.
func (s *Spec) cacheOf(n *Node) uint64 {
	if n.Cache != 0 {
		return n.Cache
	}
	return s.Cache
}

// autoShards chooses a number of shards that every node can carry: a quarter of the CPUs that its vCPUs leave, and as
// many as its cache suffices for.
func (s *Spec) autoShards(hosts []Host) int {
	const most = 8
	if hosts == nil {
		return 1
	}
	n := most
	for i, h := range hosts {
		n = min(n, (h.CPUs-s.Nodes[i].VCPUs)/4)
		if cache := s.cacheOf(&s.Nodes[i]); cache != 0 {
			n = min(n, int(cache/MinCache))
		}
	}
	return max(n, 1)
}

// apicIDs numbers the vCPUs. Every node starts at a multiple of a power of two, so that a guest which derives
// packages from APIC IDs never sees one that spans two nodes; if that does not fit below MaxAPICID, the numbers
// are dense.
func apicIDs(nodes []Node) [][]uint32 {
	most := 0
	for _, n := range nodes {
		most = max(most, n.VCPUs)
	}
	stride := 1 << bits.Len(uint(max(most, 1)-1))
	ids := make([][]uint32, len(nodes))
	aligned := stride*(len(nodes)-1)+nodes[len(nodes)-1].VCPUs-1 <= MaxAPICID
	next := uint32(0)
	for i, n := range nodes {
		if aligned {
			next = uint32(i * stride)
		}
		ids[i] = make([]uint32, 0, n.VCPUs)
		for range n.VCPUs {
			ids[i] = append(ids[i], next)
			next++
		}
	}
	return ids
}

// PFNToGPA returns where a page of RAM lies in guest-physical memory.
func PFNToGPA(p wire.PFN) GPA {
	g := GPA(p) << wire.PageShift
	if g >= HoleStart {
		g += HoleEnd - HoleStart
	}
	return g
}

// GPAToPFN returns the page of RAM at a guest-physical address, and whether there can be one: addresses in the
// hole have none.
func GPAToPFN(g GPA) (wire.PFN, bool) {
	switch {
	case g < HoleStart:
		return wire.PFN(g >> wire.PageShift), true
	case g < HoleEnd:
		return 0, false
	}
	return wire.PFN((g - (HoleEnd - HoleStart)) >> wire.PageShift), true
}

// GPAs returns the guest-physical addresses of a range of pages: two ranges if it spans the hole.
func (r PFNRange) GPAs() []GPARange {
	if r.First >= r.Last {
		return nil
	}
	const hole = wire.PFN(HoleStart >> wire.PageShift)
	if r.First < hole && r.Last > hole {
		return []GPARange{
			{PFNToGPA(r.First), HoleStart},
			{HoleEnd, PFNToGPA(r.Last)},
		}
	}
	start := PFNToGPA(r.First)
	return []GPARange{{start, start + GPA(r.Bytes())}}
}

// Pages returns the VM's RAM in pages.
func (p *Plan) Pages() uint64 { return uint64(p.Nodes[len(p.Nodes)-1].RAM.Last) }

// RAM returns the VM's RAM in bytes.
func (p *Plan) RAM() uint64 { return p.Pages() * wire.PageSize }

// VCPUs returns the number of vCPUs over all nodes.
func (p *Plan) VCPUs() int {
	n := 0
	for _, node := range p.Nodes {
		n += len(node.APICIDs)
	}
	return n
}

// MaxAPICID returns the highest APIC ID in use.
func (p *Plan) MaxAPICID() uint32 {
	var m uint32
	for _, node := range p.Nodes {
		for _, id := range node.APICIDs {
			m = max(m, id)
		}
	}
	return m
}

// NodeOfAPICID returns the node that runs the vCPU with an APIC ID.
func (p *Plan) NodeOfAPICID(id uint32) (wire.NodeID, bool) {
	for _, node := range p.Nodes {
		for _, have := range node.APICIDs {
			if have == id {
				return node.ID, true
			}
		}
	}
	return 0, false
}

// HomeOf returns the node a page is homed at.
func (p *Plan) HomeOf(page wire.PFN) (wire.NodeID, bool) {
	for _, node := range p.Nodes {
		if page >= node.RAM.First && page < node.RAM.Last {
			return node.ID, true
		}
	}
	return 0, false
}

// Digest is a short name of everything in the plan: two plans with one digest are equal.
func (p *Plan) Digest() string {
	b, err := json.Marshal(p)
	if err != nil {
		panic("spec: plan: " + err.Error()) // plain data, and Check has refused a dilate that is no number
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}

// DecodePlan reads a plan from JSON and checks it.
func DecodePlan(b []byte) (*Plan, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var p Plan
	if err := d.Decode(&p); err != nil {
		return nil, fmt.Errorf("spec: plan: %w", err)
	}
	if err := p.Check(); err != nil {
		return nil, err
	}
	return &p, nil
}

// Check reports whether a plan that came from elsewhere holds together: whoever passes it may index by its
// nodes, pages and APIC IDs without another look.
func (p *Plan) Check() error {
	switch {
	case p.Version != PlanVersion:
		return fmt.Errorf("spec: plan of version %d, this ironspan knows %d: install the same one everywhere", p.Version, PlanVersion)
	case p.VM.IsZero():
		return errors.New("spec: plan without a VM id")
	case p.Epoch == 0:
		return errors.New("spec: plan without an epoch")
	case len(p.Nodes) == 0 || len(p.Nodes) > MaxNodes:
		return fmt.Errorf("spec: plan of %d nodes, 1 to %d are allowed", len(p.Nodes), MaxNodes)
	case !ValidName(p.Name):
		return fmt.Errorf("spec: plan with the name %q", printable(p.Name))
	case appendProblem(p.Append) != "":
		return fmt.Errorf("spec: plan: append %s", appendProblem(p.Append))
	case p.Fabric != FabricVerbs && p.Fabric != FabricSHM:
		return fmt.Errorf("spec: plan with fabric %q", printable(string(p.Fabric)))
	case p.Shards < 1 || p.Shards > MaxShards:
		return fmt.Errorf("spec: plan with %d shards, 1 to %d are allowed", p.Shards, MaxShards)
	case p.Poll != PollAuto && p.Poll != PollBusy && p.Poll != PollAdaptive && p.Poll != PollEvent:
		return fmt.Errorf("spec: plan with poll mode %q", printable(string(p.Poll)))
	case !(p.Dilate >= 1 && p.Dilate <= MaxDilate):
		return fmt.Errorf("spec: plan with dilate %v, 1 to %d are allowed", p.Dilate, MaxDilate)
	case p.Tenure.Base < 0 || p.Tenure.Base > p.Tenure.Max:
		return fmt.Errorf("spec: plan with tenure from %v to %v", p.Tenure.Base, p.Tenure.Max)
	case len(p.Distances) != len(p.Nodes):
		return errors.New("spec: plan with distances for another number of nodes")
	}
	t := p.Timeouts
	if t.Connect <= 0 || t.Prepare <= 0 || t.Heartbeat <= 0 || t.Lost < 2*t.Heartbeat || t.Stop <= 0 {
		return errors.New("spec: plan with impossible time-outs")
	}
	return p.checkNodes()
}

func (p *Plan) checkNodes() error {
	var next wire.PFN
	seen := map[uint32]bool{}
	for i, n := range p.Nodes {
		if n.ID != wire.NodeID(i) || n.RAM.First != next || n.RAM.Last <= n.RAM.First ||
			n.RAM.Last > MaxMemory/wire.PageSize || n.RAM.Bytes()%MemoryAlign != 0 {
			return fmt.Errorf("spec: plan: node %d has id %d and pages %d to %d, expected from %d in steps of %s",
				i, n.ID, n.RAM.First, n.RAM.Last, next, FormatSize(MemoryAlign))
		}
		next = n.RAM.Last
		want := n.RAM.GPAs()
		if len(want) != len(n.GPA) || want[0] != n.GPA[0] || want[len(want)-1] != n.GPA[len(want)-1] {
			return fmt.Errorf("spec: plan: node %d: addresses do not belong to its pages", i)
		}
		if !ValidName(n.Name) || addrProblem(n.Addr) != "" || !isName(n.Device) {
			return fmt.Errorf("spec: plan: node %d has name %q, addr %q, device %q", i, printable(n.Name), printable(n.Addr), printable(n.Device))
		}
		if n.GID < GIDAuto || n.GID > 255 || len(p.Distances[i]) != len(p.Nodes) {
			return fmt.Errorf("spec: plan: node %d: GID index %d, %d distances", i, n.GID, len(p.Distances[i]))
		}
		if n.Cache != 0 && n.Cache < uint64(p.Shards)*MinCache || n.Cache > MaxMemory {
			return fmt.Errorf("spec: plan: node %d: cache of %d bytes for %d shards", i, n.Cache, p.Shards)
		}
		for _, id := range n.APICIDs {
			if id > MaxAPICID || seen[id] {
				return fmt.Errorf("spec: plan: node %d: APIC ID %d is out of range or given twice", i, id)
			}
			seen[id] = true
		}
		for _, c := range n.CPUs {
			if c < 0 || c > 8191 {
				return fmt.Errorf("spec: plan: node %d: host CPU %d", i, c)
			}
		}
	}
	if len(p.Nodes[0].APICIDs) == 0 || p.Nodes[0].APICIDs[0] != 0 || p.Nodes[0].RAM.Bytes() < MinBootMemory {
		return fmt.Errorf("spec: plan: node 0 has to boot the guest: it needs APIC ID 0 and %s", FormatSize(MinBootMemory))
	}
	return nil
}
