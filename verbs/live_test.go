package verbs_test

import (
	"errors"
	"testing"
	"time"

	"ironspan/verbs"
)

// device opens the machine's first active RDMA device, or skips with the reason why there is none.
func device(t testing.TB) *verbs.Device {
	t.Helper()
	d, err := verbs.Open("")
	if errors.Is(err, verbs.ErrNoDevice) {
		t.Skip(err)
	}
	must(t, err)
	t.Cleanup(func() { must(t, d.Close()) })
	return d
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// quick gives a dead peer up in half a second.
var quick = verbs.Retry{AckTimeout: 60 * time.Millisecond, Count: 6, RNRTimer: 10 * time.Millisecond, RNRCount: 4}

const everything = verbs.LocalWrite | verbs.RemoteWrite | verbs.RemoteRead | verbs.RemoteAtomic

// end is a queue pair with what belongs to it.
type end struct {
	t   testing.TB
	pd  *verbs.PD
	mem *verbs.Memory
	mr  *verbs.MR
	ch  *verbs.Channel
	cq  *verbs.CQ
	qp  *verbs.QP
}

type pairConfig struct {
	dev    *verbs.Device
	qp     verbs.QPConfig
	port   verbs.PortConfig
	access verbs.Access
}

func newEnd(t testing.TB, d *verbs.Device, c pairConfig) *end {
	t.Helper()
	e := &end{t: t}
	var err error
	e.pd, err = d.AllocPD()
	must(t, err)
	e.mem, err = verbs.AllocMemory(1 << 16)
	must(t, err)
	t.Cleanup(func() { must(t, e.mem.Close()) })
	e.mr, err = e.pd.RegMemory(e.mem, c.access)
	must(t, err)
	t.Cleanup(func() { must(t, e.pd.Close()) })
	e.ch, err = d.CreateChannel()
	must(t, err)
	e.cq, err = d.CreateCQ(512, e.ch)
	must(t, err)
	c.qp.SendCQ, c.qp.RecvCQ = e.cq, e.cq
	e.qp, err = e.pd.CreateQP(c.qp)
	must(t, err)
	must(t, e.qp.Init(c.port))
	return e
}

// pair makes two queue pairs of one device and connects them.
func pair(t testing.TB, change ...func(*pairConfig)) (a, b *end) {
	t.Helper()
	c := pairConfig{
		qp:     verbs.QPConfig{SendWR: 128, RecvWR: 128, SendSGE: 4, RecvSGE: 2, MaxInline: 128},
		port:   verbs.PortConfig{Access: everything, Retry: quick},
		access: everything,
	}
	for _, f := range change {
		f(&c)
	}
	if c.dev == nil {
		c.dev = device(t)
	}
	a, b = newEnd(t, c.dev, c), newEnd(t, c.dev, c)
	must(t, a.qp.Connect(b.qp.Endpoint()))
	must(t, b.qp.Connect(a.qp.Endpoint()))
	return a, b
}

// wait polls until n completions are there.
func (e *end) wait(n int) []verbs.WC {
	e.t.Helper()
	wcs := make([]verbs.WC, n)
	got := 0
	for end := time.Now().Add(20 * time.Second); got < n; {
		k, err := e.cq.Poll(wcs[got:])
		must(e.t, err)
		got += k
		if k == 0 {
			if time.Now().After(end) {
				e.t.Fatalf("%d of %d completions after 20 s: %+v", got, n, wcs[:got])
			}
			time.Sleep(100 * time.Microsecond)
		}
	}
	return wcs
}

// ok waits for n successful completions.
func (e *end) ok(n int) []verbs.WC {
	e.t.Helper()
	wcs := e.wait(n)
	for _, w := range wcs {
		must(e.t, w.Err("work request"))
	}
	return wcs
}

// recv posts n receives of 256 bytes, one behind the other from off, their ids from 1000.
func (e *end) recv(n int, off uint64) {
	e.t.Helper()
	b := e.qp.RecvBatch()
	for i := range n {
		if !b.Add(1000+uint64(i), e.mr.SGE(off+uint64(i)*256, 256)) {
			e.t.Fatal("batch of receives is full")
		}
	}
	k, err := b.Post()
	must(e.t, err)
	if k != n {
		e.t.Fatalf("posted %d of %d receives", k, n)
	}
}

// post posts what was added and checks that all of it went.
func (e *end) post() {
	e.t.Helper()
	n := e.qp.Batch().Len()
	k, err := e.qp.Batch().Post()
	must(e.t, err)
	if k != n {
		e.t.Fatalf("posted %d of %d", k, n)
	}
}

func (e *end) add(ok bool) {
	e.t.Helper()
	if !ok {
		e.t.Fatal("batch refused the request")
	}
}
