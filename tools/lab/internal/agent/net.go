package agent

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/jsimonetti/rtnetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"ironspan/tools/lab/internal/remote"
)

// rxeName is the RDMA device of every lab server.
const rxeName = "rxe0"

// wire finds the NIC by its MAC, names it, gives it its MTU and address.
func wire(c *remote.Setup) error {
	mac, err := net.ParseMAC(c.MAC)
	if err != nil {
		return err
	}
	ip, subnet, err := net.ParseCIDR(c.Addr)
	if err != nil {
		return err
	}
	conn, err := rtnetlink.Dial(nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := up(conn, 1, 0); err != nil { // lo
		return fmt.Errorf("lo: %w", err)
	}
	link, err := linkByMAC(conn, mac)
	if err != nil {
		return err
	}
	if err := up(conn, link.Index, uint32(c.MTU)); err != nil {
		return fmt.Errorf("%s: mtu %d: %w", link.Attributes.Name, c.MTU, err)
	}
	ones, _ := subnet.Mask.Size()
	ip = ip.To4()
	broadcast := make(net.IP, 4)
	for i := range broadcast {
		broadcast[i] = ip[i] | ^subnet.Mask[i]
	}
	err = conn.Address.New(&rtnetlink.AddressMessage{
		Family: unix.AF_INET, PrefixLength: uint8(ones), Scope: unix.RT_SCOPE_UNIVERSE, Index: link.Index,
		Attributes: &rtnetlink.AddressAttributes{Address: ip, Local: ip, Broadcast: broadcast},
	})
	if err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("address %s: %w", c.Addr, err)
	}
	return nil
}

func linkByMAC(conn *rtnetlink.Conn, mac net.HardwareAddr) (*rtnetlink.LinkMessage, error) {
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		links, err := conn.Link.List()
		if err != nil {
			return nil, err
		}
		for i := range links {
			if a := links[i].Attributes; a != nil && bytes.Equal(a.Address, mac) {
				return &links[i], nil
			}
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("no NIC has the address %s", mac)
		}
	}
}

func up(conn *rtnetlink.Conn, index, mtu uint32) error {
	m := &rtnetlink.LinkMessage{Index: index, Flags: unix.IFF_UP, Change: unix.IFF_UP}
	if mtu != 0 {
		m.Attributes = &rtnetlink.LinkAttributes{MTU: mtu}
	}
	return conn.Link.Set(m)
}

// Of <rdma/rdma_netlink.h>.
const (
	nldevClient   = 5
	nldevNewLink  = 3
	attrDevName   = 2
	attrNdevName  = 51
	attrLinkType  = 65
	portActive    = "4: ACTIVE"
	linkTypeOfRxe = "rxe"
)

// rdma creates rxe on the wire and waits until its port is active with a page-sized MTU.
func rdma(c *remote.Setup, r *remote.Result) error {
	name, err := nicName(c.MAC)
	if err != nil {
		return err
	}
	conn, err := netlink.Dial(unix.NETLINK_RDMA, nil)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer conn.Close()
	e := netlink.NewAttributeEncoder()
	e.String(attrDevName, rxeName)
	e.String(attrLinkType, linkTypeOfRxe)
	e.String(attrNdevName, name)
	b, err := e.Encode()
	if err != nil {
		return err
	}
	_, err = conn.Execute(netlink.Message{
		Header: netlink.Header{Type: nldevClient<<10 | nldevNewLink, Flags: netlink.Request | netlink.Acknowledge},
		Data:   b,
	})
	if err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("create %s on %s: %w", rxeName, name, err)
	}
	r.RDMA = rxeName
	state := "/sys/class/infiniband/" + rxeName + "/ports/1/state"
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		b, err := os.ReadFile(state)
		r.State = strings.TrimSpace(string(b))
		if err == nil && r.State == portActive {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s did not become active: %q %v", rxeName, r.State, err)
		}
	}
	if r.ActiveMTU, err = activeMTU(); err != nil {
		return err
	}
	if r.ActiveMTU < 4096 && c.MTU > 4096+256 {
		return fmt.Errorf("%s has active_mtu %d although the wire has %d", rxeName, r.ActiveMTU, c.MTU)
	}
	return nil
}

func nicName(mac string) (string, error) {
	ifs, err := net.Interfaces()
	if err != nil {
		return "", err
	}
	for _, i := range ifs {
		if i.HardwareAddr.String() == mac {
			return i.Name, nil
		}
	}
	return "", fmt.Errorf("no NIC has the address %s", mac)
}

// await connects to each address once.
func await(d *remote.Dial) error {
	deadline := time.Now().Add(d.Timeout)
	for _, addr := range d.Addrs {
		for {
			c, err := net.DialTimeout("tcp", addr, time.Until(deadline))
			if err == nil {
				c.Close()
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("nobody answers at %s after %v: %w", addr, d.Timeout, err)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	return nil
}
