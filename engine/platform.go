package engine

import (
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"ironspan/engine/control"
	"ironspan/engine/spec"
	"ironspan/kvmhost/acpi"
	"ironspan/kvmhost/apic"
	"ironspan/kvmhost/boot"
	"ironspan/kvmhost/bus"
	"ironspan/kvmhost/devices"
)

const (
	ioapicID = 0
	com1Pin  = 4 // ISA interrupt 4, on the IOAPIC's pin of the same number

	// acpiBase is where the tables lie: in the area that a PC's firmware has below 1 MiB, where the memory
	// map says reserved.
	acpiBase, acpiEnd = 0xe0000, 0x100000
)

// platform is what node 0 has besides its vCPUs: the devices of the machine.
type platform struct {
	ioapic *apic.IOAPIC
	serial *devices.Serial
}

// newPlatform puts the devices on b. off and reset are called when the guest asks for it, on any thread.
func newPlatform(b *bus.Bus, router apic.Router, console io.ReadWriter, off, reset func()) (*platform, error) {
	p := &platform{ioapic: apic.NewIOAPIC(ioapicID, router)}
	p.serial = devices.NewSerial(console, func(level bool) { p.ioapic.SetPin(com1Pin, level) })
	err := devices.Platform{Serial: p.serial, RTC: devices.NewRTC(time.Now), Off: off, Reset: reset}.Add(b)
	if err == nil {
		err = b.AddMMIO("ioapic", apic.IOAPICBase, apic.IOAPICSize, p.ioapic)
	}
	if err != nil {
		p.serial.Close(0)
		return nil, err
	}
	go io.Copy(p.serial.Input(), console)
	return p, nil
}

// consolePatience is how long the console may take for what the guest wrote last.
const consolePatience = 2 * time.Second

// flush waits until what the guest has written is out.
func (p *platform) flush() { p.serial.Flush(consolePatience) }

// close ends the serial port. The console's Read ends when the VM is released, and with it the input's goroutine.
func (p *platform) close() { p.serial.Close(consolePatience) }

// bootGuest puts tables, kernel and initrd into node 0's RAM through its service view, and returns the state that
// the boot processor starts with.
func bootGuest(plan *spec.Plan, job *control.Job, view []byte) (*boot.Loaded, error) {
	ram := boot.RAM(plan.RAM())
	limit := uint64(plan.Nodes[0].GPA[0].End)
	mem := ram.View(view)

	tables, err := buildTables(plan)
	if err != nil {
		return nil, fmt.Errorf("engine: acpi tables: %w", err)
	}
	if _, err := mem.WriteAt(tables.Bytes, acpiBase); err != nil {
		return nil, fmt.Errorf("engine: acpi tables: %w", err)
	}
	kernel, err := readImage(job.Kernel, "kernel")
	if err != nil {
		return nil, err
	}
	initrd, err := readImage(job.Initrd, "initrd")
	if err != nil {
		return nil, err
	}
	l, err := boot.Load(mem, boot.Config{
		Kernel: kernel, Initrd: initrd, CmdLine: commandLine(plan), RAM: ram, Limit: limit, RSDP: tables.RSDP,
	})
	if err != nil {
		return nil, fmt.Errorf("engine: %w", err)
	}
	return l, nil
}

func readImage(i *control.Image, what string) ([]byte, error) {
	if i == nil || i.Size == 0 {
		return nil, nil
	}
	b := make([]byte, i.Size)
	if _, err := i.ReadAt(b, 0); err != nil && err != io.EOF {
		return nil, fmt.Errorf("engine: read %s: %w", what, err)
	}
	return b, nil
}

// commandLine is what the guest's kernel is told. Most of it stems from what earlier systems of this kind found
// (FragVisor, TidalScale): a guest that spans servers should not move pages between them by itself, nor keep
// pages that every CPU writes. The user's part comes last, so that it can override.
//
//   - tsc_early_khz and its company: the TSC is the only clock, and its frequency is not to be measured.
//   - nopti: two page tables for each process are twice the pages to fight over.
//   - nokaslr: the kernel's mapping stays on few page-table pages.
//   - nox2apic, nohpet and the like are not needed: what is not there is not in the tables.
func commandLine(plan *spec.Plan) string {
	words := []string{
		"console=ttyS0,115200",
		fmt.Sprintf("tsc_early_khz=%d", dilated(plan.Nodes[0].TSCKHz, plan.Dilate)),
		"clocksource=tsc tsc=reliable no_timer_check",
		"nopti nokaslr mitigations=off",
		"numa_balancing=disable transparent_hugepage=madvise",
		"nowatchdog skew_tick=1",
		"8250.nr_uarts=1 pci=off rcupdate.rcu_expedited=1",
		"reboot=acpi panic=-1",
	}
	if plan.Append != "" {
		words = append(words, plan.Append)
	}
	return strings.Join(words, " ")
}

// perKHz is what Linux multiplies the TSC's kHz by for the Hz of the TSC-deadline timer, in units of 8 ticks
// (arch/x86/kernel/apic/apic.c, setup_APIC_timer).
const perKHz = 1000 / 8

// dilated is the frequency that the guest believes its TSC has. Linux keeps it in 32 bits of kHz, and the product
// with perKHz in 32 bits as well: where that wraps, the frequency is chosen a little lower, so that what remains
// is large enough to set a timer with.
func dilated(khz uint64, by float64) uint32 {
	d := uint64(min(float64(khz)*by, math.MaxUint32))
	if hz := d * perKHz; hz > math.MaxUint32 && uint32(hz) < 1<<31 {
		d -= uint64(uint32(hz))/perKHz + 1
	}
	return uint32(d)
}

// stretch makes up for that wrap, which only a dilated guest meets (from 34 GHz on): its deadlines are too near by
// the ratio returned.
func stretch(khz uint32) apic.Ratio {
	hz := uint64(khz) * perKHz
	return apic.Ratio{Num: hz, Den: uint64(uint32(hz))}
}

func buildTables(plan *spec.Plan) (*acpi.Tables, error) {
	c := acpi.Config{Distances: plan.Distances}
	for _, n := range plan.Nodes {
		for _, id := range n.APICIDs {
			c.VCPUs = append(c.VCPUs, acpi.VCPU{APICID: id, Node: int(n.ID)})
		}
		for _, r := range n.GPA {
			c.Memory = append(c.Memory, acpi.Memory{GPA: uint64(r.Start), Size: r.Size(), Node: int(n.ID)})
		}
	}
	t, err := acpi.Build(acpiBase, c)
	if err == nil && acpiBase+len(t.Bytes) > acpiEnd {
		err = fmt.Errorf("%d KiB of tables, there is room for %d: use fewer nodes", len(t.Bytes)>>10, (acpiEnd-acpiBase)>>10)
	}
	return t, err
}
