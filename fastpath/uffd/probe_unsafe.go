package uffd

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// mapView maps a memfd without making a slice of it: Go code must not touch memory that faults into user space.
func mapView(fd int, size uintptr) (uintptr, error) {
	p, err := unix.MmapPtr(fd, 0, nil, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	return uintptr(p), err
}

func unmapView(addr, size uintptr) { _, _, _ = unix.Syscall(unix.SYS_MUNMAP, addr, size, 0) }

func dropView(addr, size uintptr) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_MADVISE, addr, size, unix.MADV_DONTNEED)
	return errno
}

// transfer has the kernel write a byte from the pipe to addr, or one from addr to the pipe.
func transfer(pipe [2]int, addr uintptr, write bool) unix.Errno {
	nr, fd := uintptr(unix.SYS_WRITE), pipe[1]
	if write {
		nr, fd = unix.SYS_READ, pipe[0]
	}
	_, _, errno := unix.Syscall(nr, uintptr(fd), addr, 1)
	return errno
}

func addressOf(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }
