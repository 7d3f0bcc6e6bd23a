package fastpath

import (
	"runtime"
	"testing"
	"time"

	"ironspan/engine/wire"
)

// The benchmarks time single faults from the touch to its return, with a system call of about 0.5 us around it, between
// two nodes in one process over shared memory. Preparations are not timed. Each reports the median and the 99th
// percentile.

func benchmarkFault(b *testing.B, poll PollMode, prepare, timed func(i int, a, c *toucher) error) {
	if poll == Busy && runtime.NumCPU() < 4 {
		b.Skip("two polling shards and two touching threads want 4 cores")
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(runtime.NumCPU() + 6)) // see doc.go, "Threads"
	ns := cluster(b, layout{nodes: 2, shards: 1, pages: 1024, slots: 16, poll: poll, continueWP: true})
	a, c := touch(b, ns[0]), touch(b, ns[1])
	for p := range wire.PFN(ns[0].pages) {
		mustWrite(b, a, p, 0, uint64(p)+1) // no page of zeros
	}
	var h Histogram
	for i := 0; b.Loop(); i++ {
		if err := prepare(i, a, c); err != nil {
			b.Fatal(err)
		}
		start := time.Now()
		if err := timed(i, a, c); err != nil {
			b.Fatal(err)
		}
		h.Record(int64(time.Since(start)))
	}
	s := h.Snapshot()
	b.ReportMetric(float64(s.Quantile(0.5))/1e3, "p50-us")
	b.ReportMetric(float64(s.Quantile(0.99))/1e3, "p99-us")
	asker, home := &ns[1].shards[0].Metrics().Stage, &ns[0].shards[0].Metrics().Stage
	for g := range Stages {
		of := &asker[g]
		if g > StageInstall {
			of = &home[g]
		}
		if s := of.Snapshot(); s.Count > 0 {
			b.ReportMetric(float64(s.Quantile(0.5))/1e3, g.String()+"-us")
		}
	}
}

func benchPage(i int) wire.PFN { return wire.PFN(i % 1024) }

var benchModes = []PollMode{Event, Busy}

func BenchmarkRead(b *testing.B) {
	for _, m := range benchModes {
		b.Run(m.String(), func(b *testing.B) {
			benchmarkFault(b, m,
				func(i int, a, _ *toucher) error { return a.write(benchPage(i), 0, 1) },
				func(i int, _, c *toucher) error { _, err := c.read(benchPage(i), 0); return err })
		})
	}
}

func BenchmarkWrite(b *testing.B) {
	for _, m := range benchModes {
		b.Run(m.String(), func(b *testing.B) {
			benchmarkFault(b, m,
				func(i int, a, _ *toucher) error { return a.write(benchPage(i), 0, 1) },
				func(i int, _, c *toucher) error { return c.write(benchPage(i), 1, 1) })
		})
	}
}

func BenchmarkUpgrade(b *testing.B) {
	for _, m := range benchModes {
		b.Run(m.String(), func(b *testing.B) {
			benchmarkFault(b, m,
				func(i int, a, c *toucher) error {
					if err := a.write(benchPage(i), 0, 1); err != nil {
						return err
					}
					_, err := c.read(benchPage(i), 0)
					return err
				},
				func(i int, _, c *toucher) error { return c.write(benchPage(i), 1, 1) })
		})
	}
}
