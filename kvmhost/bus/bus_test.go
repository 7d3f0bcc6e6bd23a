package bus

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// window is a device that records what it was asked, and faults accesses outside of its range.
type window struct {
	t    interface{ Errorf(string, ...any) }
	tag  byte
	size uint64
	last uint64
	n    int
}

func (w *window) Read(off uint64, data []byte) {
	w.check(off, data)
	for i := range data {
		data[i] = w.tag
	}
}

func (w *window) Write(off uint64, data []byte) { w.check(off, data) }

func (w *window) check(off uint64, data []byte) {
	if n := uint64(len(data)); n > w.size || off > w.size-n {
		w.t.Errorf("access %#x+%d outside of a device of size %#x", off, n, w.size)
	}
	w.last, w.n = off, w.n+1
}

func TestLookup(t *testing.T) {
	b := New()
	for i, r := range [][2]uint64{{0x3f8, 8}, {0x60, 1}, {0x64, 1}, {0xcf8, 8}, {0xffff, 1}} {
		if err := b.AddPort(fmt.Sprint("d", i), uint16(r[0]), uint32(r[1]), &window{t: t, tag: byte(i), size: r[1]}); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.AddMMIO("io", 0xfec00000, 0x1000, &window{t: t, tag: 0x40, size: 0x1000}); err != nil {
		t.Fatal(err)
	}
	if err := b.AddMMIO("top", 1<<64-16, 16, &window{t: t, tag: 0x41, size: 16}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		mmio  bool
		addr  uint64
		width int
		want  byte
		found bool
	}{
		{false, 0x3f8, 1, 0, true},
		{false, 0x3ff, 1, 0, true},
		{false, 0x3fe, 2, 0, true},
		{false, 0x3ff, 2, 0xff, true},  // across the end
		{false, 0x3f7, 2, 0xff, true},  // across the start
		{false, 0x3f0, 8, 0xff, false}, // ends before
		{false, 0x400, 1, 0xff, false},
		{false, 0x60, 4, 0xff, true},
		{false, 0x61, 1, 0xff, false},
		{false, 0x61, 4, 0xff, true}, // 0x64 is inside
		{false, 0xcfc, 4, 3, true},
		{false, 0xffff, 1, 4, true},
		{false, 0xffff, 2, 0xff, true},
		{false, 0, 1, 0xff, false},
		{true, 0xfec00010, 4, 0x40, true},
		{true, 0xfec00ffc, 8, 0xff, true},
		{true, 0xfec01000, 8, 0xff, false},
		{true, 1<<64 - 8, 8, 0x41, true},
		{true, 1<<64 - 4, 8, 0xff, false}, // wraps around
	} {
		data, read, write := make([]byte, c.width), b.ReadPort, b.WritePort
		port := uint16(c.addr)
		readAt, writeAt := func() bool { return read(port, data) }, func() bool { return write(port, data) }
		if c.mmio {
			readAt = func() bool { return b.ReadMMIO(c.addr, data) }
			writeAt = func() bool { return b.WriteMMIO(c.addr, data) }
		}
		if found := readAt(); found != c.found || !bytes.Equal(data, bytes.Repeat([]byte{c.want}, c.width)) {
			t.Errorf("read %#x+%d: % x, %v", c.addr, c.width, data, found)
		}
		if found := writeAt(); found != c.found {
			t.Errorf("write %#x+%d: %v", c.addr, c.width, found)
		}
	}
}

func TestRefused(t *testing.T) {
	b := New()
	if err := b.AddPort("first", 0x100, 0x10, &window{}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		base uint16
		size uint32
		want error
	}{
		{0x100, 0x10, ErrOverlap},
		{0x0ff, 2, ErrOverlap},
		{0x10f, 1, ErrOverlap},
		{0x0f0, 0x100, ErrOverlap},
		{0x108, 1, ErrOverlap},
		{0x200, 0, ErrRange},
		{0xffff, 2, ErrRange},
	} {
		err := b.AddPort("second", c.base, c.size, &window{})
		if !errors.Is(err, c.want) {
			t.Errorf("%#x+%#x: %v", c.base, c.size, err)
		}
		if c.want == ErrOverlap && (!strings.Contains(err.Error(), "first") || !strings.Contains(err.Error(), "second")) {
			t.Errorf("%v does not name both", err)
		}
	}
	if err := b.AddMMIO("wrap", 1<<64-1, 2, &window{}); !errors.Is(err, ErrRange) {
		t.Errorf("wrapping range: %v", err)
	}
	for _, base := range []uint16{0x0ff, 0x110} {
		if err := b.AddPort("neighbour", base, 1, &window{}); err != nil {
			t.Error(err)
		}
	}
}

// TestProperty holds the bus against a plain map of every port.
func TestProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b, owner := New(), map[int]*window{}
		for i := range rapid.IntRange(0, 20).Draw(t, "devices") {
			base, size := rapid.IntRange(0, 300).Draw(t, "base"), rapid.IntRange(1, 40).Draw(t, "size")
			free := true
			for p := base; p < base+size; p++ {
				free = free && owner[p] == nil
			}
			w := &window{t: t, tag: byte(i), size: uint64(size)}
			if err := b.AddPort("d", uint16(base), uint32(size), w); (err == nil) != free {
				t.Fatalf("%d+%d: %v", base, size, err)
			}
			for p := base; free && p < base+size; p++ {
				owner[p] = w
			}
		}
		for range 50 {
			port, width := rapid.IntRange(0, 350).Draw(t, "port"), rapid.IntRange(1, 8).Draw(t, "width")
			one, some := owner[port], false
			for p := port; p < port+width; p++ {
				some = some || owner[p] != nil
				if owner[p] != one {
					one = nil
				}
			}
			want := byte(0xff)
			if one != nil {
				want = one.tag
			}
			data := make([]byte, width)
			if found := b.ReadPort(uint16(port), data); found != some || !bytes.Equal(data, bytes.Repeat([]byte{want}, width)) {
				t.Fatalf("%d+%d: %v % x, want %v %#x", port, width, found, data, some, want)
			}
		}
	})
}

func TestNoAllocation(t *testing.T) {
	b := New()
	for i := range 64 {
		if err := b.AddPort("d", uint16(i*16), 8, &window{t: t, size: 8}); err != nil {
			t.Fatal(err)
		}
	}
	data := make([]byte, 2)
	if n := testing.AllocsPerRun(100, func() {
		b.ReadPort(0x123, data)
		b.WritePort(0x120, data)
		b.ReadPort(0x12f, data)
		b.ReadMMIO(0x1000, data)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzAccess(f *testing.F) {
	f.Add(uint64(0xfec00ffe), uint8(4))
	f.Fuzz(func(t *testing.T, addr uint64, width uint8) {
		b := New()
		for _, base := range []uint64{0, 0x10, 0xfec00000, 1<<64 - 8} {
			if err := b.AddMMIO("d", base, 8, &window{t: t, size: 8}); err != nil {
				t.Fatal(err)
			}
		}
		data := make([]byte, width)
		b.ReadMMIO(addr, data)
		b.WriteMMIO(addr, data)
	})
}
