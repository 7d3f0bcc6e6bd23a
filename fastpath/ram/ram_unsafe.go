package ram

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// mapView maps the memfd, from a multiple of the block size on: huge pages in the file can be huge in the view, and
// KVM's are, only if file, view and guest-physical address agree in the offset within a block.
func mapView(fd int, size uintptr) (unsafe.Pointer, error) {
	room, err := unix.MmapPtr(-1, 0, nil, size+blockSize, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
	if err != nil {
		return nil, err
	}
	before := -uintptr(room) & (blockSize - 1)
	view, err := unix.MmapPtr(fd, 0, unsafe.Add(room, before), size, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_SHARED|unix.MAP_NORESERVE|unix.MAP_FIXED)
	if err != nil {
		munmap(uintptr(room), size+blockSize)
		return nil, err
	}
	// What is too much goes. The room is page-aligned, so there is something behind the view, but not always before.
	if before > 0 {
		munmap(uintptr(room), before)
	}
	munmap(uintptr(view)+size, blockSize-before)
	return view, nil
}

// mapService maps the memfd for Go code.
func mapService(fd int, size uintptr) ([]byte, error) {
	view, err := mapView(fd, size)
	if err != nil {
		return nil, err
	}
	return unsafe.Slice((*byte)(view), size), nil
}

// mapGuest maps the memfd without making a slice of it.
func mapGuest(fd int, size uintptr) (uintptr, error) {
	view, err := mapView(fd, size)
	return uintptr(view), err
}

func munmap(addr, length uintptr) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_MUNMAP, addr, length, 0)
	return errno
}

// addressOf returns the address of mapped memory, which does not move.
func addressOf(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }
