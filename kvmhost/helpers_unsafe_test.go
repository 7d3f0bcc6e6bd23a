package kvmhost

import (
	"errors"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// atomicWord is an aligned word of the guest's memory, which the guest writes too.
func atomicWord(ram []byte, addr uint64) *atomic.Uint64 {
	_ = ram[addr+7]
	return (*atomic.Uint64)(unsafe.Pointer(&ram[addr]))
}

// missing registers memory with a userfaultfd that nobody reads, and returns that. Whoever touches the memory
// waits.
func missing(t *testing.T, mem []byte) int {
	t.Helper()
	n, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	if errors.Is(errno, unix.EPERM) || errors.Is(errno, unix.ENOSYS) {
		t.Skip("userfaultfd: ", errno)
	} else if errno != 0 {
		t.Fatal(errno)
	}
	const (
		api, apiVersion = 0xc018aa3f, 0xaa
		register        = 0xc020aa00
		modeMissing     = 1
	)
	hello := struct{ api, features, ioctls uint64 }{api: apiVersion}
	if err := ioctlPtr(int(n), api, &hello); err != nil {
		t.Fatal(err)
	}
	arg := struct{ start, length, mode, ioctls uint64 }{uint64(addressOfBytes(mem)), uint64(len(mem)), modeMissing, 0}
	if err := ioctlPtr(int(n), register, &arg); err != nil {
		t.Fatal(err)
	}
	return int(n)
}
