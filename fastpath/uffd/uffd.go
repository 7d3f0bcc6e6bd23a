package uffd

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Features are bits of the UFFDIO_API handshake.
type Features uint64

// The features that matter here; bit numbers from linux/userfaultfd.h.
const (
	FeatureWP           Features = 1 << 0  // UFFD_FEATURE_PAGEFAULT_FLAG_WP, 5.7
	FeatureMissingShmem Features = 1 << 5  // UFFD_FEATURE_MISSING_SHMEM, 4.11
	FeatureMinorShmem   Features = 1 << 10 // UFFD_FEATURE_MINOR_SHMEM, 5.14
	FeatureWPShmem      Features = 1 << 12 // UFFD_FEATURE_WP_HUGETLBFS_SHMEM, 5.19

	// Required is what Open asks for.
	Required = FeatureWP | FeatureMissingShmem | FeatureMinorShmem | FeatureWPShmem
)

var featureNames = []struct {
	bit  Features
	what string
}{
	{FeatureWP, "write protection (linux 5.7)"},
	{FeatureMissingShmem, "missing faults on shared memory (linux 4.11)"},
	{FeatureMinorShmem, "minor faults on shared memory (linux 5.14)"},
	{FeatureWPShmem, "write protection of shared memory (linux 5.19)"},
}

// Modes of Register.
type Modes uint64

// The modes: which accesses fault.
const (
	Missing Modes = 1 << 0 // the memfd has no page
	WP      Modes = 1 << 1 // the page is mapped write-protected, and is written
	Minor   Modes = 1 << 2 // the memfd has a page, the mapping does not
)

// Kind says why an access faulted.
type Kind uint8

// The kinds of fault.
const (
	FaultMissing Kind = iota
	FaultMinor
	FaultWP
)

// String returns missing, minor or wp.
func (k Kind) String() string {
	switch k {
	case FaultMissing:
		return "missing"
	case FaultMinor:
		return "minor"
	case FaultWP:
		return "wp"
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// Event is one fault that somebody waits for.
type Event struct {
	Addr  uintptr // of the page (or within it, if the kernel reports exact addresses)
	Kind  Kind
	Write bool // the access is a write
}

// BatchMax is the number of events that one Read takes from the kernel at most.
const BatchMax = 64

// Errors, for errors.Is. They come wrapped in text that says what to do.
var (
	ErrNotSupported = errors.New("this kernel cannot do it")
	ErrPermission   = errors.New("this process may not use userfaultfd for faults inside the kernel, such as KVM's")
)

// OpError is a failed userfaultfd call.
type OpError struct {
	Op    string // "open", "register", "copy" ...
	Addr  uintptr
	Errno unix.Errno
}

// Error names call, address, errno and, where there is one, the mend.
func (e *OpError) Error() string {
	hint := ""
	switch e.Errno {
	case unix.ENOMEM:
		hint = " (out of memory, or too many mappings: see sysctl vm.max_map_count and the memory cgroup)"
	case unix.EBUSY:
		hint = " (the range is registered with another userfaultfd)"
	case unix.ENOENT:
		hint = " (the range is not mapped, or not registered here)"
	}
	return fmt.Sprintf("uffd: %s %#x: %v%s", e.Op, e.Addr, e.Errno, hint)
}

// Unwrap returns the errno.
func (e *OpError) Unwrap() error { return e.Errno }

// Error makes an error of a status; nil if errno is 0.
func Error(op string, addr uintptr, errno unix.Errno) error {
	if errno == 0 {
		return nil
	}
	return &OpError{Op: op, Addr: addr, Errno: errno}
}

const (
	devicePath  = "/dev/userfaultfd"
	sysctlPath  = "/proc/sys/vm/unprivileged_userfaultfd"
	openFlags   = unix.O_CLOEXEC | unix.O_NONBLOCK
	permitHints = "run as root or with CAP_SYS_PTRACE, or give the user read and write access to " + devicePath +
		" (linux 6.1 or newer), or set sysctl vm.unprivileged_userfaultfd=1"
)

// Open returns a new userfaultfd with the Required features, non-blocking and close-on-exec. It takes the
// device if it may, else the system call: either must let it handle faults from inside the kernel, for that
// is where KVM's come from.
func Open() (*FD, error) {
	fd, err := openRaw()
	if err != nil {
		return nil, err
	}
	f := &FD{fd: fd}
	_, errno := f.handshake(Required)
	if errno == 0 {
		return f, nil
	}
	f.Close()
	if errno != unix.EINVAL {
		return nil, fmt.Errorf("uffd: handshake: %w", errno)
	}
	have, err := offered()
	if err != nil {
		return nil, err
	}
	return nil, missing(have)
}

// missing says which of the Required features are not among have.
func missing(have Features) error {
	for _, n := range featureNames {
		if have&n.bit == 0 {
			return fmt.Errorf("uffd: no %s: %w: use linux 6.1 or newer, with CONFIG_USERFAULTFD and CONFIG_PTE_MARKER_UFFD_WP",
				n.what, ErrNotSupported)
		}
	}
	return fmt.Errorf("uffd: handshake: %w", unix.EINVAL)
}

// offered asks the kernel what it has. The handshake can be done once, so it takes a descriptor of its own.
func offered() (Features, error) {
	fd, err := openRaw()
	if err != nil {
		return 0, err
	}
	f := &FD{fd: fd}
	defer f.Close()
	have, errno := f.handshake(0)
	if errno != 0 {
		return 0, fmt.Errorf("uffd: handshake: %w", errno)
	}
	return have, nil
}

// openRaw opens a userfaultfd without handshake.
func openRaw() (int, error) {
	dev, err := unix.Open(devicePath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		fd, errno := newFromDevice(dev)
		unix.Close(dev)
		if errno == 0 {
			return fd, nil
		}
	}
	fd, errno := newFromSyscall()
	switch errno {
	case 0:
		return fd, nil
	case unix.ENOSYS:
		return -1, fmt.Errorf("uffd: open: %w: it was built without CONFIG_USERFAULTFD", ErrNotSupported)
	case unix.EPERM:
		return -1, fmt.Errorf("uffd: open: %w: %s", ErrPermission, permitHints)
	case unix.EMFILE, unix.ENFILE:
		return -1, fmt.Errorf("uffd: open: %w: raise the limit of open files (ulimit -n)", errno)
	}
	return -1, fmt.Errorf("uffd: open: %w", errno)
}

// Close closes the descriptor: the ranges registered with it fault as ordinary memory from then on, and
// waiters are woken. It must not be called while another thread is in a method.
func (f *FD) Close() error {
	if f.fd < 0 {
		return nil
	}
	err := unix.Close(f.fd)
	f.fd = -1
	if err != nil {
		return fmt.Errorf("uffd: close: %w", err)
	}
	return nil
}

// FD returns the descriptor, to poll: it is readable when Read has events.
func (f *FD) FD() int { return f.fd }

// Register makes accesses to a shared-memory mapping fault here. Pages that are mapped already stay so.
func (f *FD) Register(addr, length uintptr, modes Modes) error {
	ioctls, errno := f.register(addr, length, modes)
	if errno != 0 {
		return Error("register", addr, errno)
	}
	need := uint64(1<<ioWake | 1<<ioCopy)
	if modes&WP != 0 {
		need |= 1 << ioWriteProtect
	}
	if modes&Minor != 0 {
		need |= 1 << ioContinue
	}
	if ioctls&need != need {
		return fmt.Errorf("uffd: register %#x: the mapping allows operations %#x, want %#x: %w: is it a memfd?",
			addr, ioctls, need, ErrNotSupported)
	}
	return nil
}

// againMax bounds the repetitions of a call that the kernel cannot do just now. The address space is changing
// then, under a lock that the call waits for anyway, so a few are enough.
const againMax = 1000

// Copy puts length bytes at src into the memfd's page at dst, which must have none, maps it and wakes who waits
// for it. With wp the mapping is write-protected.
func (f *FD) Copy(dst, src, length uintptr, wp bool) unix.Errno {
	for try := 0; ; try++ {
		errno := f.copy(dst, src, length, wp)
		if errno != unix.EAGAIN || try == againMax {
			return errno
		}
	}
}

// CopyRange is Copy of several pages. It returns how many bytes it came along before there was a reason to stop.
func (f *FD) CopyRange(dst, src, length uintptr, wp bool) (uintptr, unix.Errno) {
	var done uintptr
	for try := 0; done < length; try++ {
		errno := f.copy(dst+done, src+done, length-done, wp)
		if copied := f.copyA.copied; copied > 0 {
			done += uintptr(copied)
			try = 0
			continue
		}
		if errno != unix.EAGAIN || try == againMax {
			return done, errno
		}
	}
	return done, 0
}

// Continue maps the memfd's page at addr, which must be there, and wakes who waits for it. With wp the mapping
// is write-protected; Support.ContinueWP says whether the kernel can.
func (f *FD) Continue(addr, length uintptr, wp bool) unix.Errno {
	for try := 0; ; try++ {
		errno := f.cont(addr, length, wp)
		if errno != unix.EAGAIN || try == againMax {
			return errno
		}
	}
}

// ContinueRange is Continue for several pages. It returns how many bytes it has mapped from addr on: with an errno, the
// page behind them is the one that it is about.
func (f *FD) ContinueRange(addr, length uintptr, wp bool) (uintptr, unix.Errno) {
	var done uintptr
	for try := 0; done < length; try++ {
		errno := f.cont(addr+done, length-done, wp)
		if mapped := f.contA.mapped; mapped > 0 {
			done += uintptr(mapped)
			try = 0
			continue
		}
		if errno != unix.EAGAIN || try == againMax {
			return done, errno
		}
	}
	return done, 0
}

// WriteProtect takes the right to write from the range (on), or gives it back and wakes who waits for it (off).
// When it returns, no thread and no vCPU can write to it any more.
func (f *FD) WriteProtect(addr, length uintptr, on bool) unix.Errno {
	for try := 0; ; try++ {
		errno := f.writeProtect(addr, length, on)
		if errno != unix.EAGAIN || try == againMax {
			return errno
		}
	}
}

// Read takes the events that are there, at most len(events) or BatchMax, and returns their number; 0 if there
// are none. It does not block.
func (f *FD) Read(events []Event) (int, unix.Errno) {
	msgs, errno := f.read(len(events))
	if errno == unix.EAGAIN || errno == unix.EINTR {
		return 0, 0
	}
	if errno != 0 {
		return 0, errno
	}
	n := 0
	for i := range msgs {
		m := &msgs[i]
		if m.event != eventPagefault {
			continue // no other event was asked for
		}
		e := &events[n]
		n++
		e.Addr = uintptr(m.addr)
		e.Write = m.flags&(flagWrite|flagWP) != 0
		switch {
		case m.flags&flagWP != 0:
			e.Kind = FaultWP
		case m.flags&flagMinor != 0:
			e.Kind = FaultMinor
		default:
			e.Kind = FaultMissing
		}
	}
	return n, 0
}
