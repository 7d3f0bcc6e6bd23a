package litmus_test

import (
	"fmt"

	"ironspan/engine/litmus"
	"ironspan/engine/litmus/x86"
	"ironspan/engine/wire"
	"ironspan/kvmhost/minivm"
)

// Each node is home to nodePages. The shared pages are what nodes take from each other, and the first and the last one;
// the image, the records and the storm's tables belong to the node alone.
const (
	nodePages  = 4096
	imagePage  = 16
	recordPage = 1024 // records of the node's threads, one area after the other
	stormPage  = 3584 // the storm's tables
	sharedPage = 4000

	areaPages  = (stormPage - recordPage) / 2 // two threads at most on a node
	maxRecords = areaPages*wire.PageSize/recordSize - 1

	sleepPort = 0xf0 // nanoseconds
	meetPort  = 0xf4 // returns when all threads have come
	donePort  = 0xf8
)

func addr(node, page int) uint64   { return uint64(node*nodePages+page) * wire.PageSize }
func shared(node, page int) uint64 { return addr(node, sharedPage+page) }

// Rounds begin by the clock, which all vCPUs of a host share, or one thread would run through a whole batch while the
// other waits for a page. In processor cycles: a few faults for each round, and what the threads need to meet.
//
// Who waits long has the host sleep, for there may be fewer cores than threads: otherwise a thread would have its core
// for a scheduler's slice, which is many rounds.
const (
	slotCycles = 400_000
	leadCycles = 1_000_000
	nearCycles = 200_000 // before a round, when not to sleep any more

	napNs = 20_000

	headSize = 64 // before a thread's records: when the batch begins, which the host says; before the storm's tables: which
)

// A record is what a thread knows of a round: how long it waits before each instruction, which the host draws; what its
// instructions read; and the variables' final values, if it was the round's janitor.
const (
	recordSize = 64
	recDelay   = 0 // 32 bits for each instruction: cycles, or nanoseconds of sleep if sleepBit is set
	recRegs    = 16
	recMem     = recRegs + 8*litmus.MaxInstrs

	sleepBit = 1 << 30
)

// placement is where a shape's variables lie. A batch of rounds uses one instance of them for each round, side by side,
// so that the threads run through them without having to meet.
type placement struct {
	name      string
	at        [litmus.MaxVars]uint64 // of the first instance
	stride    [litmus.MaxVars]int32
	instances int
	width     int // bytes of an access: 8 or 4
	split     litmus.Split
}

func (p *placement) pages() (all []uint64) {
	seen := map[uint64]bool{}
	for v, at := range p.at {
		for i := range p.instances {
			a := at + uint64(i)*uint64(p.stride[v])
			for _, page := range []uint64{a &^ (wire.PageSize - 1), (a + uint64(p.width) - 1) &^ (wire.PageSize - 1)} {
				if !seen[page] {
					seen[page] = true
					all = append(all, page)
				}
			}
		}
	}
	return all
}

func (p *placement) fits(s *litmus.Shape) bool { return x86.Fits(s, p.width, p.at) }

func strides(n int32) [litmus.MaxVars]int32 { return [litmus.MaxVars]int32{n, n, n} }

const (
	straddle = wire.PageSize - 4 // of 8 bytes, half on either page
	twoPages = 2 * wire.PageSize
)

// placements are made so that no two use the same page but for the first ones, which use one alone.
var placements = []placement{
	{"one line", [...]uint64{shared(0, 1), shared(0, 1) + 8, shared(0, 1) + 16}, strides(64), 32, 8, litmus.Split{}},
	{"one page", [...]uint64{shared(0, 1), shared(0, 1) + 1024, shared(0, 1) + 2048}, strides(64), 16, 8, litmus.Split{}},
	{"pages of one home", [...]uint64{shared(1, 1), shared(1, 2), shared(1, 3)}, strides(64), 32, 8, litmus.Split{}},
	{"pages of two homes", [...]uint64{shared(0, 2), shared(1, 4), shared(0, 3)}, strides(64), 32, 8, litmus.Split{}},
	// Inside an aligned quadword, which is atomic on any x86.
	{"4 bytes at odd words", [...]uint64{shared(0, 4) + 2, shared(1, 5) + 2, shared(0, 5) + 2}, strides(64), 32, 4, litmus.Split{}},
	// Inside a line, but across quadwords: atomic on Intel's processors, not promised on AMD's.
	{"across quadwords", [...]uint64{shared(0, 6) + 4, shared(1, 6) + 4, shared(0, 7) + 4}, strides(64), 32, 8, litmus.Split{true, true, true}},
	{"across lines", [...]uint64{shared(0, 8) + 60, shared(1, 7) + 60, shared(0, 9) + 60}, strides(64), 32, 8, litmus.Split{true, true, true}},
	{"x across pages", [...]uint64{shared(0, 10) + straddle, shared(1, 8), shared(0, 30)}, [...]int32{twoPages, 64, 64}, 8, 8, litmus.Split{litmus.X: true}},
	{"across pages", [...]uint64{shared(0, 31) + straddle, shared(1, 9) + straddle, shared(0, 47) + straddle}, strides(twoPages), 8, 8, litmus.Split{true, true, true}},
	// The one place where two homes meet. Its pages lie outside the shared ones.
	{"x across homes", [...]uint64{addr(1, 0) - 4, shared(1, 25), shared(0, 63)}, [...]int32{0, 64, 64}, 1, 8, litmus.Split{litmus.X: true}},
}

// trial is a shape at a placement: a part of the program.
type trial struct {
	shape   *litmus.Shape
	place   *placement
	batches int
	first   int // of its records
	batch   int // number of its first, of all trials
}

func (x *trial) rounds() int { return x.batches * x.place.instances }

// Registers of a thread's program, besides those of package x86.
const (
	delay, aside, word = minivm.RCX, minivm.RDX, x86.Scratch
	left, batches      = minivm.RDI, minivm.R12
	record             = minivm.R13
	head               = minivm.R14
	turn               = minivm.R15 // batches until this thread is the janitor
	slot               = minivm.R11 // when the next round begins
)

// writer assembles a thread's program.
type writer struct {
	*minivm.Asm
	threads, me int
	labels      int
}

func (w *writer) label(what string) string {
	w.labels++
	return fmt.Sprint(what, w.labels)
}

// threadProgram runs through all trials. In each batch the threads meet, run the shape on each instance, and meet again;
// then one of them, in turn, is the janitor, who writes down what memory holds and puts zeros there.
//
// They meet at the host, not in the memory that is on trial, or a bug there would stop them before it shows.
func threadProgram(threads, me int, area uint64, trials []trial) []byte {
	w := &writer{Asm: minivm.NewAsm(), threads: threads, me: me}
	w.MovImm(head, area).MovImm(record, area+headSize).MovImm(turn, uint64(me)+1)
	for i := range trials {
		w.trial(&trials[i])
	}
	return w.Out8(donePort).Label("end").Pause().Jmp("end").Bytes()
}

func (w *writer) trial(x *trial) {
	again, next := w.label("batch"), w.label("next")
	w.MovImm(batches, uint64(x.batches)).Label(again)
	w.meet()
	w.Load(slot, head, 0)
	w.instances(x, func() { w.round(x) })
	w.meet()
	w.Dec(turn).Jcc(minivm.NotEqual, next).MovImm(turn, uint64(w.threads))
	w.AddImm(record, int32(-recordSize*x.place.instances))
	w.instances(x, func() { w.clean(x) })
	w.Label(next).Dec(batches).Jcc(minivm.NotEqual, again)
}

// meet waits for all threads.
func (w *writer) meet() { w.Out8(meetPort) }

// instances does something with each instance and its record.
func (w *writer) instances(x *trial, do func()) {
	again := w.label("instance")
	for v, r := range x86.Vars {
		w.MovImm(r, x.place.at[v])
	}
	w.MovImm(left, uint64(x.place.instances)).Label(again)
	do()
	for v, r := range x86.Vars {
		w.AddImm(r, x.place.stride[v])
	}
	w.AddImm(record, recordSize).Dec(left).Jcc(minivm.NotEqual, again)
}

// round is the thread's part of the shape. Values are in registers before and nothing is written down until after.
func (w *writer) round(x *trial) {
	if w.me >= len(x.shape.Threads) {
		return
	}
	thread := x86.Thread{Code: x.shape.Threads[w.me], Width: x.place.width}
	thread.Constants(w.Asm)
	early, near := w.label("early"), w.label("near")
	w.Label(early).Rdtsc().AddImm(word, nearCycles).Cmp(word, slot).Jcc(minivm.AboveEqual, near)
	w.MovImm(word, napNs).Out32(sleepPort).Jmp(early)
	w.Label(near).Rdtsc().Cmp(word, slot).Jcc(minivm.Below, near).AddImm(slot, slotCycles)
	for i := range thread.Code {
		spin, waited := w.label("spin"), w.label("waited")
		w.Load32(delay, record, int32(recDelay+4*i)).CmpImm(delay, 0).Jcc(minivm.Equal, waited)
		w.CmpImm(delay, sleepBit).Jcc(minivm.Below, spin).Mov(word, delay).Out32(sleepPort).Jmp(waited)
		w.Label(spin).Dec(delay).Jcc(minivm.NotEqual, spin).Label(waited)
		thread.Instr(w.Asm, i)
	}
	thread.Results(w.Asm, record, recRegs)
}

func (w *writer) clean(x *trial) {
	w.MovImm(word, 0)
	for v := range x.shape.Vars() {
		x86.Get(w.Asm, x86.Values[0], x86.Vars[v], x.place.width)
		w.Store(record, int32(recMem+8*v), x86.Values[0])
		x86.Put(w.Asm, x86.Vars[v], word, x.place.width)
	}
}

// The storm touches the pages of the trial all the time, beside the variables, as its table of the trial says: entries
// of a page's address, a delay and whether to write, drawn by the host.
const (
	stormEntries = 64
	stormEntry   = 16
	stormTable   = stormEntries * stormEntry
	stormWord    = 3584 // offset in the page, where no variable is
)

func stormProgram(area uint64) []byte {
	const entry = minivm.RSI
	a := minivm.NewAsm().Label("table")
	a.MovImm(aside, area).Load(entry, aside, 0).MovImm(left, stormEntries)
	a.Label("entry").Load(minivm.RBX, entry, 0).Load32(delay, entry, 8).Load32(aside, entry, 12)
	a.CmpImm(aside, 0).Jcc(minivm.Equal, "read").Store(minivm.RBX, stormWord, left).Jmp("linger")
	a.Label("read").Load(word, minivm.RBX, stormWord)
	a.Label("linger").Dec(delay).Jcc(minivm.NotEqual, "linger")
	return a.AddImm(entry, stormEntry).Dec(left).Jcc(minivm.NotEqual, "entry").Jmp("table").Bytes()
}
