package verbs_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"ironspan/verbs"
)

// refused posts one request and expects it to fail with want, the request behind it to be flushed, and the
// queue pair to be in error.
func refused(t *testing.T, a *end, want ...verbs.Status) {
	t.Helper()
	a.add(a.qp.Batch().Write(2, verbs.Signaled, a.mr.SGE(0, 8), verbs.Remote{}))
	a.post()
	w := a.wait(2)
	if w[0].ID != 1 || !slices.Contains(want, w[0].Status) || w[1].ID != 2 || w[1].Status != verbs.StatusFlushed {
		t.Fatalf("got %d: %v, %d: %v; want %v and a flush", w[0].ID, w[0].Status, w[1].ID, w[1].Status, want)
	}
	err := w[0].Err("write")
	var e *verbs.OpError
	if !errors.Is(err, w[0].Status) || !errors.As(err, &e) || e.Hint == "" {
		t.Errorf("error is %v", err)
	}
	if s, err := a.qp.State(); err != nil || s != verbs.StateErr {
		t.Errorf("state %v, %v", s, err)
	}
}

func TestRefusedRequests(t *testing.T) {
	const s = verbs.Signaled
	noWrite := func(c *pairConfig) { c.access = verbs.LocalWrite | verbs.RemoteRead }
	qpNoWrite := func(c *pairConfig) { c.port.Access = verbs.RemoteRead }
	readOnly := func(c *pairConfig) { c.access = 0 }
	access := []verbs.Status{verbs.StatusRemoteAccess}
	// The latter two: rxe of Linux 6.12 and of 6.1.
	local := []verbs.Status{verbs.StatusLocalProtection, verbs.StatusFlushed, verbs.StatusLocalQPOperation}
	for _, c := range []struct {
		name   string
		change func(*pairConfig)
		add    func(a, b *end) bool
		want   []verbs.Status
	}{
		{"wrong rkey", nil, func(a, b *end) bool {
			return a.qp.Batch().Write(1, s, a.mr.SGE(0, 64), verbs.Remote{Addr: b.mr.Addr(), RKey: b.mr.RKey() ^ 0x55})
		}, access},
		{"write past the region", nil, func(a, b *end) bool {
			return a.qp.Batch().Write(1, s, a.mr.SGE(0, 4096), b.mr.Remote(b.mr.Len()-100))
		}, access},
		{"read before the region", nil, func(a, b *end) bool {
			return a.qp.Batch().Read(1, s, a.mr.SGE(0, 64), verbs.Remote{Addr: b.mr.Addr() - 4096, RKey: b.mr.RKey()})
		}, access},
		{"write into a region that takes none", noWrite, func(a, b *end) bool {
			return a.qp.Batch().Write(1, s, a.mr.SGE(0, 64), b.mr.Remote(0))
		}, access},
		{"atomic into a region that takes none", noWrite, func(a, b *end) bool {
			return a.qp.Batch().FetchAdd(1, s, a.mr.SGE(0, 8), b.mr.Remote(0), 1)
		}, access},
		{"write through a qp that takes none", qpNoWrite, func(a, b *end) bool {
			return a.qp.Batch().Write(1, s, a.mr.SGE(0, 64), b.mr.Remote(0))
		}, []verbs.Status{verbs.StatusRemoteAccess, verbs.StatusRemoteInvalidRequest}}, // the latter: rxe
		{"rkey of a region that is gone", nil, func(a, b *end) bool {
			r := b.mr.Remote(0)
			must(a.t, b.mr.Close())
			return a.qp.Batch().Write(1, s, a.mr.SGE(0, 64), r)
		}, access},
		{"local piece outside the region", nil, func(a, b *end) bool {
			return a.qp.Batch().Write(1, s, a.mr.SGE(a.mr.Len()-10, 64), b.mr.Remote(0))
		}, local},
		{"read into memory without local write", readOnly, func(a, b *end) bool {
			return a.qp.Batch().Read(1, s, a.mr.SGE(0, 64), b.mr.Remote(0))
		}, access},
	} {
		t.Run(c.name, func(t *testing.T) {
			var change []func(*pairConfig)
			if c.change != nil {
				change = append(change, c.change)
			}
			a, b := pair(t, change...)
			a.add(c.add(a, b))
			refused(t, a, c.want...)
		})
	}
}

func TestMessageLongerThanReceive(t *testing.T) {
	a, b := pair(t)
	b.recv(1, 0) // 256 bytes
	a.add(a.qp.Batch().Send(1, verbs.Signaled, a.mr.SGE(0, 300)))
	a.post()
	if w := a.wait(1)[0]; w.Status != verbs.StatusRemoteInvalidRequest && w.Status != verbs.StatusRemoteOperation {
		t.Errorf("sender got %v", w.Status)
	}
	if w := b.wait(1)[0]; w.Status == verbs.StatusSuccess {
		t.Errorf("receiver got %v", w.Status)
	}
}

func TestReceiverNotReady(t *testing.T) {
	t.Run("gives up in bounded time", func(t *testing.T) {
		a, _ := pair(t)
		a.add(a.qp.Batch().SendInline(1, verbs.Signaled, []byte("nobody listens")))
		begin := time.Now()
		a.post()
		if w := a.wait(1)[0]; w.Status != verbs.StatusRNRRetryExceeded {
			t.Errorf("got %v", w.Status)
		}
		t.Logf("gave up after %v", time.Since(begin))
	})
	t.Run("waits for a late receive", func(t *testing.T) {
		a, b := pair(t, func(c *pairConfig) {
			c.port.Retry.RNRTimer, c.port.Retry.RNRCount = verbs.MaxRNRTimer, verbs.MaxRNRRetries
		})
		a.add(a.qp.Batch().SendInline(1, verbs.Signaled, []byte("patience")))
		a.post()
		time.Sleep(50 * time.Millisecond)
		b.recv(1, 0)
		b.ok(1)
		a.ok(1)
	})
}

func TestPeerGone(t *testing.T) {
	a, b := pair(t)
	must(t, b.qp.Close())
	for i := range 5 {
		a.add(a.qp.Batch().Write(uint64(i), verbs.Signaled, a.mr.SGE(0, 64), b.mr.Remote(0)))
	}
	a.recv(3, 0)
	begin := time.Now()
	a.post()
	wcs := a.wait(8)
	took := time.Since(begin)
	var first *verbs.WC
	flushed := 0
	for i := range wcs {
		switch w := &wcs[i]; {
		case w.Status == verbs.StatusFlushed:
			flushed++
		case first == nil:
			first = w
		}
	}
	if first == nil || first.ID != 0 || first.Status != verbs.StatusRetryExceeded || flushed != 7 {
		t.Fatalf("got %+v", wcs)
	}
	if bound := quick.Bound(); took > 4*bound+time.Second {
		t.Errorf("took %v, the bound is %v", took, bound)
	}
	t.Logf("gave up after %v, bound %v", took, quick.Bound())
}

func TestPeerInError(t *testing.T) {
	a, b := pair(t)
	b.recv(4, 0)
	must(t, b.qp.Fail())
	for _, w := range b.wait(4) {
		if w.Status != verbs.StatusFlushed {
			t.Errorf("receive completed with %v", w.Status)
		}
	}
	a.add(a.qp.Batch().SendInline(1, verbs.Signaled, []byte("hello")))
	a.post()
	if w := a.wait(1)[0]; w.Status == verbs.StatusSuccess {
		t.Error("a send to a failed queue pair succeeded")
	}
}
