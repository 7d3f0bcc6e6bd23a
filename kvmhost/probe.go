package kvmhost

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"

	"github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"

	"ironspan/kvmhost/apic"
)

// ErrNotSupported is matched by a probe's error when this server cannot run vCPUs. The error's text has the
// reason and what to do.
var ErrNotSupported = errors.New("kvm not supported")

const devicePath = "/dev/kvm"

// Capabilities gokvm has no name for.
const capPMU = kvm.Capability(212)

// Support is what this server's KVM can do beyond what is required.
type Support struct {
	MaxVCPUs int // of one VM
	MaxSlots int // memory slots of one VM
	TSCKHz   uint64
	// MWAITQuirk: KVM takes writes of the TSC-deadline MSR for itself in spite of an MSR filter (VMX with the
	// preemption timer does, in a fast path), unless MWAIT is left to the guest. Every VM is then set up so; the
	// guest's CPUID has no MWAIT all the same.
	MWAITQuirk bool
	// ShadowQuirk: a guest that leaves between STI, or a load of SS, and the next instruction comes back without the
	// interrupt shadow of that instruction. An interrupt then comes between STI and HLT, and the guest sleeps on.
	// QEMU's emulation of SVM saves the shadow at an exit and does not load it at the next entry.
	ShadowQuirk bool
	PMUControl  bool // the virtual PMU can be switched off
	// Translation is how guest addresses are translated. With Shadow, a VM on several servers needs Config.Snoopers,
	// and Snoop says whether this KVM can have any: it takes system management mode.
	Translation Translation
	Snoop       bool
	// WalksWrite: walks of the guest's page tables count as writes to them. Servers that share page tables then take
	// them from each other all the time.
	WalksWrite bool
	// TSCOffset: a guest's TSC can differ from the host's by an offset. If not, only offset 0 will do.
	TSCOffset bool
}

// required is what there is no doing without, and the kernel that brought it.
var required = []struct {
	cap  kvm.Capability
	what string
}{
	{kvm.CapUserMemory, "user memory"},
	{kvm.CapEXTCPUID, "CPUID control"},
	{kvm.CapSyncMMU, "a memory map that follows the process (needed for userfaultfd)"},
	{kvm.CapUserNMI, "NMIs from user space"},
	{kvm.CapVCPUEvents, "vCPU events"},
	{kvm.CapImmediateExit, "immediate exit (Linux 4.11)"},
	{kvm.CapX86UserSpaceMSR, "MSR exits (Linux 5.10)"},
	{kvm.CapX86MSRFilter, "MSR filters (Linux 5.10)"},
	{kvm.CapEnforcePVFeatureCPUID, "enforcement of paravirtual features' absence (Linux 5.10)"},
	{kvm.CapVCPUAttributes, "vCPU attributes (Linux 5.16)"},
}

var probeOnce = sync.OnceValues(probe)

// Probe says what this server's KVM can do, or, with an error that matches [ErrNotSupported], why it will not
// do. It creates a VM and runs some instructions in it, once per process.
func Probe() (*Support, error) { return probeOnce() }

func notSupported(format string, args ...any) error {
	return fmt.Errorf("kvmhost: %w: %s", ErrNotSupported, fmt.Sprintf(format, args...))
}

func probe() (*Support, error) {
	dev, err := openDevice()
	if err != nil {
		return nil, err
	}
	defer unix.Close(dev)

	var missing []string
	for _, r := range required {
		if n, err := checkExtension(dev, r.cap); err != nil || n == 0 {
			missing = append(missing, r.what)
		}
	}
	if missing != nil {
		return nil, notSupported("%s lacks %s: use a kernel from 5.16 on", devicePath, strings.Join(missing, ", "))
	}
	s := &Support{}
	if s.MaxVCPUs, err = checkExtension(dev, kvm.CapMAXVCPUS); err != nil || s.MaxVCPUs == 0 {
		s.MaxVCPUs = 4 // as the interface's documentation has it
	}
	if s.MaxSlots, err = checkExtension(dev, kvm.CapNRMemSlots); err != nil || s.MaxSlots == 0 {
		s.MaxSlots = 32
	}
	if n, err := checkExtension(dev, capPMU); err == nil && n&pmuCapDisable != 0 {
		s.PMUControl = true
	}
	s.Translation, s.WalksWrite = translation()
	smm, _ := checkExtension(dev, kvm.CapX86SMM)
	spaces, _ := checkExtension(dev, kvm.CapMultiAddressSpace)
	s.Snoop = smm > 0 && spaces > 1

	r, err := trial(dev, false)
	if err == nil && !r.deadlineExits {
		if r, err = trial(dev, true); err == nil {
			s.MWAITQuirk = true
		}
	}
	switch {
	case err != nil:
		return nil, notSupported("trial run: %v", err)
	case !r.deadlineExits:
		return nil, notSupported("writes of the TSC-deadline MSR do not reach user space in spite of the MSR filter")
	}
	s.TSCKHz, s.TSCOffset, s.ShadowQuirk = r.tscKHz, r.tscOffset, r.shadowLost
	return s, nil
}

// openDevice opens /dev/kvm, with advice where it cannot.
func openDevice() (int, error) {
	dev, err := unix.Open(devicePath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV):
		return -1, notSupported("no %s: modprobe kvm-amd or kvm-intel; in a VM, let its hypervisor nest", devicePath)
	case errors.Is(err, fs.ErrPermission):
		return -1, notSupported("%s: %v: add the user to group kvm", devicePath, err)
	case err != nil:
		return -1, notSupported("open %s: %v", devicePath, err)
	}
	if v, err := kvm.GetAPIVersion(uintptr(dev)); err != nil || v != apiVersion {
		unix.Close(dev)
		return -1, notSupported("%s speaks version %d, not %d (%v)", devicePath, v, apiVersion, err)
	}
	return dev, nil
}

const apiVersion = 12

func checkExtension(fd int, c kvm.Capability) (int, error) {
	return ioctl(fd, reqCheckExtension, uintptr(c))
}

type trialResult struct {
	deadlineExits bool
	shadowLost    bool
	tscOffset     bool
	tscKHz        uint64
}

// trialCode writes the TSC-deadline MSR and halts, in real mode.
var trialCode = []byte{
	0x66, 0xb9, 0xe0, 0x06, 0x00, 0x00, // mov ecx, 0x6e0
	0x66, 0xb8, 0xff, 0xff, 0xff, 0x7f, // mov eax, 0x7fffffff
	0x66, 0xba, 0xff, 0xff, 0xff, 0x7f, // mov edx, 0x7fffffff
	0x0f, 0x30, // wrmsr
	0xf4, // hlt
}

// trial runs trialCode in a VM of one page.
func trial(dev int, mwait bool) (r trialResult, err error) {
	const gpa, size = 0x1000, 4096
	page, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return r, err
	}
	defer unix.Munmap(page)
	copy(page, trialCode)

	vm, err := createVM(dev, &Support{MWAITQuirk: mwait})
	if err != nil {
		return r, err
	}
	defer unix.Close(vm)
	if err := setSlot(vm, 0, Slot{GPA: gpa, Size: size, HVA: addressOfBytes(page)}); err != nil {
		return r, err
	}
	cpu, err := kvm.CreateVCPU(uintptr(vm), 0)
	if err != nil {
		return r, fmt.Errorf("create vcpu: %w", err)
	}
	defer unix.Close(int(cpu))
	const offset = 1 << 40
	if setTSCOffset(int(cpu), offset) == nil {
		got, err := getTSCOffset(int(cpu))
		r.tscOffset = err == nil && got == offset // some forms of KVM accept it and do not mean it
	}
	if khz, err := kvm.GetTSCKHz(cpu); err == nil {
		r.tscKHz = khz
	}
	pageSize, err := ioctl(dev, reqGetMmapSize, 0)
	if err != nil {
		return r, err
	}
	run, err := mapRunPage(int(cpu), pageSize)
	if err != nil {
		return r, err
	}
	defer unix.Munmap(run.raw)

	var sregs kvm.Sregs
	if err := ioctlPtr(int(cpu), reqGetSregs, &sregs); err != nil {
		return r, err
	}
	sregs.CS.Base, sregs.CS.Selector = 0, 0
	if err := ioctlPtr(int(cpu), reqSetSregs, &sregs); err != nil {
		return r, err
	}
	// The HLT as if an STI were before it, with somebody who wants to know when the guest takes interrupts.
	exit, err := enter(int(cpu), run, kvm.Regs{RIP: gpa + uint64(len(trialCode)-1), RFLAGS: 2 | flagIF}, shadowSTI)
	switch {
	case err != nil:
		return r, err
	case exit == uint32(kvm.EXITIRQWINDOWOPEN):
		r.shadowLost = true
	case exit != uint32(kvm.EXITHLT):
		return r, fmt.Errorf("unexpected exit %s in an interrupt shadow", exitName(exit))
	}
	switch exit, err = enter(int(cpu), run, kvm.Regs{RIP: gpa, RFLAGS: 2}, 0); {
	case err != nil:
		return r, err
	case exit == exitX86WRMSR:
		r.deadlineExits = run.msr().Index == apic.MSRTSCDeadline
	case exit != uint32(kvm.EXITHLT):
		return r, fmt.Errorf("unexpected exit %s", exitName(exit))
	}
	return r, nil
}

const (
	flagIF    = 1 << 9 // RFLAGS
	shadowSTI = 2      // KVM_X86_SHADOW_INT_STI
)

// enter runs the trial's vCPU from regs until it leaves for a reason of its own. With a shadow, it also leaves when it
// can take an interrupt.
func enter(cpu int, run runPage, regs kvm.Regs, shadow uint8) (exit uint32, err error) {
	if err := ioctlPtr(cpu, reqSetRegs, &regs); err != nil {
		return 0, err
	}
	events := &kvm.VCPUEvents{Flags: eventsShadow, I: kvm.Interrupt{Shadow: shadow}}
	if err := ioctlPtr(cpu, reqSetEvents, events); err != nil {
		return 0, err
	}
	run.RequestInterruptWindow = min(shadow, 1)
	for range 100 {
		switch errno := ioctlRun(cpu); errno {
		case unix.EINTR, unix.EAGAIN:
		case 0:
			return run.ExitReason, nil
		default:
			return 0, errno
		}
	}
	return 0, errors.New("interrupted all the time")
}
