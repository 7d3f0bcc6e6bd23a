package coherence

import (
	"fmt"
	"math"
	"time"

	"ironspan/engine/wire"
)

// Range is a contiguous run of pages, First included, Last excluded.
type Range struct{ First, Last wire.PFN }

// MaxSlots bounds Config.Slots: a page's state names the slot it waits for in 16 bits.
const MaxSlots = math.MaxUint16

// Config says which node and which stripe of memory an Agent serves. Homes, Shards, StripeShift, Epoch and
// Slots must be the same on all nodes of a VM; New cannot see that, the rendezvous does.
type Config struct {
	// Self is this node; Homes[n] is the range of RAM homed at node n, so len(Homes) is the number of
	// nodes (1 to wire.MaxNodes). The ranges follow one another without gaps, from page 0. A node
	// without memory has an empty range.
	Self  wire.NodeID
	Homes []Range

	// The agent serves the pages whose stripe, (page >> StripeShift) % Shards, equals Shard.
	Shard, Shards int
	StripeShift   uint

	// Epoch is the incarnation of the membership: messages of another one are dropped.
	Epoch wire.Epoch

	// Slots is the number of receive slots of this shard at every node, 1 to MaxSlots. A slot is taken
	// from a request to the installation of its page, so it is also the bound on what a node has
	// outstanding in this shard; further faults wait in a local FIFO.
	Slots int

	// Tenure sets how long a page that is fought over stays with its winner. The zero value is: not at all.
	Tenure Tenure

	// WalksWrite says that this node's processors count a walk of the guest's page tables as a write to them. Then an
	// instruction can need ten pages and more in M at a time, and the node asks for all that it lost at once.
	WalksWrite bool

	// Migratory makes this home give a page to a reader in M at once where the readers before it went on to write it.
	Migratory bool

	// Prefetch is how many pages ahead a node asks for at most when its faults come in sequence; 0: none.
	Prefetch int

	// CoverFrom is from how many pages of a group of 64 on, that a node has the right to read, this home gives it the
	// right to read the others, too, as far as nobody else may write them. 0: never, nor to those that are shared
	// anyway, which otherwise every grant of one page covers. See DefaultCoverFrom.
	CoverFrom int

	// Cache bounds the pages homed elsewhere that this node holds or asks for in this shard; 0: no bound. A node at
	// its bound parks pages in their home frames before it asks for more. It may differ from node to node.
	Cache int

	// ReadAsWrite makes a read fault on a page homed here ask for M, for kernels that cannot map an
	// existing page write-protected (no UFFDIO_CONTINUE_MODE_WP).
	ReadAsWrite bool
}

// DefaultCoverFrom takes a node for a reader of a group that came back to it. A page that the home gives up writing in
// vain costs an invalidation when it is written again.
const DefaultCoverFrom = 16

// Tenure bounds the time for which a node that won a page may keep it before it answers a forward or an
// invalidation. The home decides the bound page by page: a page that moved for the first time in a while has
// none; one that moves again within Window gets Base, then twice that with each further quick move, up to
// Max; each quiet Window halves it again. The holder uses Base of it in any case, and more while it still
// collects other pages that it needs at the same time. See DefaultTenure for how to choose, and the package's
// documentation for why it is there.
type Tenure struct {
	Base   time.Duration // least tenure, and the first step; 0 switches tenure off
	Max    time.Duration // no page is withheld longer; bounds the wait of every request
	Window time.Duration // a page that moves again within this time is fought over
}

// DefaultTenure returns a Tenure for a fabric on which a fault served by another node takes roundTrip from
// the guest's touch to its resumption. Rather too long than too short: take a high percentile, not the
// median.
func DefaultTenure(roundTrip time.Duration) Tenure { return defaultTenure(roundTrip) }

// Op is what an Action asks the driver to do.
type Op uint8

// The actions. "Frame" is the page's memory at this node: the home frame for a page homed here, which
// always exists, and a cached frame for any other, which lives from OpInstall to OpDiscard.
const (
	_ Op = iota
	// OpSend sends Msg to Peer.
	OpSend
	// OpSendPage puts the bytes of Page's frame at Peer, into its receive slot Msg.Slot or, if Peer is
	// the page's home, into its home frame, and then sends Msg on the same queue pair, so that its
	// arrival proves the bytes'. The driver sets FlagData in Msg; or, if the page is all zeros, FlagZero,
	// and sends no bytes. The guest has no writable mapping of the page while the action is performed.
	// The frame of a page homed here stays unchanged until the peer has the message, so it may be sent
	// from where it is; the frame of any other page may be discarded by the next action.
	OpSendPage
	// OpProtect turns the guest's mapping of Page from M to S: write-protect it. When the driver goes on
	// to the next action, no vCPU can write any more.
	OpProtect
	// OpUnmap takes the guest's mapping of Page away. When the driver goes on to the next action, no vCPU
	// can read or write any more. The frame's bytes stay readable through the service view.
	OpUnmap
	// OpDiscard says that Page's cached frame is not needed any more. Never for a page homed here.
	OpDiscard
	// OpInstall maps Page in Mode and wakes who waits for it. The bytes of a page homed here are in the
	// home frame, which is to be zeroed first if Msg has FlagZero; those of any other are in Slot, or
	// all zeros if Msg has FlagZero. Slot is free as soon as the action is performed: a later action of
	// the same batch may name it in a new request.
	OpInstall
	// OpZeroFrame zeroes the home frame of Page: a page of zeros was written back.
	OpZeroFrame
	// OpUnprotect turns the guest's mapping of Page from S to M and wakes who waits for it.
	OpUnprotect
	// OpWake wakes who waits for Page: its mapping already is Mode (or the agent's queue is full, or the right to a page
	// went while it was fetched). A driver may take the opportunity to restore a mapping that the kernel has lost.
	OpWake
	// OpPark writes the bytes of Page's frame, which the guest has not mapped, to the home frame at Peer and, when they
	// are there, gives the agent Msg. The frame stays until then.
	OpPark
	// OpFetch reads Page from its home frame at Peer into the slot Msg.Slot and, when it is there, gives the agent Msg.
	OpFetch
)

// Action is one thing the driver has to do. Peer and Msg belong to OpSend, OpSendPage, OpPark and OpFetch, Mode to
// OpInstall and OpWake, Slot to OpInstall. An OpInstall's Msg has Kind Fetched if the page was read by OpFetch.
type Action struct {
	Op   Op
	Mode wire.Mode
	Peer wire.NodeID
	Slot uint32
	Page wire.PFN
	Msg  wire.Message
}

// Status is the verdict on an input. Anything but OK means that the input was counted, under
// Stats.Dropped, and changed nothing else.
type Status uint8

// The verdicts.
const (
	OK           Status = iota
	BadEpoch            // message of another incarnation
	BadKind             // not a message of the coherence lane
	BadSender           // its sender may not send this kind for this page
	BadRequester        // requester is no node of the VM, or not one this message can be about
	BadPage             // page outside of RAM, of another shard or, sent to a home, homed elsewhere
	BadSlot             // slot out of range, or taken by another request of the same node
	BadField            // mode, flags, acks or args make no sense for the kind
	BadTxn              // no such transaction: stale, repeated or invented
	BadState            // the page is not in a state in which this can be asked
	NumStatus           // number of verdicts, not one of them
)

var statusNames = [NumStatus]string{
	"ok", "bad epoch", "bad kind", "bad sender", "bad requester", "bad page", "bad slot", "bad field",
	"bad transaction", "bad state",
}

// String names the verdict. It does not allocate for any verdict the package returns.
func (s Status) String() string {
	if s < NumStatus {
		return statusNames[s]
	}
	return fmt.Sprintf("Status(%d)", uint8(s))
}

// Stats counts what an Agent did. It belongs to the goroutine that drives the agent, which copies it for
// others.
type Stats struct {
	// Faults, by what became of them. The first three began a transaction.
	ReadFaults     uint64 // page not mapped, read
	WriteFaults    uint64 // page not mapped, write (or read with ReadAsWrite)
	UpgradeFaults  uint64 // page mapped for reading, write
	StaleFaults    uint64 // the mapping was already good
	FollowerFaults uint64 // the page was already asked for
	SlotWaits      uint64 // no slot free: waited in the local FIFO
	FrameWaits     uint64 // as many pages cached as there may be: waited in the local FIFO
	SlotRefusals   uint64 // nor room in the FIFO: woken, to fault again
	Fetches        uint64 // pages that had been parked, read back without asking anybody: faults, or ahead of them
	Companions     uint64 // no faults, but pages asked for along with one (see companions)
	Prefetches     uint64 // no faults, but pages asked for ahead of them (see streams)

	// As requester, by what the grant brought.
	GrantsShared    uint64
	GrantsModified  uint64
	UpgradesBare    uint64 // upgrades without data, the normal case; part of GrantsModified
	UpgradesCarried uint64 // upgrades that lost a race and needed the data; part of GrantsModified
	ZeroGrants      uint64 // grants of a page of zeros
	HomeGrants      uint64 // grants by this node's own directory without anybody else's help
	EarlyAcks       uint64 // invalidation acknowledgements that overtook their grant

	// As home.
	Requests    [3]uint64 // GetS, GetM, Upgrade, own ones included
	Queued      uint64    // requests that found the page busy
	Forwards    uint64    // to other nodes and to itself
	Invalidates uint64    // to other nodes and to itself
	WriteBacks  uint64
	Covered     uint64 // pages that a node was given the right to read along with one it asked for
	Returns     uint64 // pages whose owner had them parked when somebody else asked for them
	Migrations  uint64 // reads that were given the page to write, because those before went on to do so
	Moves       uint64 // transactions that took a right away from somebody
	PingPongs   uint64 // of these, within the tenure window of the one before

	// As holder.
	ForwardsServed    uint64
	InvalidatesServed uint64
	Deferred          uint64 // of both, those that tenure put off
	DeferredNs        uint64 // time for which they were put off
	DeferOverflows    uint64 // tenures cut short because the pool of deferrals was full

	// Pages homed elsewhere: how many frames there are now, the most there were, and pages that were parked.
	Cached, CachedMost uint64
	EvictionsClean     uint64 // held in S
	EvictionsDirty     uint64 // held in M, and so written to the home frame

	Sent      [wire.CoherenceLast + 1]uint64 // messages to other nodes, by kind
	PagesSent uint64                         // of these, messages with a page before them

	Dropped [NumStatus]uint64 // refused inputs by reason
}

// HotPage is a page that moves between nodes a lot, and how often it did so; at most Over of the Moves may
// belong to other pages that shared its place in the sketch.
type HotPage struct {
	Page        wire.PFN
	Moves, Over uint64
	Tenure      time.Duration // the page's tenure now
}

// PageInfo is the state of a page at a node, for reports and tests.
type PageInfo struct {
	Mode     wire.Mode // how this node has it mapped
	Right    wire.Mode // its right to it; more than Mode while the page is parked
	Waiting  bool      // asked for, or in the FIFO for a slot
	Deferred bool      // a forward or invalidation waits for the end of the tenure

	// The directory's view, if Home.
	Home    bool
	Shared  bool        // shared by Sharers; else owned by Owner
	Owner   wire.NodeID // meaningless if Shared
	Sharers uint64      // bit n: node n
	Busy    bool        // in a transaction
	Queue   int         // requests of this page at home, the one in progress included
	Tenure  time.Duration
}
