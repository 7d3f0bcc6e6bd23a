// Package epoll waits for several descriptors, with timeouts in nanoseconds, and allocates nothing.
package epoll

import (
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Forever is a timeout that never comes.
const Forever = time.Duration(-1)

// Set is a set of descriptors. Add may be called by any thread, Wait by one at a time.
type Set struct {
	fd      int
	ready   [8]unix.EpollEvent
	timeout unix.Timespec
}

// New makes an empty set.
func New() (*Set, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	return &Set{fd: fd}, nil
}

// Add has Wait return when fd can be read: as long as it can, or, with edge, each time that there is something new to
// read.
func (s *Set) Add(fd int, edge bool) error {
	e := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}
	if edge {
		e.Events |= unix.EPOLLET
	}
	if err := unix.EpollCtl(s.fd, unix.EPOLL_CTL_ADD, fd, &e); err != nil {
		return fmt.Errorf("epoll: add descriptor %d: %w", fd, err)
	}
	return nil
}

// Wait waits for a descriptor that can be read, and returns those that can, eight at most, in Fd: valid until the next
// Wait. It returns none after the timeout, if that is not negative; and earlier, where a signal came: what is to be
// looked at then, if anything, is for the caller to know. Linux 5.11.
func (s *Set) Wait(timeout time.Duration) []unix.EpollEvent {
	var ts *unix.Timespec
	if timeout >= 0 {
		s.timeout = unix.NsecToTimespec(int64(timeout))
		ts = &s.timeout
	}
	n, _, errno := unix.Syscall6(unix.SYS_EPOLL_PWAIT2, uintptr(s.fd), uintptr(unsafe.Pointer(&s.ready[0])),
		uintptr(len(s.ready)), uintptr(unsafe.Pointer(ts)), 0, 0)
	if errno != 0 {
		return nil
	}
	return s.ready[:n]
}

// Close frees the set. Wait must not be running.
func (s *Set) Close() error { return unix.Close(s.fd) }
