package peers

import "encoding/binary"

// The guest that migrates has no firmware and no operating system: its program is all of the ROM in which its processor
// starts. It writes each page's address to the page, says "R" on the debug console, and then reads the pages at random
// for good. An access that takes longer than slowTicks is told as eight letters A to P, the hexadecimal digits of its
// ticks of the time stamp counter, at most 2^32-1, and a line feed. A page with something else in it is told as "!".
const (
	romSize      = 64 << 10
	romBase      = 1<<32 - romSize
	guestMemory  = 32 << 20
	firstTouched = 16 << 20
	touchedBytes = 16 << 20 // a power of two
	debugPort    = 0xe9
	slowTicks    = 40_000
)

// rom assembles the program (Intel SDM vol. 3, 9.1.4: the first instruction is 16 bytes below 4 GiB; 9.9: to
// protected mode).
func rom() []byte {
	const (
		code32 = 0x20
		gdt    = 0x200
		gdtr   = gdt + 3*8
		reset  = romSize - 16
	)
	b := make([]byte, romSize)
	le := binary.LittleEndian
	put := func(at int, parts ...any) int {
		for _, p := range parts {
			switch p := p.(type) {
			case int:
				b[at] = byte(p)
				at++
			case uint16:
				le.PutUint16(b[at:], p)
				at += 2
			case uint32:
				le.PutUint32(b[at:], p)
				at += 4
			}
		}
		return at
	}
	put(reset, 0xe9, uint16(romSize-reset-3)) // jmp to the segment's begin
	put(0,
		0xfa,                                       // cli
		0x2e, 0x66, 0x0f, 0x01, 0x16, uint16(gdtr), // lgdt cs:[gdtr]
		0x0f, 0x20, 0xc0, // mov eax, cr0
		0x0c, 0x01, // or al, 1
		0x0f, 0x22, 0xc0, // mov cr0, eax
		0x66, 0xea, uint32(romBase+code32), uint16(8), // jmp far 8:code32
	)
	le.PutUint64(b[gdt+8:], 0x00cf9b000000ffff)  // code, flat
	le.PutUint64(b[gdt+16:], 0x00cf93000000ffff) // data, flat
	put(gdtr, uint16(3*8-1), uint32(romBase+gdt))

	at := put(code32,
		0x66, 0xb8, uint16(16), // mov ax, data
		0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, // mov ds, ax; mov es, ax; mov ss, ax
		0xbf, uint32(firstTouched), // mov edi, first
	)
	fill := at
	at = put(at,
		0x89, 0x3f, // mov [edi], edi
		0x81, 0xc7, uint32(pageSize), // add edi, 4096
		0x81, 0xff, uint32(firstTouched+touchedBytes), // cmp edi, end
	)
	at = put(at, 0x72, fill-at-2) // jb fill
	at = put(at,
		0xbb, uint32(0x2545f491), // mov ebx, seed
		0xb0, int('R'), 0xe6, debugPort, // mov al, 'R'; out port, al
	)
	touch := at
	at = put(at,
		0x89, 0xd8, 0xc1, 0xe0, 13, 0x31, 0xc3, // ebx ^= ebx << 13
		0x89, 0xd8, 0xc1, 0xe8, 17, 0x31, 0xc3, // ebx ^= ebx >> 17
		0x89, 0xd8, 0xc1, 0xe0, 5, 0x31, 0xc3, // ebx ^= ebx << 5
		0x89, 0xdf, // mov edi, ebx
		0x81, 0xe7, uint32(touchedBytes-pageSize), // and edi, mask
		0x81, 0xc7, uint32(firstTouched), // add edi, first
		0x0f, 0xae, 0xe8, // lfence
		0x0f, 0x31, // rdtsc
		0x89, 0xc1, 0x89, 0xd5, // mov ecx, eax; mov ebp, edx
		0x0f, 0xae, 0xe8, // lfence
		0x8b, 0x37, // mov esi, [edi]
		0x0f, 0xae, 0xe8, // lfence
		0x0f, 0x31, // rdtsc
		0x29, 0xc8, 0x19, 0xea, // sub eax, ecx; sbb edx, ebp
		0x74, 0x03, // jz +3
		0x83, 0xc8, 0xff, // or eax, -1
		0x39, 0xfe, // cmp esi, edi
	)
	wrong := at + 1
	at = put(at,
		0x75, 0, // jne bad
		0x3d, uint32(slowTicks), // cmp eax, slow
	)
	at = put(at, 0x72, touch-at-2) // jb touch
	at = put(at,
		0x89, 0xc6, // mov esi, eax
		0xbd, uint32(8), // mov ebp, 8
	)
	digit := at
	at = put(at,
		0xc1, 0xc6, 4, // rol esi, 4
		0x89, 0xf0, // mov eax, esi
		0x24, 15, // and al, 15
		0x04, int('A'), // add al, 'A'
		0xe6, debugPort, // out port, al
		0x4d, // dec ebp
	)
	at = put(at, 0x75, digit-at-2)                 // jnz digit
	at = put(at, 0xb0, int('\n'), 0xe6, debugPort) // mov al, '\n'; out port, al
	at = put(at, 0xe9, uint32(touch-at-5))         // jmp touch
	b[wrong] = byte(at - wrong - 1)                // bad:
	at = put(at, 0xb0, int('!'), 0xe6, debugPort)  // mov al, '!'; out port, al
	put(at, 0xf4, 0xeb, -3)                        // hlt; jmp to it
	return b
}
