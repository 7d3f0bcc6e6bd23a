package engine

import (
	"context"
	"errors"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ironspan/engine/control"
	"ironspan/engine/lane"
	"ironspan/engine/spec"
	"ironspan/engine/wire"
	"ironspan/fastpath/fabric"
	"ironspan/kvmhost"
	"ironspan/kvmhost/devices"
	"ironspan/kvmhost/minivm"
)

// far is the first page of the second of two nodes with the least memory.
const far = spec.MinBootMemory / wire.PageSize

// TestLosses: a guest at node 0 writes some of node 1's pages and reads others. Without node 1 those are what is left of
// its memory; without node 0 the written ones are lost with it. The pages lie in stripes of both shards.
func TestLosses(t *testing.T) {
	written := []uint64{far, far + 41, far + 40, far + 700, far + 4000} // none ahead of which others are asked for
	read := []uint64{far + 90, far + 900}
	a := minivm.NewAsm()
	for _, page := range written {
		a.MovImm(minivm.RBX, page*wire.PageSize).Store(minivm.RBX, 8, minivm.RBX)
	}
	for _, page := range read {
		a.MovImm(minivm.RBX, page*wire.PageSize).Load(minivm.RAX, minivm.RBX, 8)
	}
	set := func(pages ...uint64) control.PageSet {
		var runs []control.PageRun
		for _, p := range pages {
			runs = append(runs, control.PageRun{First: wire.PFN(p), Pages: 1})
		}
		return control.NewPageSet(runs, 0)
	}
	a.MovImm(minivm.RAX, 1<<5|devices.SleepTypeS5<<2).Out8(devices.SleepControl).Label("end").Pause().Jmp("end")

	l := newLocal(t, 2)
	l.plan.Shards = 2
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := errors.Join(l.prepare(ctx, 2, minivm.Kernel(a.Bytes()))...); err != nil {
		if errors.Is(err, kvmhost.ErrNotSupported) {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	for i := len(l.machines) - 1; i >= 0; i-- {
		if err := l.machines[i].Start(ctx); err != nil {
			t.Errorf("start of node %d: %v", i, err)
		}
	}
	if o := l.machines[0].Wait(ctx); o.Kind != control.PoweredOff {
		t.Errorf("node 0 ended: %v", o)
	}
	for i, want := range []control.LossPart{
		{Kept: set(slices.Concat(written, read)...)},
		{Lost: set(written...)},
	} {
		got, err := l.machines[i].Losses(ctx, []wire.NodeID{wire.NodeID(1 - i)})
		if err != nil || !reflect.DeepEqual(*got, want) {
			t.Errorf("node %d says %+v, %v; want %+v", i, got, err, want)
		}
		if _, err := l.machines[i].Report(ctx); err != nil {
			t.Errorf("and does not report: %v", err)
		}
	}
	l.release(0)
	l.release(1)
	if _, err := l.machines[0].Losses(ctx, nil); !errors.Is(err, errIdle) {
		t.Errorf("losses after release: %v", err)
	}
}

// TestUnanswered: a node lives, says so to its peers, and answers for no page, since what it says is of another epoch, or
// nonsense; or a queue pair with it fails. Its peer says that it has lost it, and it can still be asked what it has.
func TestUnanswered(t *testing.T) {
	for _, c := range []struct {
		name, says string
		refused    uint64
		fail       func(silent, asks *node)
	}{
		{"refused messages", "about the page at 0x4000000", 4, func(silent, _ *node) {
			silent.memory.stopShards()
			l, epoch := silent.memory.lanes[0], silent.plan.Epoch
			for _, m := range []wire.Message{
				{Kind: wire.GetM, Requester: 1, Mode: wire.Modified, Epoch: epoch - 1, Txn: 1},
				{Kind: wire.GetM, Requester: 1, Mode: wire.Modified, Epoch: epoch, Txn: 1, Page: 1 << 40},
				{Kind: wire.Grant, Requester: 0, Mode: wire.Modified, Epoch: epoch, Txn: 77, Page: far, Flags: wire.FlagZero},
				{Kind: wire.Inv, Requester: 1, Mode: wire.Modified, Epoch: epoch, Txn: 1, Page: far, Acks: 9},
			} {
				m.From = 1
				l.Send(0, &m)
			}
			l.Flush()
		}},
		{"queue pair", "retries exceeded", 0, func(_, asks *node) {
			asks.FabricLost(&fabric.PeerError{Peer: 1, Op: "poll", Reason: errors.New("retries exceeded")})
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := minivm.NewAsm().MovImm(minivm.RBX, spec.MinBootMemory).Load(minivm.RAX, minivm.RBX, 8).Label("end").Pause().Jmp("end")
			l := newLocal(t, 2)
			l.plan.Timeouts.Heartbeat, l.plan.Timeouts.Lost = spec.Duration(50*time.Millisecond), spec.Duration(2*time.Second)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			if err := errors.Join(l.prepare(ctx, 2, minivm.Kernel(a.Bytes()))...); err != nil {
				if errors.Is(err, kvmhost.ErrNotSupported) {
					t.Skip(err)
				}
				t.Fatal(err)
			}
			c.fail(l.machines[1].current(), l.machines[0].current())
			for i := len(l.machines) - 1; i >= 0; i-- {
				if err := l.machines[i].Start(ctx); err != nil {
					t.Errorf("start of node %d: %v", i, err)
				}
			}
			o := l.machines[0].Wait(ctx)
			if o.Kind != control.NodeLost || o.Lost == nil || *o.Lost != 1 || !strings.Contains(o.Reason, c.says) {
				t.Errorf("node 0 ended: %v", o)
			}
			if r, err := l.machines[0].Report(ctx); err != nil || r.Counters["messages_refused"] != c.refused {
				t.Errorf("%d messages refused, %v; want %d", r.Counters["messages_refused"], err, c.refused)
			}
			l.machines[1].Stop("node 0 says so")
			if o := l.machines[1].Wait(ctx); o.Kind != control.Stopped {
				t.Errorf("node 1 ended: %v", o)
			}
			for i, m := range l.machines {
				if got, err := m.Losses(ctx, nil); err != nil || !reflect.DeepEqual(*got, control.LossPart{}) {
					t.Errorf("node %d says %+v, %v", i, got, err)
				}
			}
			l.release(0)
			l.release(1)
		})
	}
}

// mute is an endpoint that is never used.
type mute struct {
	fabric.Endpoint
	fd int
}

func (m mute) FD() int { return m.fd }

// TestUnansweredDevice: a vCPU reads a device of node 0, and there is no answer.
func TestUnansweredDevice(t *testing.T) {
	plan := &spec.Plan{Timeouts: spec.Timeouts{Lost: spec.Duration(20 * time.Millisecond)}}
	plan.Nodes = []spec.PlanNode{{APICIDs: []uint32{0}}, {APICIDs: []uint32{2, 3}}}
	n := newNode(Options{Log: slog.New(slog.DiscardHandler)}, &control.Job{Plan: plan, Node: 1}, nil)
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	silent, err := lane.New(lane.Config{Self: 1, Nodes: 2, VCPUs: 2, Endpoint: mute{fd: fd}}) // never started: it takes messages and answers none
	if err != nil {
		t.Fatal(err)
	}
	n.memory, n.lane = &memoryHalf{}, silent
	var vcpu sync.WaitGroup
	vcpu.Go(func() { silent.RemoteAccess(1, true, 0x60, make([]byte, 1), false) })
	n.watchWaiting()
	silent.Halt()
	vcpu.Wait()
	silent.Close()
	if o := n.outcome; o.Kind != control.NodeLost || *o.Lost != lane.Platform || !strings.Contains(o.Reason, "about a device") {
		t.Errorf("node 1 ended: %v", o)
	}
}
