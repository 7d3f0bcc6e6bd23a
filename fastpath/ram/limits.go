package ram

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// MemoryError says that memory could not be had.
type MemoryError struct {
	Op        string
	Want      uint64 // bytes asked for
	Available uint64 // bytes that this process could still get, 0 if not known
	Limit     string // the limit that is in the way, if one is
	Err       error
}

// Error says how much was asked for, how much there is, and what to do.
func (e *MemoryError) Error() string {
	s := fmt.Sprintf("ram: %s: %s wanted", e.Op, mib(e.Want))
	if e.Available != 0 {
		s += fmt.Sprintf(", %s available", mib(e.Available))
	}
	s += fmt.Sprintf(": %v", e.Err)
	if e.Limit != "" {
		return s + ": raise the limit: " + e.Limit
	}
	return s + ": give the VM less memory on this node, or free some"
}

// Unwrap returns the system's error.
func (e *MemoryError) Unwrap() error { return e.Err }

func mib(n uint64) string { return fmt.Sprintf("%d MiB", (n+1<<20-1)>>20) }

// memoryError wraps err, and finds the limit that explains it.
func memoryError(op string, want uint64, err error) error {
	e := &MemoryError{Op: op, Want: want, Err: err}
	if free, ok := available(); ok {
		e.Available = free
	}
	for _, l := range [...]struct {
		resource int
		errno    unix.Errno
		name     string
	}{
		{unix.RLIMIT_AS, unix.ENOMEM, "RLIMIT_AS (ulimit -v)"},
		{unix.RLIMIT_FSIZE, unix.EFBIG, "RLIMIT_FSIZE (ulimit -f)"},
		{unix.RLIMIT_NOFILE, unix.EMFILE, "RLIMIT_NOFILE (ulimit -n)"},
	} {
		var lim unix.Rlimit
		if errors.Is(err, l.errno) && unix.Getrlimit(l.resource, &lim) == nil && lim.Cur != unix.RLIM_INFINITY {
			e.Limit = fmt.Sprintf("%s is %d", l.name, lim.Cur)
		}
	}
	return e
}

// available returns how much memory this process can still get: what the machine has, or what its memory
// cgroups leave, whichever is less.
func available() (uint64, bool) {
	free, ok := memAvailable("/proc/meminfo")
	if left, limited := cgroupLeft("/proc/self/cgroup", "/sys/fs/cgroup"); limited && (!ok || left < free) {
		return left, true
	}
	return free, ok
}

func memAvailable(path string) (uint64, bool) {
	f, err := os.Open(path)
	if err != nil {
		return 0, false
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if rest, ok := strings.CutPrefix(s.Text(), "MemAvailable:"); ok {
			kib, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 54)
			return kib << 10, err == nil
		}
	}
	return 0, false
}

// cgroupLeft walks up the unified hierarchy from this process's group.
func cgroupLeft(self, root string) (left uint64, limited bool) {
	b, err := os.ReadFile(self)
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(b)) {
		group, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !ok {
			continue
		}
		for dir := filepath.Join(root, group); len(dir) > len(root); dir = filepath.Dir(dir) {
			limit, err1 := readUint(filepath.Join(dir, "memory.max"))
			used, err2 := readUint(filepath.Join(dir, "memory.current"))
			if err1 != nil || err2 != nil {
				continue // "max", or no memory controller
			}
			if n := limit - min(used, limit); !limited || n < left {
				left, limited = n, true
			}
		}
	}
	return left, limited
}

func readUint(path string) (uint64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
}
