package shm

import (
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"ironspan/engine/wire"
	"ironspan/fastpath/fabric"
)

const headerSize = 4096 // of a ring; one page, so that rings are page-aligned

// ring is a ring's place in a mapped board. The words are in memory shared with another process; they are only
// touched through sync/atomic.
type ring struct {
	tail, closed, head, sleeping, waiting *atomic.Uint32
	nonce                                 *atomic.Uint64
	entries                               []byte
	mask                                  uint32
}

func ringSize(entries int) int { return headerSize + entries*wire.Size }

// newRing lays a ring over b, which is page-aligned, of ringSize(entries) bytes, and stays mapped as long as the
// ring is used. entries is a power of two.
func newRing(b []byte, entries int) ring {
	b = b[:ringSize(entries):ringSize(entries)]
	word := func(off int) *atomic.Uint32 { return (*atomic.Uint32)(unsafe.Pointer(&b[off])) }
	return ring{
		tail: word(0), closed: word(4), head: word(64), sleeping: word(128), waiting: word(192),
		nonce:   (*atomic.Uint64)(unsafe.Pointer(&b[256])),
		entries: b[headerSize:], mask: uint32(entries - 1),
	}
}

func (r *ring) entry(i uint32) []byte {
	off := int(i&r.mask) * wire.Size
	return r.entries[off : off+wire.Size : off+wire.Size]
}

func (r *ring) size() uint32 { return r.mask + 1 }

// order stores a word that the loads after it must not overtake. It is an exchange because the race detector
// turns a Store to memory outside of the Go heap into a mere release; where it is off, both are the same.
func order(word *atomic.Uint32, v uint32) { word.Swap(v) }

// bytesOf makes a slice of a mapping that its owner keeps until the lane is closed. It lies outside of the Go heap,
// so the garbage collector does not care.
func bytesOf(m fabric.Memory) []byte {
	if m.Len == 0 {
		return nil
	}
	return unsafe.Slice(*(**byte)(unsafe.Pointer(&m.Addr)), m.Len)
}

// The calls below never wait, so they need not tell the Go scheduler.

// epollNow returns what is ready, without waiting.
func epollNow(epfd int, events []unix.EpollEvent) []unix.EpollEvent {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epfd), uintptr(unsafe.Pointer(unsafe.SliceData(events))),
		uintptr(len(events)), 0, 0, 0)
	if errno != 0 {
		return nil
	}
	return events[:n]
}

// drain empties a non-blocking pipe.
func drain(fd int, scratch []byte) {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(scratch))),
			uintptr(len(scratch)))
		if errno != 0 || int(n) < len(scratch) {
			return
		}
	}
}

// strike puts a byte into a non-blocking pipe. If it is full, whoever reads it has enough to wake up for.
func strike(fd int, scratch []byte) {
	_, _, _ = unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(scratch))), 1)
}
