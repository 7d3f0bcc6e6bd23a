package micro

import (
	"fmt"

	"ironspan/engine/mininode"
	"ironspan/engine/wire"
	"ironspan/kvmhost/apic"
	"ironspan/kvmhost/minivm"
)

// A node's range: its guest's image, what its vCPUs write down and read, and the pages that nodes take from each other.
const (
	imagePage = 16
	areaPage  = 256 // the first vCPU's area
	areaPages = 64
	maxVCPUs  = 8
	dataPage  = areaPage + maxVCPUs*areaPages + 256 // 1024: a stripe's first page

	// An area: how many samples there are, the samples, and a table that the host may fill.
	samplesAt  = 8
	maxSamples = (areaPages/2*wire.PageSize - samplesAt) / 8
	tableAt    = areaPages / 2 * wire.PageSize
	maxTable   = areaPages / 2 * wire.PageSize / 8
)

// Ports that guests write to.
const (
	meetPort = 0xf0 // returns when all vCPUs have come
	donePort = 0xf4
	freePort = 0xf8 // a device that does nothing

	// Devices that do nothing, of node 0 alone. The address is the IOAPIC's, which mini-guests can always reach.
	platformPort   = 0xe0
	platformDevice = 0xfec00000
)

// Vectors of the guests' handlers.
const (
	wakeVector = 0x40 // an interrupt from another vCPU
	haltVector = 0x80 // called by the program: sleep
)

// Registers of a program. RAX, RCX, RDX and RBX are for what is being done.
const (
	at      = minivm.RDI
	left    = minivm.RSI
	began   = minivm.R8
	value   = minivm.R9
	table   = minivm.R10
	turn    = minivm.R11 // 0 at the start
	batches = minivm.R12
	sample  = minivm.R13 // where the next one goes
	count   = minivm.R14
)

// writer assembles the program of one vCPU.
type writer struct {
	*minivm.Asm
	trial  *Trial
	node   int
	vcpu   int // of the node's
	labels int
}

func (w *writer) label(what string) string {
	w.labels++
	return fmt.Sprint(what, w.labels)
}

// addr is the guest-physical address of a page of a node's range.
func (t *Trial) addr(node, page int) uint64 { return uint64(node*t.Config.Pages+page) * wire.PageSize }

// data is the address of a data page.
func (t *Trial) data(node, page int) uint64 { return t.addr(node, dataPage+page) }

func (t *Trial) area(node, vcpu int) uint64 { return t.addr(node, areaPage+vcpu*areaPages) }

func (w *writer) area() uint64 { return w.trial.area(w.node, w.vcpu) }

// program is the batches of a vCPU's body, and what is around them. All meet at the end of each batch, and once more before
// the first, when all are there.
func (t *Trial) program(node, vcpu int, body func(*writer)) []byte {
	w := &writer{Asm: minivm.NewAsm(), trial: t, node: node, vcpu: vcpu}
	w.MovImm(sample, w.area()+samplesAt).MovImm(batches, uint64(t.Batches)).MovImm(value, 0x1d872b41c3a59e07).MovImm(turn, 0)
	if t.Interrupts {
		w.MovImm(minivm.RBX, apic.LAPICBase+0xf0).MovImm(minivm.RAX, 0x1ff).Store32(minivm.RBX, 0, minivm.RAX)
	}
	w.meet()
	w.Label("batch")
	body(w)
	w.meet()
	w.Dec(batches).Jcc(minivm.NotEqual, "batch")
	w.MovImm(minivm.RBX, w.area()).Store(minivm.RBX, 0, sample)
	return w.Out8(donePort).Label("end").Pause().Jmp("end").Bytes()
}

// meet waits for all vCPUs of the trial.
func (w *writer) meet() { w.Out8(meetPort) }

// now puts the time into RAX; RDX is lost.
func (w *writer) now() { w.Lfence().Rdtsc() }

// start and stop time what is between them: a sample.
func (w *writer) start() {
	w.now()
	w.Mov(began, minivm.RAX)
}

func (w *writer) stop() {
	w.now()
	w.Sub(minivm.RAX, began)
	w.keep(minivm.RAX)
}

// keep writes a sample down.
func (w *writer) keep(r minivm.Reg) { w.Store(sample, 0, r).AddImm(sample, 8) }

// access is what is done to a page's first word.
type access uint8

const (
	read access = iota
	write
	erase // with zeros
)

func (w *writer) access(a access) {
	switch a {
	case read:
		w.Load(minivm.RCX, at, 0)
	case write:
		w.AddImm(value, 2).Store(at, 0, value)
	case erase:
		w.MovImm(minivm.RCX, 0).Store(at, 0, minivm.RCX)
	}
}

// touch accesses pages one after the other, from addr on, pages of stride apart.
func (w *writer) touch(a access, addr uint64, n, stride int, timed bool) {
	again := w.label("touch")
	w.MovImm(at, addr).MovImm(left, uint64(n)).Label(again)
	if timed {
		w.start()
	}
	w.access(a)
	if timed {
		w.stop()
	}
	w.AddImm(at, int32(stride*wire.PageSize)).Dec(left).Jcc(minivm.NotEqual, again)
}

// walk accesses the n addresses that the area's table has.
func (w *writer) walk(a access, n int, timed bool) {
	again := w.label("walk")
	w.MovImm(table, w.area()+tableAt).MovImm(left, uint64(n)).Label(again).Load(at, table, 0)
	if timed {
		w.start()
	}
	w.access(a)
	if timed {
		w.stop()
	}
	w.AddImm(table, 8).Dec(left).Jcc(minivm.NotEqual, again)
}

// send sends the interrupt that wakes to one APIC ID. RAX and RBX are lost.
func send(a *minivm.Asm, to uint32) {
	a.MovImm(minivm.RBX, apic.LAPICBase+0x300)
	a.MovImm(minivm.RAX, uint64(to)<<24).Store32(minivm.RBX, 0x10, minivm.RAX)
	a.MovImm(minivm.RAX, wakeVector).Store32(minivm.RBX, 0, minivm.RAX)
}

// stopAtWake ends a sample at the last interrupt's arrival.
func (w *writer) stopAtWake() {
	w.MovImm(minivm.RBX, w.area()+tableAt).Load(minivm.RAX, minivm.RBX, 0)
	w.Sub(minivm.RAX, began)
	w.keep(minivm.RAX)
}

// handlers of a guest that takes interrupts: one notes the time in the first word of the table, counts in the second and
// ends the interrupt, after it has sent the answer, if there is to be one; the other sleeps unless the count has reached
// R14, which nothing can change between the two.
func (t *Trial) handlers(node int) map[uint8][]byte {
	if !t.Interrupts {
		return nil
	}
	wake := minivm.NewAsm().Push(minivm.RAX).Push(minivm.RBX).Push(minivm.RDX).Rdtsc()
	if t.Echo && node == 1 {
		wake.Push(minivm.RAX)
		send(wake, mininode.APICID(0, 0))
		wake.Pop(minivm.RAX)
	}
	wake.MovImm(minivm.RBX, t.area(node, 0)+tableAt).Store(minivm.RBX, 0, minivm.RAX).LockInc(minivm.RBX, 8)
	wake.MovImm(minivm.RBX, apic.LAPICBase+0xb0).MovImm(minivm.RAX, 0).Store32(minivm.RBX, 0, minivm.RAX)
	wake.Pop(minivm.RDX).Pop(minivm.RBX).Pop(minivm.RAX).Iretq()
	halt := minivm.NewAsm().MovImm(minivm.RBX, t.area(node, 0)+tableAt).Load(minivm.RAX, minivm.RBX, 8)
	halt.Cmp(minivm.RAX, count).Jcc(minivm.AboveEqual, "out").Sti().Hlt().Label("out").Iretq()
	return map[uint8][]byte{wakeVector: wake.Bytes(), haltVector: halt.Bytes()}
}

// await waits until as many interrupts have come as R14 says: asleep, or busily.
func (w *writer) await(asleep bool) {
	again := w.label("await")
	w.Label(again)
	if asleep {
		w.Int(haltVector)
	} else {
		w.Pause()
	}
	w.MovImm(minivm.RBX, w.area()+tableAt).Load(minivm.RAX, minivm.RBX, 8).Cmp(minivm.RAX, count).Jcc(minivm.Below, again)
}
