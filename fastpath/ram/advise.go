package ram

import "golang.org/x/sys/unix"

// rawLimit tells calls on a page, which take microseconds and need not tell the Go scheduler, from those on a
// VM's memory, which take seconds.
const rawLimit = 64 << 10

func madvise(addr, length uintptr, advice int) unix.Errno {
	if length <= rawLimit {
		_, _, errno := unix.RawSyscall(unix.SYS_MADVISE, addr, length, uintptr(advice))
		return errno
	}
	_, _, errno := unix.Syscall(unix.SYS_MADVISE, addr, length, uintptr(advice))
	return errno
}

// drop takes the mapping of a range away: microseconds, whether it is a page or a block that is mapped whole.
func drop(addr, length uintptr) unix.Errno {
	_, _, errno := unix.RawSyscall(unix.SYS_MADVISE, addr, length, unix.MADV_DONTNEED)
	return errno
}

// collapse makes a range one huge page, which it also maps. It does so whatever the host's policy for shared memory is,
// unless that is "deny". Kernels before 6.1 cannot: EINVAL.
func collapse(addr, length uintptr) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_MADVISE, addr, length, unix.MADV_COLLAPSE)
	return errno
}

func punchHole(fd int, off, length int64) unix.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_FALLOCATE, uintptr(fd), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE,
		uintptr(off), uintptr(length), 0, 0)
	return errno
}
