package verbs

import "fmt"

// MTU is a path MTU (enum ibv_mtu): the most payload that one packet carries.
type MTU uint8

// The five path MTUs there are.
const (
	MTU256 MTU = 1 + iota
	MTU512
	MTU1024
	MTU2048
	MTU4096
)

// Valid says whether m is one of the five.
func (m MTU) Valid() bool { return m >= MTU256 && m <= MTU4096 }

// Bytes is the payload in bytes, 0 for an invalid MTU.
func (m MTU) Bytes() int {
	if !m.Valid() {
		return 0
	}
	return 128 << m
}

// String prints the bytes.
func (m MTU) String() string {
	if !m.Valid() {
		return fmt.Sprintf("MTU(%d)", uint8(m))
	}
	return fmt.Sprint(m.Bytes())
}

// roceOverhead is what IP, UDP and the transport's headers and checksum can take of an Ethernet frame's
// payload in RoCE: GRH or IPv6 40, UDP 8, BTH 12, XRCETH 4, AtomicETH 28, ICRC 4.
const roceOverhead = 40 + 8 + 12 + 4 + 28 + 4

// MTUFor is the largest path MTU that surely fits a netdev's MTU in bytes, 0 if none does; some drivers reckon
// with shorter headers. A page travels in one packet only with 4096: jumbo frames.
func MTUFor(netdevMTU int) MTU {
	room := netdevMTU - roceOverhead
	for m := MTU4096; m >= MTU256; m-- {
		if m.Bytes() <= room {
			return m
		}
	}
	return 0
}

// LinkLayer is what a port runs on.
type LinkLayer uint8

// The link layers (IBV_LINK_LAYER_*).
const (
	LinkUnspecified LinkLayer = iota
	LinkInfiniBand
	LinkEthernet
)

// String names the link layer.
func (l LinkLayer) String() string {
	switch l {
	case LinkInfiniBand:
		return "InfiniBand"
	case LinkEthernet:
		return "Ethernet"
	}
	return "unspecified"
}

// PortState is a port's logical state (enum ibv_port_state).
type PortState uint8

// The states.
const (
	PortNop PortState = iota
	PortDown
	PortInit
	PortArmed
	PortActive
	PortActiveDefer
)

// String names the state.
func (s PortState) String() string {
	if n := [...]string{"nop", "down", "init", "armed", "active", "active-defer"}; int(s) < len(n) {
		return n[s]
	}
	return fmt.Sprintf("PortState(%d)", uint8(s))
}

// PortInfo describes a port of a device.
type PortInfo struct {
	Num       int
	State     PortState
	LinkLayer LinkLayer
	MaxMTU    MTU
	ActiveMTU MTU
	LID       uint16
	GIDTable  int    // length of the GID table, empty entries counted
	MaxMsg    uint32 // largest message in bytes
}

// Limits are what a device can do.
type Limits struct {
	Firmware        string
	GUID            uint64
	MaxQP           int
	MaxQPWR         int
	MaxSGE          int
	MaxCQ           int
	MaxCQE          int
	MaxMR           int
	MaxMRSize       uint64
	MaxReadsInit    int  // reads and atomics outstanding as initiator, per QP
	MaxReadsTarget  int  // as target, per QP
	AtomicsWithHost bool // RDMA atomics are atomic with the CPU's, too
	Ports           int
}
