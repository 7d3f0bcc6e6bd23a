package kvmhost

import (
	"testing"

	"ironspan/kvmhost/minivm"
)

// BenchmarkExit is the cost of leaving the guest and going back in, by what for.
func BenchmarkExit(b *testing.B) {
	for _, k := range []struct {
		name string
		step func(a *minivm.Asm)
	}{
		{"port", func(a *minivm.Asm) { a.Raw(0xee) }}, // out dx, al
		{"in-kernel", func(a *minivm.Asm) { // cpuid: KVM answers it
			a.Mov(minivm.R8, minivm.RCX).Mov(minivm.R9, minivm.RDX).Mov(minivm.R10, minivm.RBX).MovImm(minivm.RAX, 0)
			a.Raw(0x0f, 0xa2).Mov(minivm.RCX, minivm.R8).Mov(minivm.RDX, minivm.R9).Mov(minivm.RBX, minivm.R10)
		}},
		{"lapic", func(a *minivm.Asm) { a.Load32(minivm.RAX, minivm.RBX, 0) }},
		{"mmio", func(a *minivm.Asm) { a.Load32(minivm.RAX, minivm.RSI, 0) }},
	} {
		b.Run(k.name, func(b *testing.B) {
			a := minivm.NewAsm().MovImm(minivm.RCX, uint64(b.N)).MovImm(minivm.RDX, 0xf3)
			a.MovImm(minivm.RBX, lapicReg(0x20)).MovImm(minivm.RSI, 0x700000)
			a.Label("top")
			k.step(a)
			a.Dec(minivm.RCX).Jcc(minivm.NotEqual, "top").Out8(donePort).Label("end").Jmp("end")
			g := newGuest(b, 1, minivm.Config{Code: [][]byte{a.Bytes()}}, func(c *Config) { c.Slots[0].Size = 0x700000 })
			var seen tally
			g.port(0xf3, &seen)
			b.ResetTimer()
			g.runToEnd()
		})
	}
}

// BenchmarkHostTSC is the cost of reading the time.
func BenchmarkHostTSC(b *testing.B) {
	for range b.N {
		HostTSC()
	}
}
