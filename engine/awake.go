package engine

import "ironspan/fastpath/cpulatency"

// wakes counts what somebody sleeps for: a shard for faults and messages, a vCPU for its page, the machine lane for
// interrupts and accesses.
func (n *node) wakes() uint64 {
	l := n.lane.Stats()
	sum := l.ReceivedIPIs + l.Reads + l.Served
	for _, s := range n.memory.shards {
		m := s.Metrics()
		sum += m.Sleeps.Load() + m.Faults.Load()
	}
	return sum
}

// keepAwake has this machine's idle cores wake quickly while pages move. That is asked for the whole machine: a request
// for single cores would outlive a node that is killed.
func (n *node) keepAwake() {
	if err := cpulatency.KeepAwake(n.ended, n.wakes, &n.awakeNs); err != nil {
		n.log.Info("idle cores sleep as the kernel likes, and faults may wait for them to wake", "reason", err)
	}
}
