package verbs

import (
	"errors"
	"net"
	"net/netip"
	"reflect"
	"testing"

	"github.com/jsimonetti/rtnetlink"
	"golang.org/x/sys/unix"
)

func TestJoinLinks(t *testing.T) {
	netdev := func(i uint32, name string, mtu uint32, flags uint32, kind string) rtnetlink.LinkMessage {
		m := rtnetlink.LinkMessage{Index: i, Flags: flags, Attributes: &rtnetlink.LinkAttributes{
			Name: name, MTU: mtu, OperationalState: rtnetlink.OperStateUp}}
		if kind != "" {
			m.Attributes.Info = &rtnetlink.LinkInfo{Kind: kind}
		}
		return m
	}
	const up = unix.IFF_UP | unix.IFF_RUNNING
	netdevs := []rtnetlink.LinkMessage{
		netdev(1, "lo", 65536, up|unix.IFF_LOOPBACK, ""),
		netdev(5, "eth0.7", 1500, up, "vlan"),
		netdev(2, "eth0", 9000, up, ""),
		netdev(3, "eth1", 1500, unix.IFF_UP, ""),
		netdev(4, "eth2", 4200, up, ""),
		{Index: 9}, // without attributes
	}
	addr := func(i uint32, family uint8, bits uint8, a, local string) rtnetlink.AddressMessage {
		m := rtnetlink.AddressMessage{Family: family, PrefixLength: bits, Index: i, Attributes: &rtnetlink.AddressAttributes{Address: net.ParseIP(a)}}
		if local != "" {
			m.Attributes.Local = net.ParseIP(local)
		}
		return m
	}
	addrs := []rtnetlink.AddressMessage{
		addr(2, unix.AF_INET, 24, "10.77.0.1", "10.77.0.1"),
		addr(2, unix.AF_INET6, 64, "fe80::1", ""),
		addr(3, unix.AF_INET, 32, "192.0.2.2", "192.0.2.1"), // point to point
		{Index: 2}, // without attributes
	}
	deviceOf := func(n string) (string, error) {
		switch n {
		case "eth0", "eth0.7":
			return "rxe0", nil
		case "eth1", "eth2":
			return "mlx4_0", nil
		}
		return "", errors.New("none")
	}
	ports := func(d string) []string {
		if d == "mlx4_0" {
			return []string{"2", "1"}
		}
		return []string{"1"}
	}
	core := []RdmaLink{{Device: "mlx4_0", Port: 1, NetIndex: 3}, {Device: "mlx4_0", Port: 2, NetIndex: 4}, {Device: "ib0", Port: 1}}
	char := func(d string) string { return "/dev/infiniband/uverbs-" + d }
	got := joinLinks([]string{"ib0", "mlx4_0", "rxe0"}, ports, char, deviceOf, core, netdevs, addrs)
	p := netip.MustParsePrefix
	want := []Link{
		{Device: "ib0", Port: 1, CharDev: "/dev/infiniband/uverbs-ib0"},
		{Device: "mlx4_0", Port: 1, CharDev: "/dev/infiniband/uverbs-mlx4_0", Netdev: "eth1", Index: 3, MTU: 1500, PathMTU: MTU1024,
			Addrs: []netip.Prefix{p("192.0.2.1/32")}, State: "up"},
		{Device: "mlx4_0", Port: 2, CharDev: "/dev/infiniband/uverbs-mlx4_0", Netdev: "eth2", Index: 4, MTU: 4200, PathMTU: MTU4096, Up: true, State: "up"},
		{Device: "rxe0", Port: 1, CharDev: "/dev/infiniband/uverbs-rxe0", Netdev: "eth0", Index: 2, MTU: 9000, PathMTU: MTU4096,
			Addrs: []netip.Prefix{p("10.77.0.1/24"), p("fe80::1/64")}, Up: true, State: "up"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}
