package uffd

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// Support says what a trial on this machine showed.
type Support struct {
	Features   Features // offered by the kernel
	ContinueWP bool     // Continue can map a page write-protected (linux 6.4)
}

// Probe tries userfaultfd out, once: on a page of its own it takes missing, minor and write-protect faults and
// resolves them. The error, if any, says why this machine cannot be used; without ContinueWP it can, see
// coherence.Config.ReadAsWrite.
func Probe() (Support, error) { return probe() }

var probe = sync.OnceValues(func() (Support, error) {
	s, err := probeOnce()
	if err != nil {
		return s, fmt.Errorf("uffd: probe: %w", err)
	}
	return s, nil
})

// probeWaitMs bounds the wait for a fault that must come; on a very busy machine it takes milliseconds.
const probeWaitMs = 10_000

func probeOnce() (s Support, err error) {
	if s.Features, err = offered(); err != nil {
		return s, err
	}
	f, err := Open()
	if err != nil {
		return s, err
	}
	defer f.Close()
	t, err := newTrial(f)
	if err != nil {
		return s, err
	}
	defer t.close()
	if err := t.missing(); err != nil {
		return s, err
	}
	if err := t.writeProtected("a page copied write-protected"); err != nil {
		return s, err
	}
	if err := t.drop(); err != nil {
		return s, err
	}
	switch errno := f.Continue(t.guest, t.size, true); errno {
	case 0:
		// The ioctl may take a mode that it then does not honour: see whether a write really faults.
		s.ContinueWP = t.writeProtected("a page continued write-protected") == nil
	case unix.EINVAL:
	default:
		return s, Error("continue", t.guest, errno)
	}
	if !s.ContinueWP {
		if err := t.drop(); err != nil {
			return s, err
		}
		if errno := f.Continue(t.guest, t.size, false); errno != 0 {
			return s, Error("continue", t.guest, errno)
		}
	}
	return s, t.protect()
}

// trial is one page of a memfd with a registered view. It is touched by the kernel only, in read and write
// system calls of a goroutine, which therefore can be preempted.
type trial struct {
	f       *FD
	memfd   int
	pipe    [2]int
	service []byte
	guest   uintptr
	size    uintptr
}

func newTrial(f *FD) (_ *trial, err error) {
	t := &trial{f: f, memfd: -1, pipe: [2]int{-1, -1}, size: uintptr(unix.Getpagesize())}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	if t.memfd, err = unix.MemfdCreate("ironspan-probe", unix.MFD_CLOEXEC); err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	if err = unix.Ftruncate(t.memfd, int64(t.size)); err != nil {
		return nil, fmt.Errorf("ftruncate: %w", err)
	}
	if err = unix.Pipe2(t.pipe[:], unix.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("pipe: %w", err)
	}
	if t.service, err = unix.Mmap(t.memfd, 0, int(t.size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, fmt.Errorf("mmap: %w", err)
	}
	if t.guest, err = mapView(t.memfd, t.size); err != nil {
		return nil, fmt.Errorf("mmap: %w", err)
	}
	return t, f.Register(t.guest, t.size, Missing|Minor|WP)
}

func (t *trial) close() {
	if t.guest != 0 {
		unmapView(t.guest, t.size)
	}
	if t.service != nil {
		_ = unix.Munmap(t.service)
	}
	for _, fd := range [...]int{t.memfd, t.pipe[0], t.pipe[1]} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// touch writes one byte at the beginning of the view, or reads it, on another thread, and runs resolve on the fault
// that it causes.
func (t *trial) touch(write bool, want Kind, what string, resolve func() unix.Errno) error {
	done := make(chan unix.Errno, 1)
	if write {
		if _, err := unix.Write(t.pipe[1], []byte{0x5a}); err != nil {
			return fmt.Errorf("write to a pipe: %w", err)
		}
	}
	go func() { done <- transfer(t.pipe, t.guest, write) }()
	var ev [1]Event
	fds := [...]unix.PollFd{{Fd: int32(t.f.FD()), Events: unix.POLLIN}}
	for waited := 0; ; waited++ {
		n, errno := t.f.Read(ev[:])
		if errno != 0 {
			return Error("read", t.guest, errno)
		}
		if n == 1 {
			break
		}
		select {
		case errno := <-done:
			return fmt.Errorf("%s: no fault was reported (%v): %w", what, errno, ErrNotSupported)
		default:
		}
		if waited == probeWaitMs {
			return fmt.Errorf("%s: no fault within %d ms: %w", what, probeWaitMs, ErrNotSupported)
		}
		_, _ = unix.Poll(fds[:], 1)
	}
	if errno := resolve(); errno != 0 {
		return Error("resolve", t.guest, errno)
	}
	if errno := <-done; errno != 0 {
		return fmt.Errorf("%s: %w", what, errno)
	}
	if ev[0].Kind != want || ev[0].Write != write {
		return fmt.Errorf("%s: a %v fault (write %t) was reported: %w", what, ev[0].Kind, ev[0].Write, ErrNotSupported)
	}
	if !write {
		_, err := unix.Read(t.pipe[0], make([]byte, 1))
		return err
	}
	return nil
}

func (t *trial) missing() error {
	anon, err := unix.Mmap(-1, 0, int(t.size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	defer func() { _ = unix.Munmap(anon) }()
	src := addressOf(anon)
	return t.touch(false, FaultMissing, "a missing page", func() unix.Errno { return t.f.Copy(t.guest, src, t.size, true) })
}

func (t *trial) writeProtected(what string) error {
	return t.touch(true, FaultWP, what, func() unix.Errno { return t.f.WriteProtect(t.guest, t.size, false) })
}

func (t *trial) protect() error {
	if errno := t.f.WriteProtect(t.guest, t.size, true); errno != 0 {
		return Error("write-protect", t.guest, errno)
	}
	return t.writeProtected("a page write-protected in place")
}

// drop takes the page out of the view and sees that the next access is a minor fault.
func (t *trial) drop() error {
	if errno := dropView(t.guest, t.size); errno != 0 {
		return fmt.Errorf("madvise: %w", errno)
	}
	if err := t.touch(false, FaultMinor, "a minor fault", func() unix.Errno { return t.f.Continue(t.guest, t.size, false) }); err != nil {
		return err
	}
	if errno := dropView(t.guest, t.size); errno != 0 {
		return fmt.Errorf("madvise: %w", errno)
	}
	return nil
}
