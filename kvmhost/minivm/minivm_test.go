package minivm

import (
	"bytes"
	"encoding/binary"
	"testing"

	"ironspan/kvmhost/boot"
)

func TestBuild(t *testing.T) {
	const size = 4 << 20
	ram := make([]byte, size)
	img, err := Build(boot.RAM(size).View(ram), Config{
		Map: size, Code: [][]byte{{0x90, 0xf4}, {0xcc}}, Handlers: map[uint8][]byte{0x40: {0x48, 0xcf}},
	})
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	if img.Start != 0x10000 || img.End%4096 != 0 || len(img.States) != 2 {
		t.Errorf("image %+v", img)
	}
	for i, code := range [][]byte{{0x90, 0xf4}, {0xcc}} {
		s := img.States[i]
		if !bytes.HasPrefix(ram[s.Regs.RIP:], code) || s.Regs.RIP != img.Code[i] || s.Regs.RSP != img.Stack[i] {
			t.Errorf("vcpu %d: %+v", i, s.Regs)
		}
		// The descriptor of its TSS names the TSS, whose last byte closes the port bitmap.
		d := s.Sregs.GDT.Base + uint64(s.Sregs.TR.Selector)
		low := le.Uint64(ram[d:])
		base := low>>16&0xffffff | low>>56<<24 | le.Uint64(ram[d+8:])<<32
		if base != s.Sregs.TR.Base || ram[base+uint64(s.Sregs.TR.Limit)] != 0xff || low>>40&0xff != 0x8b {
			t.Errorf("vcpu %d: tss descriptor %#x", i, low)
		}
	}
	gate := le.Uint64(ram[img.States[0].Sregs.IDT.Base+0x40*16:])
	handler := gate&0xffff | gate>>48<<16
	if !bytes.HasPrefix(ram[handler:], []byte{0x48, 0xcf}) {
		t.Errorf("gate %#x", gate)
	}
	// Mapped: what was asked for and the local APIC, nothing between.
	for addr, want := range map[uint64]bool{0: true, size - 1: true, size: false, 0xfee00000: true, 0xfec00000: true, 0xfe000000: false} {
		pdpt := le.Uint64(ram[img.States[0].Sregs.CR3:]) &^ 4095
		pd := le.Uint64(ram[pdpt+addr>>30*8:]) &^ 4095
		if e := le.Uint64(ram[pd+addr>>21&511*8:]); e&1 == 1 != want {
			t.Errorf("%#x maps by %#x", addr, e)
		}
	}
}

func TestBuildRefuses(t *testing.T) {
	mem := boot.RAM(4 << 20).View(make([]byte, 4<<20))
	for name, c := range map[string]Config{
		"no code": {}, "odd base": {Base: 0x10001, Code: [][]byte{{}}}, "no room": {Base: 4<<20 - 4096, Code: [][]byte{{}}},
		"too many": {Code: make([][]byte, maxCPUs+1)},
	} {
		if _, err := Build(mem, c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestEncoding checks instructions whose registers need prefix bits, against the processor manual's encodings.
func TestEncoding(t *testing.T) {
	a := NewAsm().
		MovImm(R9, 1).Mov(RAX, R15).Add(R8, RCX).Load(R10, R11, 8).Store32(RBX, -4, R14).
		LockXadd(RDI, 0, R8).Push(R15).CmpImm(RDX, -1).Label("x").Jcc(NotEqual, "x")
	want := []byte{
		0x49, 0xb9, 1, 0, 0, 0, 0, 0, 0, 0,
		0x4c, 0x89, 0xf8,
		0x49, 0x01, 0xc8,
		0x4d, 0x8b, 0x93, 8, 0, 0, 0,
		0x44, 0x89, 0xb3, 0xfc, 0xff, 0xff, 0xff,
		0xf0, 0x4c, 0x0f, 0xc1, 0x87, 0, 0, 0, 0,
		0x41, 0x57,
		0x48, 0x81, 0xfa, 0xff, 0xff, 0xff, 0xff,
		0x0f, 0x85, 0xfa, 0xff, 0xff, 0xff,
	}
	if got := a.Bytes(); !bytes.Equal(got, want) {
		t.Errorf("got  % x\nwant % x", got, want)
	}
}
