// Package kvmhost runs a node's share of a virtual machine with KVM: its vCPUs, their local APICs, and what
// they see of devices.
//
// # No in-kernel interrupt controller
//
// A stock KVM gives no exit when a guest sends an inter-processor interrupt through an in-kernel local APIC, so an
// IPI to a vCPU on another server could not be seen. Here the local APICs are in user space (package apic).
// KVM_CREATE_IRQCHIP is never called; interrupts go in by KVM_INTERRUPT when the guest can take one, HLT, INIT
// and the startup IPI are handled here, and the TSC-deadline MSR reaches us through an MSR filter.
//
// # Threads
//
// Each vCPU has an OS thread of its own. Hot exits are handled on it, in place. All that other threads may do
// to a vCPU is to set bits in its posted-interrupt words and to kick it: a real-time signal that is blocked but
// inside KVM_RUN and the sleep of a halted vCPU, so it can neither be lost nor run a handler. The same signal
// comes from the vCPU's POSIX timer, which is the local APIC's timer while the guest runs. The loop allocates
// nothing and takes no lock.
//
// A thread in KVM_RUN is in a system call for the Go scheduler, which gives its processor (P) to others after some
// microseconds. Leave GOMAXPROCS larger than the threads that poll, or vCPUs wait for a P after each exit.
//
// # Guest memory
//
// Slots are addresses in this process; nothing here reads or writes them. A vCPU that touches a page that
// userfaultfd has to supply blocks in KVM_RUN; kicks interrupt that wait.
//
// Where KVM translates by shadow page tables, it does not see that another server writes a page table. Each thread that
// takes pages from the guest then has a [Snooper], which makes KVM forget what it derived from a page.
//
// # Time
//
// A guest's TSC is its server's plus an offset, the same for all vCPUs of a node. Deadlines are compared with
// it and turned into nanoseconds by the TSC's real frequency, whatever the guest believes that to be.
//
// # Not supported
//
//   - x2APIC mode; nested virtualization, SGX, the PMU, machine checks in the guest: hidden by the CPUID policy;
//   - SMM for the guest; hypercalls; a guest's own breakpoints are KVM's business;
//   - saving and restoring a vCPU.
package kvmhost
