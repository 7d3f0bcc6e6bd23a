package verbs

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// GID is a port's global address: 128 bits, in RoCE v2 an IPv6 address or an IPv4 one mapped into it.
type GID [16]byte

// Addr is the GID as an IP address, IPv4 where it is a mapped one.
func (g GID) Addr() netip.Addr { return netip.AddrFrom16(g).Unmap() }

// IsZero says whether the GID is empty.
func (g GID) IsZero() bool { return g == GID{} }

// String prints the GID as an IP address.
func (g GID) String() string { return g.Addr().String() }

// GIDFrom is the GID of an IP address.
func GIDFrom(a netip.Addr) GID { return GID(a.As16()) }

// GIDType is what a GID can carry (enum ibv_gid_type).
type GIDType uint32

// The types.
const (
	GIDInfiniBand GIDType = iota
	GIDRoCEv1
	GIDRoCEv2
)

// String names the type.
func (t GIDType) String() string {
	switch t {
	case GIDInfiniBand:
		return "InfiniBand"
	case GIDRoCEv1:
		return "RoCE v1"
	case GIDRoCEv2:
		return "RoCE v2"
	}
	return fmt.Sprintf("GIDType(%d)", uint32(t))
}

// GIDEntry is a valid entry of a port's GID table.
type GIDEntry struct {
	Index    int
	Port     int
	Type     GIDType
	GID      GID
	NetIndex uint32 // interface index of its netdev, 0 if it has none
}

// GIDSelect says which GID to use. The zero value lets the package choose.
type GIDSelect struct {
	ByIndex bool
	Index   int        // when ByIndex
	Addr    netip.Addr // when valid: the RoCE v2 (else any) entry of this address
}

// ParseGIDSelect reads a user's choice: "" or "auto", an index such as "3", or an address.
func ParseGIDSelect(s string) (GIDSelect, error) {
	s = strings.TrimSpace(s)
	if s == "" || s == "auto" {
		return GIDSelect{}, nil
	}
	if i, err := strconv.Atoi(s); err == nil {
		if i < 0 || i > 255 {
			return GIDSelect{}, opInvalid("parse gid", "", "a gid index is 0 to 255, not %d", i)
		}
		return GIDSelect{ByIndex: true, Index: i}, nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return GIDSelect{}, opInvalid("parse gid", "", "want auto, an index or an ip address, not %q", s)
	}
	return GIDSelect{Addr: a.Unmap().WithZone("")}, nil
}

// ChooseGID picks the entry to use among a port's valid ones. Left alone, it takes RoCE v2 on Ethernet, an
// IPv4 address before a routable IPv6 one before a link-local one, and the lowest index among equals; on
// InfiniBand the lowest index. A RoCE v1 entry is taken only when it is asked for.
func ChooseGID(layer LinkLayer, entries []GIDEntry, want GIDSelect) (GIDEntry, error) {
	const op = "choose gid"
	best, bestRank := -1, 0
	for i, e := range entries {
		rank := gidRank(layer, e)
		switch {
		case want.ByIndex:
			if e.Index != want.Index {
				continue
			}
			rank = 1
		case want.Addr.IsValid():
			if e.GID.Addr() != want.Addr.Unmap() {
				continue
			}
			rank++ // an entry of RoCE v1 is better than none
		}
		if rank > bestRank || rank == bestRank && best >= 0 && e.Index < entries[best].Index {
			best, bestRank = i, rank
		}
	}
	if best >= 0 {
		return entries[best], nil
	}
	e := &OpError{Op: op, Err: ErrNoGID}
	switch {
	case want.ByIndex:
		e.Hint = fmt.Sprintf("the port has no gid at index %d; it has %s", want.Index, gidList(entries))
	case want.Addr.IsValid():
		e.Hint = fmt.Sprintf("the port has no gid for %s; it has %s", want.Addr, gidList(entries))
	case layer == LinkEthernet:
		e.Hint = "the port has no RoCE v2 gid: bring its netdev up and give it an address, `ip addr add`; it has " + gidList(entries)
	default:
		e.Hint = "the port has no gid: is a subnet manager running?"
	}
	return GIDEntry{}, e
}

// gidRank orders the entries of a port; 0 is unfit.
func gidRank(layer LinkLayer, e GIDEntry) int {
	if e.GID.IsZero() {
		return 0
	}
	if layer != LinkEthernet {
		return 1
	}
	a := e.GID.Addr()
	switch {
	case e.Type != GIDRoCEv2 || a.IsMulticast() || a.IsUnspecified() || a.IsLoopback():
		return 0
	case a.Is4() && !a.IsLinkLocalUnicast():
		return 4
	case a.Is6() && !a.IsLinkLocalUnicast():
		return 3
	case a.Is4():
		return 2
	}
	return 1 // IPv6 link-local: there even when the netdev has no IPv6
}

func gidList(entries []GIDEntry) string {
	if len(entries) == 0 {
		return "none"
	}
	var b strings.Builder
	for i, e := range entries {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%d: %s (%s)", e.Index, e.GID, e.Type)
	}
	return b.String()
}
