package kvmhost

import (
	"fmt"
	"strings"

	"github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"
)

// ExitError says that a vCPU cannot go on: the guest has crashed, or KVM has failed.
type ExitError struct {
	VCPU   int
	APICID uint32
	Reason string
	Errno  unix.Errno // where a system call failed
	Regs   kvm.Regs
	Sregs  kvm.Sregs
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("kvmhost: vcpu %d: %s at rip %#x (rsp %#x, cr2 %#x)", e.VCPU, e.Reason, e.Regs.RIP, e.Regs.RSP, e.Sregs.CR2)
}

func (e *ExitError) Unwrap() error {
	if e.Errno != 0 {
		return e.Errno
	}
	return nil
}

// Dump is all registers, for a log.
func (e *ExitError) Dump() string {
	r, s := &e.Regs, &e.Sregs
	var b strings.Builder
	fmt.Fprintf(&b, "vcpu %d (apic id %d): %s\n", e.VCPU, e.APICID, e.Reason)
	fmt.Fprintf(&b, "rip %016x  rsp %016x  rflags %016x\n", r.RIP, r.RSP, r.RFLAGS)
	fmt.Fprintf(&b, "rax %016x  rbx %016x  rcx %016x  rdx %016x\n", r.RAX, r.RBX, r.RCX, r.RDX)
	fmt.Fprintf(&b, "rsi %016x  rdi %016x  rbp %016x\n", r.RSI, r.RDI, r.RBP)
	fmt.Fprintf(&b, "r8  %016x  r9  %016x  r10 %016x  r11 %016x\n", r.R8, r.R9, r.R10, r.R11)
	fmt.Fprintf(&b, "r12 %016x  r13 %016x  r14 %016x  r15 %016x\n", r.R12, r.R13, r.R14, r.R15)
	fmt.Fprintf(&b, "cr0 %016x  cr2 %016x  cr3 %016x  cr4 %016x  cr8 %x  efer %x\n", s.CR0, s.CR2, s.CR3, s.CR4, s.CR8, s.EFER)
	fmt.Fprintf(&b, "cs %04x base %x  ss %04x  tr %04x base %x  gdt %x/%x  idt %x/%x\n",
		s.CS.Selector, s.CS.Base, s.SS.Selector, s.TR.Selector, s.TR.Base, s.GDT.Base, s.GDT.Limit, s.IDT.Base, s.IDT.Limit)
	return b.String()
}

// describe reads the registers for an error.
func (v *vcpu) describe(reason string) *ExitError {
	e := &ExitError{VCPU: v.index, APICID: v.apicID, Reason: reason}
	// Best effort: the reason is what matters.
	_ = ioctlPtr(v.fd, reqGetRegs, &e.Regs)
	_ = ioctlPtr(v.fd, reqGetSregs, &e.Sregs)
	return e
}

// exitError explains the exit that the loop cannot handle.
func (v *vcpu) exitError() error {
	d := &v.run.Data
	switch reason := v.run.ExitReason; reason {
	case uint32(kvm.EXITSHUTDOWN):
		e := v.describe("triple fault (KVM_EXIT_SHUTDOWN)")
		if e.Regs.RIP == v.resetRegs.RIP && e.Regs.RSP == 0 {
			e.Reason += ", registers lost (SVM resets the vCPU)"
		}
		return e
	case uint32(kvm.EXITINTERNALERROR):
		return v.describe(internalError(d))
	case uint32(kvm.EXITFAILENTRY):
		return v.describe(fmt.Sprintf("entry refused by the processor, reason %#x (KVM_EXIT_FAIL_ENTRY): is another hypervisor active?", d[0]))
	case uint32(kvm.EXITUNKNOWN):
		return v.describe(fmt.Sprintf("unknown exit of the processor, reason %#x (KVM_EXIT_UNKNOWN)", d[0]))
	case exitSystemEvent:
		return v.describe(fmt.Sprintf("system event %d (KVM_EXIT_SYSTEM_EVENT)", uint32(d[0])))
	default:
		return v.describe("unhandled exit " + exitName(reason))
	}
}

// internalError explains KVM_EXIT_INTERNAL_ERROR: suberror and count in the first word, data behind it.
func internalError(d *[32]uint64) string {
	sub, n := uint32(d[0]), min(d[0]>>32, 16)
	names := map[uint32]string{1: "emulation failed", 2: "simultaneous exceptions", 3: "unexpected vector on delivery", 4: "unexpected exit reason"}
	name, ok := names[sub]
	if !ok {
		name = "suberror"
	}
	s := fmt.Sprintf("KVM internal error %d (%s)", sub, name)
	if sub == 1 && n >= 1 && d[1]&1 != 0 { // flags: the instruction's bytes follow
		size := min(d[2]&0xff, 15)
		var code []byte
		for i := range size {
			word := d[2+(i+1)/8]
			code = append(code, byte(word>>((i+1)%8*8)))
		}
		return fmt.Sprintf("%s, instruction % x", s, code)
	}
	return fmt.Sprintf("%s, data %x", s, d[1:1+n])
}

// exitName is the number with its name, where it has one.
func exitName(reason uint32) string {
	names := map[uint32]string{
		1: "EXCEPTION", 2: "IO", 3: "HYPERCALL", 4: "DEBUG", 5: "HLT", 6: "MMIO", 7: "IRQ_WINDOW_OPEN", 8: "SHUTDOWN",
		9: "FAIL_ENTRY", 10: "INTR", 11: "SET_TPR", 12: "TPR_ACCESS", 16: "NMI", 17: "INTERNAL_ERROR",
		24: "SYSTEM_EVENT", 26: "IOAPIC_EOI", 27: "HYPERV", 29: "X86_RDMSR", 30: "X86_WRMSR", 31: "DIRTY_RING_FULL",
		32: "AP_RESET_HOLD", 33: "X86_BUS_LOCK", 34: "XEN", 37: "NOTIFY", 39: "MEMORY_FAULT",
	}
	if n, ok := names[reason]; ok {
		return fmt.Sprintf("%d (KVM_EXIT_%s)", reason, n)
	}
	return fmt.Sprint(reason)
}
