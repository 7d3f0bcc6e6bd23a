package verbs

import (
	"errors"
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// waitReadable waits until fd can be read; false after timeout. A negative timeout waits for ever.
func waitReadable(fd int, timeout time.Duration) (bool, error) {
	end := time.Now().Add(timeout)
	for {
		ms := -1
		if timeout >= 0 {
			ms = int(min(max(time.Until(end)+time.Millisecond-1, 0)/time.Millisecond, math.MaxInt32))
		}
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, ms)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return false, &OpError{Op: "poll", Err: err}
		default:
			return n > 0, nil
		}
	}
}
