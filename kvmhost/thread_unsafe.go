package kvmhost

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// What a vCPU thread needs of the kernel besides KVM: its signal mask, its kick, its alarm.

// kickSignal interrupts KVM_RUN and a halted vCPU's sleep. It is a real-time signal that is blocked on vCPU
// threads at all times but inside KVM_RUN, so that no handler ever runs for it and it cannot be lost: it
// stays pending until rt_sigtimedwait takes it. The C library keeps the first three for itself, and the Go
// runtime has no use for it.
const kickSignal = 44

func sigBit(sig int) uint64 { return 1 << (sig - 1) }

// blockKick blocks the kick on the calling thread. All other signals stay as the Go runtime has them.
func blockKick() error {
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_BLOCK, uintptr(unsafe.Pointer(&kickSet)), 0, 8, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// kickSet and noWait are constant.
var (
	kickSet = sigBit(kickSignal)
	noWait  unix.Timespec
)

// sigInfo is the start of siginfo_t. It is an argument of the wait and lives in the vCPU, off the stack.
type sigInfo struct {
	Signo, Errno, Code int32
	_                  [116]byte
}

const siTimer = -2 // Code of a POSIX timer's signal

// takeKick consumes one pending kick, if there is one, and reports whether it was the alarm's.
func takeKick(info *sigInfo) (alarm bool) {
	info.Code = 0
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGTIMEDWAIT, uintptr(unsafe.Pointer(&kickSet)),
		uintptr(unsafe.Pointer(info)), uintptr(unsafe.Pointer(&noWait)), 8, 0, 0)
	return errno == 0 && info.Code == siTimer
}

// awaitKick sleeps until a kick comes or the time is over. t lives in the vCPU, off the stack.
func awaitKick(info *sigInfo, t *unix.Timespec) (alarm bool) {
	info.Code = 0
	_, _, errno := unix.Syscall6(unix.SYS_RT_SIGTIMEDWAIT, uintptr(unsafe.Pointer(&kickSet)),
		uintptr(unsafe.Pointer(info)), uintptr(unsafe.Pointer(t)), 8, 0, 0)
	return errno == 0 && info.Code == siTimer
}

// alarm is a POSIX timer that kicks one thread.
type alarm struct {
	id   int32
	spec itimerspec // argument of set: here, so that nothing is allocated
}

type itimerspec struct {
	Interval unix.Timespec
	Value    unix.Timespec
}

// sigevent as the kernel has it: 64 bytes, sigev_notify_thread_id in the union.
type sigevent struct {
	Value  uint64
	Signo  int32
	Notify int32
	TID    int32
	_      [44]byte
}

const sigevThreadID = 4

func (a *alarm) open(tid int) error {
	ev := sigevent{Signo: kickSignal, Notify: sigevThreadID, TID: int32(tid)}
	_, _, errno := unix.Syscall(unix.SYS_TIMER_CREATE, unix.CLOCK_MONOTONIC, uintptr(unsafe.Pointer(&ev)), uintptr(unsafe.Pointer(&a.id)))
	if errno != 0 {
		return errno
	}
	return nil
}

// set arms the alarm for ns from now, at least one.
func (a *alarm) set(ns int64) unix.Errno {
	a.spec.Value = unix.NsecToTimespec(max(ns, 1))
	_, _, errno := unix.RawSyscall6(unix.SYS_TIMER_SETTIME, uintptr(a.id), 0, uintptr(unsafe.Pointer(&a.spec)), 0, 0, 0)
	return errno
}

func (a *alarm) close() { unix.Syscall(unix.SYS_TIMER_DELETE, uintptr(a.id), 0, 0) }
