package minivm

import (
	"encoding/binary"
	"fmt"
)

// Reg is a 64-bit register, in the processor's numbering.
type Reg uint8

// Registers. RSP works as an operand of MovImm and Mov only, not as a base.
const (
	RAX Reg = iota
	RCX
	RDX
	RBX
	RSP
	RBP
	RSI
	RDI
	R8
	R9
	R10
	R11
	R12
	R13
	R14
	R15
)

// Cond is a condition of Jcc.
type Cond uint8

// Conditions, as after a comparison; Below and AboveEqual are unsigned.
const (
	Below      Cond = 0x2
	AboveEqual Cond = 0x3
	Equal      Cond = 0x4
	NotEqual   Cond = 0x5
	BelowEqual Cond = 0x6
	Above      Cond = 0x7
)

// Asm assembles a program. The code does not depend on where it is put. Jumps go to labels, which may come
// later; Bytes resolves them.
type Asm struct {
	code   []byte
	labels map[string]int
	fixups []fixup
}

type fixup struct {
	at    int // of the 32-bit displacement
	label string
}

// NewAsm returns an empty program.
func NewAsm() *Asm { return &Asm{labels: map[string]int{}} }

// Bytes is the finished code. A jump to a label that is not there is a mistake of the caller's and panics.
func (a *Asm) Bytes() []byte {
	for _, f := range a.fixups {
		target, ok := a.labels[f.label]
		if !ok {
			panic(fmt.Sprintf("minivm: no label %q", f.label))
		}
		binary.LittleEndian.PutUint32(a.code[f.at:], uint32(target-f.at-4))
	}
	return a.code
}

// Raw appends instructions as bytes.
func (a *Asm) Raw(b ...byte) *Asm {
	a.code = append(a.code, b...)
	return a
}

func (a *Asm) imm32(v uint32) *Asm {
	a.code = binary.LittleEndian.AppendUint32(a.code, v)
	return a
}

// rex builds a 64-bit prefix for registers in the reg and rm fields.
func rex(reg, rm Reg) byte { return 0x48 | byte(reg>>3)<<2 | byte(rm>>3) }

// rr is an instruction between two registers.
func (a *Asm) rr(op byte, reg, rm Reg) *Asm {
	return a.Raw(rex(reg, rm), op, 0xc0|byte(reg&7)<<3|byte(rm&7))
}

// mem appends ModRM and a 32-bit displacement for [base].
func (a *Asm) mem(reg, base Reg, disp int32) *Asm {
	if base&7 == RSP {
		panic("minivm: rsp and r12 are no bases")
	}
	return a.Raw(0x80 | byte(reg&7)<<3 | byte(base&7)).imm32(uint32(disp))
}

// Label names the next instruction.
func (a *Asm) Label(name string) *Asm {
	a.labels[name] = len(a.code)
	return a
}

// Jmp goes to a label.
func (a *Asm) Jmp(label string) *Asm { return a.Raw(0xe9).target(label) }

// Jcc goes to a label if the condition holds.
func (a *Asm) Jcc(c Cond, label string) *Asm { return a.Raw(0x0f, 0x80|byte(c)).target(label) }

func (a *Asm) target(label string) *Asm {
	a.fixups = append(a.fixups, fixup{len(a.code), label})
	return a.imm32(0)
}

// MovImm sets a register.
func (a *Asm) MovImm(r Reg, v uint64) *Asm {
	a.Raw(rex(0, r), 0xb8|byte(r&7))
	a.code = binary.LittleEndian.AppendUint64(a.code, v)
	return a
}

// Mov copies src to dst.
func (a *Asm) Mov(dst, src Reg) *Asm { return a.rr(0x89, src, dst) }

// Add adds src to dst.
func (a *Asm) Add(dst, src Reg) *Asm { return a.rr(0x01, src, dst) }

// Sub subtracts src from dst.
func (a *Asm) Sub(dst, src Reg) *Asm { return a.rr(0x29, src, dst) }

// And ands src into dst.
func (a *Asm) And(dst, src Reg) *Asm { return a.rr(0x21, src, dst) }

// Xor exclusive-ors src into dst.
func (a *Asm) Xor(dst, src Reg) *Asm { return a.rr(0x31, src, dst) }

// Imul multiplies dst by src, modulo 2^64.
func (a *Asm) Imul(dst, src Reg) *Asm {
	return a.Raw(rex(dst, src), 0x0f, 0xaf, 0xc0|byte(dst&7)<<3|byte(src&7))
}

// Cmp compares dst with src: it sets the flags.
func (a *Asm) Cmp(dst, src Reg) *Asm { return a.rr(0x39, src, dst) }

// AddImm adds a sign-extended constant.
func (a *Asm) AddImm(r Reg, v int32) *Asm {
	return a.Raw(rex(0, r), 0x81, 0xc0|byte(r&7)).imm32(uint32(v))
}

// CmpImm compares with a sign-extended constant.
func (a *Asm) CmpImm(r Reg, v int32) *Asm {
	return a.Raw(rex(0, r), 0x81, 0xf8|byte(r&7)).imm32(uint32(v))
}

// Dec counts down and sets the zero flag.
func (a *Asm) Dec(r Reg) *Asm { return a.Raw(rex(0, r), 0xff, 0xc8|byte(r&7)) }

// Load reads 8 bytes at [base+disp].
func (a *Asm) Load(dst, base Reg, disp int32) *Asm {
	return a.Raw(rex(dst, base), 0x8b).mem(dst, base, disp)
}

// Store writes 8 bytes at [base+disp].
func (a *Asm) Store(base Reg, disp int32, src Reg) *Asm {
	return a.Raw(rex(src, base), 0x89).mem(src, base, disp)
}

// Load32 reads 4 bytes, zero-extended.
func (a *Asm) Load32(dst, base Reg, disp int32) *Asm {
	return a.Raw(rex(dst, base)&^8, 0x8b).mem(dst, base, disp)
}

// Store32 writes the low 4 bytes of src.
func (a *Asm) Store32(base Reg, disp int32, src Reg) *Asm {
	return a.Raw(rex(src, base)&^8, 0x89).mem(src, base, disp)
}

// LockInc adds one to the 8 bytes at [base+disp], atomically.
func (a *Asm) LockInc(base Reg, disp int32) *Asm {
	return a.Raw(0xf0, rex(0, base), 0xff).mem(0, base, disp)
}

// LockXadd adds src to the 8 bytes at [base+disp], atomically, and leaves in src what was there.
func (a *Asm) LockXadd(base Reg, disp int32, src Reg) *Asm {
	return a.Raw(0xf0, rex(src, base), 0x0f, 0xc1).mem(src, base, disp)
}

// LockCmpxchg stores src at [base+disp] if RAX is there, atomically; the zero flag says so, RAX has the old value.
func (a *Asm) LockCmpxchg(base Reg, disp int32, src Reg) *Asm {
	return a.Raw(0xf0, rex(src, base), 0x0f, 0xb1).mem(src, base, disp)
}

// Xchg swaps a register with the 8 bytes at [base+disp], atomically.
func (a *Asm) Xchg(base Reg, disp int32, r Reg) *Asm {
	return a.Raw(rex(r, base), 0x87).mem(r, base, disp)
}

// Out8 writes AL to a port; RDX is lost.
func (a *Asm) Out8(port uint16) *Asm { return a.MovImm(RDX, uint64(port)).Raw(0xee) }

// Out32 writes EAX to a port; RDX is lost.
func (a *Asm) Out32(port uint16) *Asm { return a.MovImm(RDX, uint64(port)).Raw(0xef) }

// In8 reads AL from a port; RDX is lost, the rest of RAX stays.
func (a *Asm) In8(port uint16) *Asm { return a.MovImm(RDX, uint64(port)).Raw(0xec) }

// In32 reads EAX from a port; RDX is lost.
func (a *Asm) In32(port uint16) *Asm { return a.MovImm(RDX, uint64(port)).Raw(0xed) }

// RepOuts8 writes RCX bytes from [RSI] to a port; RDX is lost.
func (a *Asm) RepOuts8(port uint16) *Asm { return a.MovImm(RDX, uint64(port)).Raw(0xf3, 0x6e) }

// RepIns8 reads RCX bytes from a port to [RDI]; RDX is lost.
func (a *Asm) RepIns8(port uint16) *Asm { return a.MovImm(RDX, uint64(port)).Raw(0xf3, 0x6c) }

// Rdtsc puts the time stamp counter into RAX; RDX is lost.
func (a *Asm) Rdtsc() *Asm {
	return a.Raw(0x0f, 0x31).Raw(0x48, 0xc1, 0xe2, 0x20).Raw(0x48, 0x09, 0xd0) // rdtsc; shl rdx, 32; or rax, rdx
}

// Lfence waits for all earlier instructions, so that Rdtsc behind it does not run ahead of what is timed.
func (a *Asm) Lfence() *Asm { return a.Raw(0x0f, 0xae, 0xe8) }

// Pause is the spin-loop hint.
func (a *Asm) Pause() *Asm { return a.Raw(0xf3, 0x90) }

// Mfence orders stores before later loads.
func (a *Asm) Mfence() *Asm { return a.Raw(0x0f, 0xae, 0xf0) }

// Cli holds interrupts off. Handlers only: not each host lets level 3 do it. They start that way.
func (a *Asm) Cli() *Asm { return a.Raw(0xfa) }

// Sti lets interrupts in after the next instruction. Handlers only.
func (a *Asm) Sti() *Asm { return a.Raw(0xfb) }

// Hlt halts. Handlers only: it is privileged.
func (a *Asm) Hlt() *Asm { return a.Raw(0xf4) }

// Wrmsr writes RDX:RAX to MSR RCX. Handlers only.
func (a *Asm) Wrmsr() *Asm { return a.Raw(0x0f, 0x30) }

// Rdmsr reads MSR RCX to RDX:RAX. Handlers only.
func (a *Asm) Rdmsr() *Asm { return a.Raw(0x0f, 0x32) }

// Int calls a vector's handler: the way to its privileges. R15 is lost. It is an invalid instruction that the
// handler of those looks behind, as not each host lets level 3 use the real INT.
func (a *Asm) Int(vector uint8) *Asm { return a.MovImm(R15, uint64(vector)).Raw(0x0f, 0x0b) }

// Push saves a register.
func (a *Asm) Push(r Reg) *Asm { return a.Raw(0x40|byte(r>>3), 0x50|byte(r&7)) }

// Pop restores a register.
func (a *Asm) Pop(r Reg) *Asm { return a.Raw(0x40|byte(r>>3), 0x58|byte(r&7)) }

// Iretq ends a handler.
func (a *Asm) Iretq() *Asm { return a.Raw(0x48, 0xcf) }
