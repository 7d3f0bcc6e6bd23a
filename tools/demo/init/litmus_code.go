//go:build linux

package main

import (
	"strconv"

	"ironspan/engine/litmus"
	"ironspan/engine/litmus/x86"
	"ironspan/kvmhost/minivm"
)

// A record is what a thread knows of a round. In words:
const (
	recordWords = 8
	recAddrs    = 0 // of the variables
	recTimes    = 3 // 32 bits for each instruction: cycles after the round's beginning before which it shall not begin
	recInstance = 4 // the upper 32 bits
	recRegs     = 5 // what instructions read

	maxInstances = 96

	// Before the records, in a record's place:
	headStart = 0 // when the first round begins
	headSlot  = 1 // cycles from one round to the next; 0: as soon as the thread is there

	batchWords = recordWords * (1 + maxInstances)
)

// A gust is an access of a storm. In words:
const (
	gustWords = 2
	gustAddr  = 0
	gustDelay = 1 // 32 bits: how often to go round a loop; the upper ones: 1 to write, 0 to read

	gusts = 64
)

// entry is a function of the program: a thread of a shape.
type entry struct {
	shape         *litmus.Shape
	thread, width int
}

// Registers of the functions, besides those of package x86. The first two are what call gives them.
const (
	at    = minivm.R13
	left  = minivm.RDI
	delay = minivm.RCX
	begin = minivm.R11 // of the round
	slot  = minivm.R12
)

// assemble is the code of all threads, and of the storm.
func (l *trials) assemble() []byte {
	var code []byte
	add := func(function []byte) int {
		start := len(code)
		code = append(code, function...)
		return start
	}
	for _, s := range l.shapes {
		for thread, instrs := range s.Threads {
			for _, width := range []int{4, 8} {
				l.entries[entry{s, thread, width}] = add(threadCode(x86.Thread{Code: instrs, Width: width}))
			}
		}
	}
	l.storm = add(stormCode())
	l.now = add(minivm.NewAsm().Rdtsc().Store(at, 0, minivm.RAX).Raw(ret).Bytes())
	return code
}

const ret = 0xc3

// threadCode does a thread's part of each round of a batch.
func threadCode(thread x86.Thread) []byte {
	const now = minivm.RAX
	a := minivm.NewAsm().Load(begin, at, 8*headStart).Load(slot, at, 8*headSlot).AddImm(at, 8*recordWords)
	a.Label("round")
	for v, r := range x86.Vars {
		a.Load(r, at, int32(8*(recAddrs+v)))
	}
	thread.Constants(a)
	a.CmpImm(slot, 0).Jcc(minivm.NotEqual, "early").Rdtsc().Mov(begin, now)
	a.Label("early").Rdtsc().Cmp(now, begin).Jcc(minivm.Below, "early")
	for i := range thread.Code {
		wait, waited := "wait"+strconv.Itoa(i), "waited"+strconv.Itoa(i)
		a.Load32(delay, at, int32(8*recTimes+4*i)).CmpImm(delay, 0).Jcc(minivm.Equal, waited).Add(delay, begin)
		a.Label(wait).Rdtsc().Cmp(now, delay).Jcc(minivm.Below, wait).Label(waited)
		thread.Instr(a, i)
	}
	thread.Results(a, at, 8*recRegs)
	return a.Add(begin, slot).AddImm(at, 8*recordWords).Dec(left).Jcc(minivm.NotEqual, "round").Raw(ret).Bytes()
}

// stormCode touches pages.
func stormCode() []byte {
	const page, kind = minivm.RBX, minivm.RAX
	a := minivm.NewAsm().Label("gust")
	a.Load(page, at, 8*gustAddr).Load32(delay, at, 8*gustDelay).Load32(kind, at, 8*gustDelay+4)
	a.CmpImm(kind, 0).Jcc(minivm.Equal, "read").Store(page, 0, left).Jmp("linger")
	a.Label("read").Load(kind, page, 0)
	a.Label("linger").Dec(delay).Jcc(minivm.NotEqual, "linger")
	return a.AddImm(at, 8*gustWords).Dec(left).Jcc(minivm.NotEqual, "gust").Raw(ret).Bytes()
}
