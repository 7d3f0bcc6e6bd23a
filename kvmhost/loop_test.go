package kvmhost

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"

	"ironspan/kvmhost/apic"
	"ironspan/kvmhost/minivm"
)

const dataAddr = 0x300000 // scratch memory of the guests, above their image

func TestPortIO(t *testing.T) {
	a := minivm.NewAsm()
	a.MovImm(minivm.RAX, 0x11223344).Out32(0x500).Out8(0x504)
	a.MovImm(minivm.RAX, 0).In32(0x500).MovImm(minivm.RBX, dataAddr).Store(minivm.RBX, 0, minivm.RAX)
	a.MovImm(minivm.RAX, 0).In8(0x600).Store(minivm.RBX, 8, minivm.RAX) // nobody there
	// Ten bytes out, then in again to another place.
	for i := range 10 {
		a.MovImm(minivm.RAX, uint64('a'+i)).Store(minivm.RBX, int32(16+i), minivm.RAX)
	}
	a.MovImm(minivm.RSI, dataAddr+16).MovImm(minivm.RCX, 10).RepOuts8(0x510)
	a.MovImm(minivm.RDI, dataAddr+64).MovImm(minivm.RCX, 10).RepIns8(0x510)
	a.Out8(donePort)
	a.Label("end").Jmp("end")

	g := newGuest(t, 1, minivm.Config{Code: [][]byte{a.Bytes()}}, nil)
	var single [][]byte
	if err := g.bus.AddPort("registers", 0x500, 8, funcs{
		read:  func(off uint64, data []byte) { binary.LittleEndian.PutUint32(data, 0xcafe0000) },
		write: func(off uint64, data []byte) { single = append(single, append([]byte{byte(off)}, data...)) },
	}); err != nil {
		t.Fatal(err)
	}
	var fifo []byte
	g.port(0x510, funcs{
		read:  func(_ uint64, data []byte) { n := copy(data, fifo); fifo = fifo[n:] },
		write: func(_ uint64, data []byte) { fifo = append(fifo, data...) },
	})
	g.runToEnd()
	if want := [][]byte{{0, 0x44, 0x33, 0x22, 0x11}, {4, 0x44}}; len(single) != 2 || !bytes.Equal(single[0], want[0]) || !bytes.Equal(single[1], want[1]) {
		t.Errorf("writes %x, want %x", single, want)
	}
	if got := g.word(dataAddr); got != 0xcafe0000 {
		t.Errorf("read %#x", got)
	}
	if got := g.word(dataAddr + 8); got != 0xff {
		t.Errorf("a port without device reads as %#x", got)
	}
	if got := g.ram[dataAddr+64 : dataAddr+74]; string(got) != "abcdefghij" {
		t.Errorf("rep outs and ins moved %q", got)
	}
}

func TestMMIO(t *testing.T) {
	const dev = 0x700000 // left out of the slots
	a := minivm.NewAsm().MovImm(minivm.RBX, dev).MovImm(minivm.RAX, 0x1122334455667788)
	a.Store(minivm.RBX, 0, minivm.RAX)     // 8 bytes
	a.Store32(minivm.RBX, 16, minivm.RAX)  // 4 bytes
	a.Store(minivm.RBX, 4092, minivm.RAX)  // across a page: two accesses
	a.Load(minivm.RCX, minivm.RBX, 0)      // 8 bytes
	a.Load(minivm.RSI, minivm.RBX, 4092)   // across a page
	a.Load32(minivm.RDI, minivm.RBX, 8192) // nobody there
	a.MovImm(minivm.RBX, dataAddr).Store(minivm.RBX, 0, minivm.RCX).Store(minivm.RBX, 8, minivm.RSI).Store(minivm.RBX, 16, minivm.RDI)
	a.Out8(donePort).Label("end").Jmp("end")

	g := newGuest(t, 1, minivm.Config{Code: [][]byte{a.Bytes()}}, func(c *Config) { c.Slots[0].Size = dev })
	regs := make([]byte, 8192)
	var sizes []int
	if err := g.bus.AddMMIO("registers", dev, 8192, funcs{
		read:  func(off uint64, data []byte) { copy(data, regs[off:]); sizes = append(sizes, -len(data)) },
		write: func(off uint64, data []byte) { copy(regs[off:], data); sizes = append(sizes, len(data)) },
	}); err != nil {
		t.Fatal(err)
	}
	g.runToEnd()
	if a, b := g.word(dataAddr), g.word(dataAddr+8); a != 0x1122334455667788 || b != 0x1122334455667788 {
		t.Errorf("read back %#x, %#x; accesses %v", a, b, sizes)
	}
	if got := g.word(dataAddr + 16); got != 0xffffffff {
		t.Errorf("memory without device reads as %#x", got)
	}
	if s := g.vm.Stats(0); s[MMIO] < 7 {
		t.Errorf("%d mmio exits counted", s[MMIO])
	}
}

// lapicReg is a register's address in the guest.
func lapicReg(off uint64) uint64 { return apic.LAPICBase + off }

// enableLAPIC sets the software-enable bit.
func enableLAPIC(a *minivm.Asm) {
	a.MovImm(minivm.RBX, lapicReg(0xf0)).MovImm(minivm.RAX, 0x1ff).Store32(minivm.RBX, 0, minivm.RAX)
}

// sendIPI writes the ICR: destination, then command.
func sendIPI(a *minivm.Asm, dest uint8, command uint32) {
	a.MovImm(minivm.RBX, lapicReg(0x300))
	a.MovImm(minivm.RAX, uint64(dest)<<24).Store32(minivm.RBX, 0x10, minivm.RAX)
	a.MovImm(minivm.RAX, uint64(command)).Store32(minivm.RBX, 0, minivm.RAX)
}

// counting is a handler that counts in a word and ends the interrupt.
func counting(addr uint64) []byte {
	a := minivm.NewAsm().Push(minivm.RAX).Push(minivm.RBX)
	a.MovImm(minivm.RBX, addr).LockInc(minivm.RBX, 0)
	a.MovImm(minivm.RBX, lapicReg(0xb0)).MovImm(minivm.RAX, 0).Store32(minivm.RBX, 0, minivm.RAX)
	return a.Pop(minivm.RBX).Pop(minivm.RAX).Iretq().Bytes()
}

// halting is a handler that halts with interrupts on: what level 3 calls to sleep.
func halting() []byte { return minivm.NewAsm().Sti().Hlt().Iretq().Bytes() }

// sleeping is a handler that halts unless the word at RBX has reached R8. Interrupts are off between the two.
func sleeping() []byte {
	return minivm.NewAsm().Load(minivm.RAX, minivm.RBX, 0).Cmp(minivm.RAX, minivm.R8).Jcc(minivm.AboveEqual, "out").
		Sti().Hlt().Label("out").Iretq().Bytes()
}

// spinUntil waits until the word at addr is want.
func spinUntil(a *minivm.Asm, label string, addr uint64, want int32) {
	a.MovImm(minivm.RBX, addr).Label(label).Pause().Load(minivm.RAX, minivm.RBX, 0).CmpImm(minivm.RAX, want).Jcc(minivm.NotEqual, label)
}

const (
	vecIPI  = 0x40
	vecHlt  = 0x80
	vecMSR  = 0x81
	vecOff  = 0x82
	ipiAddr = dataAddr + 0x100
)

func TestSelfIPI(t *testing.T) {
	a := minivm.NewAsm()
	enableLAPIC(a)
	for i := range 20 {
		sendIPI(a, 0, vecIPI|1<<18) // shorthand self
		spinUntil(a, string(rune('a'+2*i)), ipiAddr, int32(2*i+1))
		sendIPI(a, 0, vecIPI) // physical, to ourselves
		spinUntil(a, string(rune('b'+2*i)), ipiAddr, int32(2*i+2))
	}
	a.Out8(donePort).Label("end").Jmp("end")
	g := newGuest(t, 1, minivm.Config{Code: [][]byte{a.Bytes()}, Handlers: map[uint8][]byte{vecIPI: counting(ipiAddr)}}, nil)
	g.runToEnd()
	if s := g.vm.Stats(0); s[Injected] != 40 {
		t.Errorf("%d interrupts injected, want 40: %v", s[Injected], s)
	}
}

// TestInterruptWindow holds interrupts off while one becomes pending.
func TestInterruptWindow(t *testing.T) {
	a := minivm.NewAsm()
	enableLAPIC(a)
	a.Int(vecOff)
	spinUntil(a, "taken", ipiAddr, 1)
	a.Out8(donePort).Label("end").Jmp("end")
	off := minivm.NewAsm()
	sendIPI(off, 0, vecIPI|1<<18)
	off.Out8(0xf2) // an exit
	off.MovImm(minivm.RBX, ipiAddr).Load(minivm.RCX, minivm.RBX, 0).Store(minivm.RBX, 8, minivm.RCX).Iretq()
	g := newGuest(t, 1, minivm.Config{Code: [][]byte{a.Bytes()}, Handlers: map[uint8][]byte{
		vecIPI: counting(ipiAddr), vecOff: off.Bytes(),
	}}, nil)
	g.runToEnd()
	if got := g.word(ipiAddr + 8); got != 0 {
		t.Errorf("%d interrupts taken with interrupts off", got)
	}
}

// TestInterruptShadow posts an interrupt to a vCPU that has left between STI and HLT. Whether or not the processor lets
// it halt first, it must not sleep over it.
func TestInterruptShadow(t *testing.T) {
	g := newGuest(t, 1, minivm.Config{Code: [][]byte{{0xf4}}}, nil)
	copy(g.ram[0x8000:], []byte{0xf4, 0xe6, donePort, 0xeb, 0xfe}) // hlt; out donePort, al; jmp $
	copy(g.ram[0x8100:], realModeHandler)
	binary.LittleEndian.PutUint32(g.ram[vecIPI*4:], 0x8100)
	v := g.vm.vcpus[0]
	if errno := v.start(0x08); errno != 0 {
		t.Fatal(errno)
	}
	var regs kvm.Regs
	if err := ioctlPtr(v.fd, reqGetRegs, &regs); err != nil {
		t.Fatal(err)
	}
	regs.RFLAGS |= flagIF
	regs.RSP = 0x7c00
	if err := ioctlPtr(v.fd, reqSetRegs, &regs); err != nil {
		t.Fatal(err)
	}
	events := &kvm.VCPUEvents{Flags: eventsShadow, I: kvm.Interrupt{Shadow: shadowSTI}}
	if err := ioctlPtr(v.fd, reqSetEvents, events); err != nil {
		t.Fatal(err)
	}
	v.run.ImmediateExit = 1 // KVM says whether it would take an interrupt
	if errno := ioctlRun(v.fd); errno != unix.EINTR {
		t.Fatal(errno)
	}
	v.run.ImmediateExit = 0
	if v.run.ReadyForInterruptInjection != 0 || v.run.IfFlag == 0 {
		t.Fatal("no shadow")
	}
	v.waitSIPI = false
	v.lapic.Write(v.now(), 0xf0, []byte{0xff, 1, 0, 0}) // enable
	g.vm.Deliver(apic.Message{Dest: 0, Vector: vecIPI, Level: true, Source: apic.NoSource})
	g.runToEnd()
	if s := g.vm.Stats(0); s[Halts] != 1 || s[Injected] != 1 || g.ram[0x9008] != 1 {
		t.Errorf("%d interrupts; stats %v", g.ram[0x9008], s)
	}
}

// TestTimer programs TSC deadlines, some awaited in a halt and some running.
func TestTimer(t *testing.T) {
	const vecTimer, rounds = 0x50, 10
	a := minivm.NewAsm()
	enableLAPIC(a)
	a.MovImm(minivm.RBX, lapicReg(0x320)).MovImm(minivm.RAX, 2<<17|vecTimer).Store32(minivm.RBX, 0, minivm.RAX)
	for i := range rounds {
		ahead := uint64(3_000_000)
		if i%2 == 0 { // enough to halt twice on a slow server: where shadows get lost, the first is no sleep
			ahead *= 10
		}
		a.Rdtsc().MovImm(minivm.RCX, ahead).Add(minivm.RAX, minivm.RCX).Int(vecMSR)
		if i%2 == 0 {
			a.MovImm(minivm.RBX, ipiAddr).MovImm(minivm.R8, uint64(i+1)).Int(vecHlt)
		}
		spinUntil(a, string(rune('a'+i)), ipiAddr, int32(i+1))
	}
	a.Out8(donePort).Label("end").Jmp("end")
	// RAX is the deadline.
	setDeadline := minivm.NewAsm().Push(minivm.RDX).Push(minivm.RCX).
		Mov(minivm.RDX, minivm.RAX).Raw(0x48, 0xc1, 0xea, 0x20). // shr rdx, 32
		MovImm(minivm.RCX, apic.MSRTSCDeadline).Wrmsr().Pop(minivm.RCX).Pop(minivm.RDX).Iretq()
	g := newGuest(t, 1, minivm.Config{Code: [][]byte{a.Bytes()}, Handlers: map[uint8][]byte{
		vecTimer: counting(ipiAddr), vecHlt: sleeping(), vecMSR: setDeadline.Bytes(),
	}}, nil)
	g.runToEnd()
	s := g.vm.Stats(0)
	if s[Injected] != rounds || s[MSRWrites] != rounds || s[Sleeps] == 0 || s[AlarmsSet] == 0 {
		t.Errorf("stats %v", s)
	}
}

// A vCPU's timeouts, which its guest's timer comes by, are sharp, whatever the Go runtime's threads are made to be.
func TestTimeoutsAreSharp(t *testing.T) {
	g := newGuest(t, 1, minivm.Config{
		Code: [][]byte{minivm.NewAsm().Out8(0x500).Out8(donePort).Label("end").Jmp("end").Bytes()},
	}, nil)
	slack := -1
	g.port(0x500, onWrite(func([]byte) { slack, _ = unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0) }))
	g.runToEnd()
	if slack != 1 {
		t.Errorf("timeouts on the vCPU's thread may be %d ns late, want 1", slack)
	}
}

// TestIPIBetweenVCPUs lets two vCPUs wake each other out of halts by IPIs, through the local APICs' pages.
func TestIPIBetweenVCPUs(t *testing.T) {
	const rounds = 200
	code := func(self int) []byte {
		mine, other := uint64(ipiAddr+0x40*self), uint8(1-self)
		a := minivm.NewAsm()
		enableLAPIC(a)
		a.MovImm(minivm.RBX, dataAddr).LockInc(minivm.RBX, 0) // both are ready at 2
		spinUntil(a, "ready", dataAddr, 2)
		a.MovImm(minivm.R8, 0)
		a.Label("round")
		a.AddImm(minivm.R8, 1)
		if self == 0 {
			sendIPI(a, other, vecIPI+uint32(other))
		}
		// Sleep until this round's IPI has come.
		a.Label("sleep").MovImm(minivm.RBX, mine).Int(vecHlt)
		a.Load(minivm.RAX, minivm.RBX, 0).Cmp(minivm.RAX, minivm.R8).Jcc(minivm.Below, "sleep")
		if self == 1 {
			sendIPI(a, other, vecIPI+uint32(other))
		}
		a.CmpImm(minivm.R8, rounds).Jcc(minivm.NotEqual, "round")
		if self == 0 {
			a.Out8(donePort)
		}
		return a.AddImm(minivm.R8, 1).Label("end").Int(vecHlt).Jmp("end").Bytes()
	}
	g := newGuest(t, 2, minivm.Config{
		Code: [][]byte{code(0), code(1)},
		Handlers: map[uint8][]byte{
			vecIPI: counting(ipiAddr), vecIPI + 1: counting(ipiAddr + 0x40), vecHlt: sleeping(),
		},
	}, nil)
	start := time.Now()
	g.runToEnd()
	t.Logf("%v for a round trip; vcpu 0 %v", time.Since(start)/rounds, g.vm.Stats(0))
	for i := range 2 {
		if got := g.word(uint64(ipiAddr + 0x40*i)); got != rounds {
			t.Errorf("vcpu %d took %d of %d", i, got, rounds)
		}
	}
}

// realMode is what a started processor runs at 0x8000: it counts in the word at 0x9000, tells a port, and halts with
// interrupts on. Vector 0x40 in the table at 0 counts at 0x9008.
var realMode = []byte{
	0xfa,       // cli
	0x31, 0xc0, // xor ax, ax
	0x8e, 0xd8, // mov ds, ax
	0x8e, 0xd0, // mov ss, ax
	0xbc, 0x00, 0x7c, // mov sp, 0x7c00
	0xff, 0x06, 0x00, 0x90, // inc word [0x9000]
	0xe6, 0xf2, // out 0xf2, al
	0xfb,       // sti
	0xf4,       // hlt
	0xeb, 0xfd, // jmp to the hlt
}

var realModeHandler = []byte{
	0xff, 0x06, 0x08, 0x90, // inc word [0x9008]
	0xcf, // iret
}

// TestStartup brings a second processor up with INIT and startup IPIs, twice, and sends it an NMI.
func TestStartup(t *testing.T) {
	const nmiVector = 2
	a := minivm.NewAsm()
	enableLAPIC(a)
	for i := range 2 {
		l := string(rune('0' + i))
		sendIPI(a, 1, 5<<8|1<<14|1<<15) // INIT, assert
		sendIPI(a, 1, 5<<8|1<<15)       // INIT, de-assert
		sendIPI(a, 1, 6<<8|0x08)        // startup at 0x8000
		sendIPI(a, 1, 6<<8|0x08)        // again, as the manual has it: ignored
		a.MovImm(minivm.RBX, 0x9000).Label("up"+l).Pause().Load32(minivm.RAX, minivm.RBX, 0).
			CmpImm(minivm.RAX, int32(i+1)).Jcc(minivm.NotEqual, "up"+l)
	}
	sendIPI(a, 1, 4<<8) // NMI
	a.MovImm(minivm.RBX, 0x9000).Label("nmi").Pause().Load32(minivm.RAX, minivm.RBX, 8).CmpImm(minivm.RAX, 1).Jcc(minivm.NotEqual, "nmi")
	a.Out8(donePort).Label("end").Jmp("end")

	g := newGuest(t, 2, minivm.Config{Code: [][]byte{a.Bytes()}}, nil)
	var up tally
	g.port(0xf2, &up)
	copy(g.ram[0x8000:], realMode)
	copy(g.ram[0x8100:], realModeHandler)
	binary.LittleEndian.PutUint32(g.ram[nmiVector*4:], 0x8100)
	g.runToEnd()
	s := g.vm.Stats(1)
	if up.n.Load() != 2 || s[InitsTaken] != 2 || s[StartupsTaken] != 2 || s[NMIsInjected] != 1 {
		t.Errorf("started %d times; stats %v", up.n.Load(), s)
	}
}

// TestKickStorm posts interrupts at random times to a vCPU that runs, exits and halts in turn. Each one
// must be taken: after every post the guest's counter has to move.
func TestKickStorm(t *testing.T) {
	for _, poll := range []time.Duration{0, 50 * time.Microsecond} {
		a := minivm.NewAsm()
		enableLAPIC(a)
		a.Out8(0xf2)
		a.Label("top")
		a.MovImm(minivm.RCX, 2000).Label("spin").Dec(minivm.RCX).Jcc(minivm.NotEqual, "spin")
		a.Out8(0xf3).Out8(0xf3)
		a.Int(vecHlt).Jmp("top")
		g := newGuest(t, 1, minivm.Config{Code: [][]byte{a.Bytes()}, Handlers: map[uint8][]byte{
			vecIPI: counting(ipiAddr), vecHlt: halting(),
		}}, func(c *Config) { c.HaltPoll = poll })
		var ready, exits tally
		g.port(0xf2, &ready)
		g.port(0xf3, &exits)
		g.start()
		waitFor(t, "start", func() bool { return ready.n.Load() > 0 })
		rng := rand.New(rand.NewPCG(1, 2))
		start := time.Now()
		for i := 0; i < 2000 && time.Since(start) < 10*time.Second; i++ {
			for n := rng.IntN(30_000); n > 0; n-- {
				_ = exits.n.Load()
			}
			g.vm.Deliver(apic.Message{Dest: 0, Vector: vecIPI, Level: true, Source: apic.NoSource})
			end := time.Now().Add(10 * time.Second)
			for g.word(ipiAddr) < uint64(i+1) {
				if time.Now().After(end) {
					t.Fatalf("interrupt %d was lost: %v", i, g.vm.Stats(0))
				}
			}
		}
		t.Logf("halt poll %v: %v", poll, g.vm.Stats(0))
	}
}

// TestConcurrentPosts has several threads post to the same vCPU; the last post of each must be taken.
func TestConcurrentPosts(t *testing.T) {
	a := minivm.NewAsm()
	enableLAPIC(a)
	a.Out8(0xf2).Label("top").Int(vecHlt).Jmp("top")
	handlers := map[uint8][]byte{vecHlt: halting()}
	for i := range 3 {
		handlers[uint8(vecIPI+i)] = counting(ipiAddr + uint64(i)*0x40)
	}
	g := newGuest(t, 1, minivm.Config{Code: [][]byte{a.Bytes()}, Handlers: handlers}, nil)
	var ready tally
	g.port(0xf2, &ready)
	g.start()
	waitFor(t, "start", func() bool { return ready.n.Load() > 0 })
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() {
			count := atomicWord(g.ram, ipiAddr+uint64(i)*0x40)
			for start := time.Now(); time.Since(start) < time.Second; {
				before := count.Load()
				g.vm.Deliver(apic.Message{Dest: 0, Vector: uint8(vecIPI + i), Level: true, Source: apic.NoSource})
				for end := time.Now().Add(10 * time.Second); count.Load() == before; time.Sleep(10 * time.Microsecond) {
					if time.Now().After(end) {
						t.Errorf("thread %d: interrupt lost", i)
						return
					}
				}
			}
		})
	}
	wg.Wait()
}

// TestStop stops vCPUs that run, that exit all the time, that halt and that wait for a startup IPI.
// Who waits for a startup IPI is not awake, and neither is who halts.
func TestAwake(t *testing.T) {
	var awake atomic.Int32
	idle := make(chan bool, 8)
	g := newGuest(t, 2, minivm.Config{
		Code:     [][]byte{minivm.NewAsm().Out8(0xf2).Label("end").Int(vecHlt).Jmp("end").Bytes()},
		Handlers: map[uint8][]byte{vecHlt: halting()},
	}, func(c *Config) {
		c.Awake = &awake
		c.Idle = func(idles bool) { idle <- idles }
	})
	becomes := func(n int32) { waitFor(t, fmt.Sprint(n, " awake"), func() bool { return awake.Load() == n }) }
	g.port(0xf2, onWrite(func([]byte) { becomes(1) }))
	becomes(2)
	g.start()
	if !<-idle {
		t.Error("idle before anybody slept")
	}
	becomes(0)
	g.vm.Stop()
	if err := g.wait(); err != nil {
		t.Error(err)
	}
	becomes(2)
}

func TestStop(t *testing.T) {
	spin := minivm.NewAsm().Out8(0xf2).Label("end").Jmp("end").Bytes()
	exits := minivm.NewAsm().Label("end").Out8(0xf2).Jmp("end").Bytes()
	halt := minivm.NewAsm().Out8(0xf2).Label("end").Int(vecHlt).Jmp("end").Bytes()
	for name, code := range map[string][]byte{"running": spin, "exiting": exits, "halting": halt} {
		t.Run(name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(3, 4))
			for start := time.Now(); time.Since(start) < 2*time.Second; {
				g := newGuest(t, 2, minivm.Config{Code: [][]byte{code}, Handlers: map[uint8][]byte{vecHlt: halting()}}, nil)
				var up tally
				g.port(0xf2, &up)
				g.start()
				waitFor(t, "start", func() bool { return up.n.Load() > 0 })
				time.Sleep(time.Duration(rng.IntN(300)) * time.Microsecond)
				stop := time.Now()
				g.vm.Stop()
				if err := g.wait(); err != nil {
					t.Fatal(err)
				}
				if d := time.Since(stop); d > 10*time.Second {
					t.Errorf("stop took %v", d)
				}
				if err := g.vm.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// TestStopInUserfault stops a vCPU that waits for a page that never comes.
func TestStopInUserfault(t *testing.T) {
	a := minivm.NewAsm().MovImm(minivm.RBX, 0x400000).Out8(0xf2).Load(minivm.RAX, minivm.RBX, 0).Label("end").Jmp("end")
	g := newGuest(t, 1, minivm.Config{Code: [][]byte{a.Bytes()}}, nil)
	uffd := missing(t, g.ram[0x400000:0x401000])
	defer func() { unix.Close(uffd) }()
	var up tally
	g.port(0xf2, &up)
	g.start()
	waitFor(t, "start", func() bool { return up.n.Load() > 0 })
	time.Sleep(20 * time.Millisecond) // it waits in the kernel now
	g.vm.Stop()
	select {
	case err := <-g.run:
		g.run = nil
		if err != nil {
			t.Error(err)
		}
	case <-time.After(2 * time.Second):
		t.Log("this kernel does not let signals into the wait; closing the userfaultfd")
		unix.Close(uffd)
		uffd = -1
		if err := g.wait(); err != nil {
			t.Error(err)
		}
	}
}

// TestShiftTSC moves the guest's TSC while it runs.
func TestShiftTSC(t *testing.T) {
	needKVM(t)
	if s, _ := Probe(); !s.TSCOffset {
		t.Skip("this KVM gives guests the host's TSC")
	}
	const step = 1 << 50
	a := minivm.NewAsm().MovImm(minivm.RBX, dataAddr).MovImm(minivm.RCX, step).Out8(0xf2)
	a.Label("top").Rdtsc().Cmp(minivm.RAX, minivm.RCX).Jcc(minivm.Below, "top").Out8(donePort).Label("end").Jmp("end")
	g := newGuest(t, 1, minivm.Config{Code: [][]byte{a.Bytes()}}, func(c *Config) { c.TSCOffset = -int64(HostTSC()) })
	g.port(0xf2, onWrite(func([]byte) {
		go func() {
			time.Sleep(5 * time.Millisecond)
			if err := g.vm.SetTSCOffset(g.vm.tscOffset.Load() + step); err != nil {
				t.Error(err)
			}
		}()
	}))
	g.runToEnd()
}

func TestStopBeforeRun(t *testing.T) {
	g := newGuest(t, 2, minivm.Config{Code: [][]byte{minivm.NewAsm().Label("x").Jmp("x").Bytes()}}, nil)
	g.vm.Stop()
	g.start()
	if err := g.wait(); err != nil {
		t.Fatal(err)
	}
}

// TestTripleFault expects the crash to be told with registers, and the other vCPU to be stopped.
func TestTripleFault(t *testing.T) {
	a := minivm.NewAsm().MovImm(minivm.R9, 0xdead).Raw(0x31, 0xc9, 0xf7, 0xf1) // xor ecx, ecx; div ecx
	spin := minivm.NewAsm().Label("end").Jmp("end").Bytes()
	g := newGuest(t, 2, minivm.Config{Code: [][]byte{a.Bytes(), spin}}, nil)
	g.start()
	err := g.wait()
	var exit *ExitError
	if !errors.As(err, &exit) {
		t.Fatalf("error %v", err)
	}
	t.Log(err)
	if reset := exit.Regs.RIP == 0xfff0; exit.VCPU != 0 || !reset && exit.Regs.R9 != 0xdead {
		t.Errorf("%s", exit.Dump())
	}
}

// TestNoAllocation: exits, interrupts, halts and timers allocate nothing.
func TestNoAllocation(t *testing.T) {
	a := minivm.NewAsm()
	enableLAPIC(a)
	a.Label("top").Int(vecHlt).Out8(0xf3)
	a.MovImm(minivm.RBX, lapicReg(0x20)).Load32(minivm.RAX, minivm.RBX, 0)
	a.Jmp("top")
	g := newGuest(t, 1, minivm.Config{Code: [][]byte{a.Bytes()}, Handlers: map[uint8][]byte{
		vecIPI: counting(ipiAddr), vecHlt: halting(),
	}}, nil)
	var seen tally
	g.port(0xf3, &seen)
	g.start()
	m := apic.Message{Dest: 0, Vector: vecIPI, Level: true, Source: apic.NoSource}
	taken := atomicWord(g.ram, ipiAddr)
	round := func() {
		before := taken.Load()
		g.vm.Deliver(m)
		for taken.Load() == before {
			runtime.Gosched() // AllocsPerRun leaves one processor to all
		}
	}
	waitFor(t, "start", func() bool { g.vm.Deliver(m); return seen.n.Load() > 0 })
	if n := testing.AllocsPerRun(100, round); n != 0 {
		t.Errorf("%v allocations for each round of interrupt, halt, port and local APIC access", n)
	}
}

// TestGuestTSC: the guest reads host TSC + offset.
func TestGuestTSC(t *testing.T) {
	needKVM(t)
	offset := int64(0)
	if s, _ := Probe(); s.TSCOffset {
		offset = -1 << 40
	}
	a := minivm.NewAsm().Rdtsc().MovImm(minivm.RBX, dataAddr).Store(minivm.RBX, 0, minivm.RAX).Out8(donePort).Label("end").Jmp("end")
	g := newGuest(t, 1, minivm.Config{Code: [][]byte{a.Bytes()}}, func(c *Config) { c.TSCOffset = offset })
	before := g.vm.GuestTSC()
	g.runToEnd()
	if got, after := g.word(dataAddr), g.vm.GuestTSC(); got-before > after-before {
		t.Errorf("guest read %#x, not between %#x and %#x", got, before, after)
	}
}

// TestRemote: what no local device claims goes to the other nodes, as do interrupts.
func TestRemote(t *testing.T) {
	a := minivm.NewAsm()
	enableLAPIC(a)
	a.MovImm(minivm.RAX, 7).Out8(0x900).In8(0x901)
	a.MovImm(minivm.RBX, 0x700000).Store32(minivm.RBX, 0, minivm.RAX)
	sendIPI(a, 9, vecIPI)
	sendIPI(a, 0, vecIPI|3<<18) // all but self
	a.Out8(donePort).Label("end").Jmp("end")
	r := &fakeRemote{}
	g := newGuest(t, 1, minivm.Config{Code: [][]byte{a.Bytes()}}, func(c *Config) {
		c.Remote = r
		c.Slots[0].Size = 0x700000
	})
	g.runToEnd()
	if r.ports.Load() != 2 || r.mmios.Load() != 1 || len(r.messages) != 2 || r.messages[0].Dest != 9 || r.mmioValue != 0x42 {
		t.Errorf("ports %d, mmios %d, value %#x, messages %v", r.ports.Load(), r.mmios.Load(), r.mmioValue, r.messages)
	}
}

type fakeRemote struct {
	ports, mmios atomic.Uint64
	mmioValue    byte
	messages     []apic.Message
}

func (r *fakeRemote) Interrupt(m apic.Message) { r.messages = append(r.messages, m) }

func (r *fakeRemote) PortIO(_ int, _ uint16, data []byte, write bool) bool {
	r.ports.Add(1)
	if !write {
		data[0] = 0x42
	}
	return true
}

func (r *fakeRemote) MMIO(_ int, _ uint64, data []byte, write bool) bool {
	r.mmios.Add(1)
	r.mmioValue = data[0]
	return true
}

func (r *fakeRemote) EOI(uint8) {}
