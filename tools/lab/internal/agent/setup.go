package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ironspan/tools/lab/internal/remote"
)

// Directories of the host that do not change while a lab is up are cached hard in the server; all others
// are looked up on the host each time, so that a rebuilt binary is seen at once.
var (
	settled = map[string]bool{"bin": true, "sbin": true, "lib": true, "lib32": true, "lib64": true, "libx32": true,
		"usr": true, "etc": true, "opt": true, "var": true, "boot": true}
	fresh = map[string]bool{"dev": true, "proc": true, "sys": true, "tmp": true, "run": true, "lost+found": true}
)

const (
	newRoot = "/newroot"
	lower   = "/lower" // host's root, cached
	live    = "/live"  // host's root, not cached
)

func (a *agent) setup(c *remote.Setup, progress func(string, ...any)) *remote.Result {
	r := &remote.Result{}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		r.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	a.mu.Lock()
	again := a.config != nil
	a.config = c
	a.mu.Unlock()
	if again {
		r.Error = "agent: already set up"
		return r
	}
	start := time.Now()
	step := func(name string, f func() error) bool {
		if err := f(); err != nil {
			r.Error = fmt.Sprintf("%s: %v", name, err)
			return false
		}
		progress("%s (%.1f s)", name, time.Since(start).Seconds())
		return true
	}
	_ = step("limits", func() error { return limits(c) }) &&
		step("host files", func() error { return a.root(c) }) &&
		step("wire", func() error { return wire(c) }) &&
		step("rdma", func() error { return rdma(c, r) })
	_, err := os.Stat("/dev/kvm")
	r.KVM = err == nil
	return r
}

func limits(c *remote.Setup) error {
	inf := &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, inf); err != nil {
		return err
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return err
	}
	nofile := &unix.Rlimit{Cur: 1 << 16, Max: 1 << 16}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, nofile); err != nil {
		return err
	}
	for _, s := range c.Sysctl {
		name, value, _ := strings.Cut(s, "=")
		// One a kernel does not know is no loss.
		os.WriteFile("/proc/sys/"+strings.ReplaceAll(name, ".", "/"), []byte(value), 0o644)
	}
	return unix.Sethostname([]byte(c.Host))
}

func mount(source, target, fstype string, flags uintptr, data string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", source, target, err)
	}
	return nil
}

func mountKernelFS(root string) error {
	for _, m := range []struct{ fs, at string }{{"proc", "proc"}, {"sysfs", "sys"}, {"devtmpfs", "dev"}} {
		if err := mount(m.fs, filepath.Join(root, m.at), m.fs, unix.MS_NOSUID, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return err
		}
	}
	return nil
}

func mount9p(tag, target, cache string, readOnly bool) error {
	var flags uintptr = unix.MS_NOATIME
	if readOnly {
		flags |= unix.MS_RDONLY
	}
	return mount(tag, target, "9p", flags, "trans=virtio,version=9p2000.L,msize=512000,cache="+cache)
}

// root puts the server's root together and moves into it.
func (a *agent) root(c *remote.Setup) error {
	if err := mount9p("root", lower, "loose", true); err != nil {
		return err
	}
	// Names and attributes are always the host's of this moment, only a file's bytes are read ahead. Older
	// kernels call that mmap.
	if err := mount9p("live", live, "readahead", true); err != nil {
		if err := mount9p("live", live, "mmap", true); err != nil {
			return err
		}
	}
	if err := mount("tmpfs", "/rw", "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	for _, d := range []string{"/rw/upper", "/rw/work"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	if err := mount("overlay", newRoot, "overlay", 0, "lowerdir="+lower+",upperdir=/rw/upper,workdir=/rw/work"); err != nil {
		return err
	}
	entries, err := os.ReadDir(live)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.IsDir() || settled[e.Name()] || fresh[e.Name()] {
			continue
		}
		if err := mount(filepath.Join(live, e.Name()), filepath.Join(newRoot, e.Name()), "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	if err := mountKernelFS(newRoot); err != nil {
		return err
	}
	for _, m := range []struct{ fs, at, data string }{
		{"devpts", "dev/pts", "mode=620,ptmxmode=666"},
		{"tmpfs", "dev/shm", "mode=1777"},
		{"mqueue", "dev/mqueue", ""},
		{"cgroup2", "sys/fs/cgroup", ""},
		{"debugfs", "sys/kernel/debug", ""},
		{"tracefs", "sys/kernel/tracing", ""},
		{"tmpfs", "tmp", "mode=1777"},
		{"tmpfs", "run", "mode=755"},
	} {
		err := mount(m.fs, filepath.Join(newRoot, m.at), m.fs, unix.MS_NOSUID, m.data)
		if err != nil && !strings.HasPrefix(m.at, "sys/") && m.fs != "mqueue" {
			return err
		}
	}
	if err := mount(live, newRoot+HostView, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	for _, s := range c.Shares {
		if err := mount9p(s.Tag, filepath.Join(newRoot, s.Path), "none", s.ReadOnly); err != nil {
			return err
		}
	}
	if err := os.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	for _, d := range c.Visible {
		if err := a.reveal(d); err != nil {
			return err
		}
	}
	return hosts(c)
}

func hosts(c *remote.Setup) error {
	var b strings.Builder
	b.WriteString("127.0.0.1 localhost\n::1 localhost\n")
	for i, p := range c.Peers {
		fmt.Fprintf(&b, "%s lab%d\n", p, i)
	}
	return os.WriteFile("/etc/hosts", []byte(b.String()), 0o644)
}

// reveal makes a host directory visible at its own path where a fresh /tmp or /run hides it.
func (a *agent) reveal(dir string) error {
	if dir == "" {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if st, err := os.Stat(HostView + dir); err != nil || !st.IsDir() {
		return fmt.Errorf("directory %s exists neither in the server nor on the host", dir)
	}
	return mount(HostView+dir, dir, "", unix.MS_BIND, "")
}
