package ram

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// mapView maps the memfd without making a slice of it.
func mapView(fd int, size uintptr) (uintptr, error) {
	p, err := unix.MmapPtr(fd, 0, nil, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	return uintptr(p), err
}

func munmap(addr, length uintptr) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_MUNMAP, addr, length, 0)
	return errno
}

// addressOf returns the address of mapped memory, which does not move.
func addressOf(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }
