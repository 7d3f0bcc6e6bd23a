package verbs

/*
#cgo noescape iron_poll
#cgo nocallback iron_poll
#cgo noescape iron_arm
#cgo nocallback iron_arm
#cgo noescape iron_drain
#cgo nocallback iron_drain
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <arpa/inet.h>
#include <infiniband/verbs.h>

typedef struct {
	uint64_t id;
	uint32_t status, opcode, len, qpn, imm, vendor_err, flags, reserved;
} iron_wc;

_Static_assert(sizeof(iron_wc) == 40, "verbs.WC has this layout");
_Static_assert(offsetof(iron_wc, status) == 8 && offsetof(iron_wc, flags) == 32, "verbs.WC has this layout");

// Polls up to n completions into out, through room entries of scratch. Returns how many, or the library's
// negative error.
static inline int iron_poll(struct ibv_cq *cq, struct ibv_wc *scratch, int room, iron_wc *out, int n)
{
	int got = 0;
	while (got < n) {
		int ask = n - got < room ? n - got : room;
		int r = ibv_poll_cq(cq, ask, scratch);
		if (r < 0)
			return got ? got : r;
		for (int i = 0; i < r; i++) {
			const struct ibv_wc *w = &scratch[i];
			iron_wc *o = &out[got + i];
			o->id = w->wr_id;
			o->status = w->status;
			o->opcode = w->opcode;
			o->len = w->byte_len;
			o->qpn = w->qp_num;
			o->imm = ntohl(w->imm_data);
			o->vendor_err = w->vendor_err;
			o->flags = w->wc_flags;
			o->reserved = 0;
		}
		got += r;
		if (r < ask)
			break;
	}
	return got;
}

static inline int iron_arm(struct ibv_cq *cq) { return ibv_req_notify_cq(cq, 0); }

// Takes and acknowledges all events that wait on the channel (whose descriptor does not block). Returns how
// many, or a negative errno.
static inline int iron_drain(struct ibv_comp_channel *ch)
{
	int n = 0;
	for (;;) {
		struct ibv_cq *cq;
		void *ctx;
		errno = 0;
		if (ibv_get_cq_event(ch, &cq, &ctx)) {
			if (errno == EINTR)
				continue;
			return errno == EAGAIN || errno == EWOULDBLOCK || n ? n : -(errno ? errno : EIO);
		}
		ibv_ack_cq_events(cq, 1);
		n++;
	}
}

static int iron_channel_nonblock(struct ibv_comp_channel *ch)
{
	int fl = fcntl(ch->fd, F_GETFL);
	return fl < 0 || fcntl(ch->fd, F_SETFL, fl | O_NONBLOCK) < 0 ? errno : 0;
}
*/
import "C"

import (
	"errors"
	"syscall"
	"time"
	"unsafe"
)

// WC must have the shim's layout: each line is a constant that overflows when it has not.
const (
	_ = uint(unsafe.Sizeof(WC{}) - C.sizeof_iron_wc)
	_ = uint(C.sizeof_iron_wc - unsafe.Sizeof(WC{}))
	_ = uint(unsafe.Offsetof(WC{}.Flags) - 32)
	_ = uint(32 - unsafe.Offsetof(WC{}.Flags))
)

// pollRoom is how many completions the library is asked for at a time.
const pollRoom = 32

// Channel tells about completions through a file descriptor. Several completion queues may share one.
type Channel struct {
	dev *Device
	c   *C.struct_ibv_comp_channel // guarded by dev.mu against Close
	fd  int
	cqs map[*CQ]struct{}
}

// CreateChannel makes a completion channel; its descriptor does not block.
func (d *Device) CreateChannel() (*Channel, error) {
	const op = "create completion channel"
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.c == nil {
		return nil, opClosed(op, d.name)
	}
	c, err := C.ibv_create_comp_channel(d.c)
	if c == nil {
		return nil, opErrno(op, d.name, toErrno(err))
	}
	if e := C.iron_channel_nonblock(c); e != 0 {
		C.ibv_destroy_comp_channel(c)
		return nil, opErrno(op, d.name, syscall.Errno(e))
	}
	ch := &Channel{dev: d, c: c, fd: int(c.fd), cqs: map[*CQ]struct{}{}}
	d.chans[ch] = struct{}{}
	return ch, nil
}

// FD is readable while events wait; -1 after Close. It belongs to the channel.
func (ch *Channel) FD() int {
	if ch.c == nil {
		return -1
	}
	return ch.fd
}

// Drain takes all waiting events, of all queues on the channel, and returns how many there were. Each of
// those queues has to be armed again.
func (ch *Channel) Drain() (int, error) {
	if ch.c == nil {
		return 0, opClosed("read completion channel", ch.dev.name)
	}
	n := C.iron_drain(ch.c)
	if n < 0 {
		return 0, opErrno("read completion channel", ch.dev.name, syscall.Errno(-n))
	}
	return int(n), nil
}

// Wait waits until FD is readable; false after timeout. A negative timeout waits for ever.
func (ch *Channel) Wait(timeout time.Duration) (bool, error) {
	if ch.c == nil {
		return false, opClosed("wait for completion", ch.dev.name)
	}
	return waitReadable(ch.fd, timeout)
}

// Close closes the channel's completion queues (and their queue pairs), and the channel.
func (ch *Channel) Close() error {
	ch.dev.mu.Lock()
	defer ch.dev.mu.Unlock()
	return ch.closeLocked()
}

func (ch *Channel) closeLocked() error {
	if ch.c == nil {
		return nil
	}
	var errs []error
	for q := range ch.cqs {
		errs = append(errs, q.closeLocked())
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if e := C.ibv_destroy_comp_channel(ch.c); e != 0 {
		return opErrno("destroy completion channel", ch.dev.name, syscall.Errno(e))
	}
	ch.c, ch.fd = nil, -1
	delete(ch.dev.chans, ch)
	return nil
}

// CQ is a completion queue. Poll and Arm may be called while others post; Close may not.
type CQ struct {
	dev     *Device
	ch      *Channel
	c       *C.struct_ibv_cq // guarded by dev.mu against Close
	scratch *C.struct_ibv_wc // pollRoom entries, Poll's
	size    int
	qps     map[*QP]struct{}
}

// CreateCQ makes a completion queue of at least size entries; ch may be nil. A queue that overruns is lost
// with all its queue pairs: make it as deep as the sum of what is posted to it.
func (d *Device) CreateCQ(size int, ch *Channel) (*CQ, error) {
	const op = "create cq"
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.c == nil || ch != nil && ch.c == nil {
		return nil, opClosed(op, d.name)
	}
	lim, err := d.limitsLocked()
	if err != nil {
		return nil, err
	}
	if size < 1 || size > lim.MaxCQE {
		return nil, opInvalid(op, d.name, "size %d is not within 1 to the device's %d", size, lim.MaxCQE)
	}
	scratch := C.calloc(pollRoom, C.sizeof_struct_ibv_wc)
	if scratch == nil {
		return nil, opErrno(op, d.name, syscall.ENOMEM)
	}
	var cch *C.struct_ibv_comp_channel
	if ch != nil {
		cch = ch.c
	}
	c, cerr := C.ibv_create_cq(d.c, C.int(size), nil, cch, 0)
	if c == nil {
		C.free(scratch)
		return nil, opErrno(op, d.name, toErrno(cerr))
	}
	q := &CQ{dev: d, ch: ch, c: c, scratch: (*C.struct_ibv_wc)(scratch), size: int(c.cqe), qps: map[*QP]struct{}{}}
	d.cqs[q] = struct{}{}
	if ch != nil {
		ch.cqs[q] = struct{}{}
	}
	return q, nil
}

// Size is how many completions the queue holds.
func (q *CQ) Size() int { return q.size }

// Poll takes up to len(wcs) completions. It neither waits nor allocates. One goroutine at a time.
func (q *CQ) Poll(wcs []WC) (int, error) {
	if len(wcs) == 0 {
		return 0, nil
	}
	if q.c == nil {
		return 0, opClosed("poll cq", q.dev.name)
	}
	n := C.iron_poll(q.c, q.scratch, pollRoom, (*C.iron_wc)(unsafe.Pointer(&wcs[0])), C.int(len(wcs)))
	if n < 0 {
		return 0, opErrno("poll cq", q.dev.name, syscall.EIO)
	}
	return int(n), nil
}

// Arm asks for one event on the channel at the next completion. Completions that are in the queue already
// raise none: poll after Arm, before sleeping.
func (q *CQ) Arm() error {
	if q.c == nil {
		return opClosed("arm cq", q.dev.name)
	}
	if e := C.iron_arm(q.c); e != 0 {
		return opErrno("arm cq", q.dev.name, syscall.Errno(e))
	}
	return nil
}

// Close closes the queue pairs that complete here, and the queue.
func (q *CQ) Close() error {
	q.dev.mu.Lock()
	defer q.dev.mu.Unlock()
	return q.closeLocked()
}

func (q *CQ) closeLocked() error {
	if q.c == nil {
		return nil
	}
	var errs []error
	for qp := range q.qps {
		errs = append(errs, qp.closeLocked())
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if e := C.ibv_destroy_cq(q.c); e != 0 {
		return opErrno("destroy cq", q.dev.name, syscall.Errno(e))
	}
	C.free(unsafe.Pointer(q.scratch))
	q.c, q.scratch = nil, nil
	delete(q.dev.cqs, q)
	if q.ch != nil {
		delete(q.ch.cqs, q)
	}
	return nil
}
