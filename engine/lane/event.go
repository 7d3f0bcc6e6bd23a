package lane

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

var one = [8]byte{1}

// signal adds one to an eventfd. The only way for it to fail is a counter at its limit, which is as good.
func signal(fd int) { unix.Write(fd, one[:]) }

// awaitEvent blocks until a blocking eventfd is signalled, and resets it.
func awaitEvent(fd int) {
	var b [8]byte
	for {
		_, err := unix.Read(fd, b[:])
		if err == nil {
			return
		}
		if !errors.Is(err, unix.EINTR) {
			panic(fmt.Sprintf("lane: read of an eventfd: %v", err)) // only a closed descriptor gives that
		}
	}
}

// drainEvent resets a non-blocking eventfd.
func drainEvent(fd int) {
	var b [8]byte
	unix.Read(fd, b[:])
}

// pinThread binds the calling thread, which must be locked, to one host CPU and returns what undoes it. A
// negative cpu binds nothing. A CPU that the process may not use is not worth ending a VM for: the
// thread then stays where the scheduler puts it.
func pinThread(cpu int) (restore func()) {
	var old, set unix.CPUSet
	if cpu < 0 || unix.SchedGetaffinity(0, &old) != nil {
		return func() {}
	}
	set.Set(cpu)
	if unix.SchedSetaffinity(0, &set) != nil {
		return func() {}
	}
	return func() { unix.SchedSetaffinity(0, &old) }
}
