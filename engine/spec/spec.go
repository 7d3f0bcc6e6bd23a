package spec

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// Limits and defaults of a VM.
const (
	MaxNodes      = 64
	MaxVCPUs      = 254
	MaxShards     = 64
	MaxMemory     = 1 << 44  // bytes of guest RAM over all nodes
	MemoryAlign   = 2 << 20  // a node's RAM is a multiple of it
	MinBootMemory = 64 << 20 // node 0 loads kernel and initrd into its own RAM
	MaxAppend     = 1600     // bytes; the kernel's limit is 2047 and ours come on top
	MaxDilate     = 1000
	MinCache      = 4 << 20 // bytes for each shard: several times what it can have under way

	DefaultVCPUs  = 1
	DefaultMemory = 512 << 20
	DeviceAuto    = "auto"
	GIDAuto       = -1
	ConsoleSerial = "serial"
)

// Fabric is what carries pages and grants between nodes.
type Fabric string

// The fabrics.
const (
	FabricVerbs Fabric = "verbs" // RDMA through ibverbs: InfiniBand, RoCE, soft-RoCE
	FabricSHM   Fabric = "shm"   // shared memory between node processes of one host
)

// Poll is how a shard waits for work.
type Poll string

// The poll modes.
const (
	PollAuto     Poll = "auto"     // adaptive
	PollBusy     Poll = "busy"     // spin always
	PollAdaptive Poll = "adaptive" // spin while busy, then sleep; with few cores only while no vCPU needs them
	PollEvent    Poll = "event"    // sleep at once, on cores that may sleep deeply
)

// Spec is a VM as its user describes it in span.yaml. Parse and Load fill in every default.
type Spec struct {
	File     string // where it was read from, for messages
	Name     string
	Kernel   string // path of the bzImage on the machine where run runs
	Initrd   string // path, or empty
	Append   string
	Nodes    []Node // empty if the file lists none: see Local
	Fabric   Fabric
	Shards   int    // 0: chosen from the hosts' CPUs
	Cache    uint64 // bytes that each node may cache of the others' memory; 0: no bound
	Poll     Poll
	Dilate   float64
	Tenure   Tenure
	Console  string
	Timeouts Timeouts

	src                *source // for errors found after parsing; nil for a Spec made in Go
	kernelAt, initrdAt pos
	cacheAt            pos
}

// Node is one node of a VM.
type Node struct {
	Name   string // name in its certificate; the host of Addr unless given
	Addr   string // host:port; empty if the file has none, which only Local allows
	VCPUs  int
	Memory uint64 // bytes
	Cache  uint64 // 0: as Spec.Cache says
	Device string
	GID    int
	CPUs   []int

	at, cacheAt pos
}

// DefaultNode is a node as it is when nothing is said about it.
func DefaultNode() Node {
	return Node{VCPUs: DefaultVCPUs, Memory: DefaultMemory, Device: DeviceAuto, GID: GIDAuto}
}

// Tenure bounds how long a node keeps a contended page it has won.
type Tenure struct {
	Base Duration `json:"base"`
	Max  Duration `json:"max"`
}

// Timeouts are the time-outs of the control plane and of the mesh.
type Timeouts struct {
	Connect   Duration `json:"connect"`   // to reach a node's daemon, and each handshake
	Prepare   Duration `json:"prepare"`   // until every node is ready to start
	Heartbeat Duration `json:"heartbeat"` // between two signs of life of a peer
	Lost      Duration `json:"lost"`      // silence after which a peer counts as lost
	Stop      Duration `json:"stop"`      // for a node to end and clean up
}

func defaults() Spec {
	return Spec{
		Fabric: FabricVerbs, Poll: PollAuto, Dilate: 1, Console: ConsoleSerial,
		Tenure: Tenure{Base: Duration(2 * time.Millisecond), Max: Duration(50 * time.Millisecond)},
		Timeouts: Timeouts{
			Connect:   Duration(10 * time.Second),
			Prepare:   Duration(5 * time.Minute),
			Heartbeat: Duration(time.Second),
			Lost:      Duration(10 * time.Second),
			Stop:      Duration(15 * time.Second),
		},
	}
}

// Duration is a time.Duration that reads and writes itself as text, like 250ms.
type Duration time.Duration

// Std returns d as the standard library's type.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// String returns d as text.
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("spec: %q is no duration: write it like 250ms or 5s", b)
	}
	*d = Duration(v)
	return nil
}

// Local makes the spec one of n nodes on this host over shared memory. A list of nodes is kept for its sizes
// and must then have n entries; without one, every node has the default size.
func (s *Spec) Local(n int) error {
	if n < 1 || n > MaxNodes {
		return fmt.Errorf("spec: %d local nodes: 1 to %d are allowed", n, MaxNodes)
	}
	if len(s.Nodes) == 0 {
		for range n {
			s.Nodes = append(s.Nodes, DefaultNode())
		}
	}
	if len(s.Nodes) != n {
		return fmt.Errorf("spec: %s lists %d nodes, --local says %d: say --local %d, or leave the list out for nodes of %s",
			s.File, len(s.Nodes), n, len(s.Nodes), FormatSize(DefaultMemory))
	}
	s.Fabric = FabricSHM
	for i := range s.Nodes {
		s.Nodes[i].Name = fmt.Sprintf("node%d", i)
		s.Nodes[i].Device, s.Nodes[i].GID = DeviceAuto, GIDAuto
	}
	return s.checkTotals()
}

// CheckCluster reports what a spec lacks to be run on the nodes of a cluster: every node needs an address of its
// own.
func (s *Spec) CheckCluster() error {
	if len(s.Nodes) == 0 {
		return s.src.errorf(pos{line: 1, col: 1}, "no nodes", "list them under nodes:, or run with --local N for N nodes on this host")
	}
	seen := map[string]int{}
	for i, n := range s.Nodes {
		if n.Addr == "" {
			return s.src.errorf(n.at, "node without addr", "host:port where `ironspan node` listens, such as server-a:7440; or run with --local %d", len(s.Nodes))
		}
		if j, dup := seen[n.Addr]; dup {
			return s.src.errorf(n.at, fmt.Sprintf("nodes %d and %d have the same addr %s", j, i, n.Addr), "one node for each daemon")
		}
		seen[n.Addr] = i
	}
	return s.checkTotals()
}

// CheckImages reports boot images that cannot be read.
func (s *Spec) CheckImages() error {
	for _, i := range []struct {
		key, path string
		at        pos
	}{{"kernel", s.Kernel, s.kernelAt}, {"initrd", s.Initrd, s.initrdAt}} {
		if i.path == "" {
			continue
		}
		f, err := os.Open(i.path)
		if err != nil {
			return s.src.errorf(i.at, fmt.Sprintf("%s: %v", i.key, err), "a file that can be read; a relative path starts at the spec's directory")
		}
		st, err := f.Stat()
		f.Close()
		if err != nil || !st.Mode().IsRegular() || st.Size() == 0 {
			return s.src.errorf(i.at, fmt.Sprintf("%s: %s is no file, or empty", i.key, i.path), "a boot image")
		}
	}
	return nil
}

// checkTotals holds the limits that concern all nodes together.
func (s *Spec) checkTotals() error {
	if err := s.checkCache(s.Cache, s.cacheAt); err != nil {
		return err
	}
	if len(s.Nodes) == 0 {
		return nil
	}
	vcpus, memory := 0, uint64(0)
	for _, n := range s.Nodes {
		vcpus += n.VCPUs
		if vcpus > MaxVCPUs {
			return s.src.errorf(n.at, fmt.Sprintf("with this node the VM has %d vCPUs", vcpus), "at most %d over all nodes", MaxVCPUs)
		}
		if err := s.checkCache(n.Cache, n.cacheAt); err != nil {
			return err
		}
		memory += n.Memory
		if memory > MaxMemory {
			return s.src.errorf(n.at, fmt.Sprintf("with this node the VM has %s of memory", FormatSize(memory)), "at most %s over all nodes", FormatSize(MaxMemory))
		}
	}
	boot := s.Nodes[0]
	if boot.VCPUs < 1 {
		return s.src.errorf(boot.at, "the first node has no vCPU", "at least 1: it boots the guest")
	}
	if boot.Memory < MinBootMemory {
		return s.src.errorf(boot.at, fmt.Sprintf("the first node has %s of memory", FormatSize(boot.Memory)),
			"at least %s: kernel and initrd are loaded there", FormatSize(MinBootMemory))
	}
	return nil
}

// checkCache holds a bound against the number of shards that have to share it.
func (s *Spec) checkCache(cache uint64, at pos) error {
	if least := uint64(max(s.Shards, 1)) * MinCache; cache != 0 && cache < least {
		return s.src.errorf(at, fmt.Sprintf("cache is %s for %d shards", FormatSize(cache), max(s.Shards, 1)),
			"at least %s: %s for each shard", FormatSize(least), FormatSize(MinCache))
	}
	return nil
}

var sizeUnits = []struct {
	suffix string
	shift  uint
}{
	{"KiB", 10}, {"MiB", 20}, {"GiB", 30}, {"TiB", 40},
	{"K", 10}, {"M", 20}, {"G", 30}, {"T", 40},
}

// ParseSize reads a size like 512M, 512MiB, 1G or 2097152 (bytes). Units are powers of 1024.
func ParseSize(s string) (uint64, error) {
	num, shift := s, uint(0)
	for _, u := range sizeUnits {
		if rest, ok := strings.CutSuffix(s, u.suffix); ok {
			num, shift = strings.TrimRight(rest, " "), u.shift
			break
		}
	}
	if num == "" || len(num) > 15 || strings.IndexFunc(num, func(r rune) bool { return r < '0' || r > '9' }) >= 0 {
		return 0, fmt.Errorf("spec: %q is no size: write it like 512MiB or 1G", s)
	}
	var n uint64
	for _, c := range num {
		n = n*10 + uint64(c-'0')
	}
	if n > (1<<63)>>shift {
		return 0, fmt.Errorf("spec: size %s is too large", s)
	}
	return n << shift, nil
}

// FormatSize writes a size in the largest unit that divides it.
func FormatSize(n uint64) string {
	for _, u := range slices.Backward(sizeUnits[:4]) {
		if n != 0 && n%(1<<u.shift) == 0 {
			return fmt.Sprintf("%d%s", n>>u.shift, u.suffix)
		}
	}
	return fmt.Sprintf("%d bytes", n)
}
