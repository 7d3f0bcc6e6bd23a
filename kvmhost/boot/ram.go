package boot

import (
	"fmt"
	"io"
	"slices"

	"github.com/bobuhiro11/gokvm/bootparam"
)

// The hole below 4 GiB that RAM leaves to devices.
const (
	holeStart = 3 << 30
	holeEnd   = 4 << 30
)

// RAM is a VM's amount of RAM in bytes, a multiple of 4096. It maps between dense offsets (0 to RAM, as memory
// files have it) and guest-physical addresses, which leave out the hole below 4 GiB.
type RAM uint64

// LowEnd is the end of RAM below the hole.
func (r RAM) LowEnd() uint64 { return min(uint64(r), holeStart) }

// HighEnd is the end of RAM above the hole, or 0 if there is none.
func (r RAM) HighEnd() uint64 {
	if r <= holeStart {
		return 0
	}
	return holeEnd + uint64(r) - holeStart
}

// GPA is the address of a dense offset below RAM.
func (r RAM) GPA(off uint64) uint64 {
	if off < holeStart {
		return off
	}
	return off - holeStart + holeEnd
}

// Offset is the dense offset of an address, ok false if that is not RAM.
func (r RAM) Offset(gpa uint64) (off uint64, ok bool) {
	switch {
	case gpa < r.LowEnd():
		return gpa, true
	case gpa >= holeEnd && gpa < r.HighEnd():
		return gpa - holeEnd + holeStart, true
	}
	return 0, false
}

// Ranges cuts the dense range [first, last) into ranges of addresses: one, or two around the hole.
func (r RAM) Ranges(first, last uint64) []Range {
	switch {
	case first >= last:
		return nil
	case last <= holeStart || first >= holeStart:
		return []Range{{r.GPA(first), r.GPA(last-1) + 1}}
	}
	return []Range{{first, holeStart}, {holeEnd, r.GPA(last-1) + 1}}
}

// View is the memory behind a dense view of RAM (view[off] is the byte at GPA(off)). A write that is not
// wholly within one piece of RAM is refused and writes nothing.
func (r RAM) View(view []byte) Memory { return denseView{r, view} }

type denseView struct {
	ram  RAM
	view []byte
}

func (v denseView) WriteAt(p []byte, gpa int64) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	first, ok := v.ram.Offset(uint64(gpa))
	last, ok2 := v.ram.Offset(uint64(gpa) + uint64(len(p)) - 1)
	if gpa < 0 || !ok || !ok2 || last-first != uint64(len(p))-1 || last >= uint64(len(v.view)) {
		return 0, fmt.Errorf("boot: %d bytes at %#x: outside of RAM: %w", len(p), gpa, io.ErrShortWrite)
	}
	return copy(v.view[first:], p), nil
}

func (r RAM) check() error {
	const most = 1 << 46 // what four-level guests and 46-bit servers can address
	if r%4096 != 0 || r < 2*HighMemory || r > most {
		return fmt.Errorf("boot: RAM of %d bytes: give whole pages, at least 2 MiB", uint64(r))
	}
	return nil
}

// e820 is the memory map: RAM with the legacy area and the given ranges marked reserved, sorted.
func (r RAM) e820(reserved []Range) ([]E820Entry, error) {
	cuts := append([]Range{{lowRAMEnd, HighMemory}}, reserved...)
	slices.SortFunc(cuts, func(a, b Range) int {
		switch {
		case a.Start < b.Start:
			return -1
		case a.Start > b.Start:
			return 1
		}
		return 0
	})
	var m []E820Entry
	ram := []Range{{0, r.LowEnd()}}
	if end := r.HighEnd(); end != 0 {
		ram = append(ram, Range{holeEnd, end})
	}
	done := uint64(0)
	for _, c := range cuts {
		if c.Start >= c.End || c.Start%4096 != 0 || c.End%4096 != 0 || c.Start < done {
			return nil, fmt.Errorf("boot: reserved range %#x-%#x: give whole pages that do not overlap", c.Start, c.End)
		}
		done = c.End
	}
	for _, piece := range ram {
		at := piece.Start
		for _, c := range cuts {
			if c.End <= at || c.Start >= piece.End {
				continue
			}
			if c.Start > at {
				m = append(m, E820Entry{Range{at, c.Start}, bootparam.E820Ram})
			}
			m = append(m, E820Entry{c, bootparam.E820Reserved})
			at = c.End
		}
		if at < piece.End {
			m = append(m, E820Entry{Range{at, piece.End}, bootparam.E820Ram})
		}
	}
	return m, nil
}
