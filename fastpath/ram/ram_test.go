package ram

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ironspan/engine/wire"
	"ironspan/fastpath/fabric"
	"ironspan/fastpath/uffd"
)

const testSize = 8 << 20

func newRAM(t *testing.T, size uint64, home fabric.Span) *RAM {
	t.Helper()
	r, err := New(Config{Size: size, Home: home})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// resident returns the bytes of the memfd that have frames.
func resident(t *testing.T, r *RAM) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(r.FD(), &st); err != nil {
		t.Fatal(err)
	}
	return uint64(st.Blocks) * 512
}

func TestPopulateMakesOnlyTheHomeRangeResident(t *testing.T) {
	home := fabric.Span{First: 2 << 20, Last: 6 << 20}
	r := newRAM(t, testSize, home)
	if n := resident(t, r); n != 0 {
		t.Errorf("%d bytes resident at first", n)
	}
	var calls int
	var last uint64
	if err := r.Populate(func(done, total uint64) {
		calls++
		if last = done; total != 4<<20 || done > total {
			t.Errorf("progress %d of %d", done, total)
		}
	}); err != nil {
		t.Fatal(err)
	}
	if calls == 0 || last != 4<<20 {
		t.Errorf("%d calls of progress, the last with %d", calls, last)
	}
	if n := resident(t, r); n != 4<<20 {
		t.Errorf("%d bytes resident, want %d", n, 4<<20)
	}
}

// TestRegisteredHomeNeedsNoFault: pages populated before Register are accessible without anybody serving faults.
func TestRegisteredHomeNeedsNoFault(t *testing.T) {
	if _, err := uffd.Probe(); err != nil {
		t.Skip(err)
	}
	r := newRAM(t, testSize, fabric.Span{Last: 4 << 20})
	if err := r.Populate(nil); err != nil {
		t.Fatal(err)
	}
	for shard := range 2 {
		u, err := uffd.Open()
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		if err := r.Register(u, shard, 2, 9); err != nil {
			t.Fatal(err)
		}
	}
	r.Page(700)[5] = 42
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	if _, _, errno := unix.Syscall(unix.SYS_WRITE, uintptr(pipe[1]), r.GuestAddr(700), 16); errno != 0 {
		t.Fatal(errno)
	}
	var b [16]byte
	if _, err := unix.Read(pipe[0], b[:]); err != nil || b[5] != 42 {
		t.Errorf("read %v, %v", b, err)
	}
}

func TestDiscard(t *testing.T) {
	r := newRAM(t, testSize, fabric.Span{Last: 4 << 20})
	page := wire.PFN(1500)
	r.Page(page)[0] = 1
	if errno := r.Unmap(page); errno != 0 {
		t.Fatal(errno)
	}
	if r.Page(page)[0] != 1 {
		t.Error("unmapping lost the bytes")
	}
	if errno := r.Discard(page); errno != 0 {
		t.Fatal(errno)
	}
	if n := resident(t, r); n != 0 {
		t.Errorf("%d bytes resident after discard", n)
	}
	if r.Page(page)[0] != 0 {
		t.Error("bytes outlived discard")
	}
	if errno := r.Discard(3); errno != unix.EBUSY {
		t.Errorf("discard of a home frame: %v", errno)
	}
	if n := testing.AllocsPerRun(50, func() { r.Unmap(page); r.Discard(page) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestPageAt(t *testing.T) {
	r := newRAM(t, testSize, fabric.Span{Last: testSize})
	for _, c := range []struct {
		addr uintptr
		page wire.PFN
		ok   bool
	}{
		{r.GuestView(), 0, true},
		{r.GuestView() + 4097, 1, true},
		{r.GuestView() + testSize - 1, testSize/4096 - 1, true},
		{r.GuestView() + testSize, 0, false},
		{r.GuestView() - 1, 0, false},
	} {
		if page, ok := r.PageAt(c.addr); page != c.page || ok != c.ok {
			t.Errorf("%#x: page %d %t, want %d %t", c.addr-r.GuestView(), page, ok, c.page, c.ok)
		}
	}
	if !r.IsHome(0) || r.IsHome(testSize/4096) {
		t.Error("IsHome")
	}
}

func TestSizeIsSealed(t *testing.T) {
	r := newRAM(t, testSize, fabric.Span{})
	if err := unix.Ftruncate(r.FD(), 4096); err == nil {
		t.Error("the memfd shrank")
	}
}

func TestBadConfigs(t *testing.T) {
	for name, c := range map[string]Config{
		"empty":            {},
		"not pages":        {Size: 5000},
		"home outside":     {Size: 1 << 20, Home: fabric.Span{Last: 2 << 20}},
		"home not aligned": {Size: 1 << 20, Home: fabric.Span{Last: 100}},
		"home backwards":   {Size: 1 << 20, Home: fabric.Span{First: 8192, Last: 4096}},
	} {
		if r, err := New(c); err == nil {
			r.Close()
			t.Errorf("%s: no error", name)
		}
	}
}

// TestTooMuchMemoryIsRefusedBeforeItIsTaken asks for more than any machine has free.
func TestTooMuchMemoryIsRefusedBeforeItIsTaken(t *testing.T) {
	free, ok := available()
	if !ok {
		t.Skip("cannot tell how much memory is available")
	}
	size := (free*2 + Align) &^ (Align - 1)
	r, err := New(Config{Size: size, Home: fabric.Span{Last: size}})
	if err != nil {
		t.Skip(err)
	}
	defer r.Close()
	err = r.Populate(nil)
	var m *MemoryError
	if !errors.As(err, &m) || m.Want != size || m.Available == 0 || !errors.Is(err, unix.ENOMEM) {
		t.Errorf("error %v", err)
	}
	if n := resident(t, r); n != 0 {
		t.Errorf("%d bytes taken", n)
	}
}

func TestLimitIsNamed(t *testing.T) {
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_AS, &old); err != nil {
		t.Fatal(err)
	}
	lim := old
	lim.Cur = 64 << 30
	if err := unix.Setrlimit(unix.RLIMIT_AS, &lim); err != nil {
		t.Skip(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_AS, &old)
	_, err := New(Config{Size: 1 << 40})
	if err == nil || !strings.Contains(err.Error(), "RLIMIT_AS") || !strings.Contains(err.Error(), "1048576 MiB") {
		t.Errorf("error %v", err)
	}
}

func TestCgroupLeft(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("self", "0::/a/b\n")
	write("cg/a/memory.max", "1000\n")
	write("cg/a/memory.current", "400\n")
	write("cg/a/b/memory.max", "max\n")
	write("cg/a/b/memory.current", "300\n")
	left, limited := cgroupLeft(filepath.Join(dir, "self"), filepath.Join(dir, "cg"))
	if left != 600 || !limited {
		t.Errorf("left %d, limited %t", left, limited)
	}
	write("meminfo", "MemTotal: 5 kB\nMemAvailable:   12 kB\n")
	if n, ok := memAvailable(filepath.Join(dir, "meminfo")); n != 12<<10 || !ok {
		t.Errorf("available %d %t", n, ok)
	}
}

func TestSlots(t *testing.T) {
	s, err := NewSlots(3)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.Page(2)[7] = 9
	m := s.Memory()
	if s.Len() != 3 || m.Len != 3*wire.PageSize || s.Addr(2)-m.Addr != 2*wire.PageSize {
		t.Errorf("%d slots, %+v, slot 2 at %#x", s.Len(), m, s.Addr(2))
	}
	var b [1]byte
	if _, err := unix.Pread(m.FD, b[:], 2*wire.PageSize+7); err != nil || b[0] != 9 {
		t.Errorf("through the memfd: %v, %v", b, err)
	}
	if _, err := NewSlots(0); err == nil {
		t.Error("no slots: no error")
	}
}
