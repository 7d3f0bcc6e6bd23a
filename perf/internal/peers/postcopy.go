package peers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"ironspan/kvmhost"
)

const (
	migratePort = "4444"
	// backgroundRate bounds, in bytes a second, what the source sends unasked, so that the guest has to ask for
	// most of what it touches; requested pages go beyond it, on a connection of their own (postcopy-preempt).
	backgroundRate = 1 << 20
)

// guestCapabilities are asked of both QEMUs.
var guestCapabilities = []string{"postcopy-ram", "postcopy-preempt"}

// machine is a QEMU that has the toucher as its guest.
type machine struct {
	debug string // file with what the guest tells
	qemu  *child
	qmp   *qmp
	about string // version
}

// newMachine starts a QEMU; it is undone with undo.
func newMachine(ctx context.Context, program []string, undo *undo, more ...string) (*machine, error) {
	dir, err := os.MkdirTemp("/dev/shm", "ironspan-perf-")
	if err != nil {
		return nil, fmt.Errorf("peers: %w", err)
	}
	undo.add(func() error { return os.RemoveAll(dir) })
	in := func(name string) string { return filepath.Join(dir, name) }
	m := &machine{debug: in("debug")}
	if err := os.WriteFile(in("rom"), rom(), 0o600); err != nil {
		return nil, fmt.Errorf("peers: %w", err)
	}
	args := append(program[1:], guestArgs(in("rom"), m.debug, "kvm")...)
	args = append(args, "-qmp", "unix:"+in("qmp")+",server=on,wait=off")
	if m.qemu, err = startChild(exec.Command(program[0], append(args, more...)...)); err != nil {
		return nil, fmt.Errorf("peers: qemu: %w", err)
	}
	undo.add(m.qemu.stop)
	if m.qmp, err = dialQMP(ctx, in("qmp"), m.qemu); err != nil {
		return nil, err
	}
	undo.add(m.qmp.close)
	var version struct {
		QEMU struct{ Major, Minor, Micro int } `json:"qemu"`
	}
	if err := m.qmp.do("query-version", nil, &version); err != nil {
		return nil, err
	}
	m.about = fmt.Sprintf("%d.%d.%d", version.QEMU.Major, version.QEMU.Minor, version.QEMU.Micro)
	type capability struct {
		Capability string `json:"capability"`
		State      bool   `json:"state"`
	}
	var all []capability
	for _, name := range guestCapabilities {
		all = append(all, capability{name, true})
	}
	return m, m.qmp.do("migrate-set-capabilities", map[string]any{"capabilities": all}, nil)
}

// guestArgs are a QEMU's for the toucher, which tells what it has to in a file.
func guestArgs(rom, debug, accel string) []string {
	return []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc,usb=off,vmport=off", "-accel", accel,
		"-m", fmt.Sprintf("%dM", guestMemory>>20), "-bios", rom, "-chardev", "file,id=debug,path=" + debug,
		"-device", fmt.Sprintf("isa-debugcon,iobase=%#x,chardev=debug", debugPort),
	}
}

// Waits are the guest's slow accesses at the destination.
type Waits struct {
	Ns []int64 `json:"ns"`
}

// migrateTo takes a guest at addr, and returns what it told when it has been there for as long as serve takes.
func migrateTo(ctx context.Context, program []string, addr string, serve func()) (w *Waits, err error) {
	undo := &undo{}
	defer func() { err = undo.all(err) }()
	m, err := newMachine(ctx, program, undo, "-incoming", "defer")
	if err != nil {
		return nil, err
	}
	uri := map[string]string{"uri": "tcp:" + net.JoinHostPort(addr, migratePort)}
	if err := m.qmp.do("migrate-incoming", uri, nil); err != nil {
		return nil, err
	}
	began, ticks := time.Now(), kvmhost.HostTSC()
	serve()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	perTick := float64(time.Since(began).Nanoseconds()) / float64(kvmhost.HostTSC()-ticks)
	told, err := os.ReadFile(m.debug)
	if err != nil {
		return nil, fmt.Errorf("peers: %w", err)
	}
	slow, err := parseTold(told)
	if err != nil {
		return nil, err
	}
	w = &Waits{}
	for _, t := range slow {
		w.Ns = append(w.Ns, int64(float64(t)*perTick))
	}
	return w, nil
}

// parseTold reads what a guest told since it came to the destination, perhaps in the middle of a line.
func parseTold(told []byte) ([]uint32, error) {
	var slow []uint32
	lines := bytes.Split(told, []byte("\n"))
	for i, line := range lines {
		if bytes.IndexByte(line, '!') >= 0 {
			return nil, errors.New("peers: the guest found a wrong page after its migration")
		}
		if i == 0 && len(line) < 8 || i == len(lines)-1 {
			continue
		}
		var t uint32
		for _, c := range line {
			if c < 'A' || c > 'P' || len(line) != 8 {
				return nil, fmt.Errorf("peers: the guest told %q", line)
			}
			t = t<<4 | uint32(c-'A')
		}
		slow = append(slow, t)
	}
	return slow, nil
}

// Migration is what the source knows of it.
type Migration struct {
	QEMU     string `json:"qemu"`     // version
	Requests int    `json:"requests"` // pages that the destination asked for
	TotalMs  int    `json:"total_ms"`
}

// migrateFrom starts a guest and has it go to addr, with all of its memory but some pages behind.
func migrateFrom(ctx context.Context, program []string, addr string) (r *Migration, err error) {
	undo := &undo{}
	defer func() { err = undo.all(err) }()
	m, err := newMachine(ctx, program, undo)
	if err != nil {
		return nil, err
	}
	if err := m.awaitGuest(ctx); err != nil {
		return nil, err
	}
	limits := map[string]int{"max-bandwidth": backgroundRate, "max-postcopy-bandwidth": backgroundRate}
	if err := m.qmp.do("migrate-set-parameters", limits, nil); err != nil {
		return nil, err
	}
	uri := map[string]string{"uri": "tcp:" + net.JoinHostPort(addr, migratePort)}
	if err := m.qmp.do("migrate", uri, nil); err != nil {
		return nil, err
	}
	if _, err := m.migration(ctx, "active"); err != nil {
		return nil, err
	}
	if err := m.qmp.do("migrate-start-postcopy", nil, nil); err != nil {
		return nil, err
	}
	s, err := m.migration(ctx, "completed")
	if err != nil {
		return nil, err
	}
	return &Migration{QEMU: m.about, Requests: s.RAM.Requests, TotalMs: s.TotalMs}, nil
}

// awaitGuest waits until the guest has filled its memory.
func (m *machine) awaitGuest(ctx context.Context) error {
	for deadline := time.Now().Add(60 * time.Second); ; {
		told, err := os.ReadFile(m.debug)
		if err == nil && bytes.IndexByte(told, 'R') >= 0 {
			return nil
		}
		select {
		case <-m.qemu.ended:
			return fmt.Errorf("peers: qemu ended: %v", m.qemu.err)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return errors.New("peers: the guest does not come up")
		}
	}
}

// migrationStatus is QEMU's MigrationInfo, in part.
type migrationStatus struct {
	Status  string `json:"status"`
	Error   string `json:"error-desc"`
	TotalMs int    `json:"total-time"`
	RAM     struct {
		Requests int `json:"postcopy-requests"`
	} `json:"ram"`
}

// migration waits until the migration is in a state.
func (m *machine) migration(ctx context.Context, state string) (*migrationStatus, error) {
	for deadline := time.Now().Add(90 * time.Second); ; {
		var s migrationStatus
		if err := m.qmp.do("query-migrate", nil, &s); err != nil {
			return nil, err
		}
		switch {
		case s.Status == state:
			return &s, nil
		case slices.Contains([]string{"failed", "cancelled", "completed"}, s.Status):
			return nil, fmt.Errorf("peers: the migration %s where it should be %s: %s", s.Status, state, s.Error)
		case time.Now().After(deadline):
			return nil, fmt.Errorf("peers: the migration is %s and does not become %s", s.Status, state)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// longest returns the n longest waits, sorted: those are the requests, for a page that has come unasked takes only what
// KVM needs to map it.
func longest(ns []int64, n int) []int64 {
	sorted := slices.Sorted(slices.Values(ns))
	return sorted[max(0, len(sorted)-n):]
}
