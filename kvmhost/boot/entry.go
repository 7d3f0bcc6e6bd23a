package boot

import (
	"encoding/binary"

	"github.com/bobuhiro11/gokvm/kvm"
)

// Control register and EFER bits the entry needs.
const (
	cr0PE, cr0MP, cr0ET, cr0NE, cr0WP, cr0PG = 1 << 0, 1 << 1, 1 << 4, 1 << 5, 1 << 16, 1 << 31
	cr4PAE                                   = 1 << 5
	eferLME, eferLMA                         = 1 << 8, 1 << 10

	pteP, pteRW, ptePS = 1 << 0, 1 << 1, 1 << 7
)

// gdt is the table behind entryState's selectors: null, unused, __BOOT_CS, __BOOT_DS, __BOOT_TSS (16 bytes).
func gdt() []byte {
	b := make([]byte, 6*8)
	le := binary.LittleEndian
	le.PutUint64(b[bootCS:], 0x00af9b000000ffff) // 64-bit code, present, accessed
	le.PutUint64(b[bootDS:], 0x00cf93000000ffff) // flat data, present, accessed
	le.PutUint64(b[bootTR:], 0x00008b0000000fff) // busy TSS of the reset state: never used, must be there
	return b
}

// pageTables maps the first 4 GiB to themselves with 2 MiB pages: PML4, PDPT and four directories.
func pageTables() []byte {
	const page = 4096
	b := make([]byte, 6*page)
	le := binary.LittleEndian
	le.PutUint64(b, tablesAddr+page|pteP|pteRW)
	for i := range 4 {
		le.PutUint64(b[page+8*i:], uint64(tablesAddr+(2+i)*page)|pteP|pteRW)
		for j := range 512 {
			le.PutUint64(b[(2+i)*page+8*j:], uint64(i)<<30|uint64(j)<<21|pteP|pteRW|ptePS)
		}
	}
	return b
}

// entryState is the processor at the 64-bit entry.
func entryState(entry uint64) State {
	code := kvm.Segment{Selector: bootCS, Limit: 0xffffffff, Typ: 11, Present: 1, S: 1, L: 1, G: 1}
	data := kvm.Segment{Selector: bootDS, Limit: 0xffffffff, Typ: 3, Present: 1, S: 1, DB: 1, G: 1}
	return State{
		Regs: kvm.Regs{RIP: entry, RSI: zeroPageAddr, RSP: zeroPageAddr, RFLAGS: 2},
		Sregs: kvm.Sregs{
			CS: code, DS: data, ES: data, FS: data, GS: data, SS: data,
			TR:   kvm.Segment{Selector: bootTR, Limit: 0xfff, Typ: 11, Present: 1},
			LDT:  kvm.Segment{Typ: 2, Present: 1},
			GDT:  kvm.Descriptor{Base: gdtAddr, Limit: 6*8 - 1},
			CR0:  cr0PE | cr0MP | cr0ET | cr0NE | cr0WP | cr0PG,
			CR3:  tablesAddr,
			CR4:  cr4PAE,
			EFER: eferLME | eferLMA,
		},
	}
}
