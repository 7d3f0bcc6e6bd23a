package kvmhost

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"

	"github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"

	"ironspan/kvmhost/apic"
	"ironspan/kvmhost/boot"
)

// Bits of vcpu.state.
//
// Invariant: the vCPU's thread alone sets and clears inGuest and clears kicked; anybody sets kicked and stop.
// A thread enters the guest, or sleeps, only by changing the word from 0 to inGuest, in one step. So a kick
// either comes before that, and the thread looks at its work again instead, or it finds inGuest and sends
// the signal, which is blocked until KVM_RUN or the wait takes it. Either way it is not lost.
const (
	stateInGuest = 1 << iota // in KVM_RUN or asleep: a kick needs the signal
	stateKicked
	stateStop
)

// vcpu is one virtual CPU. Everything but shared and the LAPIC's posted part belongs to its thread.
type vcpu struct {
	fd    int
	index int
	run   runPage
	vm    *VM
	lapic *apic.LAPIC

	shared

	offset   int64 // guest TSC less host TSC, as last told to KVM
	waitSIPI bool  // waits for a startup IPI
	halted   bool
	restless bool   // took an interrupt while it ran, and has not halted since: see Support.ShadowQuirk
	nmi      bool   // an NMI is to be injected
	cr8      uint64 // as last told to KVM
	vector   uint32 // argument of KVM_INTERRUPT

	alarm   alarm
	armedAt uint64 // guest TSC that the alarm is set for; 0: it is not running
	sleep   unix.Timespec
	info    sigInfo

	cpu    int // host CPU, or -1
	apicID uint32
	base   uint64 // APIC base MSR after reset

	resetRegs  kvm.Regs // after power-up
	resetSregs kvm.Sregs

	stats counters
}

// shared is what other threads write, on cache lines of its own.
type shared struct {
	_     [64]byte
	state atomic.Uint32
	tid   atomic.Int32  // thread to signal
	kicks atomic.Uint64 // signals sent to it
	_     [64]byte
}

func newVCPU(vm *VM, index int, vc VCPUConfig, c Config, runSize int) (_ *vcpu, err error) {
	v := &vcpu{fd: -1, index: index, vm: vm, cpu: vc.CPU, apicID: vc.APICID, waitSIPI: true}
	v.lapic, err = apic.NewLAPIC(apic.Config{
		ID: vc.APICID, BSP: vc.BSP, TSCHz: vm.tscKHz * 1000, BusHz: lapicBusHz, Router: vm, Stretch: c.Stretch,
	})
	if err != nil {
		return nil, err
	}
	fd, err := kvm.CreateVCPU(uintptr(vm.fd), index)
	if err != nil {
		return nil, fmt.Errorf("create: %w", err)
	}
	v.fd = int(fd)
	defer func() {
		if err != nil {
			v.close()
		}
	}()
	if v.run, err = mapRunPage(v.fd, runSize); err != nil {
		return nil, err
	}
	cpuid := c.CPUID.forVCPU(vc.APICID, c.Topology)
	if err := setCPUID(v.fd, cpuid.entries()); err != nil {
		return nil, fmt.Errorf("set cpuid: %w", err)
	}
	if err := setSignalMask(v.fd, ^sigBit(kickSignal)); err != nil {
		return nil, fmt.Errorf("set signal mask: %w", err)
	}
	// To 0 as well: KVM starts a vCPU's TSC at 0 otherwise.
	v.offset = c.TSCOffset
	if err := setTSCOffset(v.fd, v.offset); err != nil {
		return nil, fmt.Errorf("set tsc offset: %w", err)
	}
	// KVM's paravirtual MSRs share pages with the kernel; without this it takes them though CPUID has none.
	if err := enableCap(v.fd, capEnforcePV, 1); err != nil {
		return nil, fmt.Errorf("hide paravirtual features: %w", err)
	}
	if f := cpuid.find(leafFeatures, 0); f != nil && f.EDX&(1<<12) != 0 {
		if err := setMSR(v.fd, msrMTRRDefType, mtrrWriteBack); err != nil {
			return nil, fmt.Errorf("set default memory type: %w", err)
		}
	}
	return v, v.readReset(vc.BSP, cpuid)
}

// readReset notes the registers after power-up, as KVM has them, for INIT.
func (v *vcpu) readReset(bsp bool, cpuid CPUIDSet) error {
	if err := ioctlPtr(v.fd, reqGetRegs, &v.resetRegs); err != nil {
		return fmt.Errorf("get registers: %w", err)
	}
	if err := ioctlPtr(v.fd, reqGetSregs, &v.resetSregs); err != nil {
		return fmt.Errorf("get special registers: %w", err)
	}
	if f := cpuid.find(leafFeatures, 0); f != nil {
		v.resetRegs.RDX = uint64(f.EAX) // family, model, stepping
	}
	// KVM takes each node's first vCPU for the bootstrap processor.
	base, _ := v.lapic.ReadMSR(apic.MSRAPICBase)
	v.base = base
	v.resetSregs.ApicBase = base
	if err := ioctlPtr(v.fd, reqSetSregs, &v.resetSregs); err != nil {
		return fmt.Errorf("set special registers: %w", err)
	}
	return nil
}

func (v *vcpu) setBootState(s boot.State) error {
	s.Sregs.ApicBase = v.base
	if err := ioctlPtr(v.fd, reqSetSregs, &s.Sregs); err != nil {
		return fmt.Errorf("kvmhost: vcpu %d: set special registers: %w", v.index, err)
	}
	if err := ioctlPtr(v.fd, reqSetRegs, &s.Regs); err != nil {
		return fmt.Errorf("kvmhost: vcpu %d: set registers: %w", v.index, err)
	}
	v.waitSIPI = false
	return nil
}

// kick makes the vCPU look at its posted work soon. Any thread.
func (v *vcpu) kick() {
	if v.state.Or(stateKicked)&(stateInGuest|stateKicked) == stateInGuest {
		v.signal()
	}
}

// stop makes the vCPU leave for good. Any thread.
func (v *vcpu) stop() {
	if v.state.Or(stateStop|stateKicked)&(stateInGuest|stateKicked) == stateInGuest {
		v.signal()
	}
}

// signal interrupts the thread. The only error there can be is that it has ended.
func (v *vcpu) signal() {
	v.kicks.Add(1)
	unix.Tgkill(pid, int(v.tid.Load()), kickSignal)
}

var pid = os.Getpid()

// now is the guest's TSC.
func (v *vcpu) now() uint64 { return HostTSC() + uint64(v.offset) }

// thread is the life of a vCPU's thread. The goroutine never unlocks it, so the thread, with its signal mask
// and affinity, ends with it.
func (v *vcpu) thread() error {
	runtime.LockOSThread()
	if err := blockKick(); err != nil {
		return fmt.Errorf("kvmhost: vcpu %d: block the kick signal: %w", v.index, err)
	}
	if v.cpu >= 0 {
		var set unix.CPUSet
		set.Set(v.cpu)
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			return fmt.Errorf("kvmhost: vcpu %d: stay on cpu %d: %w: give a cpu this process may use", v.index, v.cpu, err)
		}
	}
	// A halted guest's timer is this thread's timeout; with the slack of the thread that made this one it would be late by
	// that, which is 50 us at least. It is about precision only: errors do not matter.
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	tid := unix.Gettid()
	v.tid.Store(int32(tid))
	if err := v.alarm.open(tid); err != nil {
		return fmt.Errorf("kvmhost: vcpu %d: timer: %w", v.index, err)
	}
	defer v.alarm.close()
	return v.loop()
}

func (v *vcpu) close() error {
	var errs []error
	if v.run.raw != nil {
		errs = append(errs, unix.Munmap(v.run.raw))
		v.run = runPage{}
	}
	if v.fd >= 0 {
		errs = append(errs, unix.Close(v.fd))
		v.fd = -1
	}
	return errors.Join(errs...)
}
