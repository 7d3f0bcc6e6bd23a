// Package wire defines the fixed-layout messages that Ironspan's nodes exchange on the data plane, and
// the identifiers that name nodes, pages and VM incarnations in them.
//
// Every message is [Size] bytes, little endian, and starts with the same 16-byte header, so that a receive
// slot holds exactly one message, encoding is a handful of stores, and a receiver can refuse a message of
// another version, VM incarnation or sender before it looks at anything else:
//
//	offset size field
//	     0    1 version (Version)
//	     1    1 kind
//	     2    1 from       node that sent it
//	     3    1 flags
//	     4    4 epoch
//	     8    1 requester  node the transaction belongs to
//	     9    1 mode       0 none, 1 shared, 2 modified
//	    10    1 acks       invalidation acknowledgements the requester has to wait for
//	    11    1 reserved, zero
//	    12    4 txn        requester's transaction number
//	    16    4 slot       requester's receive slot
//	    20    4 spent      nanoseconds at nodes so far, see Message
//	    24    8 page
//	    32   32 args       four 64-bit words, their meaning given by the kind
//
// Package wire imports the standard library only.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	// Version is the layout's version. Nodes of different versions never get past the rendezvous, so a
	// mismatch here is corruption or a stranger.
	Version = 3
	// Size is the length of an encoded message in bytes.
	Size = 64
	// PageSize is the unit of coherence in bytes.
	PageSize = 4096
	// PageShift is log2 of PageSize.
	PageShift = 12
	// MaxNodes bounds the nodes of one VM: a directory entry keeps its sharers in one 64-bit word.
	MaxNodes = 64
)

// NodeID is a node's dense number in its VM, from 0. Node 0 boots the guest.
type NodeID uint8

// PFN is a page's number in the VM's RAM: dense from 0, without the hole that guest-physical addresses have
// below 4 GiB.
type PFN uint64

// Epoch is the incarnation of a VM's membership. Messages of another epoch are dropped and counted.
type Epoch uint32

// Kind says what a message asks for or answers. The zero Kind is no message.
type Kind uint8

// Kinds of the coherence lane. See docs/architecture.md for who sends which to whom.
const (
	GetS      Kind = 1 + iota // requester to home: read copy wanted
	GetM                      // requester to home: writable copy wanted
	Upgrade                   // requester to home: holds a read copy, wants to write
	FwdGetS                   // home to owner: send a read copy to the requester, and the bytes home
	FwdGetM                   // home to owner: hand the page over to the requester
	Inv                       // home to sharer: drop the copy, acknowledge to the requester
	Grant                     // holder or home to requester: the page is yours in Mode, and others to be fetched
	InvAck                    // sharer to requester: copy dropped
	WriteBack                 // owner to home: the home frame holds the page's bytes again
	Done                      // requester to home: transaction over
	coherenceEnd

	// CoherenceFirst and CoherenceLast bound the kinds above.
	CoherenceFirst = GetS
	CoherenceLast  = coherenceEnd - 1
)

// Kinds that never travel: a lane's word to its own node that a one-sided operation is over. From is the node whose
// memory it was about. Decode refuses them, so they cannot come from anybody else.
const (
	Fetched = coherenceEnd + iota // a page that was read from its home frame is in the slot
	Parked                        // a page that was written is in its home frame
)

// Kinds of the machine lane; the words of Args are given for each.
const (
	IPI       Kind = 64 + iota // interrupt message, INIT and start-up included: [0] destination, [1] the rest packed, [2] source
	Access                     // port or MMIO access for a device of the receiver: [0] address, [1] size and direction, [2] data
	AccessAck                  // its answer: [0] data, [1] 1 if a device answered
	EOI                        // end of a level-triggered interrupt: [0] vector
	Ping                       // clock sample: [0] sender's host TSC at sending
	Pong                       // answer: [0] as in Ping, [1] guest TSC at the answering node
	machineEnd

	// MachineFirst and MachineLast bound the kinds above.
	MachineFirst = IPI
	MachineLast  = machineEnd - 1
)

var kindNames = [...]string{
	GetS: "GetS", GetM: "GetM", Upgrade: "Upgrade", FwdGetS: "FwdGetS", FwdGetM: "FwdGetM", Inv: "Inv",
	Grant: "Grant", InvAck: "InvAck", WriteBack: "WriteBack", Done: "Done",
	Fetched: "Fetched", Parked: "Parked",
	IPI: "IPI", Access: "Access", AccessAck: "AccessAck", EOI: "EOI", Ping: "Ping", Pong: "Pong",
}

// String returns the kind's name as the protocol's documents spell it.
func (k Kind) String() string {
	if int(k) < len(kindNames) && kindNames[k] != "" {
		return kindNames[k]
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// Mode is the right to a page that a message asks for or gives.
type Mode uint8

// The modes, in order of strength.
const (
	None     Mode = iota // no access: state I
	Shared               // read: state S
	Modified             // read and write: state M
)

// String returns I, S or M.
func (m Mode) String() string {
	if m > Modified {
		return fmt.Sprintf("Mode(%d)", uint8(m))
	}
	return "ISM"[m : m+1]
}

// Flags qualify a message.
type Flags uint8

// The flags.
const (
	FlagData Flags = 1 << iota // the page's bytes are in the receiver's slot (or home frame)
	FlagZero                   // the page is all zeros and its bytes did not travel
	FlagHome                   // WriteBack: the bytes are in the home frame already, and the sender gives up its right
	flagEnd

	flagMask = flagEnd - 1
)

// Message is one message, decoded. It holds no pointers and is copied by value.
type Message struct {
	Kind      Kind
	From      NodeID
	Flags     Flags
	Requester NodeID
	Mode      Mode
	Acks      uint8
	Epoch     Epoch
	Txn       uint32
	Slot      uint32
	// Spent is how long the transaction has been at nodes other than its requester, in nanoseconds, up to the sending
	// of this message. The protocol does without it: drivers fill it in, so that a requester can tell what its wait was
	// made of.
	Spent uint32
	Page  PFN
	Args  [4]uint64
}

// Errors of Decode. They are values, built once: refusing a stranger's message costs no allocation.
var (
	ErrShort   = errors.New("wire: message shorter than 64 bytes")
	ErrVersion = errors.New("wire: message of another version")
	ErrKind    = errors.New("wire: message of no known kind")
	ErrField   = errors.New("wire: message with a field out of its range")
)

// Encode writes m into b, which must hold at least Size bytes.
func (m *Message) Encode(b []byte) {
	b = b[:Size:Size]
	b[0] = Version
	b[1] = byte(m.Kind)
	b[2] = byte(m.From)
	b[3] = byte(m.Flags)
	binary.LittleEndian.PutUint32(b[4:], uint32(m.Epoch))
	b[8] = byte(m.Requester)
	b[9] = byte(m.Mode)
	b[10] = m.Acks
	b[11] = 0
	binary.LittleEndian.PutUint32(b[12:], m.Txn)
	binary.LittleEndian.PutUint32(b[16:], m.Slot)
	binary.LittleEndian.PutUint32(b[20:], m.Spent)
	binary.LittleEndian.PutUint64(b[24:], uint64(m.Page))
	for i, a := range m.Args {
		binary.LittleEndian.PutUint64(b[32+8*i:], a)
	}
}

// Decode reads a message from b. It checks everything that can be judged without knowing the VM: length,
// version, kind, and the ranges of the fields. On an error *m is unspecified.
func (m *Message) Decode(b []byte) error {
	if len(b) < Size {
		return ErrShort
	}
	b = b[:Size:Size]
	if b[0] != Version {
		return ErrVersion
	}
	k := Kind(b[1])
	if (k < CoherenceFirst || k > CoherenceLast) && (k < MachineFirst || k > MachineLast) {
		return ErrKind
	}
	if b[2] >= MaxNodes || Flags(b[3])&^flagMask != 0 || b[8] >= MaxNodes || Mode(b[9]) > Modified ||
		b[10] > MaxNodes || b[11] != 0 {
		return ErrField
	}
	m.Kind = k
	m.From = NodeID(b[2])
	m.Flags = Flags(b[3])
	m.Epoch = Epoch(binary.LittleEndian.Uint32(b[4:]))
	m.Requester = NodeID(b[8])
	m.Mode = Mode(b[9])
	m.Acks = b[10]
	m.Txn = binary.LittleEndian.Uint32(b[12:])
	m.Slot = binary.LittleEndian.Uint32(b[16:])
	m.Spent = binary.LittleEndian.Uint32(b[20:])
	m.Page = PFN(binary.LittleEndian.Uint64(b[24:]))
	for i := range m.Args {
		m.Args[i] = binary.LittleEndian.Uint64(b[32+8*i:])
	}
	return nil
}
