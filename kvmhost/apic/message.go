package apic

// DeliveryMode is what a message asks of the processor, in the encoding of the ICR and the redirection table.
type DeliveryMode uint8

// Delivery modes.
const (
	Fixed DeliveryMode = iota
	LowestPriority
	SMI
	RemoteRead
	NMI
	INIT
	Startup
	ExtINT
)

var modeNames = [...]string{"fixed", "lowest priority", "smi", "remote read", "nmi", "init", "startup", "extint"}

func (m DeliveryMode) String() string {
	if int(m) < len(modeNames) {
		return modeNames[m]
	}
	return "invalid delivery mode"
}

// vectored says whether the mode carries a vector for the IRR.
func (m DeliveryMode) vectored() bool { return m == Fixed || m == LowestPriority }

// Shorthand is the ICR's destination shorthand.
type Shorthand uint8

// Destination shorthands.
const (
	NoShorthand Shorthand = iota
	Self
	AllIncludingSelf
	AllExcludingSelf
)

const (
	// Broadcast is the xAPIC destination that every local APIC matches, physical and logical.
	Broadcast = 0xff
	// MaxID is the highest APIC ID.
	MaxID = 0xfe
	// NoSource is the Source of a message that no local APIC sent.
	NoSource = ^uint32(0)
)

// Message is one interrupt message, from a local APIC's ICR, an IOAPIC or an MSI.
type Message struct {
	Dest      uint32       // physical APIC ID, or logical destination
	Logical   bool         // Dest is matched against LDR and DFR
	Mode      DeliveryMode //
	Vector    uint8        // interrupt vector; for Startup the page the vCPU starts in
	Level     bool         // assert (false only for an INIT level de-assert, which is never sent)
	Trigger   bool         // level triggered: the EOI has to be told to the IOAPIC
	Shorthand Shorthand    //
	Source    uint32       // APIC ID of the sender, or NoSource
}

// Router carries messages to local APICs, here and on other nodes. Deliver must not wait for a vCPU; it is
// called on vCPU threads and on whatever thread moves an IOAPIC's pin.
type Router interface {
	Deliver(Message)
}

// MSI decodes a message-signalled interrupt: the address and data a device writes. It is false when the
// address is not in the interrupt window 0xfeexxxxx.
func MSI(addr uint64, data uint32) (Message, bool) {
	if addr>>20 != 0xfee {
		return Message{}, false
	}
	m := Message{
		Dest:    uint32(addr>>12) & 0xff,
		Logical: addr&(1<<2) != 0,
		Mode:    DeliveryMode(data >> 8 & 7),
		Vector:  uint8(data),
		Level:   true,
		Trigger: data&(1<<15) != 0,
		Source:  NoSource,
	}
	return m, true
}
