package kvmhost

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ironspan/kvmhost/acpi"
	"ironspan/kvmhost/apic"
	"ironspan/kvmhost/boot"
	"ironspan/kvmhost/bus"
	"ironspan/kvmhost/devices"
	"ironspan/kvmhost/internal/initrd"
)

// TestBootLinux boots an unmodified Linux kernel to an init and lets that power off, with one and with two
// vCPUs. Environment:
//
//	IRONSPAN_KERNEL   bzImage; without it the test is skipped
//	IRONSPAN_INITRD   initramfs; without it testinit is built
//	IRONSPAN_DILATE   how many times faster than real the guest believes its TSC to be: list, default 1
//	IRONSPAN_VCPUS    list, default 1,2,1+1: vCPUs for each NUMA node
//	IRONSPAN_APPEND   more command line
//	IRONSPAN_TIMEOUT  of one boot, default 5m
//
// It needs a KVM that runs a kernel's privileged code at a useful speed, which a pagetable VM does not.
func TestBootLinux(t *testing.T) {
	kernelPath := os.Getenv("IRONSPAN_KERNEL")
	if kernelPath == "" {
		t.Skip("IRONSPAN_KERNEL names no bzImage")
	}
	needKVM(t)
	if s, _ := Probe(); !s.TSCOffset {
		t.Skip("this KVM emulates privileged code: a kernel boots too slowly")
	}
	kernel, err := os.ReadFile(kernelPath)
	if err != nil {
		t.Fatal(err)
	}
	var ramdisk []byte
	if name := os.Getenv("IRONSPAN_INITRD"); name != "" {
		ramdisk, err = os.ReadFile(name)
	} else {
		ramdisk, err = initrd.Build("ironspan/kvmhost/internal/testinit")
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, dilate := range strings.Split(cmp.Or(os.Getenv("IRONSPAN_DILATE"), "1"), ",") {
		for _, vcpus := range strings.Split(cmp.Or(os.Getenv("IRONSPAN_VCPUS"), "1,2,1+1"), ",") {
			t.Run("dilate="+dilate+"/vcpus="+vcpus, func(t *testing.T) {
				bootLinux(t, kernel, ramdisk, numbers(t, vcpus), numbers(t, dilate)[0])
			})
		}
	}
}

// numbers reads some with plus signs between.
func numbers(t *testing.T, s string) (out []int) {
	t.Helper()
	for f := range strings.SplitSeq(s, "+") {
		n, err := strconv.Atoi(f)
		if err != nil || n < 1 {
			t.Fatalf("%q: want positive numbers", s)
		}
		out = append(out, n)
	}
	return out
}

func bootLinux(t *testing.T, kernel, ramdisk []byte, perNode []int, dilate int) {
	const ram = boot.RAM(512 << 20)
	view, err := unix.Mmap(-1, 0, int(ram), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(view)

	ids, topology, err := PlanAPICIDs(perNode)
	if err != nil {
		t.Fatal(err)
	}
	machine := acpi.Config{}
	c := Config{
		Slots:    []Slot{{Size: uint64(ram), HVA: addressOfBytes(view)}},
		Bus:      bus.New(),
		Topology: topology,
	}
	share := uint64(ram) / uint64(len(perNode)) &^ (2<<20 - 1)
	for node := range ids {
		machine.Memory = append(machine.Memory, acpi.Memory{GPA: uint64(node) * share, Size: share, Node: node})
		for _, id := range ids[node] {
			c.VCPUs = append(c.VCPUs, VCPUConfig{APICID: id, CPU: -1, BSP: len(c.VCPUs) == 0})
			machine.VCPUs = append(machine.VCPUs, acpi.VCPU{APICID: id, Node: node})
		}
	}
	vcpus := len(c.VCPUs)
	var ioapic *apic.IOAPIC
	c.EOI = func(vector uint8) { ioapic.EOI(vector) }
	vm, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	ioapic = apic.NewIOAPIC(acpi.IOAPICID, vm)
	console := &console{start: time.Now()}
	var off, reset bool
	serial := devices.NewSerial(console, func(level bool) { ioapic.SetPin(devices.COM1IRQ, level) })
	defer serial.Close(time.Second)
	for _, err := range []error{
		devices.AddStateless(c.Bus),
		devices.Platform{
			Serial: serial,
			RTC:    devices.NewRTC(time.Now),
			Off:    func() { off = true; vm.Stop() },
			Reset:  func() { reset = true; vm.Stop() },
		}.Add(c.Bus),
		c.Bus.AddMMIO("ioapic", apic.IOAPICBase, apic.IOAPICSize, ioapic),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	tables, err := acpi.Build(boot.TablesAddr, machine)
	if err != nil {
		t.Fatal(err)
	}
	mem := ram.View(view)
	if _, err := mem.WriteAt(tables.Bytes, int64(tables.Base)); err != nil {
		t.Fatal(err)
	}
	cmdline := fmt.Sprintf("console=ttyS0 tsc_early_khz=%d tsc=reliable clocksource=tsc nopti nokaslr nowatchdog "+
		"mitigations=off transparent_hugepage=never numa_balancing=disable no_timer_check panic=-1 %s",
		vm.TSCKHz()*uint64(dilate), os.Getenv("IRONSPAN_APPEND"))
	loaded, err := boot.Load(mem, boot.Config{Kernel: kernel, Initrd: ramdisk, CmdLine: cmdline, RAM: ram, RSDP: tables.RSDP})
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.SetBootState(0, loaded.State); err != nil {
		t.Fatal(err)
	}

	timeout := 5 * time.Minute
	if s := os.Getenv("IRONSPAN_TIMEOUT"); s != "" {
		if timeout, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	err = vm.Run(ctx)
	took := time.Since(console.start)
	report(t, vm, took, console)
	var exit *ExitError
	switch {
	case errors.As(err, &exit):
		t.Fatal(exit.Dump())
	case err != nil:
		t.Fatalf("%v after %v", err, took)
	case reset || !off:
		t.Fatal("the guest did not power off, it reset")
	}
	if out := console.String(); !strings.Contains(out, "testinit: ok") && os.Getenv("IRONSPAN_INITRD") == "" {
		t.Error("init did not say ok")
	} else if want := fmt.Sprintf(" %d cpus", vcpus); strings.Contains(out, "testinit: up") && !strings.Contains(out, want) {
		t.Errorf("init did not see%s", want)
	}
}

// report prints what the boot took.
func report(t *testing.T, vm *VM, took time.Duration, c *console) {
	fmt.Printf("\nboot: init after %.2f s, off after %.2f s\n", c.initAt.Seconds(), took.Seconds())
	for i := range vm.vcpus {
		s := vm.Stats(i)
		fmt.Printf("vcpu %d: %d exits:", i, s.Exits())
		for _, c := range Counters() {
			if s[c] != 0 {
				fmt.Printf(" %v %d", c, s[c])
			}
		}
		fmt.Println()
	}
}

// console is the guest's, on standard output and kept.
type console struct {
	start  time.Time
	initAt time.Duration

	mu   sync.Mutex
	text bytes.Buffer
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.text.Write(p)
	if c.initAt == 0 && bytes.Contains(c.text.Bytes(), []byte("testinit: up")) {
		c.initAt = time.Since(c.start)
	}
	return os.Stdout.Write(p)
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String()
}
