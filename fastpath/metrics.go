package fastpath

import (
	"fmt"
	"math"
	"math/bits"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// FaultKind says what it took to serve a fault.
type FaultKind uint8

// The kinds.
const (
	ReadFault    FaultKind = iota // a read copy, with its bytes, from another node
	WriteFault                    // a writable copy, with its bytes, from another node
	UpgradeFault                  // the right to write, from other nodes; no bytes
	ZeroFault                     // either right, to a page of zeros; no bytes
	FetchFault                    // the bytes of a page to which the right was here, from the home's memory
	LocalFault                    // no other node was asked
	StaleFault                    // nothing: the page was there already, or the fault has to be repeated
	FaultKinds                    // number of kinds
)

var faultNames = [FaultKinds]string{"read", "write", "upgrade", "zero", "fetch", "local", "stale"}

// String returns the kind's name in reports: read, write, upgrade, zero, fetch, local, stale.
func (k FaultKind) String() string {
	if k < FaultKinds {
		return faultNames[k]
	}
	return fmt.Sprintf("FaultKind(%d)", uint8(k))
}

// Metrics are a shard's counters. The shard's thread writes, anyone reads.
type Metrics struct {
	Latency   [FaultKinds]Histogram // ns from reading the fault to resuming the vCPU, for the first that waits for a page
	Stage     [Stages]Histogram     // ns
	Faults    atomic.Uint64         // faults read from the userfaultfd, followers included
	ZeroPages atomic.Uint64         // pages sent as a flag
	Leftovers atomic.Uint64         // frames or mappings that were in the way
	Batched   atomic.Uint64         // pages installed along with others, by one call
	Remapped  atomic.Uint64         // mappings that the kernel had lost
	Rounds    atomic.Uint64         // of the loop
	Spins     atomic.Uint64         // of these, rounds followed by another without sleep, by policy
	Sleeps    atomic.Uint64         // waits in the kernel
}

// A histogram's buckets are log-linear: each power of two is split into subBuckets, so a bucket is at most 1/32
// of its value wide. Values from 2^maxBits ns (18 minutes) on count as the largest.
const (
	subBits    = 5
	subBuckets = 1 << subBits
	maxBits    = 40
	numBuckets = (maxBits - subBits + 1) * subBuckets
)

// Histogram counts durations in nanoseconds. One thread records, any thread reads.
type Histogram struct {
	count, sum, max atomic.Uint64
	buckets         [numBuckets]atomic.Uint64
}

func bucketOf(v uint64) int {
	if v < subBuckets {
		return int(v)
	}
	e := bits.Len64(v) - subBits - 1
	return min(e*subBuckets+int(v>>e), numBuckets-1)
}

// bucketTop is the largest value in a bucket.
func bucketTop(b int) uint64 {
	if b < 2*subBuckets {
		return uint64(b)
	}
	e := b/subBuckets - 1
	return uint64(b-e*subBuckets+1)<<e - 1
}

// Record counts a duration. Negative ones count as 0.
func (h *Histogram) Record(ns int64) {
	v := uint64(max(ns, 0))
	h.buckets[bucketOf(v)].Add(1)
	h.sum.Add(v)
	if v > h.max.Load() {
		h.max.Store(v)
	}
	h.count.Add(1)
}

// Snapshot copies the histogram. Records that happen meanwhile may be in some of its parts and not in others.
func (h *Histogram) Snapshot() HistogramSnapshot {
	s := HistogramSnapshot{Sum: h.sum.Load(), Max: h.max.Load()}
	for b := range h.buckets {
		if n := h.buckets[b].Load(); n != 0 {
			s.Buckets = append(s.Buckets, Bucket{Top: bucketTop(b), Count: n})
			s.Count += n
		}
	}
	return s
}

// Bucket is a bucket that is not empty: Count durations of at most Top nanoseconds, and within 1/32 of it.
type Bucket struct {
	Top   uint64 `json:"le_ns"`
	Count uint64 `json:"count"`
}

// HistogramSnapshot is a histogram at one moment; buckets in rising order.
type HistogramSnapshot struct {
	Count   uint64   `json:"count"`
	Sum     uint64   `json:"sum_ns"`
	Max     uint64   `json:"max_ns"`
	Buckets []Bucket `json:"buckets,omitempty"`
}

// Quantile returns a duration that a share of q of all do not exceed; 0 if there are none.
func (s *HistogramSnapshot) Quantile(q float64) time.Duration {
	rank := uint64(math.Ceil(q * float64(s.Count)))
	var n uint64
	for _, b := range s.Buckets {
		if n += b.Count; n >= rank {
			return time.Duration(min(b.Top, s.Max))
		}
	}
	return time.Duration(s.Max)
}

// Mean returns the mean duration; 0 if there are none.
func (s *HistogramSnapshot) Mean() time.Duration {
	if s.Count == 0 {
		return 0
	}
	return time.Duration(s.Sum / s.Count)
}

// Merge adds o, of another shard or node, to s.
func (s *HistogramSnapshot) Merge(o HistogramSnapshot) {
	var merged []Bucket
	a, b := s.Buckets, o.Buckets
	for len(a) > 0 || len(b) > 0 {
		switch {
		case len(b) == 0 || len(a) > 0 && a[0].Top < b[0].Top:
			merged, a = append(merged, a[0]), a[1:]
		case len(a) == 0 || b[0].Top < a[0].Top:
			merged, b = append(merged, b[0]), b[1:]
		default:
			merged = append(merged, Bucket{Top: a[0].Top, Count: a[0].Count + b[0].Count})
			a, b = a[1:], b[1:]
		}
	}
	s.Buckets = merged
	s.Count += o.Count
	s.Sum += o.Sum
	s.Max = max(s.Max, o.Max)
}

// HDR converts the snapshot, for tools that plot HdrHistograms.
func (s *HistogramSnapshot) HDR() *hdrhistogram.Histogram {
	h := hdrhistogram.New(1, 1<<maxBits, 2)
	for _, b := range s.Buckets {
		// Within the range by construction, so there is no error.
		_ = h.RecordValues(int64(max(min(b.Top, 1<<maxBits-1), 1)), int64(b.Count))
	}
	return h
}
