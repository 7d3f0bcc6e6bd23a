// Package minivm builds tiny guests: a few instructions for each vCPU, in 64-bit mode at privilege level 3, on
// an identity mapping that they may write to, with port I/O allowed and interrupt handlers at level 0. What needs
// more privilege (CLI, STI, HLT, MSRs) belongs in a handler, which the program calls with Asm.Int.
//
// They exist for tests and measurements that need a guest but no operating system. Level 3 is deliberate: code
// there runs at full speed even on hosts whose KVM emulates privileged code.
//
// A guest is made in three steps: assemble each vCPU's code with [Asm], [Build] the memory image, and hand
// the states to kvmhost's SetBootState. The guest usually ends by writing to a port that a test's device
// listens to.
package minivm

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/bobuhiro11/gokvm/kvm"

	"ironspan/kvmhost/boot"
)

// Config is a guest. Addresses are guest-physical, and linear as well.
type Config struct {
	// Base is where tables, stacks and code go: [Build] tells how much. Page-aligned, below 1 GiB; 0: 0x10000.
	Base uint64
	// Map is how many bytes from address 0 the guest can reach; rounded up to 2 MiB; 0: 4 GiB, which includes the
	// APICs' pages. These are always reachable.
	Map uint64
	// Code is the program of each vCPU.
	Code [][]byte
	// Handlers run at level 0 on the vectors' interrupts and for Asm.Int; end them with Asm.Iretq. Exceptions
	// without a handler, and other interrupts, end in a triple fault. One for vector 6 disables Asm.Int.
	Handlers map[uint8][]byte
}

// Image says where things are.
type Image struct {
	States []boot.State // for each vCPU
	Code   []uint64     // address of each program
	Stack  []uint64     // top of each vCPU's stack at level 3
	Start  uint64
	End    uint64 // first free address behind the image, page-aligned
}

const (
	page        = 4096
	defaultBase = 0x10000
	fourGiB     = 4 << 30
	pd          = 1 << 30 // what one page directory maps

	gdtCode0, gdtData0 = 0x08, 0x10
	gdtData3, gdtCode3 = 0x18, 0x20
	gdtTSS             = 0x30 // 16 bytes for each vCPU
	maxCPUs            = (page - gdtTSS) / 16

	// A TSS: 104 bytes, the bitmap of all ports with all bits clear, a closing byte of ones.
	tssBitmap = 104
	tssLimit  = tssBitmap + 1<<16/8
	tssSize   = 3 * page

	pteP, pteRW, pteUser, pteA, pteD, ptePS = 1 << 0, 1 << 1, 1 << 2, 1 << 5, 1 << 6, 1 << 7
)

// Build writes the guest's image. mem takes guest-physical addresses as offsets.
func Build(mem io.WriterAt, c Config) (*Image, error) {
	base := c.Base
	if base == 0 {
		base = defaultBase
	}
	if base%page != 0 || base >= pd {
		return nil, fmt.Errorf("minivm: base %#x is not page-aligned and below 1 GiB", base)
	}
	n := len(c.Code)
	if n == 0 || n > maxCPUs {
		return nil, fmt.Errorf("minivm: %d vcpus, can do 1 to %d", n, maxCPUs)
	}
	b := builder{base: base}
	gdt, idt := b.take(page), b.take(page)
	tables := b.pageTables(max(c.Map, fourGiB), c.Map)
	tss := b.take(n * tssSize)
	stacks0, stacks3 := b.take(n*page), b.take(n*page)
	img := &Image{Start: base}
	for _, code := range c.Code {
		img.Code = append(img.Code, b.put(code))
	}
	b.handlers(idt, c.Handlers)
	b.descriptors(gdt)
	for i := range n {
		b.task(gdt, tss, i, stacks0+uint64(i+1)*page)
		sp := stacks3 + uint64(i+1)*page
		img.Stack = append(img.Stack, sp)
		img.States = append(img.States, state(img.Code[i], sp, gdt, idt, tables, tss, i))
	}
	img.End = base + uint64(len(b.mem))
	if _, err := mem.WriteAt(b.mem, int64(base)); err != nil {
		return nil, fmt.Errorf("minivm: write %d bytes at %#x: %w", len(b.mem), base, err)
	}
	return img, nil
}

// builder grows an image by whole pages.
type builder struct {
	base uint64
	mem  []byte
}

// take reserves n bytes, page-aligned, and returns their address.
func (b *builder) take(n int) uint64 {
	addr := b.base + uint64(len(b.mem))
	b.mem = append(b.mem, make([]byte, (n+page-1)&^(page-1))...)
	return addr
}

func (b *builder) put(code []byte) uint64 {
	addr := b.take(max(len(code), 1))
	copy(b.at(addr), code)
	return addr
}

func (b *builder) at(addr uint64) []byte { return b.mem[addr-b.base:] }

func (b *builder) u64(addr, v uint64) { binary.LittleEndian.PutUint64(b.at(addr), v) }

// pageTables maps size bytes to themselves, open to level 3, with 2 MiB pages whose accessed and dirty bits
// are set already, so that the processor has nothing to write into them. Of the first 4 GiB only limit bytes and
// the APICs' pages are mapped; limit 0 means all.
func (b *builder) pageTables(size, limit uint64) uint64 {
	const flags = pteP | pteRW | pteUser | pteA
	dirs := int((size + pd - 1) / pd)
	pml4, pdpt := b.take(page), b.take(page)
	b.u64(pml4, pdpt|flags)
	for i := range dirs {
		dir := b.take(page)
		b.u64(pdpt+8*uint64(i), dir|flags)
		for j := range uint64(512) {
			addr := uint64(i)*pd + j<<21
			if limit != 0 && addr >= limit && addr != 0xfec00000 && addr != 0xfee00000 {
				continue
			}
			b.u64(dir+8*j, addr|flags|pteD|ptePS)
		}
	}
	return pml4
}

func (b *builder) descriptors(gdt uint64) {
	b.u64(gdt+gdtCode0, 0x00af9b000000ffff)
	b.u64(gdt+gdtData0, 0x00cf93000000ffff)
	b.u64(gdt+gdtData3, 0x00cff3000000ffff)
	b.u64(gdt+gdtCode3, 0x00affb000000ffff)
}

// task writes vCPU i's TSS, which names its level-0 stack and allows all ports, and its descriptor. The bitmap
// is for hosts that drop the I/O privilege level of level-3 code.
func (b *builder) task(gdt, tss uint64, i int, sp0 uint64) {
	t := tss + uint64(i)*tssSize
	b.u64(t+4, sp0)
	binary.LittleEndian.PutUint16(b.at(t+102), tssBitmap)
	b.at(t + tssLimit)[0] = 0xff
	d := gdt + gdtTSS + 16*uint64(i)
	b.u64(d, tssLimit|t&0xffffff<<16|0x8b<<40|t>>24&0xff<<56)
	b.u64(d+8, t>>32)
}

// handlers puts the code of all vectors in place, and that of invalid instructions, which is how Asm.Int comes
// to them: it steps over the instruction and goes to the vector's code by a table.
func (b *builder) handlers(idt uint64, handlers map[uint8][]byte) {
	const invalidOpcode = 6
	table := b.take(256 * 8)
	for v := range 256 {
		if code, ok := handlers[uint8(v)]; ok {
			at := b.put(code)
			b.gate(idt, v, at)
			b.u64(table+8*uint64(v), at)
		}
	}
	if _, taken := handlers[invalidOpcode]; taken {
		return
	}
	stub := NewAsm().Raw(0x48, 0x83, 0x04, 0x24, 2). // add qword [rsp], 2
								Raw(0x42, 0xff, 0x24, 0xfd).imm32(uint32(table)) // jmp [r15*8 + table]
	b.gate(idt, invalidOpcode, b.put(stub.Bytes()))
}

// gate writes a 64-bit interrupt gate that level 3 may use too.
func (b *builder) gate(idt uint64, vector int, handler uint64) {
	g := idt + 16*uint64(vector)
	b.u64(g, handler&0xffff|gdtCode0<<16|0xee<<40|handler>>16&0xffff<<48)
	b.u64(g+8, handler>>32)
}

// state is a vCPU at the start of its program: level 3, interrupts on, port I/O allowed.
func state(code, sp, gdt, idt, tables, tss uint64, i int) boot.State {
	const (
		rflags = 1<<1 | 1<<9 | 3<<12 // interrupts on, IOPL 3
		cr0    = 1<<0 | 1<<1 | 1<<4 | 1<<5 | 1<<16 | 1<<31
		cr4    = 1<<5 | 1<<9 | 1<<10         // PAE, OSFXSR, OSXMMEXCPT
		efer   = 1<<0 | 1<<8 | 1<<10 | 1<<11 // SCE, LME, LMA, NXE
	)
	cs := kvm.Segment{Selector: gdtCode3 | 3, Limit: 0xffffffff, Typ: 11, Present: 1, DPL: 3, S: 1, L: 1, G: 1}
	ds := kvm.Segment{Selector: gdtData3 | 3, Limit: 0xffffffff, Typ: 3, Present: 1, DPL: 3, S: 1, DB: 1, G: 1}
	return boot.State{
		Regs: kvm.Regs{RIP: code, RSP: sp, RFLAGS: rflags},
		Sregs: kvm.Sregs{
			CS: cs, DS: ds, ES: ds, FS: ds, GS: ds, SS: ds,
			TR:   kvm.Segment{Selector: uint16(gdtTSS + 16*i), Base: tss + uint64(i)*tssSize, Limit: tssLimit, Typ: 11, Present: 1},
			LDT:  kvm.Segment{Typ: 2, Present: 1},
			GDT:  kvm.Descriptor{Base: gdt, Limit: page - 1},
			IDT:  kvm.Descriptor{Base: idt, Limit: page - 1},
			CR0:  cr0,
			CR3:  tables,
			CR4:  cr4,
			EFER: efer,
		},
	}
}
