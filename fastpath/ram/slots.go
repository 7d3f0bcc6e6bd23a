package ram

import (
	"errors"
	"fmt"
	"math"

	"golang.org/x/sys/unix"

	"ironspan/engine/wire"
	"ironspan/fastpath/fabric"
)

// Slots are the receive slots of one shard: pages that peers write to and UFFDIO_COPY reads from. They are
// resident from the start and never fault.
type Slots struct {
	fd  int
	mem []byte
}

// NewSlots returns n slots, of a page each.
func NewSlots(n int) (_ *Slots, err error) {
	if n < 1 || n > math.MaxInt32 {
		return nil, fmt.Errorf("ram: %d slots", n)
	}
	size := uint64(n) * wire.PageSize
	s := &Slots{fd: -1}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if s.fd, err = newMemfd("ironspan-slots", size); err != nil {
		return nil, err
	}
	if s.mem, err = unix.Mmap(s.fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, memoryError("map slots", size, err)
	}
	if errno := madvise(addressOf(s.mem), uintptr(size), unix.MADV_DONTFORK); errno != 0 {
		return nil, fmt.Errorf("ram: madvise: %w", errno)
	}
	if err := populate(addressOf(s.mem), uintptr(size)); err != nil {
		return nil, memoryError("populate slots", size, err)
	}
	return s, nil
}

// Len returns the number of slots.
func (s *Slots) Len() int { return len(s.mem) / wire.PageSize }

// Addr returns a slot's address.
func (s *Slots) Addr(slot uint32) uintptr {
	return addressOf(s.mem) + uintptr(slot)<<wire.PageShift
}

// Page returns a slot's bytes.
func (s *Slots) Page(slot uint32) []byte {
	off := int(slot) << wire.PageShift
	return s.mem[off : off+wire.PageSize : off+wire.PageSize]
}

// Memory describes the slots to a fabric.
func (s *Slots) Memory() fabric.Memory {
	return fabric.Memory{Addr: addressOf(s.mem), Len: uint64(len(s.mem)), FD: s.fd}
}

// Close frees the slots. No fabric may be using them.
func (s *Slots) Close() error {
	var errs []error
	if s.mem != nil {
		if err := unix.Munmap(s.mem); err != nil {
			errs = append(errs, fmt.Errorf("ram: unmap slots: %w", err))
		}
		s.mem = nil
	}
	if s.fd >= 0 {
		if err := unix.Close(s.fd); err != nil {
			errs = append(errs, fmt.Errorf("ram: close slots: %w", err))
		}
		s.fd = -1
	}
	return errors.Join(errs...)
}
