package kvmhost

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ironspan/kvmhost/boot"
	"ironspan/kvmhost/bus"
	"ironspan/kvmhost/minivm"
)

// needKVM skips where there is no usable KVM.
func needKVM(t testing.TB) {
	t.Helper()
	if _, err := Probe(); errors.Is(err, ErrNotSupported) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
}

const testRAM = 8 << 20

// guest is a mini-guest under test: RAM, bus, VM.
type guest struct {
	t   testing.TB
	ram []byte
	mem boot.Memory
	bus *bus.Bus
	vm  *VM
	img *minivm.Image
	run chan error
}

// newGuest builds a guest; codes may be shorter than vcpus, the rest then waits for a startup IPI.
func newGuest(t testing.TB, vcpus int, prog minivm.Config, tune func(*Config)) *guest {
	t.Helper()
	needKVM(t)
	g := &guest{t: t, bus: bus.New()}
	var err error
	if g.ram, err = unix.Mmap(-1, 0, testRAM, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(g.ram) })
	g.mem = boot.RAM(testRAM).View(g.ram)
	prog.Map = testRAM
	if g.img, err = minivm.Build(g.mem, prog); err != nil {
		t.Fatal(err)
	}
	c := Config{
		Slots:    []Slot{{GPA: 0, Size: testRAM, HVA: addressOfBytes(g.ram)}},
		Bus:      g.bus,
		Topology: Topology{PackageShift: 2, CoresPerPackage: uint32(vcpus)},
	}
	for i := range vcpus {
		c.VCPUs = append(c.VCPUs, VCPUConfig{APICID: uint32(i), CPU: -1, BSP: i == 0})
	}
	if tune != nil {
		tune(&c)
	}
	if g.vm, err = New(c); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		g.vm.Stop()
		if g.run != nil {
			g.wait()
		}
		if err := g.vm.Close(); err != nil {
			t.Error(err)
		}
	})
	for i, s := range g.img.States {
		if err := g.vm.SetBootState(i, s); err != nil {
			t.Fatal(err)
		}
	}
	return g
}

// port puts a function behind a port.
func (g *guest) port(port uint16, d bus.Device) {
	g.t.Helper()
	if err := g.bus.AddPort("test", port, 1, d); err != nil {
		g.t.Fatal(err)
	}
}

// donePort stops the VM when the guest writes to it.
const donePort = 0xf4

func (g *guest) start() {
	g.run = make(chan error, 1)
	go func() { g.run <- g.vm.Run(context.Background()) }()
}

// wait is for the end of Run.
func (g *guest) wait() error {
	g.t.Helper()
	select {
	case err := <-g.run:
		g.run = nil
		return err
	case <-time.After(20 * time.Second):
		g.t.Fatal("the VM does not end")
		return nil
	}
}

// runToEnd runs the guest until it writes to donePort.
func (g *guest) runToEnd() {
	g.t.Helper()
	g.port(donePort, onWrite(func([]byte) { g.vm.Stop() }))
	g.start()
	if err := g.wait(); err != nil {
		var exit *ExitError
		if errors.As(err, &exit) {
			g.t.Log(exit.Dump())
		}
		g.t.Fatal(err)
	}
}

func (g *guest) word(addr uint64) uint64 { return atomicWord(g.ram, addr).Load() }

// onWrite is a device that only listens.
type onWrite func(data []byte)

func (onWrite) Read(_ uint64, data []byte)    { fillOnes(data) }
func (f onWrite) Write(_ uint64, data []byte) { f(data) }
func (f funcs) Read(off uint64, data []byte)  { f.read(off, data) }
func (f funcs) Write(off uint64, data []byte) { f.write(off, data) }

// funcs is a device made of two functions.
type funcs struct{ read, write func(off uint64, data []byte) }

// waitFor polls until cond holds.
func waitFor(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(50 * time.Microsecond) {
		if time.Now().After(end) {
			t.Fatal("no ", what)
		}
	}
}

// tally counts writes.
type tally struct{ n atomic.Uint64 }

func (*tally) Read(_ uint64, data []byte) { fillOnes(data) }
func (c *tally) Write(uint64, []byte)     { c.n.Add(1) }
