package kvmhost

import "sync/atomic"

// Counter is one of a vCPU's event counts.
type Counter int

// What is counted for each vCPU. The first group are exits by kind.
const (
	PortIO        Counter = iota // exits for port instructions
	MMIO                         // exits for memory outside of slots, but for the next
	LAPICAccesses                // exits for the local APIC's page
	Halts                        // HLT
	Windows                      // the guest can take an interrupt now
	MSRReads                     // RDMSR that user space answers
	MSRWrites                    // WRMSR likewise
	SetTPRs                      // CR8 lowered
	Interrupted                  // KVM_RUN ended by a kick or the alarm

	RemoteIO      // port accesses for other nodes
	RemoteMMIO    // memory accesses for other nodes
	Injected      // interrupts given to the guest
	NMIsInjected  //
	InitsTaken    //
	StartupsTaken //
	Sleeps        // waits in a halt or for a startup IPI
	AlarmsSet     // timer settings
	KicksSent     // signals sent to this vCPU's thread

	counterCount
)

var counterNames = [counterCount]string{
	"port_io", "mmio", "lapic", "hlt", "irq_window", "rdmsr", "wrmsr", "set_tpr", "interrupted",
	"remote_port_io", "remote_mmio", "injected", "nmi", "init", "startup", "sleeps", "alarms", "kicks",
}

// String is the counter's name in metrics and reports.
func (c Counter) String() string {
	if c >= 0 && c < counterCount {
		return counterNames[c]
	}
	return "invalid counter"
}

// Counters are all of them, in order.
func Counters() []Counter {
	all := make([]Counter, counterCount)
	for i := range all {
		all[i] = Counter(i)
	}
	return all
}

// counters are written by the vCPU's thread and read by anybody. KicksSent is counted elsewhere, by those who
// kick.
type counters [counterCount]atomic.Uint64

// Stats is a snapshot of a vCPU's counters, indexed by Counter.
type Stats [counterCount]uint64

// Exits is how often the guest was left.
func (s *Stats) Exits() uint64 {
	var n uint64
	for c := PortIO; c <= Interrupted; c++ {
		n += s[c]
	}
	return n
}

// Stats reads the counters of a vCPU; any thread, any time. The counters are read one by one.
func (vm *VM) Stats(vcpu int) Stats {
	var s Stats
	for i := range s {
		s[i] = vm.vcpus[vcpu].stats[i].Load()
	}
	s[KicksSent] = vm.vcpus[vcpu].kicks.Load()
	return s
}
