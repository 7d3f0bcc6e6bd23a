package verbs

/*
#cgo LDFLAGS: -libverbs
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <infiniband/verbs.h>

// The library defines these as macros.
static int iron_query_port(struct ibv_context *c, uint8_t port, struct ibv_port_attr *a)
{
	return ibv_query_port(c, port, a);
}
static struct ibv_device **iron_device_list(int *n) { return ibv_get_device_list(n); }
static int iron_node_type(struct ibv_device *d) { return d->node_type; }
static int iron_transport(struct ibv_device *d) { return d->transport_type; }
static int iron_async_fd(struct ibv_context *c) { return c->async_fd; }

static int iron_nonblock(int fd)
{
	int fl = fcntl(fd, F_GETFL);
	return fl < 0 || fcntl(fd, F_SETFL, fl | O_NONBLOCK) < 0 ? errno : 0;
}

// Reads one asynchronous event and acknowledges it at once, so that nobody who destroys the object the event
// is about has to wait for the reader. Which object it was is copied before.
static int iron_async_event(struct ibv_context *c, int *type, uint32_t *what)
{
	struct ibv_async_event ev;
	memset(&ev, 0, sizeof ev);
	errno = 0;
	if (ibv_get_async_event(c, &ev))
		return errno ? errno : EIO;
	*type = ev.event_type;
	*what = 0;
	switch (ev.event_type) {
	case IBV_EVENT_QP_FATAL:
	case IBV_EVENT_QP_REQ_ERR:
	case IBV_EVENT_QP_ACCESS_ERR:
	case IBV_EVENT_COMM_EST:
	case IBV_EVENT_SQ_DRAINED:
	case IBV_EVENT_PATH_MIG:
	case IBV_EVENT_PATH_MIG_ERR:
	case IBV_EVENT_QP_LAST_WQE_REACHED:
		*what = ev.element.qp->qp_num;
		break;
	case IBV_EVENT_PORT_ACTIVE:
	case IBV_EVENT_PORT_ERR:
	case IBV_EVENT_LID_CHANGE:
	case IBV_EVENT_PKEY_CHANGE:
	case IBV_EVENT_SM_CHANGE:
	case IBV_EVENT_CLIENT_REREGISTER:
	case IBV_EVENT_GID_CHANGE:
		*what = ev.element.port_num;
		break;
	default:
		break;
	}
	ibv_ack_async_event(&ev);
	return 0;
}
*/
import "C"

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

// DeviceInfo names a device of this machine.
type DeviceInfo struct {
	Name string
	GUID uint64
	RDMA bool // speaks the InfiniBand transport (InfiniBand, RoCE), not iWARP or another one
}

// Devices lists the machine's RDMA devices. A machine without one gives an error that is ErrNoDevice and
// says what is missing.
func Devices() ([]DeviceInfo, error) {
	var out []DeviceInfo
	err := eachDevice(func(d *C.struct_ibv_device, i DeviceInfo) bool {
		out = append(out, i)
		return true
	})
	if err != nil {
		return nil, err
	}
	if len(out) == 0 {
		return nil, noDevice("")
	}
	return out, nil
}

// eachDevice calls f for every device until it returns false; the C object is valid only within.
func eachDevice(f func(*C.struct_ibv_device, DeviceInfo) bool) error {
	var n C.int
	list, err := C.iron_device_list(&n)
	if list == nil {
		if errors.Is(err, syscall.ENOSYS) || err == nil {
			return nil // no rdma core in this kernel
		}
		return opErrno("list devices", "", toErrno(err))
	}
	defer C.ibv_free_device_list(list)
	for _, d := range unsafe.Slice(list, int(n)) {
		guid := C.ibv_get_device_guid(d) // big endian
		i := DeviceInfo{
			Name: C.GoString(C.ibv_get_device_name(d)),
			GUID: binary.BigEndian.Uint64((*[8]byte)(unsafe.Pointer(&guid))[:]),
			RDMA: C.iron_transport(d) == C.IBV_TRANSPORT_IB,
		}
		if !f(d, i) {
			break
		}
	}
	return nil
}

// noDevice says what a machine without (that) RDMA device lacks.
func noDevice(name string) error {
	e := &OpError{Op: "find device", Device: name, Err: ErrNoDevice}
	classes, err := os.ReadDir("/sys/class/infiniband")
	nodes, _ := filepath.Glob("/dev/infiniband/uverbs*")
	switch {
	case err != nil:
		e.Hint = "the kernel has no rdma core: modprobe ib_core ib_uverbs, or use a kernel built with CONFIG_INFINIBAND"
	case len(classes) > 0 && len(nodes) == 0:
		e.Hint = "there are devices, but no /dev/infiniband/uverbs*: modprobe ib_uverbs"
	case name != "" && len(classes) > 0:
		e.Hint = "there is"
		for _, c := range classes {
			e.Hint += " " + c.Name()
		}
	default:
		e.Hint = "load the adapter's driver, or make a soft-roce link: modprobe rdma_rxe; rdma link add rxe0 type rxe netdev NETDEV"
	}
	return e
}

// Probe says whether there is an RDMA device with an active port that this process can open; if not, why.
func Probe() error {
	d, err := Open("")
	if err != nil {
		return err
	}
	return d.Close()
}

func toErrno(err error) syscall.Errno {
	var e syscall.Errno
	if errors.As(err, &e) {
		return e
	}
	return syscall.EIO
}

// Device is an open RDMA device. Its methods other than Close may be used by several goroutines.
type Device struct {
	name string
	info DeviceInfo

	mu    sync.Mutex // guards c and everything below; taken at set-up and Close only
	c     *C.struct_ibv_context
	pds   map[*PD]struct{}
	cqs   map[*CQ]struct{}
	chans map[*Channel]struct{}
}

// Open opens the device of that name. An empty name takes the first device with an active port.
func Open(name string) (*Device, error) {
	var dev *Device
	var openErr error
	err := eachDevice(func(d *C.struct_ibv_device, i DeviceInfo) bool {
		if name != "" && i.Name != name {
			return true
		}
		dev, openErr = open(d, i)
		if name != "" {
			return false
		}
		if dev == nil {
			return true
		}
		if _, err := dev.ActivePort(); err != nil {
			openErr = errors.Join(err, dev.Close())
			dev = nil
			return true
		}
		return false
	})
	switch {
	case err != nil:
		return nil, err
	case dev != nil:
		return dev, nil
	case openErr != nil:
		return nil, openErr
	}
	return nil, noDevice(name)
}

func open(d *C.struct_ibv_device, i DeviceInfo) (*Device, error) {
	c, err := C.ibv_open_device(d)
	if c == nil {
		return nil, opErrno("open device", i.Name, toErrno(err))
	}
	if e := C.iron_nonblock(C.iron_async_fd(c)); e != 0 {
		C.ibv_close_device(c)
		return nil, opErrno("open device", i.Name, syscall.Errno(e))
	}
	return &Device{
		name: i.Name, info: i, c: c,
		pds: map[*PD]struct{}{}, cqs: map[*CQ]struct{}{}, chans: map[*Channel]struct{}{},
	}, nil
}

// Name is the device's name.
func (d *Device) Name() string { return d.name }

// Info is what Devices says about it.
func (d *Device) Info() DeviceInfo { return d.info }

// Close closes whatever was made on the device, and the device.
func (d *Device) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.c == nil {
		return nil
	}
	var errs []error
	for p := range d.pds {
		errs = append(errs, p.closeLocked())
	}
	for q := range d.cqs {
		errs = append(errs, q.closeLocked())
	}
	for ch := range d.chans {
		errs = append(errs, ch.closeLocked())
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if r, err := C.ibv_close_device(d.c); r != 0 {
		return opErrno("close device", d.name, toErrno(err))
	}
	d.c = nil
	return nil
}

// Limits asks the device what it can do.
func (d *Device) Limits() (Limits, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.c == nil {
		return Limits{}, opClosed("query device", d.name)
	}
	return d.limitsLocked()
}

func (d *Device) limitsLocked() (Limits, error) {
	var a C.struct_ibv_device_attr
	if e := C.ibv_query_device(d.c, &a); e != 0 {
		return Limits{}, opErrno("query device", d.name, syscall.Errno(e))
	}
	return Limits{
		Firmware: C.GoString(&a.fw_ver[0]), GUID: d.info.GUID,
		MaxQP: int(a.max_qp), MaxQPWR: int(a.max_qp_wr), MaxSGE: int(a.max_sge),
		MaxCQ: int(a.max_cq), MaxCQE: int(a.max_cqe), MaxMR: int(a.max_mr), MaxMRSize: uint64(a.max_mr_size),
		MaxReadsInit: int(a.max_qp_init_rd_atom), MaxReadsTarget: int(a.max_qp_rd_atom),
		AtomicsWithHost: a.atomic_cap == C.IBV_ATOMIC_GLOB, Ports: int(a.phys_port_cnt),
	}, nil
}

// Port describes port num, from 1.
func (d *Device) Port(num int) (PortInfo, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.portLocked(num)
}

func (d *Device) portLocked(num int) (PortInfo, error) {
	if d.c == nil {
		return PortInfo{}, opClosed("query port", d.name)
	}
	if num < 1 || num > 255 {
		return PortInfo{}, opInvalid("query port", d.name, "ports are numbered from 1, there is no port %d", num)
	}
	var a C.struct_ibv_port_attr
	if e := C.iron_query_port(d.c, C.uint8_t(num), &a); e != 0 {
		return PortInfo{}, opErrno("query port", d.name, syscall.Errno(e))
	}
	return PortInfo{
		Num: num, State: PortState(a.state), LinkLayer: LinkLayer(a.link_layer),
		MaxMTU: MTU(a.max_mtu), ActiveMTU: MTU(a.active_mtu), LID: uint16(a.lid),
		GIDTable: int(a.gid_tbl_len), MaxMsg: uint32(a.max_msg_sz),
	}, nil
}

// Ports describes all ports.
func (d *Device) Ports() ([]PortInfo, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.portsLocked()
}

func (d *Device) portsLocked() ([]PortInfo, error) {
	if d.c == nil {
		return nil, opClosed("query ports", d.name)
	}
	lim, err := d.limitsLocked()
	if err != nil {
		return nil, err
	}
	ps := make([]PortInfo, 0, lim.Ports)
	for n := 1; n <= lim.Ports; n++ {
		p, err := d.portLocked(n)
		if err != nil {
			return nil, err
		}
		ps = append(ps, p)
	}
	return ps, nil
}

// ActivePort is the first port that is up.
func (d *Device) ActivePort() (PortInfo, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.activePortLocked()
}

func (d *Device) activePortLocked() (PortInfo, error) {
	ps, err := d.portsLocked()
	if err != nil {
		return PortInfo{}, err
	}
	for _, p := range ps {
		if p.State == PortActive {
			return p, nil
		}
	}
	return PortInfo{}, &OpError{
		Op: "find active port", Device: d.name, Err: ErrNoDevice,
		Hint: "no port is active: bring the netdev up with `ip link set NETDEV up`; on InfiniBand, start a subnet manager",
	}
}

// GIDs lists the valid entries of a port's GID table.
func (d *Device) GIDs(port int) ([]GIDEntry, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.gidsLocked(port)
}

func (d *Device) gidsLocked(port int) ([]GIDEntry, error) {
	p, err := d.portLocked(port)
	if err != nil {
		return nil, err
	}
	ports, err := d.limitsLocked()
	if err != nil {
		return nil, err
	}
	// The library gives the valid entries of all ports.
	room := max(p.GIDTable, 1) * max(ports.Ports, 1)
	mem := C.calloc(C.size_t(room), C.sizeof_struct_ibv_gid_entry)
	if mem == nil {
		return nil, opErrno("query gid table", d.name, syscall.ENOMEM)
	}
	defer C.free(mem)
	tab := unsafe.Slice((*C.struct_ibv_gid_entry)(mem), room)
	n, errno := C.ibv_query_gid_table(d.c, &tab[0], C.size_t(room), 0)
	if n < 0 {
		e := toErrno(errno)
		if errno == nil {
			e = syscall.Errno(-n)
		}
		return nil, opErrno("query gid table", d.name, e)
	}
	var out []GIDEntry
	for _, t := range tab[:n] {
		if int(t.port_num) != port {
			continue
		}
		out = append(out, GIDEntry{
			Index: int(t.gid_index), Port: int(t.port_num), Type: GIDType(t.gid_type),
			GID: *(*GID)(unsafe.Pointer(&t.gid)), NetIndex: uint32(t.ndev_ifindex),
		})
	}
	return out, nil
}

// EventType is the kind of an asynchronous event (enum ibv_event_type).
type EventType uint32

// The events that matter here; others come with their number.
const (
	EventCQError       EventType = 0
	EventQPFatal       EventType = 1
	EventQPRequest     EventType = 2 // the peer sent an invalid request
	EventQPAccess      EventType = 3 // the peer touched what it may not
	EventEstablished   EventType = 4
	EventSQDrained     EventType = 5
	EventDeviceFatal   EventType = 8
	EventPortActive    EventType = 9
	EventPortDown      EventType = 10
	EventLIDChange     EventType = 11
	EventQPLastWQE     EventType = 16
	EventGIDChange     EventType = 18
	eventQPPathMig     EventType = 6
	eventQPPathMigErr  EventType = 7
	eventPKeyChange    EventType = 12
	eventSMChange      EventType = 13
	eventClientReregis EventType = 17
)

// Event is an asynchronous event of a device.
type Event struct {
	Type EventType
	QPN  uint32 // for events of a queue pair
	Port int    // for events of a port
}

// Fatal says that the object of the event is of no more use.
func (e Event) Fatal() bool {
	switch e.Type {
	case EventCQError, EventQPFatal, EventQPRequest, EventQPAccess, EventDeviceFatal, EventPortDown:
		return true
	}
	return false
}

// String says what happened to what.
func (e Event) String() string {
	name, ok := map[EventType]string{
		EventCQError: "completion queue error", EventQPFatal: "qp fatal error", EventQPRequest: "qp request error",
		EventQPAccess: "qp access error", EventEstablished: "communication established", EventSQDrained: "send queue drained",
		EventDeviceFatal: "device fatal error", EventPortActive: "port active", EventPortDown: "port down",
		EventLIDChange: "lid change", EventQPLastWQE: "last receive reached", EventGIDChange: "gid change",
	}[e.Type]
	if !ok {
		name = fmt.Sprintf("event %d", uint32(e.Type))
	}
	switch {
	case e.QPN != 0:
		return fmt.Sprintf("%s (qp %d)", name, e.QPN)
	case e.Port != 0:
		return fmt.Sprintf("%s (port %d)", name, e.Port)
	}
	return name
}

// EventFD is readable while asynchronous events wait. It belongs to the device.
func (d *Device) EventFD() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.c == nil {
		return -1
	}
	return int(C.iron_async_fd(d.c))
}

// ReadEvent takes one asynchronous event, without waiting; ok is false if there is none.
func (d *Device) ReadEvent() (ev Event, ok bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.c == nil {
		return Event{}, false, opClosed("read event", d.name)
	}
	var typ C.int
	var what C.uint32_t
	switch e := syscall.Errno(C.iron_async_event(d.c, &typ, &what)); e {
	case 0:
	case syscall.EAGAIN, syscall.EINTR:
		return Event{}, false, nil
	default:
		return Event{}, false, opErrno("read event", d.name, e)
	}
	ev = Event{Type: EventType(typ)}
	switch ev.Type {
	case EventPortActive, EventPortDown, EventLIDChange, EventGIDChange, eventPKeyChange, eventSMChange, eventClientReregis:
		ev.Port = int(what)
	case EventQPFatal, EventQPRequest, EventQPAccess, EventEstablished, EventSQDrained, EventQPLastWQE,
		eventQPPathMig, eventQPPathMigErr:
		ev.QPN = uint32(what)
	}
	return ev, true, nil
}

// WaitEvent waits for an asynchronous event; ok is false when there was none in time.
func (d *Device) WaitEvent(timeout time.Duration) (ev Event, ok bool, err error) {
	fd := d.EventFD()
	if fd < 0 {
		return Event{}, false, opClosed("wait for event", d.name)
	}
	if ready, err := waitReadable(fd, timeout); err != nil || !ready {
		return Event{}, false, err
	}
	return d.ReadEvent()
}
