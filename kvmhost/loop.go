package kvmhost

import (
	"fmt"

	"github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"

	"ironspan/kvmhost/apic"
)

// The run loop. Until it leaves, nothing in here allocates, locks, logs or builds a string.

// loop runs the vCPU until it is stopped or cannot go on.
func (v *vcpu) loop() error {
	for {
		if v.state.And(^uint32(stateInGuest|stateKicked))&stateStop != 0 {
			return nil
		}
		if offset := v.vm.tscOffset.Load(); offset != v.offset {
			if err := v.shiftTSC(offset); err != nil {
				return err
			}
		}
		if ev := v.lapic.Sync(); ev != (apic.Events{}) {
			if errno := v.apply(ev); errno != 0 {
				return v.failed("apply INIT or startup IPI", errno)
			}
		}
		if v.waitSIPI {
			v.pause(false, 0)
			continue
		}
		now := v.now()
		v.lapic.Advance(now)
		vector, pending := v.lapic.Pending()
		if v.halted {
			if !v.nmi && (!pending || v.run.IfFlag == 0) {
				deadline, armed := v.lapic.NextDeadline()
				v.pause(armed && v.run.IfFlag != 0, deadline)
				continue
			}
		}
		if errno := v.inject(vector, pending); errno != 0 {
			return v.failed("inject", errno)
		}
		v.halted = false
		if deadline, armed := v.lapic.NextDeadline(); armed {
			if errno := v.arm(deadline, now); errno != 0 {
				return v.failed("arm timer", errno)
			}
		}
		v.cr8 = uint64(v.lapic.TPR() >> 4)
		v.run.CR8 = v.cr8
		if !v.state.CompareAndSwap(0, stateInGuest) {
			continue
		}
		errno := ioctlRun(v.fd)
		before := v.state.And(^uint32(stateInGuest))
		if cr8 := v.run.CR8; cr8 != v.cr8 {
			v.lapic.SetTPR(uint8(cr8 << 4))
		}
		// exit_reason is stale unless the errno is 0.
		switch errno {
		case 0:
			if before&stateKicked != 0 && takeKick(&v.info) { // or it would end the next entry at once
				v.armedAt = 0
			}
			if fatal := v.exit(v.run.ExitReason); fatal {
				return v.exitError()
			}
		case unix.EINTR:
			v.stats[Interrupted].Add(1)
			if takeKick(&v.info) {
				v.armedAt = 0
			}
		case unix.EAGAIN:
		default:
			if v.vm.Stopped() { // its memory may be on the way out already
				return nil
			}
			return v.runFailed(errno)
		}
	}
}

// apply performs what other processors asked of this one.
func (v *vcpu) apply(ev apic.Events) unix.Errno {
	if ev.INIT {
		v.stats[InitsTaken].Add(1)
		v.waitSIPI, v.halted, v.nmi = true, false, false
	}
	if ev.SIPI && v.waitSIPI {
		v.stats[StartupsTaken].Add(1)
		if errno := v.start(ev.Vector); errno != 0 {
			return errno
		}
		v.waitSIPI = false
	}
	if ev.NMI && !v.waitSIPI {
		v.nmi = true
	}
	return 0
}

// start puts the vCPU at the first instruction of a page below 1 MiB, in real mode, as after INIT and SIPI.
func (v *vcpu) start(page uint8) unix.Errno {
	// A port or MMIO instruction that KVM has half done would be finished on top of the new registers.
	v.run.ImmediateExit = 1
	errno := ioctlRun(v.fd)
	v.run.ImmediateExit = 0
	if errno != 0 && errno != unix.EINTR && errno != unix.EAGAIN {
		return errno
	}
	regs, sregs := v.resetRegs, v.resetSregs
	regs.RIP = 0
	sregs.CS.Selector, sregs.CS.Base = uint16(page)<<8, uint64(page)<<12
	for _, err := range [...]error{
		ioctlPtr(v.fd, reqSetEvents, &kvm.VCPUEvents{Flags: eventsNMI | eventsShadow}),
		ioctlPtr(v.fd, reqSetDebugRegs, &kvm.DebugRegs{DR6: 0xffff0ff0, DR7: 0x400}),
		ioctlPtr(v.fd, reqSetSregs, &sregs),
		ioctlPtr(v.fd, reqSetRegs, &regs),
	} {
		if err != nil {
			return err.(unix.Errno)
		}
	}
	return 0
}

const eventsNMI, eventsShadow = 1, 4 // KVM_VCPUEVENT_VALID_NMI_PENDING, _SHADOW

// inject hands the guest an NMI and the highest vector it can take now, and asks for an exit when it can take
// the next one.
func (v *vcpu) inject(vector uint8, pending bool) unix.Errno {
	if v.nmi {
		v.nmi = false
		v.stats[NMIsInjected].Add(1)
		if errno := ioctlNMI(v.fd); errno != 0 {
			return errno
		}
	}
	if pending && v.run.ReadyForInterruptInjection != 0 {
		v.restless = v.vm.shadowQuirk && !v.halted
		v.lapic.Acknowledge(vector)
		v.vector = uint32(vector)
		v.stats[Injected].Add(1)
		if errno := ioctlInterrupt(v.fd, &v.vector); errno != 0 {
			return errno
		}
		v.run.ReadyForInterruptInjection = 0 // KVM has room for one
		_, pending = v.lapic.Pending()
	}
	v.run.RequestInterruptWindow = 0
	if pending {
		v.run.RequestInterruptWindow = 1
	}
	return 0
}

// arm sets the alarm for a deadline. An alarm that rings earlier is left to do so: the loop sets it again then,
// and most deadlines are pushed out again and again before they are reached.
func (v *vcpu) arm(deadline, now uint64) unix.Errno {
	if v.armedAt != 0 && v.armedAt <= deadline {
		return 0
	}
	v.armedAt = deadline
	v.stats[AlarmsSet].Add(1)
	return v.alarm.set(TSCToNs(deadline-min(now, deadline), v.vm.tscKHz))
}

// pause waits for a kick, with a deadline until that: busily for a short time, then asleep.
func (v *vcpu) pause(timed bool, deadline uint64) {
	if v.vm.haltPoll > 0 && v.poll(timed, deadline) {
		return
	}
	if !v.state.CompareAndSwap(0, stateInGuest) {
		return
	}
	ns := int64(1 << 62)
	if timed {
		now := v.now()
		if now >= deadline {
			return
		}
		ns = TSCToNs(deadline-now, v.vm.tscKHz)
	}
	v.sleep = unix.NsecToTimespec(ns)
	v.stats[Sleeps].Add(1)
	if v.vm.awake.Add(-1) == 0 {
		v.vm.idle(true)
	}
	if awaitKick(&v.info, &v.sleep) {
		v.armedAt = 0
	}
	if v.vm.awake.Add(1) == 1 {
		v.vm.idle(false)
	}
}

// poll looks for a kick or the deadline until halt polling is over, and reports whether there was one. Kicks
// need no signal meanwhile.
func (v *vcpu) poll(timed bool, deadline uint64) bool {
	start := v.now()
	span := uint64(v.vm.haltPoll) * v.vm.tscKHz / 1_000_000
	for now := start; now-start < span; now = v.now() {
		if v.state.Load() != 0 || timed && now >= deadline {
			return true
		}
	}
	return false
}

// shiftTSC follows a new offset of the TSC. An alarm that is set is for another time now.
func (v *vcpu) shiftTSC(offset int64) error {
	if err := setTSCOffset(v.fd, offset); err != nil {
		return fmt.Errorf("kvmhost: vcpu %d: set tsc offset: %w", v.index, err)
	}
	v.offset, v.armedAt = offset, 0
	return nil
}

// Exit reasons that gokvm does not name (linux/kvm.h).
const (
	exitSystemEvent = 24
	exitX86RDMSR    = 29
	exitX86WRMSR    = 30
)

// exit handles an exit. True ends the vCPU.
func (v *vcpu) exit(reason uint32) (fatal bool) {
	switch reason {
	case uint32(kvm.EXITIO):
		v.stats[PortIO].Add(1)
		v.portIO(v.run.io())
	case uint32(kvm.EXITMMIO):
		v.mmio(v.run.mmio())
	case uint32(kvm.EXITHLT):
		v.stats[Halts].Add(1)
		// The interrupt may have come between STI and HLT: let the guest look for work once more before it sleeps. Real
		// processors, too, end a HLT for reasons of their own, as after an SMI.
		v.halted = !v.restless || v.run.IfFlag == 0
		v.restless = false
	case uint32(kvm.EXITIRQWINDOWOPEN):
		v.stats[Windows].Add(1)
	case exitX86RDMSR:
		v.stats[MSRReads].Add(1)
		v.readMSR(v.run.msr())
	case exitX86WRMSR:
		v.stats[MSRWrites].Add(1)
		v.writeMSR(v.run.msr())
	case uint32(kvm.EXITSETTPR):
		v.stats[SetTPRs].Add(1) // the loop has taken CR8 already
	case uint32(kvm.EXITINTR):
		v.stats[Interrupted].Add(1)
	default:
		return true
	}
	return false
}

// portIO performs the accesses of an IN, OUT, INS or OUTS, one after the other: Count of Size bytes each.
func (v *vcpu) portIO(io *ioExit) {
	size, count := uint64(io.Size), uint64(io.Count)
	if io.Offset > uint64(len(v.run.raw)) || size*count > uint64(len(v.run.raw))-io.Offset {
		return // KVM never says so
	}
	data := v.run.raw[io.Offset : io.Offset+size*count]
	write := io.Direction == kvm.EXITIOOUT
	for ; count > 0; count-- {
		v.port(io.Port, data[:size], write)
		data = data[size:]
	}
}

func (v *vcpu) port(port uint16, data []byte, write bool) {
	if write && v.vm.bus.WritePort(port, data) || !write && v.vm.bus.ReadPort(port, data) {
		return
	}
	if v.vm.remote != nil {
		v.stats[RemoteIO].Add(1)
		if !v.vm.remote.PortIO(v.index, port, data, write) && !write {
			fillOnes(data)
		}
	}
}

// mmio performs a memory access that hit no slot: up to 8 bytes; KVM splits what is larger or crosses a page.
func (v *vcpu) mmio(m *mmioExit) {
	data, write := m.Data[:min(m.Len, 8)], m.IsWrite != 0
	if m.Addr-apic.LAPICBase < apic.LAPICSize {
		v.stats[LAPICAccesses].Add(1)
		v.lapicAccess(m.Addr-apic.LAPICBase, data, write)
		return
	}
	v.stats[MMIO].Add(1)
	if write && v.vm.bus.WriteMMIO(m.Addr, data) || !write && v.vm.bus.ReadMMIO(m.Addr, data) {
		return
	}
	if v.vm.remote != nil {
		v.stats[RemoteMMIO].Add(1)
		if !v.vm.remote.MMIO(v.index, m.Addr, data, write) && !write {
			fillOnes(data)
		}
	}
}

// lapicAccess stays on this thread: an IPI is a post into its destinations, nothing more.
func (v *vcpu) lapicAccess(off uint64, data []byte, write bool) {
	now := v.now()
	if !write {
		v.lapic.Read(now, off, data)
		return
	}
	if vector, broadcast := v.lapic.Write(now, off, data); broadcast && v.vm.eoi != nil {
		v.vm.eoi(vector)
	}
}

// readMSR answers an MSR that the filter keeps from KVM, or that KVM does not know: the LAPIC's; the rest
// faults, which is how guests find out that there is none.
func (v *vcpu) readMSR(m *msrExit) {
	value, ok := v.lapic.ReadMSR(m.Index)
	m.Data, m.Error = value, 0
	if !ok {
		m.Error = 1
	}
}

func (v *vcpu) writeMSR(m *msrExit) {
	m.Error = 0
	if !v.lapic.WriteMSR(v.now(), m.Index, m.Data) {
		m.Error = 1
	}
}

func fillOnes(data []byte) {
	for i := range data {
		data[i] = 0xff
	}
}

// runFailed explains an error of KVM_RUN.
func (v *vcpu) runFailed(errno unix.Errno) error {
	const exitMemoryFault = 39 // comes with EFAULT on newer kernels: flags, address, size
	if errno == unix.EFAULT && v.run.ExitReason == exitMemoryFault {
		return v.failed(fmt.Sprintf("KVM_RUN: no memory behind guest address %#x", v.run.Data[1]), errno)
	}
	return v.failed("KVM_RUN", errno)
}

// failed is the error for a system call that should not fail.
func (v *vcpu) failed(what string, errno unix.Errno) error {
	e := v.describe(fmt.Sprintf("%s: %v", what, errno))
	e.Errno = errno
	return e
}
