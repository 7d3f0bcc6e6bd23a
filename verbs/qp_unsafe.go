package verbs

/*
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <infiniband/verbs.h>
*/
import "C"

import (
	"crypto/rand"
	"encoding/binary"
	"syscall"
	"unsafe"
)

// QP is a reliable-connection queue pair. One goroutine at a time drives it and its batches.
type QP struct {
	pd     *PD
	cfg    QPConfig
	c      *C.struct_ibv_qp // guarded by pd.dev.mu against Close
	mem    unsafe.Pointer   // the arrays of both batches
	inline int              // bytes that may travel inline, as granted
	send   Batch
	recv   RecvBatch

	// Set by Init.
	port  PortInfo
	pcfg  PortConfig
	gid   GIDEntry
	local QPEndpoint
	retry retryCodes
}

// CreateQP makes a queue pair in state RESET.
func (p *PD) CreateQP(cfg QPConfig) (*QP, error) {
	const op = "create qp"
	d := p.dev
	d.mu.Lock()
	defer d.mu.Unlock()
	if p.c == nil {
		return nil, opClosed(op, d.name)
	}
	cfg.fill()
	if err := checkQPConfig(op, d, cfg); err != nil {
		return nil, err
	}
	var a C.struct_ibv_qp_init_attr
	a.send_cq, a.recv_cq = cfg.SendCQ.c, cfg.RecvCQ.c
	a.cap.max_send_wr, a.cap.max_recv_wr = C.uint32_t(cfg.SendWR), C.uint32_t(cfg.RecvWR)
	a.cap.max_send_sge, a.cap.max_recv_sge = C.uint32_t(cfg.SendSGE), C.uint32_t(cfg.RecvSGE)
	a.cap.max_inline_data = C.uint32_t(cfg.MaxInline)
	a.qp_type = C.IBV_QPT_RC
	if cfg.SignalAll {
		a.sq_sig_all = 1
	}
	c, err := C.ibv_create_qp(p.c, &a)
	if c == nil {
		return nil, opErrno(op, d.name, toErrno(err))
	}
	q := &QP{pd: p, cfg: cfg, c: c, inline: cfg.MaxInline}
	if e := q.allocBatches(); e != nil {
		C.ibv_destroy_qp(c)
		return nil, e
	}
	p.qps[q] = struct{}{}
	cfg.SendCQ.qps[q] = struct{}{}
	cfg.RecvCQ.qps[q] = struct{}{}
	return q, nil
}

func checkQPConfig(op string, d *Device, cfg QPConfig) error {
	if cfg.SendCQ == nil || cfg.RecvCQ == nil {
		return opInvalid(op, d.name, "SendCQ and RecvCQ are required")
	}
	if cfg.SendCQ.dev != d || cfg.RecvCQ.dev != d {
		return opInvalid(op, d.name, "the completion queues belong to another device")
	}
	if cfg.SendCQ.c == nil || cfg.RecvCQ.c == nil {
		return opClosed(op, d.name)
	}
	lim, err := d.limitsLocked()
	if err != nil {
		return err
	}
	for _, l := range []struct {
		what     string
		v, least int
		most     int
	}{
		{"SendWR", cfg.SendWR, 1, lim.MaxQPWR}, {"RecvWR", cfg.RecvWR, 1, lim.MaxQPWR},
		{"SendSGE", cfg.SendSGE, 1, lim.MaxSGE}, {"RecvSGE", cfg.RecvSGE, 1, lim.MaxSGE},
		{"MaxInline", cfg.MaxInline, 0, 4096},
	} {
		if l.v < l.least || l.v > l.most {
			return opInvalid(op, d.name, "%s %d is not within %d to %d", l.what, l.v, l.least, l.most)
		}
	}
	return nil
}

// QPN is the queue pair's number.
func (q *QP) QPN() uint32 {
	if q.c == nil {
		return 0
	}
	return uint32(q.c.qp_num)
}

// MaxInline is how many bytes of a send may travel inline.
func (q *QP) MaxInline() int { return q.inline }

// Endpoint is what the peer must know; valid after Init.
func (q *QP) Endpoint() QPEndpoint { return q.local }

// GID is the entry that Init chose.
func (q *QP) GID() GIDEntry { return q.gid }

// Init chooses port and GID, draws a random packet sequence number and moves the queue pair from RESET to
// INIT. Receives may be posted from now on.
func (q *QP) Init(cfg PortConfig) error {
	const op = "modify qp to INIT"
	d := q.pd.dev
	d.mu.Lock()
	defer d.mu.Unlock()
	if q.c == nil {
		return opClosed(op, d.name)
	}
	retry, err := cfg.Retry.codes()
	if err != nil {
		return err
	}
	if cfg.MTU != 0 && !cfg.MTU.Valid() {
		return opInvalid(op, d.name, "path mtu code %d is not 1 to 5", uint8(cfg.MTU))
	}
	port, gid, err := d.pathLocked(cfg)
	if err != nil {
		return err
	}
	lim, err := d.limitsLocked()
	if err != nil {
		return err
	}
	depth := func(most int) int {
		want := cfg.ReadDepth
		if want <= 0 {
			want = 16
		}
		return min(want, most, 255)
	}
	var a C.struct_ibv_qp_attr
	a.qp_state = C.IBV_QPS_INIT
	a.port_num = C.uint8_t(port.Num)
	a.qp_access_flags = C.uint(cfg.Access &^ LocalWrite)
	if err := q.modify(op, &a, C.IBV_QP_STATE|C.IBV_QP_PKEY_INDEX|C.IBV_QP_PORT|C.IBV_QP_ACCESS_FLAGS); err != nil {
		return err
	}
	cfg.ReadDepth = depth(lim.MaxReadsInit)
	mtu := port.ActiveMTU
	if cfg.MTU != 0 && cfg.MTU < mtu {
		mtu = cfg.MTU
	}
	q.port, q.pcfg, q.gid, q.retry = port, cfg, gid, retry
	q.local = QPEndpoint{
		QPN: uint32(q.c.qp_num), PSN: randomPSN(), LID: port.LID, GID: gid.GID, MTU: mtu,
		ReadDepth: uint8(depth(lim.MaxReadsTarget)),
	}
	return nil
}

// pathLocked finds port and GID for cfg.
func (d *Device) pathLocked(cfg PortConfig) (PortInfo, GIDEntry, error) {
	var port PortInfo
	var err error
	if cfg.Port == 0 {
		port, err = d.activePortLocked()
	} else {
		port, err = d.portLocked(cfg.Port)
	}
	if err != nil {
		return port, GIDEntry{}, err
	}
	if port.State != PortActive {
		return port, GIDEntry{}, &OpError{Op: "choose port", Device: d.name, Err: ErrNoDevice,
			Hint: "the port is " + port.State.String() + ": bring its netdev up with `ip link set NETDEV up`"}
	}
	gids, err := d.gidsLocked(port.Num)
	if err != nil {
		return port, GIDEntry{}, err
	}
	gid, err := ChooseGID(port.LinkLayer, gids, cfg.GID)
	if err != nil {
		if e, ok := err.(*OpError); ok {
			e.Device = d.name
		}
	}
	return port, gid, err
}

// randomPSN draws the first sequence number: a stranger must not be able to guess it.
func randomPSN() uint32 {
	var b [4]byte
	rand.Read(b[:]) // never fails
	return binary.LittleEndian.Uint32(b[:]) & (1<<24 - 1)
}

// Connect moves the queue pair from INIT to RTR and on to RTS, towards remote.
func (q *QP) Connect(remote QPEndpoint) error {
	if err := q.RTR(remote); err != nil {
		return err
	}
	return q.RTS()
}

// RTR moves the queue pair from INIT to ready-to-receive from remote. The path MTU is the smaller one of
// both ends.
func (q *QP) RTR(remote QPEndpoint) error {
	const op = "modify qp to RTR"
	d := q.pd.dev
	d.mu.Lock()
	defer d.mu.Unlock()
	if q.c == nil {
		return opClosed(op, d.name)
	}
	if err := remote.Validate(); err != nil {
		return err
	}
	if q.local.QPN == 0 {
		return opInvalid(op, d.name, "Init comes first")
	}
	var a C.struct_ibv_qp_attr
	a.qp_state = C.IBV_QPS_RTR
	a.path_mtu = C.enum_ibv_mtu(min(q.local.MTU, remote.MTU))
	a.dest_qp_num = C.uint32_t(remote.QPN)
	a.rq_psn = C.uint32_t(remote.PSN)
	a.max_dest_rd_atomic = C.uint8_t(q.local.ReadDepth)
	a.min_rnr_timer = C.uint8_t(q.retry.rnrTimer)
	a.ah_attr.port_num = C.uint8_t(q.port.Num)
	a.ah_attr.dlid = C.uint16_t(remote.LID)
	a.ah_attr.sl = C.uint8_t(q.pcfg.ServiceLevel)
	if q.port.LinkLayer == LinkEthernet {
		if remote.GID.IsZero() {
			return opInvalid(op, d.name, "the peer gave no gid, and Ethernet needs one")
		}
		a.ah_attr.is_global = 1
		a.ah_attr.grh.sgid_index = C.uint8_t(q.gid.Index)
		a.ah_attr.grh.hop_limit = 64
		a.ah_attr.grh.traffic_class = C.uint8_t(q.pcfg.TrafficClass)
		*(*GID)(unsafe.Pointer(&a.ah_attr.grh.dgid)) = remote.GID
	}
	if remote.ReadDepth != 0 {
		q.pcfg.ReadDepth = min(q.pcfg.ReadDepth, int(remote.ReadDepth))
	}
	return q.modify(op, &a, C.IBV_QP_STATE|C.IBV_QP_AV|C.IBV_QP_PATH_MTU|C.IBV_QP_DEST_QPN|C.IBV_QP_RQ_PSN|
		C.IBV_QP_MAX_DEST_RD_ATOMIC|C.IBV_QP_MIN_RNR_TIMER)
}

// RTS moves the queue pair from ready-to-receive to ready-to-send.
func (q *QP) RTS() error {
	const op = "modify qp to RTS"
	d := q.pd.dev
	d.mu.Lock()
	defer d.mu.Unlock()
	if q.c == nil {
		return opClosed(op, d.name)
	}
	if q.local.QPN == 0 {
		return opInvalid(op, d.name, "Init and RTR come first")
	}
	var a C.struct_ibv_qp_attr
	a.qp_state = C.IBV_QPS_RTS
	a.sq_psn = C.uint32_t(q.local.PSN)
	a.timeout = C.uint8_t(q.retry.timeout)
	a.retry_cnt = C.uint8_t(q.retry.count)
	a.rnr_retry = C.uint8_t(q.retry.rnrCount)
	a.max_rd_atomic = C.uint8_t(q.pcfg.ReadDepth)
	return q.modify(op, &a, C.IBV_QP_STATE|C.IBV_QP_SQ_PSN|C.IBV_QP_TIMEOUT|C.IBV_QP_RETRY_CNT|C.IBV_QP_RNR_RETRY|
		C.IBV_QP_MAX_QP_RD_ATOMIC)
}

// Drain stops the send queue after what has begun (RTS to SQD); EventSQDrained tells when it stands.
func (q *QP) Drain() error {
	var a C.struct_ibv_qp_attr
	a.en_sqd_async_notify = 1
	return q.modifyState("modify qp to SQD", StateSQD, &a, C.IBV_QP_EN_SQD_ASYNC_NOTIFY)
}

// Resume lets a drained send queue go on (SQD to RTS). While it still drains, the device refuses.
func (q *QP) Resume() error {
	var a C.struct_ibv_qp_attr
	return q.modifyState("modify qp to RTS", StateRTS, &a, 0)
}

// Fail moves the queue pair to ERR: everything posted completes with StatusFlushed.
func (q *QP) Fail() error {
	var a C.struct_ibv_qp_attr
	return q.modifyState("modify qp to ERR", StateErr, &a, 0)
}

// Reset moves the queue pair to RESET and drops everything posted, without completions. Init may follow.
func (q *QP) Reset() error {
	var a C.struct_ibv_qp_attr
	if err := q.modifyState("modify qp to RESET", StateReset, &a, 0); err != nil {
		return err
	}
	q.local = QPEndpoint{}
	return nil
}

func (q *QP) modifyState(op string, s QPState, a *C.struct_ibv_qp_attr, mask C.int) error {
	q.pd.dev.mu.Lock()
	defer q.pd.dev.mu.Unlock()
	if q.c == nil {
		return opClosed(op, q.pd.dev.name)
	}
	a.qp_state = uint32(s)
	return q.modify(op, a, C.IBV_QP_STATE|mask)
}

func (q *QP) modify(op string, a *C.struct_ibv_qp_attr, mask C.int) error {
	if e := C.ibv_modify_qp(q.c, a, mask); e != 0 {
		err := opErrno(op, q.pd.dev.name, syscall.Errno(e))
		if syscall.Errno(e) == syscall.EINVAL && err.Hint == "" {
			err.Hint = "the qp is not in a state from which this leads: RESET, INIT, RTR, RTS"
		}
		return err
	}
	return nil
}

// State asks the device for the queue pair's state.
func (q *QP) State() (QPState, error) {
	const op = "query qp"
	q.pd.dev.mu.Lock()
	defer q.pd.dev.mu.Unlock()
	if q.c == nil {
		return 0, opClosed(op, q.pd.dev.name)
	}
	var a C.struct_ibv_qp_attr
	var ia C.struct_ibv_qp_init_attr
	if e := C.ibv_query_qp(q.c, &a, C.IBV_QP_STATE, &ia); e != 0 {
		return 0, opErrno(op, q.pd.dev.name, syscall.Errno(e))
	}
	return QPState(a.qp_state), nil
}

// Close destroys the queue pair; what was posted is dropped without completions. Completions that are in a
// queue already may stay there on some devices.
func (q *QP) Close() error {
	q.pd.dev.mu.Lock()
	defer q.pd.dev.mu.Unlock()
	return q.closeLocked()
}

func (q *QP) closeLocked() error {
	if q.c == nil {
		return nil
	}
	if e := C.ibv_destroy_qp(q.c); e != 0 {
		return opErrno("destroy qp", q.pd.dev.name, syscall.Errno(e))
	}
	q.c = nil
	q.freeBatches()
	delete(q.pd.qps, q)
	delete(q.cfg.SendCQ.qps, q)
	delete(q.cfg.RecvCQ.qps, q)
	return nil
}
