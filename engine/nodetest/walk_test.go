package nodetest_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ironspan/engine/nodetest"
	"ironspan/engine/wire"
	"ironspan/fastpath/fabric"
	"ironspan/fastpath/ram"
	"ironspan/fastpath/uffd"
	"ironspan/kvmhost"
	"ironspan/kvmhost/boot"
	"ironspan/kvmhost/bus"
	"ironspan/kvmhost/minivm"
)

const (
	walkBits  = 30 // a walk is over 1 GiB
	walkFrom  = 2 << 20
	walkRAM   = walkFrom + 1<<walkBits
	walkSteps = 1 << 18
	walkPort  = 0xf8
)

// backing is how a walker's memory is backed and mapped.
type backing struct {
	name       string
	small      bool // pages
	registered bool // with userfaultfd
	split      bool // every block
}

var backings = []backing{
	{name: "plain"},
	{name: "whole", registered: true},
	{name: "split", registered: true, split: true},
	{name: "plain-small", small: true},
}

// walker is a guest that walks once for each time it is let go.
type walker struct {
	backing
	ram  *ram.RAM
	walk chan struct{} // lets the guest go
	took chan time.Duration
	ns   []float64 // of a step, by round
}

// walkProgram loads from one random address after the other, each depending on what the last load found: zero, which
// the processor does not know. The address is the upper bits of a linear congruential generator.
func walkProgram() []byte {
	a := minivm.NewAsm().MovImm(minivm.RBX, 6364136223846793005).MovImm(minivm.RSI, 1442695040888963407)
	a.MovImm(minivm.RDI, walkFrom).MovImm(minivm.R8, 1)
	a.Label("again").Out8(walkPort).MovImm(minivm.RCX, walkSteps).Label("step")
	a.Raw(0x4c, 0x0f, 0xaf, 0xc3).Add(minivm.R8, minivm.RSI) // imul r8, rbx
	a.Mov(minivm.RAX, minivm.R8).Raw(0x48, 0xc1, 0xe8, 64-walkBits)
	a.Raw(0x48, 0x83, 0xe0, 0xf8).Add(minivm.RAX, minivm.RDI) // and rax, -8
	a.Load(minivm.RAX, minivm.RAX, 0).Add(minivm.R8, minivm.RAX)
	return a.Dec(minivm.RCX).Jcc(minivm.NotEqual, "step").Jmp("again").Bytes()
}

func newWalker(b *testing.B, back backing) *walker {
	b.Helper()
	must := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatalf("%s: %v", back.name, err)
		}
	}
	w := &walker{backing: back, walk: make(chan struct{}), took: make(chan time.Duration)}
	var err error
	w.ram, err = ram.New(ram.Config{Size: walkRAM, Home: fabric.Span{Last: walkRAM}, Small: back.small})
	must(err)
	b.Cleanup(func() { must(w.ram.Close()) })
	var short *ram.MemoryError
	if err := w.ram.Populate(nil); errors.As(err, &short) {
		b.Skip(err)
	} else {
		must(err)
	}
	image, err := minivm.Build(boot.RAM(walkRAM).View(w.ram.Service()), minivm.Config{Map: walkRAM, Code: [][]byte{walkProgram()}})
	must(err)
	if image.End > walkFrom {
		b.Fatalf("the image ends at %#x", image.End)
	}
	if back.registered {
		u, err := uffd.Open()
		must(err)
		b.Cleanup(func() { u.Close() })
		must(w.ram.Register(u, 0, 1, 9))
		for page := wire.PFN(0); back.split && page < walkRAM/wire.PageSize; page += 512 {
			if w.ram.Whole(page) {
				must(uffd.Error("split", w.ram.GuestAddr(page), w.ram.Split(u, page)))
			}
		}
	}

	ports := bus.New()
	must(ports.AddPort("walk", walkPort, 1, &turnstile{walker: w}))
	vm, err := kvmhost.New(kvmhost.Config{
		Slots: []kvmhost.Slot{{Size: walkRAM, HVA: w.ram.GuestView()}},
		VCPUs: []kvmhost.VCPUConfig{{CPU: -1, BSP: true}}, Bus: ports, Topology: kvmhost.Topology{CoresPerPackage: 1},
	})
	must(err)
	must(vm.SetBootState(0, image.States[0]))
	ran := make(chan error, 1)
	go func() { ran <- vm.Run(context.Background()) }()
	b.Cleanup(func() {
		vm.Stop()
		close(w.walk)
		<-ran
		must(vm.Close())
	})
	<-w.took // has come to the turnstile
	return w
}

// turnstile is where the guest waits. Its methods run on the vCPU's thread, whose time they take: it does not run on
// while others have the processor.
type turnstile struct {
	*walker
	since int64
}

func (*turnstile) Read(uint64, []byte) {}
func (s *turnstile) Write(uint64, []byte) {
	s.took <- time.Duration(threadTime() - s.since)
	<-s.walk
	s.since = threadTime()
}

func threadTime() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		panic(err)
	}
	return ts.Nano()
}

func (w *walker) step() time.Duration {
	w.walk <- struct{}{}
	return <-w.took
}

// BenchmarkLocalWalk is what it costs a guest that its own memory could be wanted elsewhere: a random walk over 1 GiB
// in an ordinary memory slot with huge pages (plain), in a home range of which nothing was ever wanted (whole), in one
// all of whose blocks are split, and in an ordinary slot with small pages. The kinds take turns; it reports the median
// nanoseconds of a step, and the medians of the rounds' ratios to plain.
func BenchmarkLocalWalk(b *testing.B) {
	nodetest.Need(b)
	var ws []*walker
	for _, back := range backings {
		ws = append(ws, newWalker(b, back))
	}
	for _, w := range ws {
		b.Logf("%s: %d MiB in huge pages", w.name, w.ram.HugeBytes()>>20)
		w.step() // KVM maps what is touched first
	}
	for round := 0; b.Loop(); round++ {
		for i := range ws {
			w := ws[(i+round)%len(ws)] // nobody always comes after the same
			w.ns = append(w.ns, float64(w.step())/walkSteps)
		}
	}
	for _, w := range ws {
		ratios := make([]float64, len(w.ns))
		for i := range ratios {
			ratios[i] = w.ns[i] / ws[0].ns[i]
		}
		b.ReportMetric(median(w.ns), w.name+"-ns/step")
		b.ReportMetric(median(ratios), fmt.Sprintf("%s/%s", w.name, ws[0].name))
	}
}

func median(xs []float64) float64 {
	s := slices.Sorted(slices.Values(xs))
	return s[len(s)/2]
}
