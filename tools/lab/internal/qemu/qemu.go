// Package qemu makes the command line of a lab server and finds out how fast it can run here.
package qemu

import (
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
)

// Binary is looked for in PATH.
const Binary = "qemu-system-x86_64"

// MinMajor is the oldest major version taken: older QEMUs crash an emulated SMP guest that patches its own code
// on another CPU.
const MinMajor = 8

// Accel is how the server's instructions run.
type Accel string

// The accelerators.
const (
	Auto Accel = "auto"
	TCG  Accel = "tcg"
	KVM  Accel = "kvm"
)

// Machine is one lab server.
type Machine struct {
	Name      string
	QEMU      QEMU
	Accel     Accel
	VCPUs     int
	MemoryMiB int
	Kernel    string
	Initrd    string
	Append    string
	Console   string // file
	MAC       string
	MTU       int
	WireFD    int // socket of the switch
	AgentFD   int // socket of the agent's port
	Port      string
	Exports   []Export
	Extra     []string
}

// Export is a host directory over 9p.
type Export struct {
	Tag      string
	Path     string
	ReadOnly bool
}

// cpuTCG has what L1's KVM needs to give its guests nested paging with 1 GiB pages, and nothing that is
// slow to emulate.
const cpuTCG = "qemu64,+svm,+npt,+vgif,+svme-addr-chk,+pdpe1gb,+rdtscp,+popcnt,+ssse3,+sse4.1,+sse4.2,+cx16," +
	"+x2apic,+erms,+fsgsbase,+smep,+arat"

// quiet boot, no clock watchdogs that a slow emulation would trip, no mitigations of a CPU that is not there.
const bootFlags = "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off nokaslr tsc=reliable clocksource=tsc no_timer_check " +
	"nowatchdog nmi_watchdog=0 rcupdate.rcu_cpu_stall_suppress=1 rcupdate.rcu_expedited=1 audit=0 selinux=0 apparmor=0 " +
	"random.trust_cpu=on 8250.nr_uarts=1 i8042.noaux i8042.nokbd raid=noautodetect nomodeset net.ifnames=0 " +
	"pci=nommconf,lastbus=0 libata.force=disable transparent_hugepage=madvise workqueue.watchdog_thresh=0"

// Command starts the machine.
func (m *Machine) Command() *exec.Cmd {
	return m.QEMU.command(context.Background(), m.args()...)
}

func (m *Machine) args() []string {
	cpu, accel := cpuTCG, "tcg,thread=multi"
	switch {
	case m.Accel == KVM:
		cpu, accel = "host", "kvm"
	case m.VCPUs > 1 && !m.QEMU.atLeast(8, 0):
		// There a CPU that runs code while another one patches it dies of the patch's breakpoint: "Oops: int3".
		accel = "tcg,thread=single"
	}
	args := []string{
		"-name", m.Name, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-machine", "pc,usb=off,vmport=off,smm=off,hpet=off", "-accel", accel, "-cpu", cpu,
		"-smp", strconv.Itoa(m.VCPUs), "-m", fmt.Sprintf("%dM", m.MemoryMiB),
		"-kernel", m.Kernel, "-initrd", m.Initrd, "-append", strings.TrimSpace(bootFlags + " " + m.Append),
		"-chardev", "file,id=console,path=" + escape(m.Console), "-serial", "chardev:console",
		"-netdev", fmt.Sprintf("stream,id=wire,server=off,addr.type=fd,addr.str=%d", m.WireFD),
		"-device", fmt.Sprintf("virtio-net-pci,netdev=wire,mac=%s,host_mtu=%d,romfile=", m.MAC, m.MTU),
		"-device", "virtio-serial-pci",
		"-chardev", fmt.Sprintf("socket,id=agent,fd=%d", m.AgentFD), "-device", "virtserialport,chardev=agent,name=" + m.Port,
		"-device", "virtio-rng-pci",
	}
	for i, e := range m.Exports {
		ro := ""
		if e.ReadOnly {
			ro = ",readonly=on"
		}
		args = append(args,
			"-fsdev", fmt.Sprintf("local,id=fs%d,path=%s,security_model=none,multidevs=remap%s", i, escape(e.Path), ro),
			"-device", fmt.Sprintf("virtio-9p-pci,fsdev=fs%d,mount_tag=%s", i, e.Tag))
	}
	return append(args, m.Extra...)
}

// escape doubles commas, which separate options.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }
