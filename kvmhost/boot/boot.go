// Package boot puts a Linux kernel into guest memory the way a boot loader does and says in which state the
// boot processor has to enter it.
//
// The image is a bzImage, entered by the 64-bit boot protocol (Documentation/arch/x86/boot.rst, "64-bit Boot
// Protocol"): long mode, interrupts off, flat __BOOT_CS (0x10) and __BOOT_DS (0x18), an identity mapping of
// the first 4 GiB, %rsi pointing to the zero page. Nothing of the 16- or 32-bit code is run.
//
// What lies where, in guest-physical addresses:
//
//	0x00006000  GDT
//	0x00007000  zero page (struct boot_params)
//	0x00009000  page tables: PML4, PDPT, four page directories of 2 MiB pages
//	0x00020000  command line
//	0x000a0000  reserved up to 1 MiB; the caller's ACPI tables belong in 0xe0000-0xfffff
//	pref_address of the image (16 MiB for a stock kernel), or higher if that is taken: the kernel, init_size bytes
//	as high as initrd_addr_max, RAM and Config.Limit allow: the initrd
//
// RAM is laid out by [RAM]: below 3 GiB from address 0, the rest from 4 GiB; between them is the hole with the
// local APIC, the I/O APIC and device windows.
//
// An image is a stranger's bytes: every size and address in its header is checked before it is used, and a bad
// one is refused with an [ImageError].
package boot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/bobuhiro11/gokvm/bootparam"
	"github.com/bobuhiro11/gokvm/kvm"
)

// Fixed places below 1 MiB.
const (
	gdtAddr      = 0x6000
	zeroPageAddr = 0x7000
	tablesAddr   = 0x9000
	cmdlineAddr  = 0x20000
	cmdlineEnd   = 0x9f000
	lowRAMEnd    = 0xa0000

	// HighMemory is where RAM goes on after the legacy area: 1 MiB.
	HighMemory = 0x100000
	// TablesAddr is the customary place for ACPI tables, TablesEnd its end: reserved in the memory map.
	TablesAddr = 0xe0000
	TablesEnd  = HighMemory
)

// Selectors that the protocol prescribes.
const (
	bootCS = 0x10
	bootDS = 0x18
	bootTR = 0x20
)

// ErrImage is matched by every [ImageError].
var ErrImage = errors.New("boot: unusable kernel image")

// ImageError says why an image cannot be booted, and what would do.
type ImageError struct{ Reason string }

func (e *ImageError) Error() string { return ErrImage.Error() + ": " + e.Reason }

// Is makes errors.Is(err, ErrImage) true.
func (e *ImageError) Is(target error) bool { return target == ErrImage }

func badImage(format string, args ...any) error {
	return &ImageError{Reason: fmt.Sprintf(format, args...)}
}

// Memory is guest memory as a loader sees it: offsets are guest-physical addresses. It must refuse what lies
// outside of RAM. Writes go through the service view; see [RAM.View] for the usual form.
type Memory interface {
	io.WriterAt
}

// Config is one boot. Addresses and sizes are in bytes.
type Config struct {
	Kernel  []byte // bzImage
	Initrd  []byte // initramfs, may be empty
	CmdLine string
	RAM     RAM    // whole RAM of the VM: the memory map tells the guest
	Limit   uint64 // nothing is written at or above this address; 0: end of RAM. Keeps a loader within its node's RAM
	RSDP    uint64 // address of the ACPI root pointer, 0 for none
	// Reserved is taken out of the memory map as reserved, besides 0xa0000-0xfffff. Whole pages of RAM.
	Reserved []Range
}

// Range is [Start, End) in guest-physical addresses.
type Range struct{ Start, End uint64 }

// State is what a virtual CPU starts with.
type State struct {
	Regs  kvm.Regs
	Sregs kvm.Sregs // APIC base excepted, which belongs to the VM
}

// Loaded says where things went.
type Loaded struct {
	Kernel Range // init_size bytes from the load address
	Initrd Range // empty without one
	Entry  uint64
	E820   []E820Entry
	State  State // for the boot processor
}

// E820Entry is one range of the memory map.
type E820Entry struct {
	Range
	Type uint32 // bootparam.E820Ram or bootparam.E820Reserved
}

// Load writes kernel, initrd, command line, tables and zero page into mem.
func Load(mem Memory, c Config) (*Loaded, error) {
	if err := c.RAM.check(); err != nil {
		return nil, err
	}
	limit := min(c.RAM.LowEnd(), nonZero(c.Limit))
	if limit < HighMemory {
		return nil, fmt.Errorf("boot: only %d KiB of RAM may be written, need 1 MiB and the kernel's size", limit>>10)
	}
	h, err := parse(c.Kernel)
	if err != nil {
		return nil, err
	}
	if len(c.CmdLine) > int(h.cmdlineMax) {
		return nil, fmt.Errorf("boot: command line of %d bytes, the kernel takes %d", len(c.CmdLine), h.cmdlineMax)
	}
	if i := bytes.IndexByte([]byte(c.CmdLine), 0); i >= 0 {
		return nil, fmt.Errorf("boot: command line has a NUL at byte %d", i)
	}

	l := &Loaded{}
	if l.Kernel, err = h.place(limit, c.Reserved); err != nil {
		return nil, err
	}
	if l.Initrd, err = placeInitrd(h, uint64(len(c.Initrd)), l.Kernel, limit, c.Reserved); err != nil {
		return nil, err
	}
	if l.E820, err = c.RAM.e820(c.Reserved); err != nil {
		return nil, err
	}
	l.Entry = l.Kernel.Start + entry64
	l.State = entryState(l.Entry)

	zero, err := zeroPage(h, l, c)
	if err != nil {
		return nil, err
	}
	for _, w := range []struct {
		what string
		addr uint64
		data []byte
	}{
		{"gdt", gdtAddr, gdt()},
		{"page tables", tablesAddr, pageTables()},
		{"command line", cmdlineAddr, append([]byte(c.CmdLine), 0)},
		{"kernel", l.Kernel.Start, h.payload},
		{"initrd", l.Initrd.Start, c.Initrd},
		{"zero page", zeroPageAddr, zero},
	} {
		if len(w.data) == 0 {
			continue
		}
		if _, err := mem.WriteAt(w.data, int64(w.addr)); err != nil {
			return nil, fmt.Errorf("boot: write %s at %#x: %w", w.what, w.addr, err)
		}
	}
	return l, nil
}

func nonZero(limit uint64) uint64 {
	if limit == 0 {
		return 1<<64 - 1
	}
	return limit
}

// zeroPage builds struct boot_params: the image's own header, what the loader has to fill in, the memory map,
// and the ACPI root pointer, for which bootparam has no field.
func zeroPage(h *header, l *Loaded, c Config) ([]byte, error) {
	p := bootparam.BootParam{Hdr: h.SetupHeader}
	p.Hdr.TypeOfLoader = 0xff // no identifier assigned
	p.Hdr.VidMode = 0xffff    // "normal"
	p.Hdr.CmdlinePtr = cmdlineAddr
	p.Hdr.SetupData = 0
	p.Hdr.RamdiskImage = uint32(l.Initrd.Start)
	p.Hdr.RamdiskSize = uint32(len(c.Initrd))
	p.Hdr.Code32Start = uint32(l.Kernel.Start)
	if len(l.E820) > bootparam.E820Max {
		return nil, fmt.Errorf("boot: %d memory map entries, the zero page holds %d", len(l.E820), bootparam.E820Max)
	}
	for _, e := range l.E820 {
		p.AddE820Entry(e.Start, e.End-e.Start, e.Type)
	}
	b, err := p.Bytes()
	if err != nil {
		return nil, fmt.Errorf("boot: zero page: %w", err)
	}
	page := make([]byte, 4096)
	copy(page, b)
	// The image may be of a later protocol than bootparam's struct: copy its header as far as it says it goes.
	copy(page[headerEnd:zeroPageHeaderMax], h.tail)
	const acpiRSDPAddr = 0x70
	binary.LittleEndian.PutUint64(page[acpiRSDPAddr:], c.RSDP)
	return page, nil
}

// placeInitrd finds the highest page-aligned place for n bytes that the kernel can address and that is clear of
// the kernel and of reserved ranges.
func placeInitrd(h *header, n uint64, kernel Range, limit uint64, reserved []Range) (Range, error) {
	if n == 0 {
		return Range{}, nil
	}
	if n > 1<<32-1 {
		return Range{}, fmt.Errorf("boot: initrd of %d bytes, the boot protocol takes less than 4 GiB", n)
	}
	end := min(limit, uint64(h.InitrdAddrMax)+1)
	for end >= n {
		start := (end - n) &^ 4095
		if start < HighMemory {
			break
		}
		r := Range{start, start + n}
		hit := r.clash(append([]Range{kernel}, reserved...))
		if hit == nil {
			return r, nil
		}
		end = hit.Start
	}
	return Range{}, fmt.Errorf("boot: no room for an initrd of %d KiB below %d MiB beside the kernel: give the first node more memory",
		n>>10, limit>>20)
}

// clash returns the first of others that overlaps r.
func (r Range) clash(others []Range) *Range {
	for i := range others {
		if o := others[i]; r.Start < o.End && o.Start < r.End {
			return &others[i]
		}
	}
	return nil
}
