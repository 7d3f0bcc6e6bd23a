package kvmhost

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"

	"ironspan/kvmhost/apic"
	"ironspan/kvmhost/boot"
	"ironspan/kvmhost/bus"
)

// Slot is a piece of guest memory: Size bytes from guest-physical GPA are the process's memory at HVA. All are
// multiples of 4096. The memory must stay mapped until Close.
type Slot struct {
	GPA  uint64
	Size uint64
	HVA  uintptr
}

// VCPUConfig describes one of this node's vCPUs.
type VCPUConfig struct {
	APICID uint32
	CPU    int  // host CPU to stay on, -1 for any
	BSP    bool // bootstrap processor: one in the whole VM
}

// Remote is what lies on other nodes. Methods are called on vCPU threads. A PortIO or MMIO that waits for an
// answer must return when the VM is stopped. The data belongs to the caller after the return.
type Remote interface {
	// Interrupt delivers a message on every other node that may have a destination.
	Interrupt(m apic.Message)
	// PortIO and MMIO perform an access on the node whose device it is; false: there is none. Reads fill data.
	PortIO(vcpu int, port uint16, data []byte, write bool) bool
	MMIO(vcpu int, gpa uint64, data []byte, write bool) bool
	// EOI tells the IOAPIC, on its node, that a level-triggered interrupt has ended.
	EOI(vector uint8)
}

// Config is this node's share of a VM.
type Config struct {
	Slots []Slot
	VCPUs []VCPUConfig
	// Bus has this node's devices. It may be filled after New, until Run. Nil: no devices.
	Bus *bus.Bus
	// EOI is told of the end of level-triggered interrupts where the IOAPIC is on this node. Nil: Remote is.
	EOI func(vector uint8)
	// Remote reaches the other nodes. Nil: there are none, and what no local device claims reads as all ones.
	Remote Remote
	// CPUID is what IntersectCPUID made of all nodes' HostCPUID. Nil: this server's own.
	CPUID    CPUIDSet
	Topology Topology
	// TSCKHz is the real frequency of this server's TSC; 0: as KVM says.
	TSCKHz uint64
	// TSCOffset makes the guest's TSC: host TSC + TSCOffset, on each vCPU.
	TSCOffset int64
	// Stretch multiplies the distance of the guest's TSC deadlines; zero: not. See apic.Config.
	Stretch apic.Ratio
	// Idle is told, on a vCPU's thread, when the last of this node's vCPUs goes to sleep in a halt, and when the
	// first wakes again. It must be quick. Nil: nobody is.
	Idle func(idle bool)
	// Awake is where this node's vCPUs are counted that are not asleep, in a halt or before their startup IPI, for others
	// to read. Nil: for nobody.
	Awake *atomic.Int32
	// Snoopers is how many threads call Snooper.Forget, each with one of its own. They reach the same RAM as Slots,
	// through ServiceSlots: other mappings, which never fault. 0 where the VM is on this server alone, or
	// Support.Translation is Nested.
	Snoopers     int
	ServiceSlots []Slot
	// HaltPoll is how long a halted vCPU looks for work before its thread sleeps.
	HaltPoll time.Duration
}

// VM is one node's share of a virtual machine: a KVM VM with its vCPUs and their local APICs.
//
// Its life: New, SetBootState for the vCPUs that start by themselves, Run, Stop from anywhere, Close.
type VM struct {
	fd     int
	vcpus  []*vcpu
	snoop  *snoopMemory
	snoops []*Snooper
	lapics apic.Group
	bus    *bus.Bus
	eoi    func(uint8)
	remote Remote
	kickFn func(int)
	idle   func(bool)
	awake  *atomic.Int32 // see Config.Awake

	tscKHz    uint64
	tscOffset atomic.Int64 // guest TSC less host TSC, as wanted; each vCPU's thread follows
	haltPoll  int64        // ns

	shadowQuirk bool // Support.ShadowQuirk

	mu      sync.Mutex // guards what follows
	started bool
	closed  bool
	stopped atomic.Bool // set once, before the vCPUs' stop bits
}

// lapicBusHz is the input clock of the LAPIC timer's counting modes. Guests measure it.
const lapicBusHz = 1_000_000_000

const (
	capMSRExits   = 188 // KVM_CAP_X86_USER_SPACE_MSR
	capMSRFilter  = 189 // KVM_CAP_X86_MSR_FILTER
	capNoExits    = 143 // KVM_CAP_X86_DISABLE_EXITS
	capEnforcePV  = 190 // KVM_CAP_ENFORCE_PV_FEATURE_CPUID
	pmuCapDisable = 1   // KVM_PMU_CAP_DISABLE
	noExitMWAIT   = 1   // KVM_X86_DISABLE_EXITS_MWAIT

	msrExitInvalid, msrExitUnknown, msrExitFilter = 1, 2, 4 // KVM_MSR_EXIT_REASON_*

	msrMTRRDefType = 0x2ff
	mtrrWriteBack  = 1<<11 | 6 // enabled, default type write-back: what firmware leaves for RAM

	// What VMX without "unrestricted guest" keeps in guest memory: between IOAPIC and LAPIC, clear of RAM.
	identityMapAddr = 0xfeffc000
	tssAddr         = 0xfeffd000
)

var reqGetMmapSize = kvm.IIO(0x04)

// New creates the VM and its vCPUs. An error that matches [ErrNotSupported] means that this server cannot run
// any.
func New(c Config) (_ *VM, err error) {
	support, err := Probe()
	if err != nil {
		return nil, err
	}
	if err := c.check(support); err != nil {
		return nil, err
	}
	if c.CPUID == nil {
		if c.CPUID, err = HostCPUID(); err != nil {
			return nil, err
		}
	}
	if c.TSCKHz == 0 {
		c.TSCKHz = support.TSCKHz
	}
	if c.TSCKHz == 0 {
		return nil, errors.New("kvmhost: KVM does not know the frequency of the TSC: give it")
	}
	dev, err := openDevice()
	if err != nil {
		return nil, err
	}
	defer unix.Close(dev)
	runSize, err := ioctl(dev, reqGetMmapSize, 0)
	if err != nil {
		return nil, fmt.Errorf("kvmhost: size of kvm_run: %w", err)
	}

	vm := &VM{fd: -1, bus: c.Bus, eoi: c.EOI, remote: c.Remote, tscKHz: c.TSCKHz, haltPoll: int64(c.HaltPoll),
		shadowQuirk: support.ShadowQuirk}
	vm.kickFn = vm.kick
	if vm.idle = c.Idle; vm.idle == nil {
		vm.idle = func(bool) {}
	}
	if vm.awake = c.Awake; vm.awake == nil {
		vm.awake = new(atomic.Int32)
	}
	vm.awake.Store(int32(len(c.VCPUs)))
	vm.tscOffset.Store(c.TSCOffset)
	if vm.bus == nil {
		vm.bus = bus.New()
	}
	if vm.eoi == nil && vm.remote != nil {
		vm.eoi = vm.remote.EOI
	}
	defer func() {
		if err != nil {
			vm.Close()
		}
	}()
	if vm.fd, err = createVM(dev, support); err != nil {
		return nil, fmt.Errorf("kvmhost: %w", err)
	}
	for i, s := range c.Slots {
		if err := setSlot(vm.fd, i, s); err != nil {
			return nil, fmt.Errorf("kvmhost: memory slot %d (%#x, %d KiB): %w", i, s.GPA, s.Size>>10, err)
		}
	}
	for i, vc := range c.VCPUs {
		v, err := newVCPU(vm, i, vc, c, runSize)
		if err != nil {
			return nil, fmt.Errorf("kvmhost: vcpu %d: %w", i, err)
		}
		vm.vcpus = append(vm.vcpus, v)
		vm.lapics = append(vm.lapics, v.lapic)
	}
	if c.Snoopers == 0 {
		return vm, nil
	}
	if vm.snoop, err = newSnoopMemory(vm.fd, c.Snoopers, c.ServiceSlots); err != nil {
		return nil, fmt.Errorf("kvmhost: snoopers: %w", err)
	}
	for i := range c.Snoopers {
		s, err := newSnooper(vm.fd, vm.snoop, i, len(c.VCPUs)+i, c.CPUID.forVCPU(uint32(i), c.Topology), runSize)
		if err != nil {
			return nil, fmt.Errorf("kvmhost: snooper %d: %w", i, err)
		}
		vm.snoops = append(vm.snoops, s)
	}
	return vm, nil
}

// Snooper returns the i-th of Config.Snoopers. It is good until Close.
func (vm *VM) Snooper(i int) *Snooper { return vm.snoops[i] }

func (c *Config) check(s *Support) error {
	if n := len(c.VCPUs) + c.Snoopers; n > s.MaxVCPUs {
		return fmt.Errorf("kvmhost: %d vcpus, %d of them for shards, KVM takes %d", n, c.Snoopers, s.MaxVCPUs)
	}
	if c.Snoopers > 0 && !s.Snoop {
		return notSupported("this KVM has no system management mode, so it cannot be told that another server changes page tables")
	}
	if c.TSCOffset != 0 && !s.TSCOffset {
		return notSupported("this KVM gives guests the host's TSC: it can be the only server of a VM, or one whose TSC offset is 0")
	}
	if len(c.Slots) > s.MaxSlots {
		return fmt.Errorf("kvmhost: %d memory slots, KVM takes %d", len(c.Slots), s.MaxSlots)
	}
	seen := map[uint32]int{}
	for i, v := range c.VCPUs {
		if j, dup := seen[v.APICID]; dup {
			return fmt.Errorf("kvmhost: vcpus %d and %d have the same apic id %d", j, i, v.APICID)
		}
		seen[v.APICID] = i
	}
	for i, s := range c.Slots {
		if s.Size == 0 || s.Size%4096 != 0 || s.GPA%4096 != 0 || s.HVA%4096 != 0 || s.HVA == 0 || s.GPA+s.Size < s.GPA {
			return fmt.Errorf("kvmhost: memory slot %d (%#x, %d bytes): give whole pages", i, s.GPA, s.Size)
		}
		if s.GPA < apic.LAPICBase+apic.LAPICSize && apic.LAPICBase < s.GPA+s.Size {
			return fmt.Errorf("kvmhost: memory slot %d (%#x, %d bytes) covers the local APIC", i, s.GPA, s.Size)
		}
	}
	return nil
}

// createVM creates a VM without an interrupt controller, with MSR exits and the filter.
func createVM(dev int, s *Support) (int, error) {
	n, err := kvm.CreateVM(uintptr(dev))
	for errors.Is(err, unix.EINTR) { // by a signal, as of Go's preemption, while KVM takes the locks of all mappings
		n, err = kvm.CreateVM(uintptr(dev))
	}
	if err != nil {
		return -1, fmt.Errorf("create vm: %w", err)
	}
	fd := int(n)
	fail := func(what string, err error) (int, error) {
		unix.Close(fd)
		return -1, fmt.Errorf("%s: %w", what, err)
	}
	if err := enableCap(fd, capMSRExits, msrExitInvalid|msrExitUnknown|msrExitFilter); err != nil {
		return fail("enable msr exits", err)
	}
	if err := setMSRFilter(fd, []msrRange{{apic.MSRTSCDeadline, 1}, {apic.MSRAPICBase, 1}}); err != nil {
		return fail("set msr filter", err)
	}
	if s.MWAITQuirk {
		if err := enableCap(fd, capNoExits, noExitMWAIT); err != nil {
			return fail("leave mwait to the guest", err)
		}
	}
	if s.PMUControl {
		if err := enableCap(fd, uint32(capPMU), pmuCapDisable); err != nil {
			return fail("switch off the pmu", err)
		}
	}
	// Only VMX uses these two; other forms of KVM may not have them.
	addr := new(uint64)
	*addr = identityMapAddr
	if err := ioctlPtr(fd, reqSetIdentityMap, addr); err != nil && !unsupported(err) {
		return fail("set identity map address", err)
	}
	if err := kvm.SetTSSAddr(uintptr(fd), tssAddr); err != nil && !unsupported(err) {
		return fail("set tss address", err)
	}
	return fd, nil
}

func unsupported(err error) bool {
	return errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.EOPNOTSUPP)
}

func setSlot(vm, number int, s Slot) error {
	return ioctlPtr(vm, reqSetMemory, &kvm.UserspaceMemoryRegion{
		Slot: uint32(number), GuestPhysAddr: s.GPA, MemorySize: s.Size, UserspaceAddr: uint64(s.HVA),
	})
}

// SetBootState gives the registers a vCPU starts with, and makes it start by itself. vCPUs without wait for a
// startup IPI. Before Run.
func (vm *VM) SetBootState(vcpu int, s boot.State) error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vcpu < 0 || vcpu >= len(vm.vcpus) {
		return fmt.Errorf("kvmhost: no vcpu %d", vcpu)
	}
	if vm.started {
		return errors.New("kvmhost: boot state after Run")
	}
	return vm.vcpus[vcpu].setBootState(s)
}

// Run runs the vCPUs, each on a thread of its own, until Stop, the end of ctx, or an error of one of them
// (an [ExitError] where the guest did something that cannot go on). It returns after all threads have left
// their guests: nil after Stop, the context's error after its end. It can be called once.
//
// A thread that KVM cannot get out of the guest, because it waits for a page that nobody supplies and the
// kernel is older than signals in that place (6.3), holds Run up until its userfaultfd is closed.
func (vm *VM) Run(ctx context.Context) error {
	vm.mu.Lock()
	if vm.started || vm.closed {
		vm.mu.Unlock()
		return errors.New("kvmhost: Run twice or after Close")
	}
	vm.started = true
	vm.mu.Unlock()

	defer context.AfterFunc(ctx, vm.Stop)()
	errs := make(chan error, len(vm.vcpus))
	for _, v := range vm.vcpus {
		go func() {
			err := v.thread()
			if err != nil {
				vm.Stop()
			}
			errs <- err
		}()
	}
	var first error
	for range vm.vcpus {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	if first == nil {
		first = ctx.Err()
	}
	return first
}

// Stop makes Run return. It does not wait. Any thread, any number of times, before Run as well.
func (vm *VM) Stop() {
	vm.stopped.Store(true)
	for _, v := range vm.vcpus {
		v.stop()
	}
}

// Stopped says that Stop was called.
func (vm *VM) Stopped() bool { return vm.stopped.Load() }

// Close frees the VM. Run must have returned.
func (vm *VM) Close() error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vm.closed {
		return nil
	}
	vm.closed = true
	var errs []error
	for _, v := range vm.vcpus {
		errs = append(errs, v.close())
	}
	for _, s := range vm.snoops {
		errs = append(errs, s.close())
	}
	if vm.snoop != nil {
		errs = append(errs, vm.snoop.close())
	}
	if vm.fd >= 0 {
		errs = append(errs, unix.Close(vm.fd))
	}
	return errors.Join(errs...)
}

// Deliver sends a message that arose on this node: from a local APIC, an IOAPIC or an MSI. What is not wholly
// for this node goes to Remote too. Any thread. It makes VM an [apic.Router].
func (vm *VM) Deliver(m apic.Message) {
	if rest, forward := vm.lapics.Deliver(m, vm.kickFn); forward && vm.remote != nil {
		vm.remote.Interrupt(rest)
	}
}

// Accept takes a message that another node's Remote.Interrupt sent, and reports whether a vCPU here is its
// destination. Any thread.
func (vm *VM) Accept(m apic.Message) bool { return vm.lapics.Accept(m, vm.kickFn) }

func (vm *VM) kick(i int) { vm.vcpus[i].kick() }

// GuestTSC is the guest's TSC now.
func (vm *VM) GuestTSC() uint64 { return HostTSC() + uint64(vm.tscOffset.Load()) }

// TSCKHz is the frequency at which the guest's TSC really runs.
func (vm *VM) TSCKHz() uint64 { return vm.tscKHz }

// SetTSCOffset changes the guest's TSC. Each vCPU follows when it next leaves the guest, to which it is kicked: for
// so long vCPUs disagree by the change. The guest must not see time run backwards: only ever add, and while it
// runs only less than what two vCPUs can notice. Any thread.
func (vm *VM) SetTSCOffset(offset int64) error {
	if s, err := Probe(); err != nil {
		return err
	} else if offset != 0 && !s.TSCOffset {
		return notSupported("this KVM gives guests the host's TSC")
	}
	vm.tscOffset.Store(offset)
	for _, v := range vm.vcpus {
		v.kick()
	}
	return nil
}
