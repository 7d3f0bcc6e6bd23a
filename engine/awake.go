package engine

import (
	"time"

	"ironspan/fastpath"
)

// While pages move, cores that have nothing to do must wake quickly; while none do, the machine may save its power.
const (
	lookPeriod = 250 * time.Millisecond
	// busyWakes in a period, 100 a second, are worth it: a core that sleeps deeply wakes some 0.1 ms later, and so a vCPU
	// would lose a hundredth of its time.
	busyWakes = 25
	// restPeriods without so many end it.
	restPeriods = 8
)

// wakefulness decides whether idle cores are to sleep lightly.
type wakefulness struct {
	last  uint64
	quiet int // periods since the last one that was busy
	held  bool
}

// look takes how often threads of the node have been woken for others so far.
func (w *wakefulness) look(wakes uint64) (hold bool) {
	if wakes-w.last >= busyWakes {
		w.quiet, w.held = 0, true
	} else if w.quiet++; w.quiet >= restPeriods {
		w.held = false
	}
	w.last = wakes
	return w.held
}

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

// keepAwake asks the kernel for quick wake-ups as long as they are many. It is a request of the machine's, not of this
// VM's cores: one for single cores would outlive a node that is killed.
func (n *node) keepAwake() {
	q, err := fastpath.OpenCPULatency()
	if err != nil {
		n.log.Info("idle cores sleep as the kernel likes, and faults may wait for them to wake", "reason", err)
		return
	}
	defer q.Close()
	var w wakefulness
	tick := time.NewTicker(lookPeriod)
	defer tick.Stop()
	for {
		select {
		case <-n.ended:
			return
		case <-tick.C:
		}
		if err := q.Hold(w.look(n.wakes())); err != nil {
			n.log.Warn("idle cores sleep as the kernel likes", "reason", err)
			return
		}
		if q.Held() {
			n.awakeNs.Add(int64(lookPeriod))
		}
	}
}
