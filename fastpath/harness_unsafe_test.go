package fastpath

import (
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// newHistory maps the words of a history from a memfd, so that a child process can map them too.
func newHistory(fd int, pages, workers int) (*history, error) {
	n := 2 * pages * workers
	if err := unix.Ftruncate(fd, int64(n*8)); err != nil {
		return nil, err
	}
	// The mapping lives as long as the test process.
	b, err := unix.Mmap(fd, 0, n*8, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return &history{workers: workers, words: unsafe.Slice((*atomic.Uint64)(unsafe.Pointer(&b[0])), n)}, nil
}
