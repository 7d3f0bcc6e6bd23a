package litmus

import (
	"fmt"
	"strings"
)

// Outcome is a final state. It is comparable: two runs ended the same if they are equal.
type Outcome struct {
	Regs [MaxThreads][MaxInstrs]Value // of instructions that read; else zero
	Mem  [MaxVars]Value
}

// Describe is the outcome with the names of the shape: 1:r0 is the register of thread 1's first instruction.
func (o *Outcome) Describe(s *Shape) string {
	var b strings.Builder
	for t, code := range s.Threads {
		for i, in := range code {
			if in.Op.Reads() {
				fmt.Fprintf(&b, "%d:r%d=%v ", t, i, o.Regs[t][i])
			}
		}
	}
	for v := range s.Vars() {
		fmt.Fprintf(&b, "%v=%v ", Var(v), o.Mem[v])
	}
	return strings.TrimRight(b.String(), " ")
}

// Split says which variables lie so that a plain access to them is not atomic.
type Split [MaxVars]bool

// Outcomes are all final states that x86-TSO allows the shape.
func Outcomes(s *Shape, split Split) map[Outcome]bool {
	m := machine{shape: s, split: split, seen: map[state]bool{}, ends: map[Outcome]bool{}}
	m.explore(state{})
	return m.ends
}

// half is a set of halves of a variable.
type half uint8

const (
	lo half = 1 << iota
	hi
	both = lo | hi
)

// merge puts the halves of w over v.
func (v Value) merge(w Value, h half) Value {
	if h&lo != 0 {
		v.Lo = w.Lo
	}
	if h&hi != 0 {
		v.Hi = w.Hi
	}
	return v
}

// entry is a store, or half of one, that waits in a buffer.
type entry struct {
	v     Var
	value Value
	half  half
}

// thread is a hardware thread.
type thread struct {
	next   uint8 // instruction
	done   half  // of a split instruction
	n      uint8 // entries of buffer in use, the oldest first
	buffer [2 * MaxInstrs]entry
}

// state is a moment of an execution. It is comparable.
type state struct {
	Outcome
	threads [MaxThreads]thread
}

// machine goes through all executions.
type machine struct {
	shape *Shape
	split Split
	seen  map[state]bool
	ends  map[Outcome]bool
}

// explore goes on from a state by every step that is possible there. States are passed by value, so that a step
// leaves its beginning alone.
func (m *machine) explore(s state) {
	if m.seen[s] {
		return
	}
	m.seen[s] = true
	end := true
	for t, code := range m.shape.Threads {
		th := &s.threads[t]
		if th.n > 0 {
			end = false
			m.explore(s.drain(t))
		}
		if int(th.next) == len(code) {
			continue
		}
		end = false
		in := code[th.next]
		switch {
		case in.Op == Mfence || in.Op.locked():
			if th.n == 0 {
				m.explore(s.step(t, in, both))
			}
		case m.split[in.Var]:
			for _, h := range [...]half{lo, hi} {
				if th.done&h == 0 {
					m.explore(s.step(t, in, h))
				}
			}
		default:
			m.explore(s.step(t, in, both))
		}
	}
	if end {
		m.ends[s.Outcome] = true
	}
}

// drain is the state after a thread's oldest store has gone to memory.
func (s state) drain(t int) state {
	th := &s.threads[t]
	e := th.buffer[0]
	s.Mem[e.v] = s.Mem[e.v].merge(e.value, e.half)
	th.n--
	copy(th.buffer[:], th.buffer[1:th.n+1])
	th.buffer[th.n] = entry{} // or equal states would differ
	return s
}

// step is the state after a thread has done its next instruction, or half of it.
func (s state) step(t int, in Instr, h half) state {
	th := &s.threads[t]
	reg, mem := &s.Regs[t][th.next], &s.Mem[in.Var]
	switch in.Op {
	case Store:
		th.buffer[th.n] = entry{in.Var, Value{}.merge(in.Value, h), h}
		th.n++
	case Load:
		*reg = reg.merge(s.visible(t, in.Var), h)
	case Inc:
		mem.Lo++
	case Xadd:
		*reg, *mem = *mem, mem.plus(in.Value)
	case Xchg:
		*reg, *mem = *mem, in.Value
	case Cmpxchg:
		if *reg = *mem; *reg == in.Expect {
			*mem = in.Value
		}
	}
	if th.done |= h; th.done == both {
		th.next, th.done = th.next+1, 0
	}
	return s
}

// visible is what a thread sees of a variable: its own stores over memory.
func (s *state) visible(t int, v Var) Value {
	value := s.Mem[v]
	th := &s.threads[t]
	for _, e := range th.buffer[:th.n] {
		if e.v == v {
			value = value.merge(e.value, e.half)
		}
	}
	return value
}
