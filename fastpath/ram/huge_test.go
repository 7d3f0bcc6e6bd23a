package ram

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ironspan/engine/wire"
	"ironspan/fastpath/fabric"
	"ironspan/fastpath/uffd"
)

// wholeBytes is how much of a view is mapped by huge pages, as the kernel says.
func wholeBytes(t *testing.T, view uintptr, size uint64) (n uint64) {
	t.Helper()
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	inside := false
	for s := bufio.NewScanner(f); s.Scan(); {
		var first, last uintptr
		if n, _ := fmt.Sscanf(s.Text(), "%x-%x ", &first, &last); n == 2 {
			inside = first >= view && last <= view+uintptr(size)
		}
		var kib uint64
		if rest, ok := strings.CutPrefix(s.Text(), "ShmemPmdMapped:"); ok && inside {
			if _, err := fmt.Sscan(rest, &kib); err != nil {
				t.Fatal(err)
			}
			n += kib << 10
		}
	}
	return n
}

// newHuge returns populated RAM of four blocks, of which two lie in the home range, and its shards' userfaultfds. It
// skips the test where the host gives no huge pages.
func newHuge(t *testing.T, shards int) (*RAM, []*uffd.FD) {
	t.Helper()
	if _, err := uffd.Probe(); err != nil {
		t.Skip(err)
	}
	r := newRAM(t, 4*blockSize, fabric.Span{First: blockSize / 2, Last: 3*blockSize + wire.PageSize})
	if err := r.Populate(nil); err != nil {
		t.Fatal(err)
	}
	if r.HugeBytes() != 2*blockSize {
		t.Skipf("the host gives huge pages for %d of %d bytes", r.HugeBytes(), 2*blockSize)
	}
	var us []*uffd.FD
	for i := range shards {
		u, err := uffd.Open()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { u.Close() })
		if err := r.Register(u, i, shards, blockShift-wire.PageShift); err != nil {
			t.Fatal(err)
		}
		us = append(us, u)
	}
	return r, us
}

// TestBlocksAreMappedWhole: both views' mappings are huge, and stay so when shards register their stripes.
func TestBlocksAreMappedWhole(t *testing.T) {
	r, _ := newHuge(t, 2)
	for name, view := range map[string]uintptr{"guest": r.GuestView(), "service": r.ServiceView()} {
		if n := wholeBytes(t, view, r.Size()); n != 2*blockSize {
			t.Errorf("%d bytes of the %s view are mapped whole, want %d", n, name, 2*blockSize)
		}
	}
	for page, want := range map[wire.PFN]bool{
		0: false, blockPages - 1: false, blockPages: true, 3*blockPages - 1: true, 3 * blockPages: false, 4*blockPages - 1: false,
	} {
		if r.Whole(page) != want {
			t.Errorf("page %d is in a whole block: %t", page, !want)
		}
	}
	if n := resident(t, r); n != r.Home().Last-r.Home().First {
		t.Errorf("%d bytes resident, home range %+v", n, r.Home())
	}
}

// touched reads a byte of guest memory that must not fault.
func touched(t *testing.T, pipe [2]int, addr uintptr) byte {
	t.Helper()
	if _, _, errno := unix.Syscall(unix.SYS_WRITE, uintptr(pipe[1]), addr, 1); errno != 0 {
		t.Fatal(errno)
	}
	var b [1]byte
	if _, err := unix.Read(pipe[0], b[:]); err != nil {
		t.Fatal(err)
	}
	return b[0]
}

// TestSplit: afterwards all pages of the block are mapped, with their bytes, each by itself, and those of another block
// are as they were.
func TestSplit(t *testing.T) {
	r, us := newHuge(t, 2)
	for page := wire.PFN(blockPages); page < 3*blockPages; page++ {
		r.Page(page)[9] = byte(page)
	}
	const page = blockPages + 77
	if errno := r.Split(us[1], page); errno != 0 {
		t.Fatal(errno)
	}
	if r.Whole(page) || !r.Whole(2*blockPages) {
		t.Errorf("whole: the split block %t, the other %t", r.Whole(page), r.Whole(2*blockPages))
	}
	if n := wholeBytes(t, r.GuestView(), r.Size()); n != blockSize {
		t.Errorf("%d bytes are mapped whole, want %d", n, blockSize)
	}
	if n := wholeBytes(t, r.ServiceView(), r.Size()); n != 2*blockSize {
		t.Errorf("%d bytes of the service view are mapped whole, want %d", n, 2*blockSize)
	}
	if errno := r.Unmap(page); errno != 0 {
		t.Fatal(errno)
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	for p := wire.PFN(blockPages); p < 3*blockPages; p++ {
		if p != page && touched(t, pipe, r.GuestAddr(p)+9) != byte(p) {
			t.Fatalf("page %d has other bytes", p)
		}
	}
	if n := testing.AllocsPerRun(5, func() { r.Split(us[1], page) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestSplitBringsFramesBack takes a frame away, as swapping does.
func TestSplitBringsFramesBack(t *testing.T) {
	r, us := newHuge(t, 1)
	for _, page := range []wire.PFN{blockPages, blockPages + 100, 2*blockPages - 1} {
		if errno := punchHole(r.FD(), int64(page)<<wire.PageShift, wire.PageSize); errno != 0 {
			t.Fatal(errno)
		}
	}
	if errno := r.Split(us[0], blockPages+3); errno != 0 {
		t.Fatal(errno)
	}
	if errno := us[0].Continue(r.GuestAddr(blockPages+100), wire.PageSize, false); errno != unix.EEXIST {
		t.Errorf("the page is not mapped: %v", errno)
	}
}

func TestSmallPagesAreKept(t *testing.T) {
	r, err := New(Config{Size: testSize, Home: fabric.Span{Last: testSize}, Small: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := r.Populate(nil); err != nil {
		t.Fatal(err)
	}
	if n := wholeBytes(t, r.GuestView(), testSize); n != 0 || r.HugeBytes() != 0 || r.Whole(0) {
		t.Errorf("%d bytes are mapped whole, %d by our count", n, r.HugeBytes())
	}
}

func TestNarrowStripesAreRefused(t *testing.T) {
	r, us := newHuge(t, 1)
	if err := r.Register(us[0], 0, 2, blockShift-wire.PageShift-1); err == nil {
		t.Error("no error")
	}
}

// TestHostGivesNoHugePages: then everything is as with small pages.
func TestHostGivesNoHugePages(t *testing.T) {
	if err := unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0); err != nil {
		t.Skip(err)
	}
	defer func() {
		if err := unix.Prctl(unix.PR_SET_THP_DISABLE, 0, 0, 0, 0); err != nil {
			t.Error(err)
		}
	}()
	const blocks = refusals + 2
	r := newRAM(t, blocks*blockSize, fabric.Span{Last: blocks * blockSize})
	if err := r.Populate(nil); err != nil {
		t.Fatal(err)
	}
	if n := wholeBytes(t, r.GuestView(), r.Size()); n != 0 || r.HugeBytes() != 0 || r.Whole(0) {
		t.Errorf("%d bytes are mapped whole, %d by our count", n, r.HugeBytes())
	}
	if n := resident(t, r); n != r.Size() {
		t.Errorf("%d bytes resident, want %d", n, r.Size())
	}
}
