package uffd

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

func open(t *testing.T) *FD {
	t.Helper()
	if _, err := Probe(); err != nil {
		t.Skip(err)
	}
	f, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestProbe(t *testing.T) {
	s, err := Probe()
	if errors.Is(err, ErrNotSupported) || errors.Is(err, ErrPermission) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if s.Features&Required != Required {
		t.Errorf("probe succeeded with features %#x", s.Features)
	}
	t.Logf("features %#x, continue write-protected: %t", s.Features, s.ContinueWP)
}

// TestLifeOfAPage takes one page through every fault and every resolution.
func TestLifeOfAPage(t *testing.T) {
	f := open(t)
	p, err := newTrial(f)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"missing read, copied write-protected", p.missing},
		{"write to the protected page", func() error { return p.writeProtected("wp") }},
		{"the write arrived", func() error { return sees(p, 0x5a) }},
		{"protected again, written again", p.protect},
		{"dropped, minor", p.drop},
		{"minor write", func() error {
			return p.touch(true, FaultMinor, "minor write", func() unix.Errno { return f.Continue(p.guest, p.size, false) })
		}},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
	}
}

func sees(p *trial, b byte) error {
	if p.service[0] != b {
		return errors.New("the byte is not there")
	}
	return nil
}

func TestErrnos(t *testing.T) {
	f := open(t)
	p, err := newTrial(f)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	src, err := unix.Mmap(-1, 0, int(p.size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(src)
	check := func(what string, got, want unix.Errno) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	check("continue without a page", f.Continue(p.guest, p.size, false), unix.EFAULT)
	check("copy", f.Copy(p.guest, addressOf(src), p.size, false), 0)
	check("copy over a page", f.Copy(p.guest, addressOf(src), p.size, false), unix.EEXIST)
	check("continue over a mapping", f.Continue(p.guest, p.size, false), unix.EEXIST)
	check("drop", dropView(p.guest, p.size), 0)
	check("copy over a page that is not mapped", f.Copy(p.guest, addressOf(src), p.size, false), unix.EEXIST)
	check("continue", f.Continue(p.guest, p.size, false), 0)
	check("copy to elsewhere", f.Copy(addressOf(src), p.guest, p.size, false), unix.ENOENT)
	check("wake nobody", f.Wake(p.guest, p.size), 0)
	n, errno := f.Read(make([]Event, 4))
	if n != 0 || errno != 0 {
		t.Errorf("read without events: %d, %v", n, errno)
	}
	var op *OpError
	if err := Error("copy", p.guest, unix.ENOMEM); !errors.As(err, &op) || !errors.Is(err, unix.ENOMEM) {
		t.Errorf("Error: %v", err)
	}
	if err := Error("copy", p.guest, 0); err != nil {
		t.Errorf("Error of success: %v", err)
	}
}

func TestMissingFeaturesAreNamed(t *testing.T) {
	for _, n := range featureNames {
		if err := missing(Required &^ n.bit); !errors.Is(err, ErrNotSupported) {
			t.Errorf("without %s: %v", n.what, err)
		}
	}
}

// TestNoAllocation drives the calls of the fault path.
func TestNoAllocation(t *testing.T) {
	f := open(t)
	p, err := newTrial(f)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	p.service[0] = 1
	events := make([]Event, 4)
	if n := testing.AllocsPerRun(100, func() {
		f.Continue(p.guest, p.size, false)
		f.WriteProtect(p.guest, p.size, true)
		f.WriteProtect(p.guest, p.size, false)
		f.Wake(p.guest, p.size)
		f.Read(events)
		dropView(p.guest, p.size)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestFailedOpenLeavesNoDescriptor(t *testing.T) {
	open(t)
	before := nextFD(t)
	f, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
	if after := nextFD(t); after != before {
		t.Errorf("next descriptor was %d, is %d", before, after)
	}
}

func nextFD(t *testing.T) int {
	t.Helper()
	fd, err := unix.Dup(0)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	return fd
}
