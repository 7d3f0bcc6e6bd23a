// Package bus finds the device behind a port or a guest-physical address.
//
// A Bus is built first and used afterwards: lookups take no lock and do not allocate, so adding a device
// while vCPUs run is not allowed. Devices are called from many vCPU threads at once and look after
// themselves.
package bus

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
)

// Device answers accesses to its range. off counts from the start of the range, and off+len(data) is within
// it. data is little endian, as the guest sees it, usually 1, 2, 4 or 8 bytes.
type Device interface {
	Read(off uint64, data []byte)
	Write(off uint64, data []byte)
}

// Ports is the number of I/O ports.
const Ports = 1 << 16

// ErrOverlap is wrapped by the error for a range that another device has.
var ErrOverlap = errors.New("range is taken")

// ErrRange is wrapped by the error for a range that is empty or ends behind the address space.
var ErrRange = errors.New("bad range")

// Bus has the devices of one node.
type Bus struct {
	ports space
	mmio  space
}

// New returns a Bus without devices.
func New() *Bus { return &Bus{} }

// AddPort puts a device at ports base to base+size-1.
func (b *Bus) AddPort(name string, base uint16, size uint32, d Device) error {
	if size > Ports-uint32(base) {
		return fmt.Errorf("bus: %s: ports %#x+%#x: %w", name, base, size, ErrRange)
	}
	if err := b.ports.add(name, uint64(base), uint64(size), d); err != nil {
		return fmt.Errorf("bus: %s: ports %#x+%#x: %w", name, base, size, err)
	}
	return nil
}

// AddMMIO puts a device at guest-physical addresses base to base+size-1.
func (b *Bus) AddMMIO(name string, base, size uint64, d Device) error {
	if err := b.mmio.add(name, base, size, d); err != nil {
		return fmt.Errorf("bus: %s: addresses %#x+%#x: %w", name, base, size, err)
	}
	return nil
}

// ReadPort reads from a port. It is false when no device is there; data is then all ones.
func (b *Bus) ReadPort(port uint16, data []byte) bool { return b.ports.read(uint64(port), data) }

// WritePort writes to a port. It is false when no device is there.
func (b *Bus) WritePort(port uint16, data []byte) bool { return b.ports.write(uint64(port), data) }

// ReadMMIO reads from a guest-physical address. It is false when no device is there; data is then all ones.
func (b *Bus) ReadMMIO(gpa uint64, data []byte) bool { return b.mmio.read(gpa, data) }

// WriteMMIO writes to a guest-physical address. It is false when no device is there.
func (b *Bus) WriteMMIO(gpa uint64, data []byte) bool { return b.mmio.write(gpa, data) }

// entry is one device's range; last is inclusive, so that the end of the address space is no special case.
type entry struct {
	first, last uint64
	name        string
	dev         Device
}

// space is sorted by address, without overlaps.
type space []entry

func (s *space) add(name string, base, size uint64, d Device) error {
	last := base + size - 1
	if size == 0 || last < base {
		return ErrRange
	}
	i, _ := slices.BinarySearchFunc(*s, base, func(e entry, base uint64) int { return cmp.Compare(e.last, base) })
	if i < len(*s) && (*s)[i].first <= last {
		e := (*s)[i]
		return fmt.Errorf("%s has %#x to %#x: %w", e.name, e.first, e.last, ErrOverlap)
	}
	*s = slices.Insert(*s, i, entry{base, last, name, d})
	return nil
}

// find returns the first device that the access [addr, last] touches, and whether the access lies within it.
// One that wraps around the end of the address space touches nothing.
func (s space) find(addr, last uint64) (e *entry, within bool) {
	lo, hi := 0, len(s)
	for lo < hi {
		if mid := int(uint(lo+hi) >> 1); s[mid].last < addr {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == len(s) || s[lo].first > last || last < addr {
		return nil, false
	}
	e = &s[lo]
	return e, e.first <= addr && last <= e.last
}

// read reports whether the access touched a device. One across a device's edge is refused: it reads as all
// ones, and nobody else is to be asked.
func (s space) read(addr uint64, data []byte) bool {
	if len(data) == 0 {
		return true
	}
	e, within := s.find(addr, addr+uint64(len(data))-1)
	if within {
		e.dev.Read(addr-e.first, data)
		return true
	}
	for i := range data {
		data[i] = 0xff
	}
	return e != nil
}

func (s space) write(addr uint64, data []byte) bool {
	if len(data) == 0 {
		return true
	}
	e, within := s.find(addr, addr+uint64(len(data))-1)
	if within {
		e.dev.Write(addr-e.first, data)
	}
	return e != nil
}
