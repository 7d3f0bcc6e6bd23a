package control

import (
	"context"
	"fmt"
	"io"
	"time"

	"ironspan/engine/spec"
	"ironspan/engine/wire"
)

// Machine is the share of a VM that a node daemon runs. Package engine implements it; a [Server] drives it.
//
// One Machine lives as long as its daemon and holds at most one VM. The server goes through
//
//	Prepare -> Start -> Wait -> Report -> Release
//
// and calls Release exactly once after every Prepare, whether Prepare failed, the VM ended, or the client
// vanished in between. After Release the next Prepare must find the node as clean as the first one did.
// Info may be called at any time, from any goroutine. Stop may be called from any goroutine between the
// beginning of Prepare and the end of Release, more than once.
type Machine interface {
	// Info probes what the node has to offer. It must return within ctx.
	Info(ctx context.Context) (*Info, error)

	// Prepare takes everything the VM needs: RAM populated and registered, peers connected, vCPUs created,
	// boot images loaded. It returns when the VM could start, or when ctx ends, with everything it holds
	// still releasable by Release. Errors say what the user can do about them.
	Prepare(ctx context.Context, job *Job, progress Progress) error

	// Start lets the vCPUs run. It returns at once.
	Start(ctx context.Context) error

	// Wait blocks until the VM's share on this node has ended and says how. It returns Outcome{Kind:
	// Stopped} soon after Stop was called or ctx ended.
	Wait(ctx context.Context) Outcome

	// Stop ends the VM's share on this node, tells the peers why, and returns without waiting for it.
	// A Prepare under way returns an error soon.
	Stop(reason string)

	// Report returns the counters so far. It is called any time between Prepare and Release.
	Report(ctx context.Context) (*Report, error)

	// Losses says what became of the VM's pages at this node when other nodes were lost, all at once. It is called
	// between the end of Wait and Release, and may end what still serves memory.
	Losses(ctx context.Context, lost []wire.NodeID) (*LossPart, error)

	// Release gives back everything that Prepare took. Threads, memory, queue pairs and files are gone
	// when it returns. ctx bounds how long it waits for them.
	Release(ctx context.Context) error
}

// Job is what Prepare is to prepare.
type Job struct {
	Plan *spec.Plan
	Node wire.NodeID // which of the plan's nodes this is

	// Kernel and Initrd are the boot images at node 0, nil elsewhere; Initrd may be nil or empty at node
	// 0, too. They stay readable until Prepare returns.
	Kernel, Initrd *Image

	// Console is where node 0's serial port goes; nil elsewhere. Write takes the guest's output and never
	// blocks. Read gives the user's input, blocking until there is some; it returns io.EOF when the VM is
	// released.
	Console io.ReadWriter
}

// Image is a boot image: a kernel or an initial RAM file system.
type Image struct {
	io.ReaderAt
	Size int64
}

// Progress takes an event of a VM's life to the client. It never blocks and may be called from any
// goroutine until Release returns. Kind, Time and Node are filled in where they are zero.
type Progress func(Event)

// EventKind tells events apart.
type EventKind string

// The kinds of events.
const (
	KindProgress EventKind = "progress" // a phase advances: Phase, and Done of Total where they are known
	KindState    EventKind = "state"    // the VM's share reached a state: Phase
	KindLog      EventKind = "log"      // something the user should read: Text
	KindEnded    EventKind = "ended"    // the last event of a VM at a node: Outcome
)

// Phases of a VM's life, in the order in which a node goes through them. Text may say more.
const (
	PhaseAccepted  = "accepted"  // the node took the job
	PhaseUpload    = "upload"    // boot images arrive at node 0
	PhasePopulate  = "populate"  // home RAM is allocated
	PhaseRegister  = "register"  // RAM is registered with the RDMA device
	PhaseConnect   = "connect"   // peers meet in the mesh
	PhaseConnected = "connected" // every peer is connected on every lane
	PhasePrepared  = "prepared"  // the VM could start
	PhaseBooting   = "booting"   // vCPUs run
	PhaseOnline    = "online"    // a vCPU was started by the guest: Text says which
	PhaseStopping  = "stopping"  // the VM is being stopped
)

// Event is one line of a VM's life at one node.
type Event struct {
	Kind    EventKind   `json:"kind"`
	Time    time.Time   `json:"time"`
	Node    wire.NodeID `json:"node"`
	Phase   string      `json:"phase,omitempty"`
	Done    uint64      `json:"done,omitempty"`
	Total   uint64      `json:"total,omitempty"`
	Text    string      `json:"text,omitempty"`
	Outcome *Outcome    `json:"outcome,omitempty"`
}

// OutcomeKind says how a VM ended.
type OutcomeKind string

// The ways a VM ends.
const (
	PoweredOff OutcomeKind = "powered-off" // the guest switched itself off
	GuestReset OutcomeKind = "guest-reset" // the guest asked for a reset: a panic with panic=N, or reboot
	GuestCrash OutcomeKind = "guest-crash" // a triple fault, or an exit KVM cannot handle
	NodeLost   OutcomeKind = "node-lost"   // a peer died or went silent: Lost says which
	LinkLost   OutcomeKind = "link-lost"   // two nodes that are there lost each other: Link says which
	Failed     OutcomeKind = "failed"      // the node itself failed: Reason says why
	Stopped    OutcomeKind = "stopped"     // the client or a peer asked for it: Reason says why
)

// Outcome is how a VM's share on a node ended.
type Outcome struct {
	Kind   OutcomeKind  `json:"kind"`
	Reason string       `json:"reason,omitempty"` // one line for the user
	Lost   *wire.NodeID `json:"lost,omitempty"`   // the node that was lost, with NodeLost

	// The two nodes, in ascending order, with LinkLost. Only the client can tell that both are there.
	Link *[2]wire.NodeID `json:"link,omitempty"`
}

// String returns the outcome as one line.
func (o Outcome) String() string {
	s := string(o.Kind)
	if o.Lost != nil {
		s = fmt.Sprintf("%s: node %d", s, *o.Lost)
	}
	if o.Link != nil {
		s = fmt.Sprintf("%s: nodes %d and %d", s, o.Link[0], o.Link[1])
	}
	if o.Reason != "" {
		s += ": " + o.Reason
	}
	return s
}

// LostNode returns the outcome of a VM that lost one of its nodes.
func LostNode(n wire.NodeID, reason string) Outcome {
	return Outcome{Kind: NodeLost, Lost: &n, Reason: reason}
}

// lostLink returns the outcome of a VM two of whose nodes lost each other.
func lostLink(a, b wire.NodeID, reason string) Outcome {
	return Outcome{Kind: LinkLost, Link: &[2]wire.NodeID{min(a, b), max(a, b)}, Reason: reason}
}

// Info is what a node says of itself before it is given a job.
type Info struct {
	Name    string   `json:"name"` // the name in its certificate; filled in by the server
	Version string   `json:"version"`
	Kernel  string   `json:"kernel"`  // host kernel release
	CPUs    int      `json:"cpus"`    // host CPUs the daemon may run on
	Memory  uint64   `json:"memory"`  // bytes of RAM, 0 if unknown
	Free    uint64   `json:"free"`    // bytes available for a VM, 0 if unknown
	TSCKHz  uint64   `json:"tsc_khz"` // frequency of the host's time-stamp counter, 0 if unknown
	CPUID   []byte   `json:"cpuid"`   // what KVM supports, in kvmhost's encoding, for the intersection
	KVM     Probe    `json:"kvm"`     // can a VM be made
	Uffd    Probe    `json:"uffd"`    // can memory be kept coherent
	Devices []Device `json:"devices"` // RDMA devices
	Busy    string   `json:"busy"`    // the VM the node holds now, empty when idle; filled in by the server
	HostID  string   `json:"host_id"` // equal for nodes on one host: shared memory reaches between them
	Proto   int      `json:"proto"`   // ProtocolVersion; filled in by the server
	Wire    int      `json:"wire"`    // wire.Version; filled in by the server
}

// Probe is whether a facility of the host can be used.
type Probe struct {
	OK     bool   `json:"ok"`
	Detail string `json:"detail"` // features, or why not and how to mend it
}

// Device is an RDMA device of a node.
type Device struct {
	Name   string `json:"name"`
	Netdev string `json:"netdev,omitempty"`
	State  string `json:"state"`
	MTU    int    `json:"mtu"` // active MTU, bytes
	Usable bool   `json:"usable"`
	Detail string `json:"detail,omitempty"`
}

// Report is what one node counted over a VM's life.
type Report struct {
	Node     wire.NodeID        `json:"node"`
	Name     string             `json:"name,omitempty"`
	Seconds  float64            `json:"seconds"` // from Start to the end, or until now
	VM       string             `json:"vm,omitempty"`
	Faults   map[string]Latency `json:"faults"` // by kind: read, write, upgrade, zero, fetch, stale ...
	Stages   map[string]Latency `json:"stages"` // what faults are made of: queue, remote, flight, install; split, revoke, forget, send
	Verbs    map[string]Ops     `json:"verbs"`  // by verb: send, write, read, cas, fetch_add
	Exits    map[string]uint64  `json:"exits"`  // KVM exits by kind, over all vCPUs
	VCPUs    []VCPUReport       `json:"vcpus"`
	Counters map[string]uint64  `json:"counters,omitempty"` // everything else that is counted
	HotPages []HotPage          `json:"hot_pages,omitempty"`
}

// Latency is a distribution of durations, in nanoseconds.
type Latency struct {
	Count   uint64      `json:"count"`
	SumNS   uint64      `json:"sum_ns"`
	P50NS   uint64      `json:"p50_ns"`
	P99NS   uint64      `json:"p99_ns"`
	P999NS  uint64      `json:"p999_ns"`
	MaxNS   uint64      `json:"max_ns"`
	Buckets [][2]uint64 `json:"buckets,omitempty"` // each: so many nanoseconds at most, and how many; rising, none empty
}

// Ops counts one verb's operations and the payload bytes they moved.
type Ops struct {
	Ops   uint64 `json:"ops"`
	Bytes uint64 `json:"bytes"`
}

// VCPUReport is what one vCPU did.
type VCPUReport struct {
	APICID uint32            `json:"apic_id"`
	Online bool              `json:"online"` // the guest started it
	Exits  map[string]uint64 `json:"exits"`
}

// HotPage is a page that moved between nodes more than others.
type HotPage struct {
	Page     wire.PFN `json:"pfn"`
	GPA      spec.GPA `json:"gpa"`
	Moves    uint64   `json:"moves"`
	Reads    uint64   `json:"reads"`
	Writes   uint64   `json:"writes"`
	TenureNS uint64   `json:"tenure_ns"`
}
