// Package lab runs labs: a supervisor process for each, which owns the QEMUs and the switch between
// them, and the client side that talks to it. All state of a lab is in one private directory, and goes
// with it.
package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ironspan/tools/lab/internal/kernel"
)

// EnvDir names the directory that holds the state of all labs.
const EnvDir = "IRONSPAN_LAB_DIR"

// maxSocketPath is what a unix socket address holds.
const maxSocketPath = 107

var nameRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,40}$`)

// Dir is the place of one lab, whether it is up or not.
type Dir struct {
	Name string
	root string
}

// ErrNotUp says that no lab of that name runs.
var ErrNotUp = errors.New("not up")

// Root is where labs keep their state: $IRONSPAN_LAB_DIR, else below $XDG_RUNTIME_DIR, else below the
// directory for temporary files.
func Root() string {
	if d := os.Getenv(EnvDir); d != "" {
		return d
	}
	if d := os.Getenv("XDG_RUNTIME_DIR"); d != "" {
		return filepath.Join(d, "ironspan-lab")
	}
	return filepath.Join(os.TempDir(), "ironspan-lab-"+strconv.Itoa(os.Getuid()))
}

// Open names a lab.
func Open(name string) (Dir, error) {
	if !nameRE.MatchString(name) {
		return Dir{}, fmt.Errorf("lab: name %q: use letters, digits, '.', '_' and '-', at most 41", name)
	}
	root, err := filepath.Abs(Root())
	if err != nil {
		return Dir{}, fmt.Errorf("lab: %w", err)
	}
	d := Dir{Name: name, root: root}
	if n := len(d.socket()); n > maxSocketPath {
		return Dir{}, fmt.Errorf("lab: the path of %s is too long for a unix socket (%d > %d): set %s to a shorter directory",
			d.socket(), n, maxSocketPath, EnvDir)
	}
	return d, nil
}

// Names lists the labs that have state, up or stale.
func Names() ([]string, error) {
	entries, err := os.ReadDir(Root())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && nameRE.MatchString(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Path is the lab's directory.
func (d Dir) Path() string { return filepath.Join(d.root, d.Name) }

// Share is writable from the host and from all servers, where it appears as ShareMount.
func (d Dir) Share() string { return filepath.Join(d.Path(), "share") }

// Console is the console log of server n.
func (d Dir) Console(n int) string {
	return filepath.Join(d.Path(), fmt.Sprintf("console-%d.log", n))
}

// Log is the supervisor's own.
func (d Dir) Log() string { return filepath.Join(d.Path(), "supervisor.log") }

func (d Dir) socket() string    { return filepath.Join(d.Path(), "control") }
func (d Dir) config() string    { return filepath.Join(d.Path(), "config.json") }
func (d Dir) pids() string      { return filepath.Join(d.Path(), "pids.json") }
func (d Dir) initramfs() string { return filepath.Join(d.Path(), "initramfs") }
func (d Dir) lockFile() string  { return filepath.Join(d.root, d.Name+".lock") }

// Modules are those of the servers' kernel. The lab must be up.
func (d Dir) Modules() (*kernel.Tree, error) {
	b, err := os.ReadFile(d.config())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("lab: %s is %w: start it with `lab up`", d.Name, ErrNotUp)
	}
	var c Config
	if err == nil {
		err = json.Unmarshal(b, &c)
	}
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	return kernel.OpenTree(c.Modules)
}

// lock takes the lab for its holder's life, or returns nil if somebody else has it. The lock belongs to
// the open file, so it is handed to the supervisor by inheritance; the kernel frees it when the
// supervisor dies, however it dies.
func (d Dir) lock() (*os.File, error) {
	if err := os.MkdirAll(d.root, 0o700); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	for {
		f, err := os.OpenFile(d.lockFile(), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, fmt.Errorf("lab: %w", err)
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			f.Close()
			return nil, nil
		}
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("lab: lock %s: %w", d.lockFile(), err)
		}
		// The last holder removes the file: make sure that ours is still the one behind the name.
		mine, err := f.Stat()
		if err == nil {
			if now, err := os.Stat(d.lockFile()); err == nil && os.SameFile(mine, now) {
				return f, nil
			}
		}
		f.Close()
	}
}

// Up says whether a supervisor has the lab.
func (d Dir) Up() (bool, error) {
	if _, err := os.Stat(d.lockFile()); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	f, err := d.lock()
	if err != nil {
		return false, err
	}
	if f == nil {
		return true, nil
	}
	if _, err := os.Stat(d.Path()); errors.Is(err, fs.ErrNotExist) {
		d.unlock(f)
	}
	f.Close()
	return false, nil
}

// unlock removes the lock with its file, and the root if this was its last lab.
func (d Dir) unlock(f *os.File) {
	os.Remove(d.lockFile())
	f.Close()
	os.Remove(d.root)
}

// pidFile tells a later `down` what may still run if the supervisor was killed.
type pidFile struct {
	Supervisor process   `json:"supervisor"`
	Servers    []process `json:"servers"`
}

// process is a PID that cannot be mistaken for a later process with the same number.
type process struct {
	PID   int    `json:"pid"`
	Start string `json:"start"` // field 22 of /proc/PID/stat
}

func identify(pid int) process { return process{PID: pid, Start: startTime(pid)} }

func (p process) alive() bool { return p.PID > 1 && p.Start != "" && startTime(p.PID) == p.Start }

// startTime is empty for a process that is gone, or a zombie.
func startTime(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	return parseStartTime(string(b))
}

// kill ends the process and waits for that.
func (p process) kill() error {
	if !p.alive() {
		return nil
	}
	if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	for range 500 {
		if !p.alive() {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("process %d does not end", p.PID)
}

// clean removes what a lab left that was not taken down: its processes, if any, and its files. The lock
// must be held.
func (d Dir) clean() error {
	var p pidFile
	if b, err := os.ReadFile(d.pids()); err == nil && json.Unmarshal(b, &p) == nil {
		for _, s := range append(p.Servers, p.Supervisor) {
			if s.PID == os.Getpid() {
				continue
			}
			if err := s.kill(); err != nil {
				return fmt.Errorf("lab: stale lab %s: %w", d.Name, err)
			}
		}
	}
	if err := os.RemoveAll(d.Path()); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	return nil
}
