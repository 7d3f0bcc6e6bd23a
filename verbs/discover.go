package verbs

import (
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/Mellanox/rdmamap"
	"github.com/jsimonetti/rtnetlink"
	"golang.org/x/sys/unix"
)

// Link is a port of an RDMA device together with the network device that carries it.
type Link struct {
	Device  string         // RDMA device
	Port    int            // its port
	CharDev string         // /dev/infiniband/uverbsN, "" without ib_uverbs
	Netdev  string         // "" if it has none (InfiniBand without IPoIB)
	Index   uint32         // the netdev's interface index
	MTU     int            // the netdev's, in bytes
	PathMTU MTU            // the largest path MTU that fits MTU
	Addrs   []netip.Prefix // the netdev's addresses
	Up      bool           // administratively up, and running
	State   string         // the netdev's operational state, as `ip link` names it
}

// Links finds the machine's RDMA ports and what carries them: rdmamap tells devices, ports and character
// devices, the RDMA core (or, where it cannot, rdmamap) which netdev belongs to which port, and rtnetlink MTU,
// addresses and state. No device has to be opened, no
// privilege is needed. A machine without RDMA gives an error that is ErrNoDevice.
func Links() ([]Link, error) {
	const op = "discover links"
	devs := rdmamap.GetRdmaDeviceList() // nil on any error
	if len(devs) == 0 {
		return nil, noDevice("")
	}
	slices.Sort(devs)
	c, err := rtnetlink.Dial(nil)
	if err != nil {
		return nil, nlError(op, err)
	}
	defer c.Close()
	netdevs, err := c.Link.List()
	if err != nil {
		return nil, nlError(op, err)
	}
	addrs, err := c.Address.List()
	if err != nil {
		return nil, nlError(op, err)
	}
	core, _ := RdmaLinks() // a kernel before 5.0 cannot
	return joinLinks(devs, rdmamap.GetPorts, charDev, rdmamap.GetRdmaDeviceForNetdevice, core, netdevs, addrs), nil
}

// LinkForNetdev is the link that a netdev carries.
func LinkForNetdev(netdev string) (Link, error) {
	links, err := Links()
	if err != nil {
		return Link{}, err
	}
	for _, l := range links {
		if l.Netdev == netdev {
			return l, nil
		}
	}
	return Link{}, &OpError{Op: "discover links", Err: ErrNoDevice,
		Hint: "netdev " + netdev + " carries no rdma device: rdma link add rxe0 type rxe netdev " + netdev}
}

// charDev is the uverbs node of a device.
func charDev(dev string) string {
	for _, c := range rdmamap.GetRdmaCharDevices(dev) {
		if strings.HasPrefix(filepath.Base(c), rdmamap.RdmaUverbsFilxPrefix) {
			return c
		}
	}
	return ""
}

// joinLinks puts the pictures of RDMA core and network together.
func joinLinks(devs []string, ports func(dev string) []string, char func(dev string) string,
	deviceOf func(netdev string) (string, error), core []RdmaLink, netdevs []rtnetlink.LinkMessage, addrs []rtnetlink.AddressMessage) []Link {
	var carrier map[string]*rtnetlink.LinkMessage
	if !coreKnows(devs, core) {
		carrier = carriers(deviceOf, netdevs)
	}
	var out []Link
	for _, dev := range devs {
		ps := ports(dev)
		slices.Sort(ps)
		for _, p := range ps {
			num, err := strconv.Atoi(p)
			if err != nil {
				continue
			}
			l := Link{Device: dev, Port: num, CharDev: char(dev)}
			if n := portCarrier(dev, num, core, netdevs); n != nil {
				l.carriedBy(n, addrs)
			} else if n := carrier[dev]; n != nil && len(ps) == 1 {
				l.carriedBy(n, addrs)
			}
			out = append(out, l)
		}
	}
	return out
}

// carriers maps devices to the netdevs that carry them.
func carriers(deviceOf func(netdev string) (string, error), netdevs []rtnetlink.LinkMessage) map[string]*rtnetlink.LinkMessage {
	carrier := map[string]*rtnetlink.LinkMessage{}
	for i := range netdevs {
		n := &netdevs[i]
		if n.Attributes == nil || n.Flags&unix.IFF_LOOPBACK != 0 {
			continue
		}
		dev, err := deviceOf(n.Attributes.Name)
		if err != nil || dev == "" {
			continue
		}
		// VLANs and the like show up in the GID table of the same device: the plain one carries it.
		if old := carrier[dev]; old == nil || stacked(old) && !stacked(n) {
			carrier[dev] = n
		}
	}
	return carrier
}

// coreKnows says whether the RDMA core names a netdev for every device. Then rdmamap need not look for them:
// it opens a file for each entry of every GID table, a thousand of them on rxe.
func coreKnows(devs []string, core []RdmaLink) bool {
	for _, d := range devs {
		if !slices.ContainsFunc(core, func(c RdmaLink) bool { return c.Device == d && c.NetIndex != 0 }) {
			return false
		}
	}
	return true
}

// portCarrier is the netdev that the RDMA core itself names for one port, or nil.
func portCarrier(dev string, port int, core []RdmaLink, netdevs []rtnetlink.LinkMessage) *rtnetlink.LinkMessage {
	for _, c := range core {
		if c.Device != dev || c.Port != port || c.NetIndex == 0 {
			continue
		}
		for i := range netdevs {
			if netdevs[i].Index == c.NetIndex && netdevs[i].Attributes != nil {
				return &netdevs[i]
			}
		}
	}
	return nil
}

// stacked says whether a netdev sits on another one.
func stacked(n *rtnetlink.LinkMessage) bool {
	return n.Attributes.Info != nil && n.Attributes.Info.Kind == "vlan"
}

func (l *Link) carriedBy(n *rtnetlink.LinkMessage, addrs []rtnetlink.AddressMessage) {
	a := n.Attributes
	l.Netdev, l.Index, l.MTU = a.Name, n.Index, int(a.MTU)
	l.PathMTU = MTUFor(l.MTU)
	l.State = operState(a.OperationalState)
	l.Up = n.Flags&unix.IFF_UP != 0 && n.Flags&unix.IFF_RUNNING != 0
	for _, m := range addrs {
		if m.Index != n.Index || m.Attributes == nil {
			continue
		}
		ip := m.Attributes.Address
		if m.Family == unix.AF_INET && m.Attributes.Local != nil {
			ip = m.Attributes.Local // Address is the other end of a point-to-point link
		}
		if p, ok := prefix(ip, int(m.PrefixLength)); ok {
			l.Addrs = append(l.Addrs, p)
		}
	}
}

func prefix(ip net.IP, bits int) (netip.Prefix, bool) {
	a, ok := netip.AddrFromSlice(ip)
	if !ok {
		return netip.Prefix{}, false
	}
	p := netip.PrefixFrom(a.Unmap(), bits)
	return p, p.IsValid()
}

func operState(s rtnetlink.OperationalState) string {
	if n := [...]string{"unknown", "notpresent", "down", "lowerlayerdown", "testing", "dormant", "up"}; int(s) < len(n) {
		return n[s]
	}
	return "unknown"
}
