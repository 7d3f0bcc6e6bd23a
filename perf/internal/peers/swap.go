package peers

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ironspan/perf/internal/servers"
)

// touching is what a program with too little memory does.
type touching struct {
	Set      int64         // bytes it goes over, page by page, at random
	Limit    int64         // bytes it may have
	Accesses int           // at most, for reads and for writes each
	Span     time.Duration // at most, likewise
}

// Touched is how long a random access took, by whether it only read, in nanoseconds. Fault has the accesses that had to
// read the page from swap, All has all of them.
type Touched struct {
	ReadFault  []int64 `json:"read_fault"`
	ReadAll    []int64 `json:"read_all"`
	WriteFault []int64 `json:"write_fault"`
	WriteAll   []int64 `json:"write_all"`
}

const (
	group       = "/sys/fs/cgroup/ironspan-perf"
	pageCluster = "/proc/sys/vm/page-cluster"
)

// swapOn runs a program with too little memory over swap on a device, and returns what it measured. One page is read
// at a time: what is read along with a page at random is of no use.
func swapOn(ctx context.Context, device string, t touching) (touched *Touched, err error) {
	undo := &undo{}
	defer func() { err = undo.all(err) }()
	was, err := os.ReadFile(pageCluster)
	if err != nil {
		return nil, fmt.Errorf("peers: swap: %w", err)
	}
	undo.add(func() error { return os.WriteFile(pageCluster, was, 0o644) })
	if err := os.WriteFile(pageCluster, []byte("0"), 0o644); err != nil {
		return nil, fmt.Errorf("peers: swap: %w", err)
	}
	if err := run(ctx, "mkswap", device); err != nil {
		return nil, err
	}
	if err := run(ctx, "swapon", device); err != nil {
		return nil, err
	}
	undo.add(func() error { return run(context.WithoutCancel(ctx), "swapoff", device) })
	cgroup, err := memoryGroup(t.Limit, undo)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, servers.Inside, "touch",
		strconv.FormatInt(t.Set, 10), strconv.Itoa(t.Accesses), t.Span.String())
	// No signals: this thread writes out pages itself, and where a signal interrupts that, the nbd driver (Linux 6.12) sends
	// the request again under another name, takes the answer to the first for a second one, and drops the connection.
	cmd.Env = append(os.Environ(), "GODEBUG=asyncpreemptoff=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cgroup.Fd()), Pdeathsig: syscall.SIGKILL}
	out, err := output(cmd)
	if err != nil {
		return nil, fmt.Errorf("peers: the program over swap: %w", err)
	}
	touched = &Touched{}
	if err := json.Unmarshal(out, touched); err != nil {
		return nil, fmt.Errorf("peers: the program over swap: %w", err)
	}
	return touched, nil
}

// memoryGroup makes a control group that may have so many bytes.
func memoryGroup(limit int64, undo *undo) (*os.File, error) {
	control := filepath.Join(filepath.Dir(group), "cgroup.subtree_control")
	if err := os.WriteFile(control, []byte("+memory"), 0o644); err != nil {
		return nil, fmt.Errorf("peers: no memory controller: %w", err)
	}
	if err := os.Mkdir(group, 0o755); err != nil {
		return nil, fmt.Errorf("peers: control group: %w", err)
	}
	undo.add(func() error { return removeGroup() })
	if err := os.WriteFile(filepath.Join(group, "memory.max"), []byte(strconv.FormatInt(limit, 10)), 0o644); err != nil {
		return nil, fmt.Errorf("peers: control group: %w", err)
	}
	f, err := os.Open(group)
	if err != nil {
		return nil, fmt.Errorf("peers: control group: %w", err)
	}
	undo.add(f.Close)
	return f, nil
}

// removeGroup waits for the kernel to take note that the group's last process is gone.
func removeGroup() (err error) {
	for range 100 {
		if err = os.Remove(group); err == nil {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("peers: control group: %w", err)
}

// touch is the program with too little memory. It writes a number to each page, and then reads pages at random, and
// then writes them.
func touch(ctx context.Context, set int64, accesses int, span time.Duration) (*Touched, error) {
	pages := int(set / pageSize)
	if pages < 1 || accesses < 1 || accesses > maxSamples {
		return nil, fmt.Errorf("peers: %d accesses to %d pages: 1 to %d, at least 1 page", accesses, pages, maxSamples)
	}
	mem, err := unix.Mmap(-1, 0, pages*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("peers: mmap: %w", err)
	}
	defer unix.Munmap(mem)
	if err := unix.Madvise(mem, unix.MADV_NOHUGEPAGE); err != nil {
		return nil, fmt.Errorf("peers: madvise: %w", err)
	}
	for p := range pages {
		mem[p*pageSize] = byte(p)
		if p%1024 == 0 && ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	w := walk{mem: mem, pages: uint64(pages), random: 0x9e3779b97f4a7c15}
	r := &Touched{}
	if r.ReadFault, r.ReadAll, err = w.over(ctx, accesses, span, false); err != nil {
		return nil, err
	}
	r.WriteFault, r.WriteAll, err = w.over(ctx, accesses, span, true)
	return r, err
}

type walk struct {
	mem    []byte
	pages  uint64
	random uint64
}

func (w *walk) over(ctx context.Context, accesses int, span time.Duration, write bool) (fault, all []int64, err error) {
	fault, all = make([]int64, 0, accesses), make([]int64, 0, accesses)
	var before, after unix.Rusage
	begin := time.Now()
	for i := range accesses {
		w.random ^= w.random << 13
		w.random ^= w.random >> 7
		w.random ^= w.random << 17
		p := w.random % w.pages
		if err := unix.Getrusage(unix.RUSAGE_THREAD, &before); err != nil {
			return nil, nil, fmt.Errorf("peers: getrusage: %w", err)
		}
		at := time.Now()
		got := w.mem[p*pageSize]
		if write {
			w.mem[p*pageSize+1]++
		}
		took := time.Since(at).Nanoseconds()
		if got != byte(p) {
			return nil, nil, fmt.Errorf("peers: page %d came back from swap as %d", p, got)
		}
		if err := unix.Getrusage(unix.RUSAGE_THREAD, &after); err != nil {
			return nil, nil, fmt.Errorf("peers: getrusage: %w", err)
		}
		all = append(all, took)
		if after.Majflt > before.Majflt {
			fault = append(fault, took)
		}
		if i%64 == 0 && (ctx.Err() != nil || time.Since(begin) > span) {
			break
		}
	}
	return fault, all, ctx.Err()
}

// undo is what has to be undone, last first.
type undo struct{ steps []func() error }

func (u *undo) add(f func() error) { u.steps = append(u.steps, f) }

// all undoes everything; an error on the way there is the result if err is nil.
func (u *undo) all(err error) error {
	for i := len(u.steps) - 1; i >= 0; i-- {
		if uerr := u.steps[i](); err == nil {
			err = uerr
		}
	}
	u.steps = nil
	return err
}

// run runs a command for what it does.
func run(ctx context.Context, words ...string) error {
	_, err := output(exec.CommandContext(ctx, words[0], words[1:]...))
	return err
}

// output runs a command; the error has what it said.
func output(cmd *exec.Cmd) ([]byte, error) {
	var out, complaint strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("peers: %s: %w: %s", filepath.Base(cmd.Path), err, strings.TrimSpace(complaint.String()))
	}
	return []byte(out.String()), nil
}
