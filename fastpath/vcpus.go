package fastpath

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// VCPUs are a node's vCPUs as its shards see them. All shards of a node share it.
type VCPUs struct {
	Awake   atomic.Int32 // that are not asleep in a halt: for whoever runs them to count
	_       [60]byte
	waiting atomic.Int32 // pages that are waited for; the shards count them
	_       [60]byte
}

// allWait says whether each vCPU that is awake waits for a page of its own. Where two wait for the same page, it says no.
func (v *VCPUs) allWait() bool { return v.waiting.Load() >= v.Awake.Load() }

// waitSpin is for how long a shard polls for a page, in nanoseconds, where no vCPU runs and there are too few cores:
// many round trips of a fast fabric, and one of a slow one.
const waitSpin = 2e6

// awaits says whether the shard is to poll for a page that a vCPU waits for, though there are fewer cores than threads.
// While all vCPUs of the node wait or are halted, their cores are free. It is to for what it fetches: the device alone
// answers that. What it asks for takes as long as another thread needs to wake up, or to let go of the page.
func (s *Shard) awaits(now, since int64) bool {
	return s.vcpus != nil && s.fetching > 0 && s.pending.n > 0 && s.ways.polls && now-since < waitSpin && s.vcpus.allWait()
}

// ways are the two to wait for a fetch where cores are scarce. Which is faster depends on who moves packets: a card does
// so by itself, software may need the very core. So both are tried, and the one that was faster of late is taken.
type ways struct {
	polls bool     // the present one
	mean  [2]int64 // ns that fetches took of late: asleep, polling; 0: not known
	n     uint     // fetches that began
}

// Of tryOther fetches one is waited for the other way. A mean is of the last meanOver fetches, more or less.
const (
	tryOther = 32
	meanOver = 16
)

// begin chooses the way for a fetch while no other is on its way.
func (w *ways) begin() {
	w.n++
	w.polls = w.mean[1] <= w.mean[0]
	if w.n%tryOther == 0 {
		w.polls = !w.polls
	}
}

// end notes how long a fetch took that a vCPU waited for.
func (w *ways) end(ns int64) {
	m := &w.mean[0]
	if w.polls {
		m = &w.mean[1]
	}
	if *m == 0 {
		*m = ns
	}
	*m += (ns - *m) / meanOver
}

// yield lets others have the core first that need it: whatever moves packets.
func yield() { _, _, _ = unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }
