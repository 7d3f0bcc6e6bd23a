package uffd

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Numbers of linux/userfaultfd.h.
const (
	apiVersion = 0xaa

	ioWake         = 0x02
	ioCopy         = 0x03
	ioWriteProtect = 0x06
	ioContinue     = 0x07

	ioctlNew          = 0x0000aa00 // USERFAULTFD_IOC_NEW, on the device
	ioctlAPI          = 0xc018aa3f
	ioctlRegister     = 0xc020aa00
	ioctlWake         = 0x8010aa02
	ioctlCopy         = 0xc028aa03
	ioctlWriteProtect = 0xc018aa06
	ioctlContinue     = 0xc020aa07

	modeWP      = 1 << 1 // of copy and continue
	modeProtect = 1 << 0 // of writeprotect

	eventPagefault = 0x12

	flagWrite = 1 << 0
	flagWP    = 1 << 1
	flagMinor = 1 << 2
)

type apiArgs struct{ api, features, ioctls uint64 }

type registerArgs struct{ start, len, mode, ioctls uint64 }

type copyArgs struct {
	dst, src, len, mode uint64
	copied              int64
}

type continueArgs struct {
	start, len, mode uint64
	mapped           int64
}

type protectArgs struct{ start, len, mode uint64 }

type rangeArgs struct{ start, len uint64 }

// message is struct uffd_msg as it is for page faults.
type message struct {
	event uint8
	_     [7]byte
	flags uint64
	addr  uint64
	_     uint64
}

// FD is a userfaultfd. Its argument blocks are written by the thread that makes the call and, during it, by the
// kernel; they are fields, so that their addresses are those of an object on the heap, which does not move.
type FD struct {
	fd       int
	copyA    copyArgs
	contA    continueArgs
	protectA protectArgs
	rangeA   rangeArgs
	batch    [BatchMax]message
}

// The raw forms of the calls below are used because none of them waits for anything that Go has to do: the
// kernel takes locks that it holds for microseconds, and reads and writes memory that does not fault into user
// space. So they need not tell the scheduler.

func newFromDevice(dev int) (int, unix.Errno) {
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(dev), ioctlNew, openFlags)
	return int(fd), errno
}

func newFromSyscall() (int, unix.Errno) {
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, openFlags, 0, 0)
	return int(fd), errno
}

func (f *FD) handshake(want Features) (Features, unix.Errno) {
	a := &apiArgs{api: apiVersion, features: uint64(want)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(f.fd), ioctlAPI, uintptr(unsafe.Pointer(a)))
	return Features(a.features), errno
}

func (f *FD) register(addr, length uintptr, modes Modes) (uint64, unix.Errno) {
	a := &registerArgs{start: uint64(addr), len: uint64(length), mode: uint64(modes)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(f.fd), ioctlRegister, uintptr(unsafe.Pointer(a)))
	return a.ioctls, errno
}

func (f *FD) copy(dst, src, length uintptr, wp bool) unix.Errno {
	f.copyA = copyArgs{dst: uint64(dst), src: uint64(src), len: uint64(length)}
	if wp {
		f.copyA.mode = modeWP
	}
	_, _, errno := unix.RawSyscall(unix.SYS_IOCTL, uintptr(f.fd), ioctlCopy, uintptr(unsafe.Pointer(&f.copyA)))
	return errno
}

func (f *FD) cont(addr, length uintptr, wp bool) unix.Errno {
	f.contA = continueArgs{start: uint64(addr), len: uint64(length)}
	if wp {
		f.contA.mode = modeWP
	}
	_, _, errno := unix.RawSyscall(unix.SYS_IOCTL, uintptr(f.fd), ioctlContinue, uintptr(unsafe.Pointer(&f.contA)))
	return errno
}

func (f *FD) writeProtect(addr, length uintptr, on bool) unix.Errno {
	f.protectA = protectArgs{start: uint64(addr), len: uint64(length)}
	if on {
		f.protectA.mode = modeProtect
	}
	_, _, errno := unix.RawSyscall(unix.SYS_IOCTL, uintptr(f.fd), ioctlWriteProtect, uintptr(unsafe.Pointer(&f.protectA)))
	return errno
}

// Wake lets everybody who waits for the range try again.
func (f *FD) Wake(addr, length uintptr) unix.Errno {
	f.rangeA = rangeArgs{start: uint64(addr), len: uint64(length)}
	_, _, errno := unix.RawSyscall(unix.SYS_IOCTL, uintptr(f.fd), ioctlWake, uintptr(unsafe.Pointer(&f.rangeA)))
	return errno
}

func (f *FD) read(limit int) ([]message, unix.Errno) {
	limit = min(limit, BatchMax)
	if limit == 0 {
		return nil, 0
	}
	const size = unsafe.Sizeof(message{})
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(f.fd), uintptr(unsafe.Pointer(&f.batch)), uintptr(limit)*size)
	if errno != 0 {
		return nil, errno
	}
	return f.batch[:n/size], 0
}
