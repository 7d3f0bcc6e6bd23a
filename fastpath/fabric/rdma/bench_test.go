package rdma

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"ironspan/engine/wire"
	"ironspan/fastpath/fabric"
	"ironspan/verbs"
)

// spin polls until a message is there.
func (n *node) spin(ms []wire.Message) {
	for {
		k, lost := n.Poll(ms)
		if lost != nil {
			n.t.Fatal(lost)
		}
		if k > 0 {
			return
		}
	}
}

// latencies is what latency tools print.
func latencies(what string, took []time.Duration) string {
	least, p50, p99 := quantiles(took)
	return fmt.Sprintf("%s: n %d  min %.1f us  p50 %.1f us  p99 %.1f us", what, len(took), least, p50, p99)
}

// quantiles sorts, and are in microseconds.
func quantiles(took []time.Duration) (least, p50, p99 float64) {
	slices.Sort(took)
	at := func(q float64) float64 {
		return float64(took[min(int(q*float64(len(took))), len(took)-1)].Nanoseconds()) / 1e3
	}
	return at(0), at(0.5), at(0.99)
}

func report(b *testing.B, what string, took []time.Duration) {
	if len(took) == 0 {
		return
	}
	least, p50, p99 := quantiles(took)
	b.ReportMetric(least, "min-us")
	b.ReportMetric(p50, "p50-us")
	b.ReportMetric(p99, "p99-us")
	b.Log(latencies(what, took))
}

// BenchmarkPingPong is a message there and one back.
func BenchmarkPingPong(b *testing.B) {
	ns := mesh(b, 2, Options{})
	var ms [4]wire.Message
	m, r := *ns[0].msg(1), *ns[1].msg(1)
	took := make([]time.Duration, 0, 1<<20)
	b.ReportAllocs()
	for b.Loop() {
		begin := time.Now()
		ns[0].Send(1, &m)
		ns[0].Flush()
		ns[1].spin(ms[:])
		ns[1].Send(0, &r)
		ns[1].Flush()
		ns[0].spin(ms[:])
		if len(took) < cap(took) {
			took = append(took, time.Since(begin))
		}
	}
	report(b, "ping-pong", took)
}

// BenchmarkPage is a request and the page with its grant back: a read fault of a page clean at home, without
// the faults.
func BenchmarkPage(b *testing.B) {
	for _, c := range []struct {
		name string
		put  func(home *node)
	}{
		{"from home frame", func(h *node) { h.WritePage(0, fabric.Slots, 0, fabric.RAM, homePages*page) }},
		{"from go memory", func(h *node) { h.WriteBytes(0, fabric.Slots, 0, h.frame(0), nil) }},
	} {
		b.Run(c.name, func(b *testing.B) {
			ns := mesh(b, 2, Options{})
			var ms [4]wire.Message
			ask, grant := *ns[0].msg(1), *ns[1].msg(1)
			took := make([]time.Duration, 0, 1<<20)
			b.SetBytes(page)
			b.ReportAllocs()
			for b.Loop() {
				begin := time.Now()
				ns[0].Send(1, &ask)
				ns[0].Flush()
				ns[1].spin(ms[:])
				c.put(ns[1])
				ns[1].Send(0, &grant)
				ns[1].Flush()
				ns[0].spin(ms[:])
				if len(took) < cap(took) {
					took = append(took, time.Since(begin))
				}
			}
			report(b, "request, page "+c.name+", grant", took)
		})
	}
}

// BenchmarkWord is a one-sided operation on a page and the word of its end: a fault on a page that was parked, without
// the fault, and the parking. The home does nothing.
func BenchmarkWord(b *testing.B) {
	for _, c := range []struct {
		name string
		post func(n *node)
	}{
		{"read", func(n *node) { n.ReadPage(1, homePages*page, 0, over(wire.Fetched, 1, 0)) }},
		{"write", func(n *node) { n.WriteBytes(1, fabric.RAM, homePages*page, n.frame(0), over(wire.Parked, 1, 0)) }},
	} {
		b.Run(c.name, func(b *testing.B) {
			ns := mesh(b, 2, Options{})
			var ms [4]wire.Message
			took := make([]time.Duration, 0, 1<<20)
			b.SetBytes(page)
			b.ReportAllocs()
			for b.Loop() {
				begin := time.Now()
				c.post(ns[0])
				ns[0].Flush()
				ns[0].spin(ms[:])
				if len(took) < cap(took) {
					took = append(took, time.Since(begin))
				}
			}
			report(b, c.name+" of a page, and its word", took)
		})
	}
}

// BenchmarkRaw is package verbs without the lane: what the transport itself costs.
func BenchmarkRaw(b *testing.B) {
	if err := verbs.Probe(); err != nil {
		b.Skip(err)
	}
	ends := [2]*rawEnd{newRawEnd(b), newRawEnd(b)}
	must(b, ends[0].qp.Connect(ends[1].qp.Endpoint()))
	must(b, ends[1].qp.Connect(ends[0].qp.Endpoint()))
	a, z := ends[0], ends[1]
	var wcs [4]verbs.WC
	wait := func(e *rawEnd) {
		for {
			n, err := e.cq.Poll(wcs[:])
			must(b, err)
			if n > 0 {
				must(b, wcs[0].Err("raw"))
				return
			}
		}
	}
	b.Run("READ 4KiB", func(b *testing.B) {
		took := make([]time.Duration, 0, 1<<20)
		for b.Loop() {
			begin := time.Now()
			a.qp.Batch().Read(1, verbs.Signaled, a.mr.SGE(0, page), z.mr.Remote(page))
			_, err := a.qp.Batch().Post()
			must(b, err)
			wait(a)
			if len(took) < cap(took) {
				took = append(took, time.Since(begin))
			}
		}
		report(b, "READ 4 KiB", took)
	})
	b.Run("WRITE+SEND 4KiB", func(b *testing.B) {
		took := make([]time.Duration, 0, 1<<20)
		msg := make([]byte, wire.Size)
		for b.Loop() {
			z.qp.RecvBatch().Add(1, z.mr.SGE(0, wire.Size))
			_, err := z.qp.RecvBatch().Post()
			must(b, err)
			begin := time.Now()
			a.qp.Batch().Write(1, 0, a.mr.SGE(0, page), z.mr.Remote(page))
			a.qp.Batch().SendInline(2, verbs.Signaled, msg)
			_, err = a.qp.Batch().Post()
			must(b, err)
			wait(z) // it has arrived
			if len(took) < cap(took) {
				took = append(took, time.Since(begin))
			}
			wait(a)
		}
		report(b, "WRITE 4 KiB + SEND 64 B, one way", took)
	})
}

type rawEnd struct {
	mr *verbs.MR
	cq *verbs.CQ
	qp *verbs.QP
}

func newRawEnd(b *testing.B) *rawEnd {
	d, err := verbs.Open("")
	must(b, err)
	mem, err := verbs.AllocMemory(4 * page)
	must(b, err)
	b.Cleanup(func() {
		must(b, d.Close())
		must(b, mem.Close())
	})
	pd, err := d.AllocPD()
	must(b, err)
	e := &rawEnd{}
	e.mr, err = pd.RegMemory(mem, verbs.LocalWrite|verbs.RemoteWrite|verbs.RemoteRead)
	must(b, err)
	e.cq, err = d.CreateCQ(64, nil)
	must(b, err)
	e.qp, err = pd.CreateQP(verbs.QPConfig{SendCQ: e.cq, RecvCQ: e.cq, MaxInline: wire.Size})
	must(b, err)
	must(b, e.qp.Init(verbs.PortConfig{Access: verbs.RemoteWrite | verbs.RemoteRead, Retry: quick}))
	return e
}
