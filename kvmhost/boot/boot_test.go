package boot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/bobuhiro11/gokvm/bootparam"
)

// image is a small bzImage that passes all checks; tests then spoil it.
type image struct {
	setup     bootparam.SetupHeader
	jump      byte
	tail      []byte
	truncate  int
	nothing   bool
	codeBytes int
}

func goodImage() *image {
	return &image{
		setup: bootparam.SetupHeader{
			SetupSects: 3, SysSize: 0x200, BootFlag: bootFlag, Header: bootparam.MagicSignature, Version: 0x020f,
			LoadFlags: loadedHigh, InitrdAddrMax: 0x7fffffff, KernelAlignment: 0x200000, RelocatableKernel: 1, MinAlignment: 21,
			XloadFlags: xlfKernel64, CmdlineSize: 2047, PrefAddress: 0x1000000, InitSize: 0x100000,
		},
		jump: 0x6a, codeBytes: 0x2000,
	}
}

func (i *image) bytes() []byte {
	if i.nothing {
		return nil
	}
	sects := int(i.setup.SetupSects)
	if sects == 0 {
		sects = 4
	}
	b := make([]byte, (sects+1)*512+i.codeBytes)
	var h bytes.Buffer
	if err := binary.Write(&h, binary.LittleEndian, i.setup); err != nil {
		panic(err)
	}
	copy(b[headerStart:], h.Bytes())
	b[0x200], b[jumpOffset] = 0xeb, i.jump
	copy(b[headerEnd:], i.tail)
	for j := range i.codeBytes {
		b[(sects+1)*512+j] = byte(j) ^ byte(j>>8)
	}
	return b[:len(b)-i.truncate]
}

// TestHeaderLayout checks the images of the other tests against the offsets of boot.rst.
func TestHeaderLayout(t *testing.T) {
	b := goodImage().bytes()
	if f := binary.LittleEndian.Uint16(b[0x1fe:]); f != bootFlag {
		t.Errorf("boot flag at 0x1fe is %#x", f)
	}
	if m := string(b[0x202:0x206]); m != "HdrS" {
		t.Errorf("magic at 0x202 is %q", m)
	}
	if p := binary.LittleEndian.Uint64(b[0x258:]); p != 0x1000000 {
		t.Errorf("pref_address at 0x258 is %#x", p)
	}
}

// recorder is RAM that notes who wrote where.
type recorder struct {
	Memory
	writes []Range
}

func (r *recorder) WriteAt(p []byte, off int64) (int, error) {
	r.writes = append(r.writes, Range{uint64(off), uint64(off) + uint64(len(p))})
	return r.Memory.WriteAt(p, off)
}

// checkWrites says what is wrong with a loader's writes: outside of the limit, in the reserved area, or over
// each other.
func checkWrites(writes []Range, limit uint64) error {
	for i, w := range writes {
		if w.End > limit || w.Start < HighMemory && w.End > lowRAMEnd {
			return fmt.Errorf("wrote %#x-%#x, limit %#x", w.Start, w.End, limit)
		}
		if o := w.clash(writes[:i]); o != nil {
			return fmt.Errorf("%#x-%#x over %#x-%#x", w.Start, w.End, o.Start, o.End)
		}
	}
	return nil
}

const testRAM = RAM(64 << 20)

func load(t *testing.T, c Config) (*Loaded, []byte, []Range) {
	t.Helper()
	view := make([]byte, c.RAM)
	mem := &recorder{Memory: c.RAM.View(view)}
	l, err := Load(mem, c)
	if err != nil {
		t.Fatal(err)
	}
	return l, view, mem.writes
}

func TestLoad(t *testing.T) {
	img, ramdisk := goodImage(), bytes.Repeat([]byte("initrd"), 1000)
	img.jump, img.tail = 0x6e, []byte{1, 2, 3, 4} // four header bytes of a later protocol
	kernel := img.bytes()
	l, view, writes := load(t, Config{Kernel: kernel, Initrd: ramdisk, CmdLine: "console=ttyS0 quiet", RAM: testRAM, RSDP: 0xe0040})
	if err := checkWrites(writes, uint64(testRAM)); err != nil {
		t.Error(err)
	}
	if l.Kernel != (Range{0x1000000, 0x1100000}) || l.Entry != 0x1000200 || l.State.Regs.RIP != l.Entry {
		t.Errorf("loaded %+v", l)
	}
	if !bytes.Equal(view[0x1000000:0x1002000], kernel[4*512:]) {
		t.Error("the code is not at the load address")
	}
	if l.Initrd.End > uint64(testRAM) || l.Initrd.Start%4096 != 0 || !bytes.Equal(view[l.Initrd.Start:l.Initrd.End], ramdisk) {
		t.Errorf("initrd at %+v", l.Initrd)
	}

	le := binary.LittleEndian
	zero := view[l.State.Regs.RSI:]
	if got := le.Uint64(zero[0x70:]); got != 0xe0040 {
		t.Errorf("acpi_rsdp_addr %#x", got)
	}
	if got := le.Uint32(zero[0x218:]); uint64(got) != l.Initrd.Start || int(le.Uint32(zero[0x21c:])) != len(ramdisk) {
		t.Errorf("ramdisk_image %#x", got)
	}
	if zero[0x210] != 0xff || le.Uint32(zero[0x202:]) != bootparam.MagicSignature || !bytes.Equal(zero[headerEnd:headerEnd+4], img.tail) {
		t.Error("setup header is not in the zero page")
	}
	cmdline := view[le.Uint32(zero[0x228:]):]
	if !bytes.HasPrefix(cmdline, []byte("console=ttyS0 quiet\x00")) {
		t.Errorf("command line %q", cmdline[:30])
	}
	if n := int(zero[0x1e8]); n != len(l.E820) || n != 3 {
		t.Errorf("%d entries of the memory map", n)
	}
	for i, e := range l.E820 {
		at := zero[0x2d0+20*i:]
		if le.Uint64(at) != e.Start || le.Uint64(at[8:]) != e.End-e.Start || le.Uint32(at[16:]) != e.Type {
			t.Errorf("entry %d in the zero page is not %+v", i, e)
		}
	}
}

// TestEntryState walks the tables as the processor will.
func TestEntryState(t *testing.T) {
	l, view, _ := load(t, Config{Kernel: goodImage().bytes(), RAM: testRAM})
	le, s := binary.LittleEndian, l.State.Sregs
	for _, addr := range []uint64{0, 0x7000, 0x1000200, 0xfee00000, 0xffffffff} {
		pdpt := le.Uint64(view[s.CR3+addr>>39&511*8:])
		pd := le.Uint64(view[pdpt&^4095+addr>>30&511*8:])
		e := le.Uint64(view[pd&^4095+addr>>21&511*8:])
		if pdpt&3 != 3 || pd&3 != 3 || e&0x83 != 0x83 || e&^0x1fffff != addr&^0x1fffff {
			t.Errorf("%#x maps by %#x %#x %#x", addr, pdpt, pd, e)
		}
	}
	for sel, want := range map[uint16]uint64{s.CS.Selector: 0x00af9b000000ffff, s.DS.Selector: 0x00cf93000000ffff} {
		if got := le.Uint64(view[s.GDT.Base+uint64(sel):]); got != want {
			t.Errorf("descriptor %#x is %#x", sel, got)
		}
	}
	if s.CS.Selector != 0x10 || s.SS.Selector != 0x18 || l.State.Regs.RFLAGS != 2 {
		t.Errorf("state %+v", l.State)
	}
}

func TestBadImages(t *testing.T) {
	for _, tc := range []struct {
		name  string
		spoil func(*image)
		want  string
	}{
		{"empty", func(i *image) { i.nothing = true }, "no bzImage"},
		{"boot flag", func(i *image) { i.setup.BootFlag = 0 }, "boot flag"},
		{"magic", func(i *image) { i.setup.Header = 1 }, "HdrS"},
		{"old", func(i *image) { i.setup.Version = 0x020b }, "2.11"},
		{"32-bit", func(i *image) { i.setup.XloadFlags = 0 }, "x86-64"},
		{"zImage", func(i *image) { i.setup.LoadFlags = 0 }, "below 1 MiB"},
		{"setup too large", func(i *image) { i.setup.SetupSects = 200 }, "setup sectors"},
		{"header too long", func(i *image) { i.jump = 0xff }, "header ends"},
		{"truncated", func(i *image) { i.truncate = 17 }, "truncated"},
		{"no code", func(i *image) { i.setup.SysSize = 0 }, "0 bytes of code"},
		{"size lies", func(i *image) { i.setup.SysSize = math.MaxUint32 }, "truncated"},
		{"alignment", func(i *image) { i.setup.KernelAlignment = 0x300000 }, "kernel_alignment"},
		{"no alignment", func(i *image) { i.setup.KernelAlignment = 0 }, "kernel_alignment"},
		{"misaligned", func(i *image) { i.setup.PrefAddress = 0x1000800 }, "pref_address"},
		{"low", func(i *image) { i.setup.PrefAddress = 0 }, "pref_address"},
		{"high", func(i *image) { i.setup.PrefAddress = 1 << 40 }, "pref_address"},
		{"init_size small", func(i *image) { i.setup.InitSize = 0x1000 }, "init_size"},
		{"init_size huge", func(i *image) { i.setup.InitSize = math.MaxUint32 }, "init_size"},
		{"does not fit", func(i *image) { i.setup.InitSize = 1 << 30 }, "more memory"},
		{"initrd limit", func(i *image) { i.setup.InitrdAddrMax = 0 }, "initrd_addr_max"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			img := goodImage()
			tc.spoil(img)
			mem := &recorder{Memory: testRAM.View(make([]byte, testRAM))}
			_, err := Load(mem, Config{Kernel: img.bytes(), RAM: testRAM})
			if !errors.Is(err, ErrImage) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
			if len(mem.writes) != 0 {
				t.Errorf("wrote %v", mem.writes)
			}
		})
	}
}

func TestBadRequests(t *testing.T) {
	kernel := goodImage().bytes()
	for name, c := range map[string]Config{
		"command line too long": {CmdLine: strings.Repeat("x", 2048)},
		"NUL":                   {CmdLine: "a\x00b"},
		"initrd too large":      {Initrd: make([]byte, 60<<20)},
		"limit":                 {Limit: 0x1080000},
		"tiny limit":            {Limit: 4096},
		"odd RAM":               {RAM: testRAM + 1},
		"reserved":              {Reserved: []Range{{0x2000001, 0x2001000}}},
		"reserved twice":        {Reserved: []Range{{0x2000000, 0x2002000}, {0x2001000, 0x2003000}}},
	} {
		t.Run(name, func(t *testing.T) {
			c.Kernel = kernel
			if c.RAM == 0 {
				c.RAM = testRAM
			}
			if _, err := Load(testRAM.View(make([]byte, testRAM)), c); err == nil {
				t.Error("accepted")
			}
		})
	}
}

// TestPlacement: reserved ranges and the limit push kernel and initrd about.
func TestPlacement(t *testing.T) {
	kernel := goodImage().bytes()
	c := Config{
		Kernel: kernel, Initrd: make([]byte, 10000), RAM: testRAM, Limit: 48 << 20,
		Reserved: []Range{{0x1000000, 0x1001000}, {0x2f00000, 0x3000000}},
	}
	l, _, writes := load(t, c)
	if err := checkWrites(writes, c.Limit); err != nil {
		t.Error(err)
	}
	if l.Kernel.Start != 0x1200000 {
		t.Errorf("kernel at %#x", l.Kernel.Start)
	}
	if l.Initrd.End > 0x2f00000 || l.Initrd.Start < 0x2e00000 {
		t.Errorf("initrd at %+v", l.Initrd)
	}
	fixed := goodImage()
	fixed.setup.RelocatableKernel = 0
	c.Kernel = fixed.bytes()
	if _, err := Load(testRAM.View(make([]byte, testRAM)), c); !errors.Is(err, ErrImage) {
		t.Errorf("a kernel that cannot move: %v", err)
	}
}

func TestRAM(t *testing.T) {
	const gib = 1 << 30
	r := RAM(5 * gib)
	for off, gpa := range map[uint64]uint64{0: 0, 3*gib - 1: 3*gib - 1, 3 * gib: 4 * gib, 5*gib - 1: 6*gib - 1} {
		if got := r.GPA(off); got != gpa {
			t.Errorf("GPA(%#x) = %#x", off, got)
		}
		if got, ok := r.Offset(gpa); !ok || got != off {
			t.Errorf("Offset(%#x) = %#x, %v", gpa, got, ok)
		}
	}
	for _, gpa := range []uint64{3 * gib, 4*gib - 1, 6 * gib, math.MaxUint64} {
		if _, ok := r.Offset(gpa); ok {
			t.Errorf("%#x is RAM", gpa)
		}
	}
	m, err := r.e820([]Range{{4 * gib, 4*gib + 4096}})
	if err != nil {
		t.Fatal(err)
	}
	want := []E820Entry{
		{Range{0, 0xa0000}, 1}, {Range{0xa0000, 0x100000}, 2}, {Range{0x100000, 3 * gib}, 1},
		{Range{4 * gib, 4*gib + 4096}, 2}, {Range{4*gib + 4096, 6 * gib}, 1},
	}
	if fmt.Sprint(m) != fmt.Sprint(want) {
		t.Errorf("memory map %x", m)
	}
	if got := r.Ranges(2*gib, 5*gib); len(got) != 2 || got[0] != (Range{2 * gib, 3 * gib}) || got[1] != (Range{4 * gib, 6 * gib}) {
		t.Errorf("ranges %x", got)
	}
	if got := r.Ranges(3*gib, 4*gib); len(got) != 1 || got[0] != (Range{4 * gib, 5 * gib}) {
		t.Errorf("ranges %x", got)
	}
	small := RAM(8192 * 512).View(make([]byte, 8192*512))
	for _, off := range []int64{-1, -4, 8192*512 - 3, math.MaxInt64} {
		if _, err := small.WriteAt(make([]byte, 4), off); err == nil {
			t.Errorf("wrote at %#x", off)
		}
	}
}

// TestRealKernel loads a distribution's kernel, if there is one to be had.
func TestRealKernel(t *testing.T) {
	name := os.Getenv("IRONSPAN_KERNEL")
	if name == "" {
		t.Skip("IRONSPAN_KERNEL names no bzImage")
	}
	kernel, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	l, _, writes := load(t, Config{Kernel: kernel, Initrd: make([]byte, 5<<20), RAM: 256 << 20, CmdLine: "quiet"})
	if err := checkWrites(writes, 256<<20); err != nil {
		t.Error(err)
	}
	t.Logf("kernel %#x-%#x, initrd %#x-%#x", l.Kernel.Start, l.Kernel.End, l.Initrd.Start, l.Initrd.End)
}

// nowhere takes all writes.
type nowhere struct{}

func (nowhere) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

// FuzzLoad: whatever the image, nothing is written outside of the limit or over other things.
func FuzzLoad(f *testing.F) {
	small := goodImage()
	small.setup.SetupSects, small.setup.SysSize, small.codeBytes = 1, 0x21, 0x210
	f.Add(small.bytes(), uint32(0), uint32(64<<20))
	f.Add(small.bytes(), uint32(100_000), uint32(32<<20))
	f.Add(small.bytes()[:0x300], uint32(1000), uint32(32<<20))
	f.Add([]byte{}, uint32(1), uint32(0))
	ramdisk := make([]byte, 4<<20)
	f.Fuzz(func(t *testing.T, img []byte, initrd, limit uint32) {
		mem := &recorder{Memory: nowhere{}}
		_, err := Load(mem, Config{Kernel: img, Initrd: ramdisk[:initrd%uint32(len(ramdisk))], RAM: testRAM, Limit: uint64(limit)})
		most := uint64(limit)
		if limit == 0 {
			most = uint64(testRAM)
		}
		if err := checkWrites(mem.writes, most); err != nil {
			t.Error(err)
		}
		if err != nil && len(mem.writes) != 0 {
			t.Errorf("%v, but wrote %v", err, mem.writes)
		}
	})
}
