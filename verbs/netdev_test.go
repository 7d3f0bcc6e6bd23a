package verbs_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jsimonetti/rtnetlink"
	"golang.org/x/sys/unix"

	"ironspan/verbs"
)

// carrier is a netdev without an rxe link, up, that the test may do with as it likes.
type carrier struct {
	conn  *rtnetlink.Conn
	index uint32
	name  string
	addr  netip.Prefix
}

// newCarrier makes a dummy netdev. Where there is none to be had, but this is a lab, the test borrows the
// server's own netdev. Else it skips.
func newCarrier(t *testing.T) carrier {
	t.Helper()
	c, err := rtnetlink.Dial(nil)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	const name = "irontest0"
	err = c.Link.New(&rtnetlink.LinkMessage{
		Family: unix.AF_UNSPEC, Flags: unix.IFF_UP, Change: unix.IFF_UP,
		Attributes: &rtnetlink.LinkAttributes{Name: name, MTU: 9000, Info: &rtnetlink.LinkInfo{Kind: "dummy"}},
	})
	switch {
	case errors.Is(err, syscall.EOPNOTSUPP) && os.Getenv("IRONSPAN_LAB") != "":
		return borrow(t, c)
	case errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EOPNOTSUPP):
		t.Skip("no dummy netdev to be had: ", err)
	}
	must(t, err)
	ifc, err := net.InterfaceByName(name)
	must(t, err)
	t.Cleanup(func() { redial(t, func(c *rtnetlink.Conn) { must(t, c.Link.Delete(uint32(ifc.Index))) }) })
	ip := net.IPv4(198, 18, 0, 1).To4()
	must(t, c.Address.New(&rtnetlink.AddressMessage{
		Family: unix.AF_INET, PrefixLength: 24, Index: uint32(ifc.Index),
		Attributes: &rtnetlink.AddressAttributes{Address: ip, Local: ip},
	}))
	return carrier{c, uint32(ifc.Index), name, netip.MustParsePrefix("198.18.0.1/24")}
}

// borrow takes the rxe link off the lab server's netdev, and puts it back after the test.
func borrow(t *testing.T, c *rtnetlink.Conn) carrier {
	t.Helper()
	links, err := verbs.Links()
	must(t, err)
	l := links[0]
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, fd := range fds {
		if to, _ := os.Readlink(fd); strings.Contains(to, "infiniband") {
			t.Skipf("no dummy netdev, and the server's device is in use: %s is %s", fd, to)
		}
	}
	var addr netip.Prefix
	for _, a := range l.Addrs {
		if a.Addr().Is4() {
			addr = a
		}
	}
	must(t, verbs.DeleteRxe(l.Device))
	t.Cleanup(func() {
		redial(t, func(c *rtnetlink.Conn) { setLink(t, c, l.Index, true, uint32(l.MTU), l.Netdev) })
		must(t, verbs.CreateRxe(l.Device, l.Netdev))
		for end := time.Now().Add(10 * time.Second); verbs.Probe() != nil && time.Now().Before(end); {
			time.Sleep(50 * time.Millisecond)
		}
		must(t, verbs.Probe())
	})
	return carrier{c, l.Index, l.Netdev, addr}
}

// redial runs f with a connection of its own: the test's is closed by then.
func redial(t *testing.T, f func(*rtnetlink.Conn)) {
	t.Helper()
	c, err := rtnetlink.Dial(nil)
	must(t, err)
	defer c.Close()
	f(c)
}

func setLink(t *testing.T, c *rtnetlink.Conn, index uint32, up bool, mtu uint32, name string) {
	t.Helper()
	m := &rtnetlink.LinkMessage{Index: index, Change: unix.IFF_UP, Attributes: &rtnetlink.LinkAttributes{Name: name, MTU: mtu}}
	if up {
		m.Flags = unix.IFF_UP
	}
	must(t, c.Link.Set(m))
}

// rxeOn makes an rxe link for the test, or skips.
func rxeOn(t *testing.T, name, netdev string) {
	t.Helper()
	err := verbs.CreateRxe(name, netdev)
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EPROTONOSUPPORT) || errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENOENT) {
		t.Skip(err)
	}
	must(t, err)
	t.Cleanup(func() {
		if err := verbs.DeleteRxe(name); err != nil && !errors.Is(err, verbs.ErrNoDevice) {
			t.Error(err)
		}
	})
}

func TestRxeLink(t *testing.T) {
	if err := verbs.Probe(); errors.Is(err, verbs.ErrNoDevice) {
		t.Skip(err)
	}
	const name = "rxe_t"
	nd := newCarrier(t)
	conn, index, netdev := nd.conn, nd.index, nd.name
	rxeOn(t, name, netdev)

	t.Run("is listed", func(t *testing.T) {
		links, err := verbs.RdmaLinks()
		must(t, err)
		found := false
		for _, l := range links {
			if l.Device == name {
				found = true
				if !l.Rxe || l.Netdev != netdev || l.NetIndex != index || l.Port != 1 || l.Protocol != "roce" || l.CharDev == "" {
					t.Errorf("got %+v", l)
				}
			}
		}
		if !found {
			t.Errorf("%s is not among %+v", name, links)
		}
	})
	t.Run("is discovered", func(t *testing.T) {
		l, err := verbs.LinkForNetdev(netdev)
		must(t, err)
		t.Logf("%+v", l)
		if l.Device != name || l.Port != 1 || l.Index != index || l.MTU != 9000 || l.PathMTU != verbs.MTU4096 || !l.Up || l.CharDev == "" {
			t.Errorf("got %+v", l)
		}
		if !slices.Contains(l.Addrs, nd.addr) {
			t.Errorf("addresses %v", l.Addrs)
		}
	})
	t.Run("exists only once", func(t *testing.T) {
		for _, c := range [][2]string{{name, netdev}, {"rxe_u", netdev}} {
			if err := verbs.CreateRxe(c[0], c[1]); !errors.Is(err, verbs.ErrExists) {
				t.Errorf("%v: got %v", c, err)
			}
		}
		var e *verbs.OpError
		if err := verbs.CreateRxe("rxe_u", "nonesuch0"); !errors.As(err, &e) || e.Hint == "" {
			t.Errorf("on no netdev: %v", err)
		}
	})
	t.Run("stays while it is open", func(t *testing.T) {
		d, err := verbs.Open(name)
		must(t, err)
		defer d.Close()
		var e *verbs.OpError
		if err := verbs.DeleteRxe(name); !errors.Is(err, syscall.EBUSY) || !errors.As(err, &e) || !strings.Contains(e.Hint, fmt.Sprint(os.Getpid())) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("carries data", func(t *testing.T) {
		d, err := verbs.Open(name)
		must(t, err)
		defer d.Close()
		a, b := pair(t, func(c *pairConfig) { c.dev = d })
		if got := a.qp.Endpoint().GID.Addr(); got != nd.addr.Addr() {
			t.Errorf("gid %v", got)
		}
		b.recv(1, 0)
		a.add(a.qp.Batch().SendInline(1, verbs.Signaled, []byte("over it")))
		a.post()
		a.ok(1)
		b.ok(1)
	})
	t.Run("follows the mtu", func(t *testing.T) {
		d, err := verbs.Open(name)
		must(t, err)
		defer d.Close()
		for _, mtu := range []uint32{1500, 2200, 4200, 640, 9000} {
			setLink(t, conn, index, true, mtu, netdev)
			l, err := verbs.LinkForNetdev(netdev)
			must(t, err)
			p, err := d.Port(1)
			must(t, err)
			if l.MTU != int(mtu) || p.ActiveMTU != l.PathMTU {
				t.Errorf("netdev mtu %d: discovered %d, path mtu %v, the port has %v", mtu, l.MTU, l.PathMTU, p.ActiveMTU)
			}
		}
	})
	t.Run("tells when the port goes down", func(t *testing.T) {
		d, err := verbs.Open(name)
		must(t, err)
		defer d.Close()
		wait := func(want verbs.EventType) {
			t.Helper()
			for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
				ev, ok, err := d.WaitEvent(time.Second)
				must(t, err)
				if ok && ev.Type == want {
					if ev.Port != 1 {
						t.Errorf("event %v", ev)
					}
					return
				}
			}
			t.Errorf("no event %v", verbs.Event{Type: want, Port: 1})
		}
		for { // what earlier subtests left
			if _, ok, err := d.WaitEvent(100 * time.Millisecond); err != nil || !ok {
				must(t, err)
				break
			}
		}
		setLink(t, conn, index, false, 9000, netdev)
		wait(verbs.EventPortDown)
		if l, err := verbs.LinkForNetdev(netdev); err == nil && l.Up {
			t.Errorf("link is up: %+v", l)
		}
		if _, err := d.ActivePort(); err == nil || errors.Is(err, verbs.ErrClosed) {
			t.Errorf("active port of a link that is down: %v", err)
		}
		setLink(t, conn, index, true, 9000, netdev)
		wait(verbs.EventPortActive)
	})
	t.Run("is gone after delete", func(t *testing.T) {
		must(t, verbs.DeleteRxe(name))
		if err := verbs.DeleteRxe(name); !errors.Is(err, verbs.ErrNoDevice) {
			t.Errorf("deleting it again: %v", err)
		}
		if _, err := verbs.Open(name); !errors.Is(err, verbs.ErrNoDevice) {
			t.Errorf("opening it: %v", err)
		}
		if _, err := verbs.LinkForNetdev(netdev); !errors.Is(err, verbs.ErrNoDevice) {
			t.Errorf("discovering it: %v", err)
		}
	})
}

// A machine without RDMA says so, and what to do, wherever one asks first.
func TestWithoutDevice(t *testing.T) {
	err := verbs.Probe()
	if err == nil {
		t.Skip("this machine has a device")
	}
	if !errors.Is(err, verbs.ErrNoDevice) {
		t.Skip(err)
	}
	for name, f := range map[string]func() error{
		"devices": func() error { _, err := verbs.Devices(); return err },
		"open":    func() error { _, err := verbs.Open("rxe0"); return err },
		"links":   func() error { _, err := verbs.Links(); return err },
	} {
		var e *verbs.OpError
		if err := f(); !errors.Is(err, verbs.ErrNoDevice) || !errors.As(err, &e) || e.Hint == "" {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestQPAccessEvent(t *testing.T) {
	d := device(t)
	a, b := pair(t, func(c *pairConfig) { c.dev = d })
	a.add(a.qp.Batch().Write(1, verbs.Signaled, a.mr.SGE(0, 64), verbs.Remote{Addr: b.mr.Addr(), RKey: b.mr.RKey() ^ 1}))
	a.post()
	a.wait(1)
	qpn := b.qp.QPN()
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
		ev, ok, err := d.WaitEvent(200 * time.Millisecond)
		must(t, err)
		if ok && ev.QPN == qpn {
			if !ev.Fatal() {
				t.Errorf("event %v is not fatal", ev)
			}
			t.Log(ev)
			return
		}
	}
	t.Skip("this driver raises no event for a refused access")
}
