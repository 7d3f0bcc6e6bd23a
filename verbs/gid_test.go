package verbs

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func gid(s string) GID { return GIDFrom(netip.MustParseAddr(s)) }

func TestChooseGID(t *testing.T) {
	entry := func(i int, typ GIDType, a string) GIDEntry {
		return GIDEntry{Index: i, Port: 1, Type: typ, GID: gid(a)}
	}
	mellanox := []GIDEntry{
		entry(0, GIDRoCEv1, "fe80::1"), entry(1, GIDRoCEv2, "fe80::1"),
		entry(2, GIDRoCEv1, "10.0.0.1"), entry(3, GIDRoCEv2, "10.0.0.1"),
		entry(4, GIDRoCEv1, "2001:db8::1"), entry(5, GIDRoCEv2, "2001:db8::1"),
	}
	rxe := []GIDEntry{entry(0, GIDRoCEv2, "fe80::5054:ff:fe12:3456"), entry(1, GIDRoCEv2, "10.77.0.1")}
	ib := []GIDEntry{entry(0, GIDInfiniBand, "fe80::2:c903:0:1"), entry(1, GIDInfiniBand, "fec0::1")}
	addr := func(s string) GIDSelect { return GIDSelect{Addr: netip.MustParseAddr(s)} }
	for _, c := range []struct {
		name    string
		layer   LinkLayer
		entries []GIDEntry
		want    GIDSelect
		index   int // -1: error
		says    string
	}{
		{"v2 of ipv4 by itself", LinkEthernet, mellanox, GIDSelect{}, 3, ""},
		{"rxe", LinkEthernet, rxe, GIDSelect{}, 1, ""},
		{"routable ipv6 before link-local", LinkEthernet, []GIDEntry{mellanox[1], mellanox[5]}, GIDSelect{}, 5, ""},
		{"ipv4 link-local before ipv6 link-local", LinkEthernet, []GIDEntry{mellanox[1], entry(9, GIDRoCEv2, "169.254.3.4")}, GIDSelect{}, 9, ""},
		{"link-local when there is nothing else", LinkEthernet, mellanox[:2], GIDSelect{}, 1, ""},
		{"lowest index among equals", LinkEthernet, []GIDEntry{entry(7, GIDRoCEv2, "10.0.0.2"), entry(3, GIDRoCEv2, "10.0.0.1")}, GIDSelect{}, 3, ""},
		{"never v1 by itself", LinkEthernet, []GIDEntry{mellanox[0], mellanox[2]}, GIDSelect{}, -1, "give it an address"},
		{"loopback is unfit", LinkEthernet, []GIDEntry{entry(0, GIDRoCEv2, "127.0.0.1")}, GIDSelect{}, -1, "127.0.0.1"},
		{"zero is unfit", LinkEthernet, []GIDEntry{{Index: 0, Type: GIDRoCEv2}}, GIDSelect{}, -1, "no RoCE v2"},
		{"by index, v1 too", LinkEthernet, mellanox, GIDSelect{ByIndex: true, Index: 2}, 2, ""},
		{"by a missing index", LinkEthernet, rxe, GIDSelect{ByIndex: true, Index: 7}, -1, "no gid at index 7; it has 0: fe80::5054:ff:fe12:3456 (RoCE v2), 1: 10.77.0.1 (RoCE v2)"},
		{"by address, v2 preferred", LinkEthernet, mellanox, addr("2001:db8::1"), 5, ""},
		{"by mapped address", LinkEthernet, mellanox, addr("::ffff:10.0.0.1"), 3, ""},
		{"by address, v1 when there is only that", LinkEthernet, mellanox[:1], addr("fe80::1"), 0, ""},
		{"by a missing address", LinkEthernet, rxe, addr("10.77.0.9"), -1, "no gid for 10.77.0.9"},
		{"infiniband", LinkInfiniBand, ib, GIDSelect{}, 0, ""},
		{"infiniband without", LinkInfiniBand, nil, GIDSelect{}, -1, "subnet manager"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e, err := ChooseGID(c.layer, c.entries, c.want)
			if c.index < 0 {
				if !errors.Is(err, ErrNoGID) || !strings.Contains(err.Error(), c.says) {
					t.Fatalf("got %v, %v; want an error that says %q", e, err, c.says)
				}
				return
			}
			if err != nil || e.Index != c.index {
				t.Fatalf("got index %d, %v; want %d", e.Index, err, c.index)
			}
		})
	}
}

func TestParseGIDSelect(t *testing.T) {
	for _, c := range []struct {
		in   string
		want GIDSelect
		bad  bool
	}{
		{in: "", want: GIDSelect{}}, {in: " auto ", want: GIDSelect{}},
		{in: "0", want: GIDSelect{ByIndex: true}}, {in: "3", want: GIDSelect{ByIndex: true, Index: 3}},
		{in: "10.0.0.1", want: GIDSelect{Addr: netip.MustParseAddr("10.0.0.1")}},
		{in: "fe80::1%eth0", want: GIDSelect{Addr: netip.MustParseAddr("fe80::1")}},
		{in: "-1", bad: true}, {in: "256", bad: true}, {in: "eth0", bad: true},
	} {
		got, err := ParseGIDSelect(c.in)
		if (err != nil) != c.bad || got != c.want {
			t.Errorf("%q: got %+v, %v", c.in, got, err)
		}
	}
}
