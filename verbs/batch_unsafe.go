package verbs

/*
#cgo noescape iron_post_send
#cgo nocallback iron_post_send
#cgo noescape iron_post_recv
#cgo nocallback iron_post_recv
#include <stddef.h>
#include <stdlib.h>
#include <infiniband/verbs.h>

// What batch_unsafe.go assumes of the layouts that it writes into.
#define AT(f) (offsetof(struct ibv_send_wr, f) - offsetof(struct ibv_send_wr, wr))
_Static_assert(AT(wr.rdma.remote_addr) == 0 && AT(wr.rdma.rkey) == 8, "remoteArgs");
_Static_assert(AT(wr.atomic.remote_addr) == 0 && AT(wr.atomic.compare_add) == 8 &&
	       AT(wr.atomic.swap) == 16 && AT(wr.atomic.rkey) == 24, "atomicArgs");
_Static_assert(sizeof(struct ibv_sge) == 16 && offsetof(struct ibv_sge, length) == 8 &&
	       offsetof(struct ibv_sge, lkey) == 12, "SGE");

enum {
	iron_send_imm_at = offsetof(struct ibv_send_wr, imm_data),
	iron_send_args_at = offsetof(struct ibv_send_wr, wr),
};

// The requests of a batch are chained once and for all; posting n of them cuts the chain for the moment.
static void iron_chain_send(struct ibv_send_wr *wr, struct ibv_sge *sge, int n, int sges)
{
	for (int i = 0; i < n; i++) {
		wr[i].next = i + 1 < n ? &wr[i + 1] : NULL;
		wr[i].sg_list = &sge[i * sges];
	}
}
static void iron_chain_recv(struct ibv_recv_wr *wr, struct ibv_sge *sge, int n, int sges)
{
	for (int i = 0; i < n; i++) {
		wr[i].next = i + 1 < n ? &wr[i + 1] : NULL;
		wr[i].sg_list = &sge[i * sges];
	}
}

// Both return 0, or the errno and in *done how many the device took.
static inline int iron_post_send(struct ibv_qp *qp, struct ibv_send_wr *wr, int n, int *done)
{
	struct ibv_send_wr *last = &wr[n - 1], *next = last->next, *bad = NULL;
	last->next = NULL;
	int e = ibv_post_send(qp, wr, &bad);
	last->next = next;
	*done = !e ? n : bad ? (int)(bad - wr) : 0;
	return e;
}
static inline int iron_post_recv(struct ibv_qp *qp, struct ibv_recv_wr *wr, int n, int *done)
{
	struct ibv_recv_wr *last = &wr[n - 1], *next = last->next, *bad = NULL;
	last->next = NULL;
	int e = ibv_post_recv(qp, wr, &bad);
	last->next = next;
	*done = !e ? n : bad ? (int)(bad - wr) : 0;
	return e;
}
*/
import "C"

import (
	"math"
	"math/bits"
	"syscall"
	"unsafe"
)

// SendFlags qualify a work request (enum ibv_send_flags).
type SendFlags uint32

// The flags.
const (
	Fence     SendFlags = 1 << 0 // wait for earlier reads and atomics of this queue pair
	Signaled  SendFlags = 1 << 1 // make a completion
	Solicited SendFlags = 1 << 2
	inlined   SendFlags = 1 << 3
)

// SGE names local, registered memory: one entry of a scatter-gather list. It has the layout of struct
// ibv_sge.
type SGE struct {
	Addr uint64
	Len  uint32
	LKey uint32
}

// Remote names memory of the peer.
type Remote struct {
	Addr uint64
	RKey uint32
}

// remoteArgs and atomicArgs overlay the union ibv_send_wr.wr.
type remoteArgs struct {
	addr uint64
	rkey uint32
}

type atomicArgs struct {
	addr, compareAdd, swap uint64
	rkey                   uint32
}

// allocBatches makes the arrays of both batches, in one block of C memory.
func (q *QP) allocBatches() error {
	c := &q.cfg
	// Inline bytes come last: they need no alignment.
	sendWR := uintptr(c.SendWR) * C.sizeof_struct_ibv_send_wr
	sendSGE := uintptr(c.SendWR*c.SendSGE) * C.sizeof_struct_ibv_sge
	recvWR := uintptr(c.RecvWR) * C.sizeof_struct_ibv_recv_wr
	recvSGE := uintptr(c.RecvWR*c.RecvSGE) * C.sizeof_struct_ibv_sge
	mem := C.calloc(1, C.size_t(sendWR+sendSGE+recvWR+recvSGE+uintptr(c.SendWR*c.MaxInline)))
	if mem == nil {
		return opErrno("create qp", q.pd.dev.name, syscall.ENOMEM)
	}
	q.mem = mem
	at := func(n uintptr) unsafe.Pointer {
		p := mem
		mem = unsafe.Add(mem, n)
		return p
	}
	q.send = Batch{
		qp:       q,
		wr:       unsafe.Slice((*C.struct_ibv_send_wr)(at(sendWR)), c.SendWR),
		sge:      unsafe.Slice((*SGE)(at(sendSGE)), c.SendWR*c.SendSGE),
		sges:     c.SendSGE,
		inlineSz: c.MaxInline,
	}
	q.recv = RecvBatch{
		qp:   q,
		wr:   unsafe.Slice((*C.struct_ibv_recv_wr)(at(recvWR)), c.RecvWR),
		sge:  unsafe.Slice((*SGE)(at(recvSGE)), c.RecvWR*c.RecvSGE),
		sges: c.RecvSGE,
	}
	if c.MaxInline > 0 {
		q.send.inline = unsafe.Slice((*byte)(at(0)), c.SendWR*c.MaxInline)
	}
	C.iron_chain_send(&q.send.wr[0], (*C.struct_ibv_sge)(unsafe.Pointer(&q.send.sge[0])), C.int(c.SendWR), C.int(c.SendSGE))
	C.iron_chain_recv(&q.recv.wr[0], (*C.struct_ibv_sge)(unsafe.Pointer(&q.recv.sge[0])), C.int(c.RecvWR), C.int(c.RecvSGE))
	return nil
}

func (q *QP) freeBatches() {
	q.send.wr, q.send.sge, q.send.inline, q.send.n = nil, nil, nil, 0
	q.recv.wr, q.recv.sge, q.recv.n = nil, nil, 0
	C.free(q.mem)
	q.mem = nil
}

// Batch collects send-queue requests of one queue pair and posts them together. It writes them straight into
// C memory; nothing is allocated. The adding methods return false, and add nothing, when the batch is full
// (as many requests as the send queue is deep), when the queue pair is closed, and when inline data is
// longer than MaxInline.
type Batch struct {
	qp       *QP
	wr       []C.struct_ibv_send_wr
	sge      []SGE
	inline   []byte
	sges     int
	inlineSz int
	n        int
}

// Batch is the queue pair's batch of sends.
func (q *QP) Batch() *Batch { return &q.send }

// Len is how many requests are in the batch.
func (b *Batch) Len() int { return b.n }

// Cap is how many fit.
func (b *Batch) Cap() int { return len(b.wr) }

// Reset empties the batch.
func (b *Batch) Reset() { b.n = 0 }

// next begins a request with the one entry local.
func (b *Batch) next(id uint64, op uint32, f SendFlags, local SGE) *C.struct_ibv_send_wr {
	if b.n >= len(b.wr) {
		return nil
	}
	w := &b.wr[b.n]
	b.sge[b.n*b.sges] = local
	w.wr_id = C.uint64_t(id)
	w.num_sge = 1
	w.opcode = op
	w.send_flags = C.uint(f)
	b.n++
	return w
}

// nextInline begins a request that carries a copy of data.
func (b *Batch) nextInline(id uint64, op uint32, f SendFlags, data []byte) *C.struct_ibv_send_wr {
	if b.n >= len(b.wr) || len(data) > b.inlineSz {
		return nil
	}
	var local SGE
	if len(data) > 0 {
		buf := b.inline[b.n*b.inlineSz : (b.n+1)*b.inlineSz]
		copy(buf, data)
		local = SGE{Addr: uint64(uintptr(unsafe.Pointer(&buf[0]))), Len: uint32(len(data))}
	}
	w := b.next(id, op, f|inlined, local)
	if len(data) == 0 {
		w.num_sge = 0
	}
	return w
}

func setRemote(w *C.struct_ibv_send_wr, r Remote) {
	*(*remoteArgs)(unsafe.Add(unsafe.Pointer(w), C.iron_send_args_at)) = remoteArgs{r.Addr, r.RKey}
}

// setImm stores immediate data, which travels in network byte order.
func setImm(w *C.struct_ibv_send_wr, imm uint32) {
	*(*uint32)(unsafe.Add(unsafe.Pointer(w), C.iron_send_imm_at)) = bits.ReverseBytes32(imm)
}

// Send adds a SEND of local.
func (b *Batch) Send(id uint64, f SendFlags, local SGE) bool {
	return b.next(id, C.IBV_WR_SEND, f, local) != nil
}

// SendInline adds a SEND of a copy of data.
func (b *Batch) SendInline(id uint64, f SendFlags, data []byte) bool {
	return b.nextInline(id, C.IBV_WR_SEND, f, data) != nil
}

// SendImm adds a SEND of local with immediate data.
func (b *Batch) SendImm(id uint64, f SendFlags, local SGE, imm uint32) bool {
	w := b.next(id, C.IBV_WR_SEND_WITH_IMM, f, local)
	if w == nil {
		return false
	}
	setImm(w, imm)
	return true
}

// SendInlineImm adds a SEND of a copy of data, which may be empty, with immediate data.
func (b *Batch) SendInlineImm(id uint64, f SendFlags, data []byte, imm uint32) bool {
	w := b.nextInline(id, C.IBV_WR_SEND_WITH_IMM, f, data)
	if w == nil {
		return false
	}
	setImm(w, imm)
	return true
}

// Write adds an RDMA WRITE of local to r.
func (b *Batch) Write(id uint64, f SendFlags, local SGE, r Remote) bool {
	w := b.next(id, C.IBV_WR_RDMA_WRITE, f, local)
	if w == nil {
		return false
	}
	setRemote(w, r)
	return true
}

// WriteInline adds an RDMA WRITE of a copy of data to r.
func (b *Batch) WriteInline(id uint64, f SendFlags, data []byte, r Remote) bool {
	w := b.nextInline(id, C.IBV_WR_RDMA_WRITE, f, data)
	if w == nil {
		return false
	}
	setRemote(w, r)
	return true
}

// WriteImm adds an RDMA WRITE of local to r that consumes a receive of the peer and gives it imm.
func (b *Batch) WriteImm(id uint64, f SendFlags, local SGE, r Remote, imm uint32) bool {
	w := b.next(id, C.IBV_WR_RDMA_WRITE_WITH_IMM, f, local)
	if w == nil {
		return false
	}
	setRemote(w, r)
	setImm(w, imm)
	return true
}

// SetImm gives the last request immediate data, and so has it consume a receive of the peer. False if it is no RDMA
// WRITE.
func (b *Batch) SetImm(imm uint32) bool {
	if b.n == 0 {
		return false
	}
	w := &b.wr[b.n-1]
	if w.opcode != C.IBV_WR_RDMA_WRITE && w.opcode != C.IBV_WR_RDMA_WRITE_WITH_IMM {
		return false
	}
	w.opcode = C.IBV_WR_RDMA_WRITE_WITH_IMM
	setImm(w, imm)
	return true
}

// Read adds an RDMA READ of r into local.
func (b *Batch) Read(id uint64, f SendFlags, local SGE, r Remote) bool {
	w := b.next(id, C.IBV_WR_RDMA_READ, f, local)
	if w == nil {
		return false
	}
	setRemote(w, r)
	return true
}

// CompareSwap adds an atomic that stores swap in the 8-byte word r (aligned) if it holds compare. The word's
// earlier value lands in local, 8 bytes, in host order.
func (b *Batch) CompareSwap(id uint64, f SendFlags, local SGE, r Remote, compare, swap uint64) bool {
	w := b.next(id, C.IBV_WR_ATOMIC_CMP_AND_SWP, f, local)
	if w == nil {
		return false
	}
	*(*atomicArgs)(unsafe.Add(unsafe.Pointer(w), C.iron_send_args_at)) = atomicArgs{r.Addr, compare, swap, r.RKey}
	return true
}

// FetchAdd adds an atomic that adds add to the 8-byte word r (aligned). The word's earlier value lands in
// local, 8 bytes, in host order.
func (b *Batch) FetchAdd(id uint64, f SendFlags, local SGE, r Remote, add uint64) bool {
	w := b.next(id, C.IBV_WR_ATOMIC_FETCH_AND_ADD, f, local)
	if w == nil {
		return false
	}
	*(*atomicArgs)(unsafe.Add(unsafe.Pointer(w), C.iron_send_args_at)) = atomicArgs{r.Addr, add, 0, r.RKey}
	return true
}

// AddSGE adds to the scatter-gather list of the last request: an entry, or to the last one where s goes on behind it.
// False when the list is full, or the request is inline.
func (b *Batch) AddSGE(s SGE) bool {
	if b.n == 0 {
		return false
	}
	w := &b.wr[b.n-1]
	if SendFlags(w.send_flags)&inlined != 0 {
		return false
	}
	k := int(w.num_sge)
	list := b.sge[(b.n-1)*b.sges:][:b.sges]
	if last := &list[max(k, 1)-1]; k > 0 && last.LKey == s.LKey && last.Addr+uint64(last.Len) == s.Addr && s.Len <= math.MaxUint32-last.Len {
		last.Len += s.Len
		return true
	}
	if k >= b.sges {
		return false
	}
	list[k] = s
	w.num_sge++
	return true
}

// Post hands the batch to the device, in order, with one doorbell, and empties it. On an error the first n
// requests were taken all the same, the rest never happened.
func (b *Batch) Post() (n int, err error) {
	if b.n == 0 {
		return 0, nil
	}
	if b.qp.c == nil || len(b.wr) == 0 {
		return 0, opClosed("post send", b.qp.pd.dev.name)
	}
	var done C.int
	e := C.iron_post_send(b.qp.c, &b.wr[0], C.int(b.n), &done)
	b.n = 0
	if e != 0 {
		return int(done), opErrno("post send", b.qp.pd.dev.name, syscall.Errno(e))
	}
	return int(done), nil
}

// RecvBatch collects receives of one queue pair and posts them together.
type RecvBatch struct {
	qp   *QP
	wr   []C.struct_ibv_recv_wr
	sge  []SGE
	sges int
	n    int
}

// RecvBatch is the queue pair's batch of receives.
func (q *QP) RecvBatch() *RecvBatch { return &q.recv }

// Len is how many receives are in the batch.
func (b *RecvBatch) Len() int { return b.n }

// Cap is how many fit.
func (b *RecvBatch) Cap() int { return len(b.wr) }

// Add adds a receive into local; a zero SGE makes one that takes no bytes, enough for WRITE_WITH_IMM. False
// when the batch is full or the queue pair closed.
func (b *RecvBatch) Add(id uint64, local SGE) bool {
	if b.n >= len(b.wr) {
		return false
	}
	w := &b.wr[b.n]
	b.sge[b.n*b.sges] = local
	w.wr_id = C.uint64_t(id)
	w.num_sge = 1
	if local == (SGE{}) {
		w.num_sge = 0
	}
	b.n++
	return true
}

// AddSGE adds an entry to the list of the last receive; false when the list is full.
func (b *RecvBatch) AddSGE(s SGE) bool {
	if b.n == 0 {
		return false
	}
	w := &b.wr[b.n-1]
	k := int(w.num_sge)
	if k >= b.sges {
		return false
	}
	b.sge[(b.n-1)*b.sges+k] = s
	w.num_sge++
	return true
}

// Post hands the receives to the device and empties the batch; as Batch.Post.
func (b *RecvBatch) Post() (n int, err error) {
	if b.n == 0 {
		return 0, nil
	}
	if b.qp.c == nil || len(b.wr) == 0 {
		return 0, opClosed("post recv", b.qp.pd.dev.name)
	}
	var done C.int
	e := C.iron_post_recv(b.qp.c, &b.wr[0], C.int(b.n), &done)
	b.n = 0
	if e != 0 {
		return int(done), opErrno("post recv", b.qp.pd.dev.name, syscall.Errno(e))
	}
	return int(done), nil
}

// Reset empties the batch.
func (b *RecvBatch) Reset() { b.n = 0 }
