// Package apic is the interrupt hardware of a guest in user space: a local APIC for each vCPU and one IOAPIC,
// connected by interrupt messages.
//
// It exists because a stock KVM gives no exit when a guest writes the interrupt command register of an
// in-kernel local APIC, so an IPI to a vCPU on another server could not be seen. The behaviour is that of
// the Intel SDM, volume 3, chapter "Advanced Programmable Interrupt Controller" (AMD APM, volume 2, chapter
// 16), as far as the two agree, and of the 82093AA data sheet (with the later EOI register) for the IOAPIC.
//
// # Who may call what
//
// A LAPIC belongs to one thread, its vCPU's: registers, timer, Pending, Acknowledge, Sync. Any thread may call
// Post, PostNMI, PostINIT, PostSIPI, Matches and ID. An IOAPIC may be called from any thread.
//
// # Time
//
// Nothing here reads a clock. Time is the guest's TSC, handed in as now; NextDeadline says in the same
// unit when Advance wants to be called next.
//
// # The vCPU's loop
//
//	for {
//		ev := lapic.Sync()                 // fold what others posted; apply ev.INIT, ev.SIPI, ev.NMI in this order
//		lapic.Advance(tsc)                 // timer
//		if v, ok := lapic.Pending(); ok && guestCanTakeIt {
//			lapic.Acknowledge(v)           // IRR -> ISR
//			// KVM_INTERRUPT v
//		}
//		// KVM_RUN, with the kick signal blocked outside of it; arm the timer for lapic.NextDeadline
//	}
//
// # Not supported
//
//   - x2APIC mode, and APIC IDs over 254;
//   - relocation of the register page away from 0xfee00000;
//   - a change of the APIC ID by the guest (the register ignores writes);
//   - SMI and remote-read messages, ExtINT and the 8259 pair behind LINT0: dropped;
//   - sources for LINT0, LINT1, the thermal and the performance-counter LVT: the registers are there, nothing
//     drives them (NMIs come as messages);
//   - suppression of EOI broadcasts, CMCI, the AMD extended register space: not announced;
//   - focus processor checking, bus arbitration and the APIC bus's delivery status (always idle);
//   - lowest-priority arbitration by priority: see [Group.Deliver] for what happens instead;
//   - a retry of messages that nobody takes; a level-triggered pin whose message was for no LAPIC keeps its remote
//     IRR until its entry is made edge-triggered;
//   - IOAPIC: polarity (a pin is asserted or it is not), and holding an edge that comes while the entry is
//     masked (it is lost, as in the 82093AA).
package apic
