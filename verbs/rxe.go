package verbs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/mdlayher/netlink/nlenc"
	"golang.org/x/sys/unix"
)

// Commands and attributes of NETLINK_RDMA (Linux include/uapi/rdma/rdma_netlink.h).
const (
	nldevClient = 5 << 10 // RDMA_NL_NLDEV

	nldevGet        = 1
	nldevNewLink    = 3
	nldevDelLink    = 4
	nldevPortGet    = 5
	nldevGetChardev = 15

	attrDevIndex    = 1
	attrDevName     = 2
	attrPortIndex   = 3
	attrPortState   = 12
	attrNdevIndex   = 50
	attrNdevName    = 51
	attrLinkType    = 65
	attrDevProtocol = 67
	attrCharType    = 69
	attrCharName    = 70
	attrDriverID    = 73

	driverRxe = 14 // enum rdma_driver_id

	maxName = 63 // IB_DEVICE_NAME_MAX less the zero
)

const (
	opCreateRxe = "create rxe link"
	opDeleteRxe = "delete rxe link"
	opListRdma  = "list rdma links"
)

// RdmaLink is a device as the kernel's RDMA core describes it, one for each port.
type RdmaLink struct {
	Index    uint32 // of the device
	Device   string
	Port     int
	State    PortState
	Protocol string // "roce", "ib", "iw"
	Netdev   string // "" if it has none
	NetIndex uint32
	CharDev  string // "uverbs0", "" if ib_uverbs is not loaded
	Rxe      bool   // soft-RoCE
}

// RdmaLinks lists the machine's RDMA devices, through NETLINK_RDMA. No privilege is needed.
func RdmaLinks() ([]RdmaLink, error) {
	c, err := dialRdma(opListRdma)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return rdmaLinks(c)
}

func rdmaLinks(c *netlink.Conn) ([]RdmaLink, error) {
	devs, err := nldevAsk(c, opListRdma, nldevGet, netlink.Dump, nil)
	if err != nil {
		return nil, err
	}
	var out []RdmaLink
	for _, m := range devs {
		dev, err := decodeLink(m.Data, RdmaLink{})
		if err != nil {
			return nil, &OpError{Op: opListRdma, Err: err}
		}
		charOf(c, &dev)
		ports, err := nldevAsk(c, opListRdma, nldevPortGet, netlink.Dump, encodeIndex(dev.Index))
		if err != nil {
			if errors.Is(err, syscall.ENODEV) {
				continue // gone meanwhile
			}
			return nil, err
		}
		for _, m := range ports {
			l, err := decodeLink(m.Data, dev)
			if err != nil {
				return nil, &OpError{Op: opListRdma, Device: dev.Device, Err: err}
			}
			out = append(out, l)
		}
	}
	return out, nil
}

// charOf fills in the character device and the driver. Kernels before 5.3 cannot tell; then the fields stay
// empty.
func charOf(c *netlink.Conn, l *RdmaLink) {
	ae := netlink.NewAttributeEncoder()
	ae.Uint32(attrDevIndex, l.Index)
	ae.String(attrCharType, "uverbs")
	req, err := ae.Encode()
	if err != nil {
		return
	}
	ms, err := nldevAsk(c, opListRdma, nldevGetChardev, 0, req)
	if err != nil {
		return
	}
	for _, m := range ms {
		if got, err := decodeLink(m.Data, *l); err == nil {
			*l = got
		}
	}
}

// CreateRxe makes the soft-RoCE device name on a netdev, loading rdma_rxe if the kernel can. It needs
// CAP_NET_ADMIN. An error that is ErrExists says that the name or the netdev has one already.
func CreateRxe(name, netdev string) error {
	if err := checkName(opCreateRxe, name); err != nil {
		return err
	}
	if netdev == "" || len(netdev) >= unix.IFNAMSIZ {
		return opInvalid(opCreateRxe, name, "%q is no name of a netdev", netdev)
	}
	req, err := encodeNewLink(name, "rxe", netdev)
	if err != nil {
		return &OpError{Op: opCreateRxe, Device: name, Err: err}
	}
	c, err := dialRdma(opCreateRxe)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = nldevAsk(c, opCreateRxe, nldevNewLink, netlink.Acknowledge, req)
	var e *OpError
	if errors.As(err, &e) {
		e.Device = name
		switch e.Errno {
		case syscall.EEXIST, syscall.ENFILE:
			e.Err = ErrExists
			e.Hint = "there is a device of that name, or netdev " + netdev + " has an rxe link already: see `rdma link`"
		case syscall.ENODEV, syscall.EINVAL:
			e.Hint = "there is no netdev " + netdev + ", or it is not an ethernet one: see `ip link`"
		}
	}
	return err
}

// deleteWait bounds how long DeleteRxe waits for the kernel.
const deleteWait = 10 * time.Second

// DeleteRxe removes the soft-RoCE device name. It needs CAP_NET_ADMIN. An error that is ErrNoDevice says there
// is none of that name. A device that a process has open is not touched (EBUSY, and the processes are named):
// the kernel would take it from everyone's sight, and then wait, uninterruptibly, for the process to close it.
func DeleteRxe(name string) error {
	if err := checkName(opDeleteRxe, name); err != nil {
		return err
	}
	c, err := dialRdma(opDeleteRxe)
	if err != nil {
		return err
	}
	links, err := rdmaLinks(c)
	if err != nil {
		c.Close()
		return err
	}
	i := slices.IndexFunc(links, func(l RdmaLink) bool { return l.Device == name })
	switch {
	case i < 0:
		err = &OpError{Op: opDeleteRxe, Device: name, Err: ErrNoDevice, Hint: "see `rdma link` for the devices there are"}
	case links[i].CharDev != "" && !links[i].Rxe:
		err = opInvalid(opDeleteRxe, name, "it is not a soft-roce device")
	default:
		if who := holders(procDir, links[i].CharDev); who != "" {
			err = &OpError{Op: opDeleteRxe, Device: name, Errno: syscall.EBUSY, Hint: "in use by " + who + ": end them first"}
		}
	}
	if err != nil {
		c.Close()
		return err
	}
	done := make(chan error, 1)
	go func() { // ends when the kernel lets go, however long this function waits
		defer c.Close()
		_, err := nldevAsk(c, opDeleteRxe, nldevDelLink, netlink.Acknowledge, encodeIndex(links[i].Index))
		done <- err
	}()
	select {
	case err = <-done:
	case <-time.After(deleteWait):
		err = &OpError{Op: opDeleteRxe, Errno: syscall.EBUSY,
			Hint: "the kernel waits for a process that holds events of the device: end it, and the device goes"}
	}
	var e *OpError
	if errors.As(err, &e) {
		e.Device = name
	}
	return err
}

const procDir = "/proc"

// holders names the processes that have a device's character device open, as far as this user may see.
func holders(proc, charDev string) string {
	if charDev == "" {
		return ""
	}
	fds, _ := filepath.Glob(filepath.Join(proc, "[0-9]*", "fd", "*")) // fails on a bad pattern only
	var who []string
	for _, fd := range fds {
		to, err := os.Readlink(fd)
		if err != nil || to != "/dev/infiniband/"+charDev {
			continue
		}
		dir := filepath.Dir(filepath.Dir(fd))
		comm, _ := os.ReadFile(filepath.Join(dir, "comm"))
		w := fmt.Sprintf("process %s (%s)", filepath.Base(dir), strings.TrimSpace(string(comm)))
		if !slices.Contains(who, w) {
			who = append(who, w)
		}
	}
	return strings.Join(who, ", ")
}

func checkName(op, name string) error {
	if name == "" || len(name) > maxName {
		return opInvalid(op, "", "a device's name has 1 to %d bytes", maxName)
	}
	for _, r := range name {
		if r <= ' ' || r == '/' || r == '%' || r > '~' {
			return opInvalid(op, "", "%q is no name of a device", name)
		}
	}
	return nil
}

func dialRdma(op string) (*netlink.Conn, error) {
	c, err := netlink.Dial(unix.NETLINK_RDMA, nil)
	if err != nil {
		return nil, nlError(op, err)
	}
	return c, nil
}

// nldevAsk sends one request to the RDMA core and returns its answers.
func nldevAsk(c *netlink.Conn, op string, cmd uint16, flags netlink.HeaderFlags, data []byte) ([]netlink.Message, error) {
	ms, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(nldevClient | cmd), Flags: netlink.Request | flags},
		Data:   data,
	})
	if err != nil {
		return nil, nlError(op, err)
	}
	return ms, nil
}

func nlError(op string, err error) *OpError {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return opErrno(op, "", errno)
	}
	return &OpError{Op: op, Err: err}
}

func encodeNewLink(name, kind, netdev string) ([]byte, error) {
	ae := netlink.NewAttributeEncoder()
	ae.String(attrDevName, name)
	ae.String(attrLinkType, kind)
	ae.String(attrNdevName, netdev)
	return ae.Encode()
}

func encodeIndex(index uint32) []byte {
	b, _ := netlink.MarshalAttributes([]netlink.Attribute{{Type: attrDevIndex, Data: nlenc.Uint32Bytes(index)}}) // cannot fail: 4 bytes
	return b
}

// decodeLink reads the attributes of an answer into l.
func decodeLink(data []byte, l RdmaLink) (RdmaLink, error) {
	ad, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return l, err
	}
	for ad.Next() {
		switch ad.Type() {
		case attrDevIndex:
			l.Index = ad.Uint32()
		case attrDevName:
			l.Device = ad.String()
		case attrPortIndex:
			l.Port = int(ad.Uint32())
		case attrPortState:
			l.State = PortState(ad.Uint8())
		case attrDevProtocol:
			l.Protocol = ad.String()
		case attrNdevIndex:
			l.NetIndex = ad.Uint32()
		case attrNdevName:
			l.Netdev = ad.String()
		case attrCharName:
			l.CharDev = ad.String()
		case attrDriverID:
			// The kernel puts 4 bytes there, though its header says 8.
			switch b := ad.Bytes(); len(b) {
			case 4:
				l.Rxe = binary.NativeEndian.Uint32(b) == driverRxe
			case 8:
				l.Rxe = binary.NativeEndian.Uint64(b) == driverRxe
			}
		}
	}
	return l, ad.Err()
}
