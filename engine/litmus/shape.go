package litmus

import (
	"fmt"
	"strings"
)

// Bounds of a shape, so that a state is a comparable value.
const (
	MaxThreads = 4
	MaxInstrs  = 3 // of a thread
	MaxVars    = 3
)

// Var is a variable. All are zero at first.
type Var uint8

// The variables.
const (
	X Var = iota
	Y
	Z
)

func (v Var) String() string { return string("xyz"[v]) }

// Value is what a variable or register holds, as two halves.
type Value struct{ Lo, Hi uint8 }

// Both is a value whose halves are the same, as everything is that a shape stores.
func Both(v uint8) Value { return Value{v, v} }

func (v Value) plus(w Value) Value { return Value{v.Lo + w.Lo, v.Hi + w.Hi} }

func (v Value) String() string {
	if v.Lo == v.Hi {
		return fmt.Sprint(v.Lo)
	}
	return fmt.Sprintf("%d|%d", v.Lo, v.Hi)
}

// Op is what an instruction does.
type Op uint8

// The operations. Those from Inc on are locked.
const (
	Store   Op = iota // Var = Value
	Load              // register = Var
	Mfence            // nothing, but in order
	Inc               // Var's lower half + 1
	Xadd              // register = Var; Var += Value
	Xchg              // register = Var; Var = Value
	Cmpxchg           // register = Var; if it was Expect, Var = Value
)

func (o Op) locked() bool { return o >= Inc }

// Reads says that the operation leaves a result in its register.
func (o Op) Reads() bool { return o == Load || o >= Xadd }

// Instr is one instruction. The i-th instruction of a thread has the i-th register to itself.
type Instr struct {
	Op     Op
	Var    Var
	Value  Value
	Expect Value // Cmpxchg
}

func (i Instr) String() string {
	switch i.Op {
	case Store:
		return fmt.Sprintf("%v=%v", i.Var, i.Value)
	case Load:
		return fmt.Sprintf("r=%v", i.Var)
	case Mfence:
		return "mfence"
	case Inc:
		return fmt.Sprintf("lock inc %v", i.Var)
	case Xadd:
		return fmt.Sprintf("r=lock xadd %v,%v", i.Var, i.Value)
	case Xchg:
		return fmt.Sprintf("r=xchg %v,%v", i.Var, i.Value)
	case Cmpxchg:
		return fmt.Sprintf("r=lock cmpxchg %v,%v->%v", i.Var, i.Expect, i.Value)
	}
	return fmt.Sprintf("Op(%d)", i.Op)
}

func store(v Var, value uint8) Instr         { return Instr{Op: Store, Var: v, Value: Both(value)} }
func load(v Var) Instr                       { return Instr{Op: Load, Var: v} }
func mfence() Instr                          { return Instr{Op: Mfence} }
func inc(v Var) Instr                        { return Instr{Op: Inc, Var: v} }
func xadd(v Var, value uint8) Instr          { return Instr{Op: Xadd, Var: v, Value: Both(value)} }
func xchg(v Var, value uint8) Instr          { return Instr{Op: Xchg, Var: v, Value: Both(value)} }
func cmpxchg(v Var, expect, new uint8) Instr { return Instr{Cmpxchg, v, Both(new), Both(expect)} }

// Shape is a program: the instructions of each thread.
type Shape struct {
	Name    string
	Threads [][]Instr
}

func (s *Shape) String() string {
	var threads []string
	for _, t := range s.Threads {
		threads = append(threads, strings.Trim(fmt.Sprint(t), "[]"))
	}
	return s.Name + ": " + strings.Join(threads, " || ")
}

// Vars is how many variables the shape uses.
func (s *Shape) Vars() int {
	n := 0
	for _, t := range s.Threads {
		for _, i := range t {
			if i.Op != Mfence {
				n = max(n, int(i.Var)+1)
			}
		}
	}
	return n
}

// Locked says that the shape has locked instructions.
func (s *Shape) Locked() bool {
	for _, t := range s.Threads {
		for _, i := range t {
			if i.Op.locked() {
				return true
			}
		}
	}
	return false
}

// Shapes are the classics, by the names that the literature gives them.
var Shapes = []Shape{
	{"SB", [][]Instr{{store(X, 1), load(Y)}, {store(Y, 1), load(X)}}},
	{"SB+mfences", [][]Instr{{store(X, 1), mfence(), load(Y)}, {store(Y, 1), mfence(), load(X)}}},
	{"SB+xchgs", [][]Instr{{xchg(X, 1), load(Y)}, {xchg(Y, 1), load(X)}}},
	{"SB+mfence+xadd", [][]Instr{{store(X, 1), mfence(), load(Y)}, {store(Y, 1), xadd(Z, 1), load(X)}}},
	{"SB+rfi", [][]Instr{{store(X, 1), load(X), load(Y)}, {store(Y, 1), load(Y), load(X)}}},
	{"MP", [][]Instr{{store(X, 1), store(Y, 1)}, {load(Y), load(X)}}},
	{"LB", [][]Instr{{load(X), store(Y, 1)}, {load(Y), store(X, 1)}}},
	{"S", [][]Instr{{store(X, 2), store(Y, 1)}, {load(Y), store(X, 1)}}},
	{"R", [][]Instr{{store(X, 1), store(Y, 1)}, {store(Y, 2), load(X)}}},
	{"R+mfence", [][]Instr{{store(X, 1), store(Y, 1)}, {store(Y, 2), mfence(), load(X)}}},
	{"2+2W", [][]Instr{{store(X, 1), store(Y, 2)}, {store(Y, 1), store(X, 2)}}},
	{"CoRR", [][]Instr{{store(X, 1), store(X, 2)}, {load(X), load(X), load(X)}}},
	{"CoRW", [][]Instr{{load(X), store(X, 1), load(X)}, {store(X, 2), load(X)}}},
	{"n5", [][]Instr{{store(X, 1), load(X)}, {store(X, 2), load(X)}}},
	{"n6", [][]Instr{{store(X, 1), load(X), load(Y)}, {store(Y, 2), store(X, 2)}}},
	{"INC", [][]Instr{{inc(X), inc(X), inc(X)}, {inc(X), inc(X), inc(X)}}},
	{"XADD", [][]Instr{{xadd(X, 1), xadd(X, 1)}, {xadd(X, 1), xadd(X, 1)}}},
	{"CAS", [][]Instr{{cmpxchg(X, 0, 1), cmpxchg(X, 1, 2)}, {cmpxchg(X, 0, 1), cmpxchg(X, 1, 3)}}},
	{"WRC", [][]Instr{{store(X, 1)}, {load(X), store(Y, 1)}, {load(Y), load(X)}}},
	{"ISA2", [][]Instr{{store(X, 1), store(Y, 1)}, {load(Y), store(Z, 1)}, {load(Z), load(X)}}},
	{"3.SB+mfences", [][]Instr{{store(X, 1), mfence(), load(Y)}, {store(Y, 1), mfence(), load(Z)}, {store(Z, 1), mfence(), load(X)}}},
	{"IRIW", [][]Instr{{store(X, 1)}, {store(Y, 1)}, {load(X), load(Y)}, {load(Y), load(X)}}},
}
