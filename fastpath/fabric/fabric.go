// Package fabric defines what carries Ironspan's data plane between nodes: the transport of one lane.
//
// A lane joins the same shard of every node (or, for the machine lane, the nodes themselves). Its two
// forms, fastpath/fabric/shm (processes of one host) and fastpath/fabric/rdma (RC queue pairs over package
// verbs), implement [Lane]: an [Endpoint] for the running VM plus the exchange of [Offer]s that connects it.
//
// # Ordering
//
// Between one endpoint and one peer, Sends arrive in order, and when Poll hands out a message, the bytes of every
// WritePage and WriteBytes that the sender posted to this node before that Send are in this node's memory, visible to
// any of its threads that learns of the message from Poll's caller. They may be there earlier, even before messages
// sent before them. A ReadPage sees what the WritePages and WriteBytes wrote that this node posted to that peer before.
// What is written to the page later, by anyone, it may see, or not, or in part, until it is over. Nothing is promised
// about posts to different peers. Posts begin at Flush at the latest; an endpoint may start them earlier.
//
// # Words
//
// Nobody hears of a one-sided operation by itself. Where its own node has to know that it is over, it is posted with a
// *word*: a message from this node's lane to this node, which Poll hands out once, as it was given. By the word of a
// ReadPage, the bytes are in the slot, visible like those that a message proves. By that of a WriteBytes, they are at
// the peer, whatever becomes of this node; threads of the peer see them as above, when they get what is sent later.
// Words come in any order, among each other and among messages. A WritePage, or a WriteBytes without a word, that no
// later Send follows is not known to have arrived.
//
// # Ownership
//
// All methods of an Endpoint but Stats belong to one thread at a time, the one that drives the lane; Offer and Connect
// are called before it starts polling, Close after it stopped. Send and Flush need not be called by who has armed it.
// Send copies its message, WriteBytes its page, and WriteBytes and ReadPage their word before they return. WritePage
// may read its source any time until the peer has the next message sent to it; the coherence protocol keeps a home
// frame unchanged that long. A slot belongs to the lane from the ReadPage that names it until Poll has handed out the
// word. Poll overwrites the messages it is given and keeps none.
//
// # Failure
//
// A peer is lost when its process or queue pair died, when what it put into the shared memory makes no
// sense, when it closed its end, when it takes nothing for so long that the backlog for it overflows, or
// when a post names memory that the peer did not offer. Poll reports each lost peer exactly once as a
// *[PeerError]; from then on posts to that peer are dropped silently, nothing from it is delivered, no word of an
// operation on it is handed out, and the other peers are served as before. A slot that a page of it was to be read into
// stays the lane's. There is no way back: the VM's next epoch has new lanes.
//
// Post, Flush, Poll and Arm allocate nothing, take no lock and build no string, except to report a loss.
package fabric

import (
	"errors"
	"fmt"
	"sync/atomic"

	"ironspan/engine/wire"
)

// Region names a piece of a node's memory that peers reach.
type Region uint8

// The regions.
const (
	RAM   Region = iota // the node's home frames; an offset is the page's VM RAM offset, PFN*wire.PageSize
	Slots               // the node's receive slots of this lane, to write only; an offset is slot*wire.PageSize
)

// String returns ram or slots.
func (r Region) String() string {
	switch r {
	case RAM:
		return "ram"
	case Slots:
		return "slots"
	}
	return fmt.Sprintf("Region(%d)", uint8(r))
}

// Memory is a mapping of this process that a lane reads from, reads pages of peers into and lets peers reach. It is
// page-aligned and never faults into user space (it is the service view, not the guest view). Its owner keeps it mapped
// until the lane is closed.
type Memory struct {
	Addr uintptr // first byte
	Len  uint64  // bytes
	FD   int     // memfd whose offset 0 is at Addr (the shm fabric needs it), or -1
}

// Span is the byte range [First, Last) of the VM's RAM.
type Span struct{ First, Last uint64 }

// Config is what every form of a lane needs to know. A lane without memory, such as the machine lane, has
// zero RAM and Slots and no Homes; WritePage, WriteBytes and ReadPage on it lose the peer.
type Config struct {
	Self  wire.NodeID // this node
	Nodes int         // nodes of the VM, Self included
	Lane  uint16      // the lane's number: the shard's, or any other for the machine lane; equal on all nodes
	Epoch wire.Epoch  // incarnation of the VM's membership; offers of another one are refused
	RAM   Memory      // the whole VM RAM's service view; peers reach only Homes[Self] of it
	Homes []Span      // Homes[n] is the range homed at node n; page-aligned
	Slots Memory      // this lane's receive slots; a multiple of wire.PageSize long, the same length on all nodes
}

// Validate says what is wrong with c, if anything.
func (c *Config) Validate() error {
	switch {
	case c.Nodes < 1 || c.Nodes > wire.MaxNodes:
		return fmt.Errorf("fabric: %d nodes, want 1 to %d", c.Nodes, wire.MaxNodes)
	case int(c.Self) >= c.Nodes:
		return fmt.Errorf("fabric: self is node %d of %d", c.Self, c.Nodes)
	case len(c.Homes) != 0 && len(c.Homes) != c.Nodes:
		return fmt.Errorf("fabric: %d home ranges for %d nodes", len(c.Homes), c.Nodes)
	case len(c.Homes) == 0 && (c.RAM.Len != 0 || c.Slots.Len != 0):
		return errors.New("fabric: memory without home ranges")
	}
	for n, h := range c.Homes {
		if h.First > h.Last || h.Last > c.RAM.Len || h.First%wire.PageSize != 0 || h.Last%wire.PageSize != 0 {
			return fmt.Errorf("fabric: home range of node %d, %#x-%#x, is not a page-aligned part of %#x bytes of RAM",
				n, h.First, h.Last, c.RAM.Len)
		}
	}
	for _, m := range [...]Memory{c.RAM, c.Slots} {
		if m.Addr%wire.PageSize != 0 || m.Len%wire.PageSize != 0 {
			return fmt.Errorf("fabric: memory at %#x, %#x bytes, is not page-aligned", m.Addr, m.Len)
		}
	}
	return nil
}

// Endpoint is one node's end of a lane. See the package documentation for order, ownership and failure.
type Endpoint interface {
	// WritePage posts a one-sided write of one page from this node's own region src at srcOff (RAM: a home
	// frame) to peer's region dst at dstOff. Offsets are multiples of wire.PageSize.
	WritePage(peer wire.NodeID, dst Region, dstOff uint64, src Region, srcOff uint64)
	// WriteBytes is WritePage from any wire.PageSize bytes of Go-visible memory. The bytes are copied (to the
	// peer, or to a registered bounce buffer) before it returns, so the caller may free or reuse them. over is the word
	// for when they have arrived, or nil; as with ReadPage.
	WriteBytes(peer wire.NodeID, dst Region, dstOff uint64, page []byte, over *wire.Message)
	// ReadPage posts a one-sided read of the page at srcOff of peer's RAM, a home frame, into this node's own slot. over
	// is the word for when it is there; its From must be peer. As many words may be to come as there are slots; a post
	// that asks for one more can lose its peer.
	ReadPage(peer wire.NodeID, srcOff uint64, slot uint32, over *wire.Message)
	// Send posts m, which is copied. m.From must be this node: receivers drop the peer otherwise. It arrives as it is,
	// but for m.Spent, which may be less by a 32nd.
	Send(peer wire.NodeID, m *wire.Message)
	// Flush starts everything posted since the last one: one doorbell for each peer concerned.
	Flush()
	// Poll fills ms with messages that have arrived and words that are due, as many as are there and fit, and returns
	// their number. Each message has passed wire.Message.Decode, each word is as this node gave it, and the From of
	// either is the peer whose link it concerns: no peer can send a kind that Decode refuses, so such a kind tells that
	// it is a word. Poll also goes on with posts that were held back for want of room at the peer, takes note of
	// completions. A non-nil error says that one peer was lost; the n messages
	// are good nevertheless.
	Poll(ms []wire.Message) (n int, lost *PeerError)
	// FD is a descriptor to sleep on, the same one for the endpoint's life: after Arm returned false, something to
	// read comes to it when Poll has something to do. It is for edge-triggered epoll: what came before may lie there
	// for long, so that it stays readable. It is never read by the caller.
	FD() int
	// Arm asks for something new to read at FD from now on. It returns true if there is something to do already;
	// then the caller must Poll and not sleep. To sleep without losing a wake-up: Flush, Arm, and only if
	// it returned false, wait for FD. Once Poll has been called, Arm again before the next sleep.
	Arm() bool
	// Stats returns the endpoint's counters, which any thread may read at any time.
	Stats() *Stats
	// Close ends all links, so that peers see this node gone, and frees the endpoint's resources.
	Close() error
}

// Lane is an Endpoint with the means to connect it. Control-plane code asks for one Offer for each peer,
// carries it there over the authenticated channel, and passes the peer's offer to Connect; the lane is ready
// when Connect succeeded for every peer.
type Lane interface {
	Endpoint
	// Offer returns what peer has to know to connect to this lane. It is opaque, meant for that peer and
	// lane only, and worth a secret's care: who holds it and reaches the fabric can read and write guest memory.
	Offer(peer wire.NodeID) ([]byte, error)
	// Connect links this end with the peer whose offer to us this is. Everything in it is checked, version,
	// epoch, lane and node numbers included; a refusal says what did not match.
	Connect(peer wire.NodeID, offer []byte) error
}

// PeerError says that a peer was lost: the link to it carries nothing any more.
type PeerError struct {
	Peer   wire.NodeID
	Op     string // what failed: "poll", "send", "write", "read", "peer" (its process died), "closed" ...
	Reason error
}

// Error returns "fabric: node 2 lost: poll: reason".
func (e *PeerError) Error() string {
	return fmt.Sprintf("fabric: node %d lost: %s: %v", e.Peer, e.Op, e.Reason)
}

// Unwrap returns the reason.
func (e *PeerError) Unwrap() error { return e.Reason }

// Reasons that both forms of a lane report, for errors.Is.
var (
	ErrPeerDied   = errors.New("its process ended")
	ErrPeerClosed = errors.New("it closed its end of the lane")
	ErrGarbled    = errors.New("it sent something that is not a message of this lane")
	ErrOverflow   = errors.New("it takes no messages: the backlog for it is full")
	ErrRange      = errors.New("an access to memory that it did not offer")
	ErrWords      = errors.New("more operations on its memory are to be told the end of than there are slots")
)

// Errors of Connect, for errors.Is.
var (
	ErrOffer     = errors.New("fabric: offer refused")
	ErrConnected = errors.New("fabric: peer is connected already")
)

// Verb is a kind of operation that is counted.
type Verb uint8

// The verbs. The shared-memory fabric counts its copies as Write or Read and its ring entries as Send.
const (
	Send Verb = iota
	Write
	Read
	CAS
	FetchAdd
	Verbs // number of verbs
)

var verbNames = [Verbs]string{"send", "write", "read", "cas", "fetch_add"}

// String returns the verb's name in reports: send, write, read, cas, fetch_add.
func (v Verb) String() string {
	if v < Verbs {
		return verbNames[v]
	}
	return fmt.Sprintf("Verb(%d)", uint8(v))
}

// Counter counts operations and their payload bytes. Written by the lane's thread, read by any.
type Counter struct{ Ops, Bytes atomic.Uint64 }

// Add counts one operation of n bytes. Only the lane's thread calls it.
func (c *Counter) Add(n uint64) {
	c.Ops.Add(1)
	c.Bytes.Add(n)
}

// Stats are an endpoint's counters since it was made. Each counter is exact; a reader sees no two of them at
// the same instant.
type Stats struct {
	Posted    [Verbs]Counter // operations posted by this node, by verb
	Received  Counter        // messages handed out by Poll; no words
	Doorbells atomic.Uint64  // times a peer (shm) or a device (rdma) was told of new work
	HeldBack  atomic.Uint64  // posts that waited for room at the peer
	Armed     atomic.Uint64  // times Arm returned false: the thread was about to sleep
	LostPeers atomic.Uint64
}

// VerbCount is one verb's share of a [StatsSnapshot].
type VerbCount struct {
	Ops   uint64 `json:"ops"`
	Bytes uint64 `json:"bytes"`
}

// StatsSnapshot is Stats at one moment, for reports.
type StatsSnapshot struct {
	Send      VerbCount `json:"send"`
	Write     VerbCount `json:"write"`
	Read      VerbCount `json:"read"`
	CAS       VerbCount `json:"cas"`
	FetchAdd  VerbCount `json:"fetch_add"`
	Received  VerbCount `json:"received"`
	Doorbells uint64    `json:"doorbells"`
	HeldBack  uint64    `json:"held_back"`
	Armed     uint64    `json:"armed"`
	LostPeers uint64    `json:"lost_peers"`
}

// Snapshot reads the counters.
func (s *Stats) Snapshot() StatsSnapshot {
	v := func(c *Counter) VerbCount { return VerbCount{c.Ops.Load(), c.Bytes.Load()} }
	return StatsSnapshot{
		Send: v(&s.Posted[Send]), Write: v(&s.Posted[Write]), Read: v(&s.Posted[Read]),
		CAS: v(&s.Posted[CAS]), FetchAdd: v(&s.Posted[FetchAdd]),
		Received:  v(&s.Received),
		Doorbells: s.Doorbells.Load(), HeldBack: s.HeldBack.Load(), Armed: s.Armed.Load(), LostPeers: s.LostPeers.Load(),
	}
}
