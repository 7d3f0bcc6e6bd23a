package fastpath

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// VCPUs are a node's vCPUs as its shards see them: how many of them wait for pages. All shards of a node share it.
type VCPUs struct {
	n       int64
	_       [56]byte
	waiting atomic.Int64 // pages that are waited for; the shards count them
	_       [56]byte
}

// NewVCPUs is for a node that has n.
func NewVCPUs(n int) *VCPUs { return &VCPUs{n: int64(n)} }

// allWait says whether each of them waits for a page of its own. Where two wait for the same page, it says no.
func (v *VCPUs) allWait() bool { return v.waiting.Load() >= v.n }

// waitSpin is for how long a shard polls for a page, in nanoseconds, where all vCPUs wait and there are too few cores:
// many round trips of a fast fabric, and one of a slow one, but not the tenure of a page that is fought for.
const waitSpin = 2e6

// awaits says whether the shard is to poll for a page that a vCPU waits for, though there are fewer cores than threads.
// While all vCPUs of the node wait, theirs are free, and nobody else has more to do than to bring those pages.
func (s *Shard) awaits(now, since int64) bool {
	return s.vcpus != nil && s.pending.n > 0 && now-since < waitSpin && s.vcpus.allWait()
}

// yield lets others have the core first that need it: whatever moves packets.
func yield() { _, _, _ = unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }
