package boot

import (
	"bytes"
	"encoding/binary"

	"github.com/bobuhiro11/gokvm/bootparam"
)

// Layout of the setup header in image and zero page (boot.rst, "The Real-Mode Kernel Header").
const (
	headerStart       = 0x1f1
	headerEnd         = headerStart + 123 // what bootparam.SetupHeader covers: protocol 2.15
	zeroPageHeaderMax = 0x290             // edd_mbr_sig_buffer follows
	jumpOffset        = 0x201             // second byte of the jump: length of the header behind 0x202

	entry64    = 0x200 // 64-bit entry, from the load address
	bootFlag   = 0xaa55
	minVersion = 0x020c // first with xloadflags

	loadedHigh     = 1 << 0 // loadflags: protected-mode code at 1 MiB or above
	xlfKernel64    = 1 << 0 // xloadflags: has the 64-bit entry
	maxSetupSects  = 64
	maxInitSize    = 2 << 30
	minKernelAlign = 4096
)

// header is a checked setup header with the code that follows it.
type header struct {
	bootparam.SetupHeader
	tail       []byte // header bytes of a later protocol than bootparam knows
	payload    []byte // protected-mode code
	cmdlineMax uint32
}

// parse checks an image's header against the image and the protocol.
func parse(img []byte) (*header, error) {
	if len(img) < headerEnd {
		return nil, badImage("%d bytes is no bzImage; give the vmlinuz file of a distribution's kernel package", len(img))
	}
	le := binary.LittleEndian
	if flag := le.Uint16(img[0x1fe:]); flag != bootFlag {
		if bytes.HasPrefix(img, []byte("\x7fELF")) {
			return nil, badImage("an ELF file (vmlinux?); give the bzImage (vmlinuz)")
		}
		return nil, badImage("boot flag is %#04x, not %#x: not a bzImage", flag, bootFlag)
	}
	if magic := le.Uint32(img[0x202:]); magic != bootparam.MagicSignature {
		return nil, badImage("no HdrS signature: not a bzImage")
	}
	p, err := bootparam.New(bytes.NewReader(img))
	if err != nil {
		return nil, badImage("setup header: %v", err)
	}
	h := &header{SetupHeader: p.Hdr}
	if h.Version < minVersion {
		return nil, badImage("boot protocol %d.%02d, need %d.%02d (Linux 3.8 or later)", h.Version>>8, h.Version&0xff, minVersion>>8, minVersion&0xff)
	}
	if h.XloadFlags&xlfKernel64 == 0 {
		return nil, badImage("it has no 64-bit entry point; give a kernel built for x86-64")
	}
	if h.LoadFlags&loadedHigh == 0 {
		return nil, badImage("it wants to be loaded below 1 MiB (zImage)")
	}

	sects := int(h.SetupSects)
	if sects == 0 {
		sects = 4 // as the protocol has it
	}
	if sects > maxSetupSects {
		return nil, badImage("%d setup sectors, at most %d", sects, maxSetupSects)
	}
	setup, size := (sects+1)*512, uint64(h.SysSize)*16
	end := 0x202 + int(img[jumpOffset])
	if end > zeroPageHeaderMax || end > setup {
		return nil, badImage("setup header ends at %#x, past %#x", end, min(zeroPageHeaderMax, setup))
	}
	if size <= entry64 {
		return nil, badImage("%d bytes of code", size)
	}
	if uint64(len(img)) < uint64(setup)+size {
		return nil, badImage("truncated: %d bytes, the header promises %d", len(img), uint64(setup)+size)
	}
	h.payload = img[setup : uint64(setup)+size]
	if end > headerEnd {
		h.tail = img[headerEnd:end]
	}

	switch {
	case h.KernelAlignment < minKernelAlign || h.KernelAlignment&(h.KernelAlignment-1) != 0:
		return nil, badImage("kernel_alignment %#x is no power of two from %#x", h.KernelAlignment, minKernelAlign)
	case h.PrefAddress%uint64(h.KernelAlignment) != 0:
		return nil, badImage("pref_address %#x is not aligned to %#x", h.PrefAddress, h.KernelAlignment)
	case h.PrefAddress < HighMemory || h.PrefAddress >= holeStart:
		return nil, badImage("pref_address %#x is not between 1 MiB and 3 GiB", h.PrefAddress)
	case uint64(h.InitSize) < size || h.InitSize > maxInitSize:
		return nil, badImage("init_size %#x for %#x bytes of code", h.InitSize, size)
	case h.InitrdAddrMax < HighMemory:
		return nil, badImage("initrd_addr_max %#x is below 1 MiB", h.InitrdAddrMax)
	}
	h.cmdlineMax = min(h.CmdlineSize, cmdlineEnd-cmdlineAddr-1)
	return h, nil
}

// place finds the load address: the preferred one, or, for a relocatable kernel, the lowest aligned one above
// it that is clear of reserved ranges.
func (h *header) place(limit uint64, reserved []Range) (Range, error) {
	r := Range{h.PrefAddress, h.PrefAddress + uint64(h.InitSize)}
	for r.End <= limit {
		hit := r.clash(reserved)
		if hit == nil {
			return r, nil
		}
		if h.RelocatableKernel == 0 {
			return Range{}, badImage("not relocatable, and %#x-%#x is reserved", hit.Start, hit.End)
		}
		align := uint64(h.KernelAlignment)
		if hit.End >= limit {
			break
		}
		r.Start = (hit.End + align - 1) &^ (align - 1)
		r.End = r.Start + uint64(h.InitSize)
	}
	return Range{}, badImage("it needs memory up to %d MiB to unpack itself, and may use %d MiB: give the first node more memory",
		(h.PrefAddress+uint64(h.InitSize)+1<<20-1)>>20, limit>>20)
}
