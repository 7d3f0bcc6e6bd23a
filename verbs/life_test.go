package verbs_test

import (
	"errors"
	"syscall"
	"testing"
	"time"

	"ironspan/verbs"
)

func TestDeviceAndPort(t *testing.T) {
	d := device(t)
	devs, err := verbs.Devices()
	must(t, err)
	if len(devs) == 0 || devs[0].Name == "" {
		t.Errorf("devices %+v", devs)
	}
	lim, err := d.Limits()
	must(t, err)
	if lim.MaxQP == 0 || lim.MaxCQE == 0 || lim.Ports == 0 || lim.MaxReadsInit == 0 {
		t.Errorf("limits %+v", lim)
	}
	p, err := d.ActivePort()
	must(t, err)
	if p.State != verbs.PortActive || !p.ActiveMTU.Valid() {
		t.Errorf("port %+v", p)
	}
	gids, err := d.GIDs(p.Num)
	must(t, err)
	g, err := verbs.ChooseGID(p.LinkLayer, gids, verbs.GIDSelect{})
	must(t, err)
	t.Logf("%s port %d: %v, mtu %v, gids %v, chosen %d: %v", d.Name(), p.Num, p.LinkLayer, p.ActiveMTU, gids, g.Index, g.GID)
	if _, err := d.Port(99); err == nil {
		t.Error("there is no port 99")
	}
	if _, err := verbs.Open("no-such-device"); !errors.Is(err, verbs.ErrNoDevice) {
		t.Errorf("opening a device that is not there: %v", err)
	}
	must(t, verbs.Probe())
}

func TestChosenGID(t *testing.T) {
	d := device(t)
	p, err := d.ActivePort()
	must(t, err)
	gids, err := d.GIDs(p.Num)
	must(t, err)
	for _, g := range gids {
		a, _ := pair(t, func(c *pairConfig) { c.dev, c.port.GID = d, verbs.GIDSelect{ByIndex: true, Index: g.Index} })
		if a.qp.GID() != g || a.qp.Endpoint().GID != g.GID {
			t.Errorf("wanted %+v, got %+v", g, a.qp.GID())
		}
	}
}

func TestStates(t *testing.T) {
	a, b := pair(t)
	is := func(q *verbs.QP, want verbs.QPState) {
		t.Helper()
		if s, err := q.State(); err != nil || s != want {
			t.Errorf("state %v, %v; want %v", s, err, want)
		}
	}
	is(a.qp, verbs.StateRTS)
	must(t, a.qp.Drain())
	is(a.qp, verbs.StateSQD)
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		err := a.qp.Resume()
		if err == nil {
			break
		}
		if time.Now().After(end) { // it stands when what has begun is over
			t.Fatal(err)
		}
	}
	is(a.qp, verbs.StateRTS)
	must(t, a.qp.Fail())
	is(a.qp, verbs.StateErr)
	must(t, a.qp.Reset())
	is(a.qp, verbs.StateReset)
	if err := a.qp.RTS(); !errors.Is(err, verbs.ErrInvalid) {
		t.Errorf("RESET to RTS: %v", err)
	}
	if err := a.qp.Connect(b.qp.Endpoint()); !errors.Is(err, verbs.ErrInvalid) {
		t.Errorf("RESET to RTR: %v", err)
	}
	must(t, b.qp.Reset())
	must(t, a.qp.Init(verbs.PortConfig{Access: everything, Retry: quick}))
	is(a.qp, verbs.StateInit)
	var e *verbs.OpError
	if err := a.qp.RTS(); !errors.As(err, &e) || e.Errno != syscall.EINVAL || e.Hint == "" {
		t.Errorf("INIT to RTS: %v", err)
	}
	must(t, b.qp.Init(verbs.PortConfig{Access: everything, Retry: quick}))
	must(t, a.qp.RTR(b.qp.Endpoint()))
	is(a.qp, verbs.StateRTR)
	must(t, a.qp.RTS())
	must(t, b.qp.Connect(a.qp.Endpoint()))
	// The second life works like the first.
	b.recv(1, 0)
	a.add(a.qp.Batch().SendInline(1, verbs.Signaled, []byte("again")))
	a.post()
	a.ok(1)
	b.ok(1)
}

func TestPathMTUIsTheSmaller(t *testing.T) {
	d := device(t)
	small := newEnd(t, d, pairConfig{access: everything, port: verbs.PortConfig{MTU: verbs.MTU512, Access: everything}})
	if m := small.qp.Endpoint().MTU; m != verbs.MTU512 {
		t.Errorf("asked for 512, got %v", m)
	}
	large := newEnd(t, d, pairConfig{access: everything, port: verbs.PortConfig{Access: everything}})
	must(t, small.qp.Connect(large.qp.Endpoint()))
	must(t, large.qp.Connect(small.qp.Endpoint()))
	small.add(small.qp.Batch().Write(1, verbs.Signaled, small.mr.SGE(0, 4096), large.mr.Remote(0)))
	small.post()
	small.ok(1)
	large.add(large.qp.Batch().Read(1, verbs.Signaled, large.mr.SGE(0, 4096), small.mr.Remote(0)))
	large.post()
	large.ok(1)
}

func TestBadConfigs(t *testing.T) {
	d := device(t)
	pd, err := d.AllocPD()
	must(t, err)
	cq, err := d.CreateCQ(16, nil)
	must(t, err)
	mem, err := verbs.AllocMemory(100)
	must(t, err)
	defer mem.Close()
	if len(mem.Bytes())%4096 != 0 {
		t.Errorf("%d bytes are not whole pages", len(mem.Bytes()))
	}
	qp, err := pd.CreateQP(verbs.QPConfig{SendCQ: cq, RecvCQ: cq})
	must(t, err)
	ep := verbs.QPEndpoint{QPN: 17, GID: verbs.GID{10: 0xff, 11: 0xff, 12: 10, 15: 1}, MTU: verbs.MTU1024}
	for name, f := range map[string]func() error{
		"no cq": func() error { _, err := pd.CreateQP(verbs.QPConfig{}); return err },
		"deep qp": func() error {
			_, err := pd.CreateQP(verbs.QPConfig{SendCQ: cq, RecvCQ: cq, SendWR: 1 << 24})
			return err
		},
		"negative": func() error { _, err := pd.CreateQP(verbs.QPConfig{SendCQ: cq, RecvCQ: cq, RecvSGE: -1}); return err },
		"inline": func() error {
			_, err := pd.CreateQP(verbs.QPConfig{SendCQ: cq, RecvCQ: cq, MaxInline: 1 << 20})
			return err
		},
		"cq of none":      func() error { _, err := d.CreateCQ(0, nil); return err },
		"mr of none":      func() error { _, err := pd.RegMR(mem.Addr(), 0, 0); return err },
		"mr wraps":        func() error { _, err := pd.RegMR(mem.Addr(), ^uint64(0), 0); return err },
		"remote only":     func() error { _, err := pd.RegMR(mem.Addr(), 4096, verbs.RemoteWrite); return err },
		"unknown access":  func() error { _, err := pd.RegMR(mem.Addr(), 4096, 1<<30); return err },
		"rnr for ever":    func() error { return qp.Init(verbs.PortConfig{Retry: verbs.Retry{RNRCount: 7}}) },
		"mtu":             func() error { return qp.Init(verbs.PortConfig{MTU: 77}) },
		"connect in idle": func() error { return qp.Connect(ep) },
		"peer's qp":       func() error { return qp.Connect(verbs.QPEndpoint{QPN: 1 << 30, GID: ep.GID, MTU: ep.MTU}) },
		"memory of none":  func() error { _, err := verbs.AllocMemory(0); return err },
	} {
		if err := f(); !errors.Is(err, verbs.ErrInvalid) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if err := qp.Init(verbs.PortConfig{GID: verbs.GIDSelect{ByIndex: true, Index: 200}}); !errors.Is(err, verbs.ErrNoGID) {
		t.Errorf("missing gid: %v", err)
	}
	// A hole in the mapping is the caller's fault, too, but the kernel's to find.
	if _, err := pd.RegMR(mem.Addr(), 1<<40, 0); err == nil {
		t.Error("memory that is not mapped was registered")
	} else {
		t.Log(err)
	}
}

// Whatever is closed first, nothing leaks, crashes or fails, and using it afterwards is an error.
func TestCloseInAnyOrder(t *testing.T) {
	const parts = 6
	order := [parts]int{}
	var permute func(k int)
	seen := 0
	permute = func(k int) {
		if k < parts {
			for i := k; i < parts; i++ {
				order[k], order[i] = order[i], order[k]
				permute(k + 1)
				order[k], order[i] = order[i], order[k]
			}
			return
		}
		if seen++; seen%37 != 1 { // some of the 720
			return
		}
		d, err := verbs.Open("")
		if errors.Is(err, verbs.ErrNoDevice) {
			t.Skip(err)
		}
		must(t, err)
		a, _ := pair(t, func(c *pairConfig) { c.dev = d })
		closers := [parts]func() error{d.Close, a.pd.Close, a.mr.Close, a.ch.Close, a.cq.Close, a.qp.Close}
		for _, i := range order {
			if err := closers[i](); err != nil {
				t.Fatalf("order %v: %v", order, err)
			}
			if err := closers[i](); err != nil {
				t.Fatalf("order %v, second close: %v", order, err)
			}
		}
		for name, f := range map[string]func() error{
			"poll":   func() error { _, err := a.cq.Poll(make([]verbs.WC, 1)); return err },
			"arm":    a.cq.Arm,
			"drain":  func() error { _, err := a.ch.Drain(); return err },
			"wait":   func() error { _, err := a.ch.Wait(0); return err },
			"pd":     func() error { _, err := d.AllocPD(); return err },
			"mr":     func() error { _, err := a.pd.RegMemory(a.mem, 0); return err },
			"qp":     func() error { _, err := a.pd.CreateQP(verbs.QPConfig{SendCQ: a.cq, RecvCQ: a.cq}); return err },
			"state":  func() error { _, err := a.qp.State(); return err },
			"init":   func() error { return a.qp.Init(verbs.PortConfig{}) },
			"fail":   a.qp.Fail,
			"port":   func() error { _, err := d.Port(1); return err },
			"events": func() error { _, _, err := d.ReadEvent(); return err },
		} {
			if err := f(); !errors.Is(err, verbs.ErrClosed) {
				t.Errorf("order %v: %s after close: %v", order, name, err)
			}
		}
		if a.qp.Batch().SendInline(0, 0, nil) || a.qp.RecvBatch().Add(0, verbs.SGE{}) {
			t.Errorf("order %v: a closed qp takes requests", order)
		}
		if a.qp.QPN() != 0 || a.ch.FD() != -1 || d.EventFD() != -1 {
			t.Errorf("order %v: numbers of closed objects", order)
		}
	}
	permute(0)
}

// Every message wakes a receiver that sleeps only when nothing is there; none is lost however they fall.
func TestWakeups(t *testing.T) {
	const messages = 2000
	a, b := pair(t)
	b.recv(64, 0)
	done := make(chan error, 1)
	go func() { // the receiver
		done <- func() error {
			var wcs [8]verbs.WC
			rb := b.qp.RecvBatch()
			got, slept := 0, 0
			for got < messages {
				n, err := b.cq.Poll(wcs[:])
				if err != nil {
					return err
				}
				if n == 0 {
					if err := b.cq.Arm(); err != nil {
						return err
					}
					if n, err = b.cq.Poll(wcs[:]); err != nil {
						return err
					}
				}
				if n == 0 {
					ready, err := b.ch.Wait(20 * time.Second)
					if err != nil {
						return err
					}
					if !ready {
						return errors.New("slept for 20 s: a wake-up was lost")
					}
					if _, err := b.ch.Drain(); err != nil {
						return err
					}
					slept++
					continue
				}
				for _, w := range wcs[:n] {
					if err := w.Err("receive"); err != nil {
						return err
					}
					rb.Add(w.ID, b.mr.SGE((w.ID-1000)*256, 256))
				}
				got += n
				if _, err := rb.Post(); err != nil {
					return err
				}
			}
			t.Logf("slept %d times for %d messages", slept, messages)
			return nil
		}()
	}()
	for sent := 0; sent < messages; {
		n := 1 + sent%7
		for i := range n {
			f := verbs.SendFlags(0)
			if i == n-1 {
				f = verbs.Signaled
			}
			a.add(a.qp.Batch().SendInline(1, f, []byte("wake up")))
		}
		a.post()
		a.ok(1)
		sent += n
		if sent%5 == 0 {
			time.Sleep(time.Duration(sent%400) * time.Microsecond)
		}
		select {
		case err := <-done:
			must(t, err)
			return
		default:
		}
	}
	must(t, <-done)
}

func TestNoWakeupWithoutArm(t *testing.T) {
	a, b := pair(t)
	b.recv(2, 0)
	a.add(a.qp.Batch().SendInline(1, verbs.Signaled, []byte("1")))
	a.post()
	b.ok(1)
	if ready, err := b.ch.Wait(20 * time.Millisecond); err != nil || ready {
		t.Errorf("woken without having asked: %v, %v", ready, err)
	}
	must(t, b.cq.Arm())
	a.add(a.qp.Batch().SendInline(1, verbs.Signaled, []byte("2")))
	a.post()
	if ready, err := b.ch.Wait(10 * time.Second); err != nil || !ready {
		t.Fatalf("not woken: %v, %v", ready, err)
	}
	if n, err := b.ch.Drain(); err != nil || n != 1 {
		t.Errorf("drained %d, %v", n, err)
	}
	if n, err := b.ch.Drain(); err != nil || n != 0 {
		t.Errorf("drained %d the second time, %v", n, err)
	}
	b.ok(1)
}

// Destroying a queue while an event for it waits unread must not hang.
func TestCloseWithUnreadEvent(t *testing.T) {
	a, b := pair(t)
	b.recv(1, 0)
	must(t, b.cq.Arm())
	a.add(a.qp.Batch().SendInline(1, verbs.Signaled, []byte("unread")))
	a.post()
	if ready, err := b.ch.Wait(10 * time.Second); err != nil || !ready {
		t.Fatal(ready, err)
	}
	must(t, b.ch.Close())
}
