// Package x86 turns the threads of litmus shapes into machine code.
//
// It has what a thread does between the beginning of a round and its end, wherever that runs: in a guest without a
// kernel, or as a function inside of a program. Where the threads meet, how they wait and where they write down what
// they saw is the caller's.
package x86

import (
	"ironspan/engine/litmus"
	"ironspan/kvmhost/minivm"
)

// Thread is a thread of a shape with accesses of Width bytes, 8 or 4. Its code keeps no stack, and touches no registers
// but Vars, Values and Scratch.
type Thread struct {
	Code  []litmus.Instr
	Width int
}

// Scratch is lost with every instruction.
const Scratch = minivm.RAX

var (
	// Vars are the registers with the variables' addresses.
	Vars = [litmus.MaxVars]minivm.Reg{minivm.RBX, minivm.RBP, minivm.RSI}
	// Values are the registers of the shape, one for each instruction: what it stores, then what it read.
	Values = [litmus.MaxInstrs]minivm.Reg{minivm.R8, minivm.R9, minivm.R10}
)

// Constants sets Values to what the instructions store.
func (t Thread) Constants(a *minivm.Asm) {
	for i, in := range t.Code {
		a.MovImm(Values[i], Encode(in.Value, t.Width))
	}
}

// Instr is the i-th instruction.
func (t Thread) Instr(a *minivm.Asm, i int) {
	in, value := t.Code[i], Values[i]
	at := Vars[in.Var]
	switch in.Op {
	case litmus.Store:
		Put(a, at, value, t.Width)
	case litmus.Load:
		Get(a, value, at, t.Width)
	case litmus.Mfence:
		a.Mfence()
	case litmus.Inc:
		a.LockInc(at, 0)
	case litmus.Xadd:
		a.LockXadd(at, 0, value)
	case litmus.Xchg:
		a.Xchg(at, 0, value)
	case litmus.Cmpxchg:
		a.MovImm(Scratch, Encode(in.Expect, t.Width)).LockCmpxchg(at, 0, value).Mov(value, Scratch)
	}
}

// Results stores what the i-th instruction read, if it does, at [base+disp+8*i].
func (t Thread) Results(a *minivm.Asm, base minivm.Reg, disp int32) {
	for i, in := range t.Code {
		if in.Op.Reads() {
			a.Store(base, disp+int32(8*i), Values[i])
		}
	}
}

// Put stores a register.
func Put(a *minivm.Asm, at, value minivm.Reg, width int) {
	if width == 4 {
		a.Store32(at, 0, value)
	} else {
		a.Store(at, 0, value)
	}
}

// Get loads a register.
func Get(a *minivm.Asm, value, at minivm.Reg, width int) {
	if width == 4 {
		a.Load32(value, at, 0)
	} else {
		a.Load(value, at, 0)
	}
}

// Fits says that accesses of the width, with the variables at these addresses, do for the shape. Locked instructions
// are left out where they would cross a cache line, for these lock the host's bus; and with 4 bytes, for which the
// assembler has no use otherwise.
func Fits(s *litmus.Shape, width int, at [litmus.MaxVars]uint64) bool {
	crosses := width == 4
	for v := range s.Vars() {
		crosses = crosses || at[v]%64+uint64(width) > 64
	}
	return !s.Locked() || !crosses
}

// Encode is a value as a word of the width.
func Encode(v litmus.Value, width int) uint64 { return uint64(v.Lo) | uint64(v.Hi)<<(4*width) }

// Decode is the inverse. What no shape can have stored is no value.
func Decode(word uint64, width int) (litmus.Value, bool) {
	v := litmus.Value{Lo: uint8(word), Hi: uint8(word >> (4 * width))}
	return v, Encode(v, width) == word
}
