package verbs

/*
#include <stdlib.h>
#include <infiniband/verbs.h>

static struct ibv_mr *iron_reg_mr(struct ibv_pd *pd, uintptr_t addr, size_t len, int access)
{
	return ibv_reg_mr(pd, (void *)addr, len, access);
}
*/
import "C"

import (
	"errors"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Memory is a private mapping outside Go's heap, fit to be registered.
type Memory struct {
	mu    sync.Mutex // guards bytes on Close
	bytes []byte
}

// AllocMemory maps size bytes, rounded up to whole pages, all zero.
func AllocMemory(size int) (*Memory, error) {
	if size <= 0 {
		return nil, opInvalid("allocate memory", "", "size %d is not positive", size)
	}
	page := unix.Getpagesize()
	b, err := unix.Mmap(-1, 0, (size+page-1)/page*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, &OpError{Op: "allocate memory", Err: err}
	}
	return &Memory{bytes: b}, nil
}

// Bytes is the memory. The peer and the device write to it behind Go's back: read what a completion has
// announced, no sooner.
func (m *Memory) Bytes() []byte { return m.bytes }

// Addr is its address.
func (m *Memory) Addr() uintptr {
	if len(m.bytes) == 0 {
		return 0
	}
	return uintptr(unsafe.Pointer(&m.bytes[0]))
}

// Close unmaps it. Regions registered on it must be closed first.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.bytes == nil {
		return nil
	}
	b := m.bytes
	m.bytes = nil
	if err := unix.Munmap(b); err != nil {
		return &OpError{Op: "free memory", Err: err}
	}
	return nil
}

// PD is a protection domain: queue pairs reach only regions of their own domain.
type PD struct {
	dev *Device
	c   *C.struct_ibv_pd // guarded by dev.mu, as the maps
	mrs map[*MR]struct{}
	qps map[*QP]struct{}
}

// AllocPD makes a protection domain.
func (d *Device) AllocPD() (*PD, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.c == nil {
		return nil, opClosed("allocate pd", d.name)
	}
	c, err := C.ibv_alloc_pd(d.c)
	if c == nil {
		return nil, opErrno("allocate pd", d.name, toErrno(err))
	}
	p := &PD{dev: d, c: c, mrs: map[*MR]struct{}{}, qps: map[*QP]struct{}{}}
	d.pds[p] = struct{}{}
	return p, nil
}

// Device is the device of the domain.
func (p *PD) Device() *Device { return p.dev }

// Close closes the domain's queue pairs and regions, and the domain.
func (p *PD) Close() error {
	p.dev.mu.Lock()
	defer p.dev.mu.Unlock()
	return p.closeLocked()
}

func (p *PD) closeLocked() error {
	if p.c == nil {
		return nil
	}
	var errs []error
	for q := range p.qps {
		errs = append(errs, q.closeLocked())
	}
	for m := range p.mrs {
		errs = append(errs, m.closeLocked())
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if e := C.ibv_dealloc_pd(p.c); e != 0 {
		return opErrno("free pd", p.dev.name, unix.Errno(e))
	}
	p.c = nil
	delete(p.dev.pds, p)
	return nil
}

// MR is a registered memory region. Its fields never change.
type MR struct {
	pd   *PD
	c    *C.struct_ibv_mr // guarded by pd.dev.mu
	addr uint64
	len  uint64
	lkey uint32
	rkey uint32
}

// RegMR registers and pins length bytes at addr, which must be mapped outside Go's heap, stay mapped until
// Close, and not be punched or remapped meanwhile: the device would go on using the old pages.
func (p *PD) RegMR(addr uintptr, length uint64, access Access) (*MR, error) {
	const op = "register mr"
	p.dev.mu.Lock()
	defer p.dev.mu.Unlock()
	switch {
	case p.c == nil:
		return nil, opClosed(op, p.dev.name)
	case addr == 0 || length == 0 || uint64(addr)+length < uint64(addr):
		return nil, opInvalid(op, p.dev.name, "no memory at %#x, length %d", addr, length)
	case access&(RemoteWrite|RemoteAtomic) != 0 && access&LocalWrite == 0:
		return nil, opInvalid(op, p.dev.name, "RemoteWrite and RemoteAtomic need LocalWrite")
	case access&^(LocalWrite|RemoteWrite|RemoteRead|RemoteAtomic) != 0:
		return nil, opInvalid(op, p.dev.name, "access %#x has unknown bits", uint32(access))
	}
	c, err := C.iron_reg_mr(p.c, C.uintptr_t(addr), C.size_t(length), C.int(access))
	if c == nil {
		return nil, opErrno(op, p.dev.name, toErrno(err))
	}
	m := &MR{pd: p, c: c, addr: uint64(addr), len: length, lkey: uint32(c.lkey), rkey: uint32(c.rkey)}
	p.mrs[m] = struct{}{}
	return m, nil
}

// RegMemory registers all of a Memory.
func (p *PD) RegMemory(m *Memory, access Access) (*MR, error) {
	return p.RegMR(m.Addr(), uint64(len(m.bytes)), access)
}

// Addr is where the region begins.
func (m *MR) Addr() uint64 { return m.addr }

// Len is its length in bytes.
func (m *MR) Len() uint64 { return m.len }

// LKey is the key that local work requests name it by.
func (m *MR) LKey() uint32 { return m.lkey }

// RKey is the key that peers name it by.
func (m *MR) RKey() uint32 { return m.rkey }

// SGE names n bytes of the region from off. For bytes outside the region it returns an entry with a key that
// no region has, so that the request completes with StatusLocalProtection.
func (m *MR) SGE(off uint64, n uint32) SGE {
	if off > m.len || uint64(n) > m.len-off {
		return SGE{Addr: m.addr, Len: max(n, 1), LKey: ^m.lkey}
	}
	return SGE{Addr: m.addr + off, Len: n, LKey: m.lkey}
}

// Remote is the region as a peer names it, from off.
func (m *MR) Remote(off uint64) Remote { return Remote{Addr: m.addr + off, RKey: m.rkey} }

// Close takes the registration back: the keys are of no more use to anyone.
func (m *MR) Close() error {
	m.pd.dev.mu.Lock()
	defer m.pd.dev.mu.Unlock()
	return m.closeLocked()
}

func (m *MR) closeLocked() error {
	if m.c == nil {
		return nil
	}
	if e := C.ibv_dereg_mr(m.c); e != 0 {
		return opErrno("deregister mr", m.pd.dev.name, unix.Errno(e))
	}
	m.c = nil
	delete(m.pd.mrs, m)
	return nil
}
