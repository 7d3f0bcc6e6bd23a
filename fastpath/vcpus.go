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
	return s.vcpus != nil && s.fetching > 0 && s.pending.n > 0 && now-since < waitSpin && s.vcpus.allWait()
}

// yield lets others have the core first that need it: whatever moves packets.
func yield() { _, _, _ = unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }
