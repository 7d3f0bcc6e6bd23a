package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ironspan/engine/cluster"
	"ironspan/engine/control"
	"ironspan/engine/leaktest"
	"ironspan/engine/nodetest"
	"ironspan/engine/spec"
	"ironspan/engine/wire"
	"ironspan/kvmhost"
	"ironspan/kvmhost/devices"
	"ironspan/kvmhost/minivm"
)

// testConsole keeps what the guest writes and gives it nothing until the VM is released.
type testConsole struct {
	released chan struct{}
	mu       sync.Mutex
	out      []byte
}

func newTestConsole() *testConsole { return &testConsole{released: make(chan struct{})} }

func (c *testConsole) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out = append(c.out, b...)
	return len(b), nil
}

func (c *testConsole) Read([]byte) (int, error) {
	<-c.released
	return 0, io.EOF
}

func (c *testConsole) text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.out)
}

// local is a few machines in this process, as ironspan run --local has them.
type local struct {
	t        *testing.T
	plan     *spec.Plan
	machines []*Machine
	consoles []*testConsole
	mu       sync.Mutex
	phases   []string // of node 0
}

// newLocal makes the machines and their plan. What tests take away from is a plan that holds.
func newLocal(t *testing.T, nodes int) *local {
	t.Helper()
	nodetest.Need(t)
	leaktest.Check(t)
	procs := runtime.GOMAXPROCS(0)
	t.Cleanup(func() { runtime.GOMAXPROCS(procs) })
	l := &local{t: t}
	ca, err := cluster.NewAuthority(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	info, err := New(Options{}).Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sp := &spec.Spec{
		Name: "test", Fabric: spec.FabricSHM, Shards: 1, Poll: spec.PollAuto, Dilate: 1,
		Tenure: spec.Tenure{Base: spec.Duration(time.Millisecond), Max: spec.Duration(10 * time.Millisecond)},
		Timeouts: spec.Timeouts{
			Connect: spec.Duration(5 * time.Second), Prepare: spec.Duration(20 * time.Second), Heartbeat: spec.Duration(time.Second),
			Lost: spec.Duration(10 * time.Second), Stop: spec.Duration(10 * time.Second),
		},
	}
	var hosts []spec.Host
	log := slog.New(slog.DiscardHandler)
	for i := range nodes {
		name := fmt.Sprint("n", i)
		id, err := ca.IssueNode(cluster.Subject{Name: name, Hosts: []string{"127.0.0.1"}}, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		listener, err := cluster.Listen("127.0.0.1:0", id, cluster.ListenerOptions{Log: log})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { listener.Close() })
		l.machines = append(l.machines, New(Options{Listener: listener, Log: log, StaticTables: true}))
		n := spec.DefaultNode()
		n.Name, n.Addr, n.VCPUs, n.Memory = name, listener.Addr().String(), 1, spec.MinBootMemory
		sp.Nodes = append(sp.Nodes, n)
		hosts = append(hosts, spec.Host{CPUs: info.CPUs, CPUID: info.CPUID, TSCKHz: info.TSCKHz})
	}
	if l.plan, err = sp.Derive(hosts); err != nil {
		t.Fatal(err)
	}
	if err := l.plan.Check(); err != nil {
		t.Fatal(err)
	}
	return l
}

// prepare prepares the first of the machines and returns what each said.
func (l *local) prepare(ctx context.Context, machines int, kernel []byte) []error {
	l.t.Helper()
	errs := make([]error, machines)
	var all sync.WaitGroup
	l.consoles = nil
	for range machines {
		l.consoles = append(l.consoles, newTestConsole())
	}
	for i := range machines {
		job := &control.Job{Plan: l.plan, Node: wire.NodeID(i)}
		if i == 0 {
			job.Console = l.consoles[0]
			if kernel != nil {
				job.Kernel = &control.Image{ReaderAt: bytes.NewReader(kernel), Size: int64(len(kernel))}
			}
		}
		all.Go(func() {
			errs[i] = l.machines[i].Prepare(ctx, job, func(e control.Event) {
				if i == 0 && e.Kind == control.KindState {
					l.mu.Lock()
					l.phases = append(l.phases, e.Phase)
					l.mu.Unlock()
				}
			})
			if errs[i] != nil { // as the daemon does: the others must not wait for it
				l.release(i)
			}
		})
	}
	all.Wait()
	return errs
}

func (l *local) release(i int) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := l.machines[i].Release(ctx); err != nil {
		l.t.Errorf("release of node %d: %v", i, err)
	}
	close(l.consoles[i].released)
}

// idle checks that a machine holds nothing.
func (l *local) idle(i int) {
	l.t.Helper()
	m := l.machines[i]
	if err := m.Start(l.t.Context()); !errors.Is(err, errIdle) {
		l.t.Errorf("start after release: %v", err)
	}
	if _, err := m.Report(l.t.Context()); !errors.Is(err, errIdle) {
		l.t.Errorf("report after release: %v", err)
	}
	if err := m.Release(l.t.Context()); err != nil {
		l.t.Errorf("second release: %v", err)
	}
	m.Stop("nothing there")
}

// TestPrepareFails: whatever stops Prepare, the error says what it was, and Release gives everything back.
func TestPrepareFails(t *testing.T) {
	garbage := make([]byte, 64<<10)
	for i := range garbage {
		garbage[i] = byte(rand.Uint32())
	}
	// A host whose KVM gives guests its own TSC does not come as far as the kernel.
	const noOffset = "TSC offset is 0"
	for _, c := range []struct {
		name   string
		change func(*spec.Plan)
		kernel []byte
		want   []string // any of them
	}{
		{"no kernel", nil, nil, []string{"kernel", "bzImage", noOffset}},
		{"garbage for a kernel", nil, garbage, []string{"kernel", "bzImage", noOffset}},
		{"no such host CPU", func(p *spec.Plan) { p.Nodes[0].CPUs = []int{8191, 8191, 8191} }, nil, []string{"CPU 8191"}},
		{"CPUID that is none", func(p *spec.Plan) { p.Nodes[0].CPUID = []byte("?") }, nil, []string{"CPUID of node 0"}},
		{"RDMA where there is none", func(p *spec.Plan) { p.Fabric, p.Nodes[0].Device = spec.FabricVerbs, "nosuch0" }, nil, []string{"ironspan doctor"}},
		{"more RAM than there is", func(p *spec.Plan) {
			p.Nodes[0].RAM.Last = 1 << 28 // 1 TiB
			p.Nodes[0].GPA = p.Nodes[0].RAM.GPAs()
		}, nil, []string{"MiB"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLocal(t, 1)
			if c.change != nil {
				c.change(l.plan)
			}
			err := l.prepare(t.Context(), 1, c.kernel)[0]
			if err == nil {
				l.release(0)
				t.Fatal("prepared")
			}
			t.Log(err)
			found := false
			for _, w := range c.want {
				found = found || strings.Contains(err.Error(), w)
			}
			if !found {
				t.Errorf("%q says none of %q", err, c.want)
			}
			l.idle(0)
		})
	}
}

// TestPrepareRefusesOtherServers: servers whose clocks run differently do not go together.
func TestPrepareRefusesOtherServers(t *testing.T) {
	l := newLocal(t, 2)
	l.plan.Nodes[1].TSCKHz += l.plan.Nodes[1].TSCKHz / 500
	l.consoles = []*testConsole{nil, newTestConsole()}
	err := l.machines[1].Prepare(t.Context(), &control.Job{Plan: l.plan, Node: 1}, func(control.Event) {})
	if err == nil || !strings.Contains(err.Error(), "kHz") || !strings.Contains(err.Error(), "ppm") {
		t.Errorf("%v", err)
	}
	l.release(1)
	l.idle(1)
}

// TestPrepareWithoutPeer: a node whose peer does not come gives up when it is told to, and says why.
func TestPrepareWithoutPeer(t *testing.T) {
	for _, how := range []string{"cancelled", "stopped"} {
		t.Run(how, func(t *testing.T) {
			l := newLocal(t, 2)
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			why := "node n1 is on holiday"
			go func() {
				for {
					l.mu.Lock()
					waits := len(l.phases) > 0 // PhaseConnect is the first
					l.mu.Unlock()
					if waits {
						break
					}
					time.Sleep(time.Millisecond)
				}
				if how == "stopped" {
					l.machines[0].Stop(why)
				} else {
					cancel(errors.New(why))
				}
			}()
			err := l.prepare(ctx, 1, nil)[0]
			if err == nil || !strings.Contains(err.Error(), why) {
				t.Errorf("%v", err)
			}
			l.idle(0)
		})
	}
}

// TestPrepareTogether: two machines meet, connect their lanes, compare their clocks and make their vCPUs. Without a
// kernel node 0 fails there, and node 1 learns it.
func TestPrepareTogether(t *testing.T) {
	l := newLocal(t, 2)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	errs := l.prepare(ctx, 2, nil)
	for i, err := range errs {
		if err == nil {
			t.Errorf("node %d is prepared", i)
			l.release(i)
		} else {
			t.Logf("node %d: %v", i, err)
		}
		l.idle(i)
	}
	if want := []string{control.PhaseConnect, control.PhaseConnected}; fmt.Sprint(l.phases) != fmt.Sprint(want) {
		t.Errorf("phases %q, want %q", l.phases, want)
	}
	support, err := kvmhost.Probe()
	if err != nil {
		t.Fatal(err)
	}
	if want := "kernel"; support.TSCOffset && (errs[0] == nil || !strings.Contains(errs[0].Error(), want)) {
		t.Errorf("node 0: %v, want something about the %s", errs[0], want)
	}
	// The machines are as good as new.
	l.phases = nil
	l.plan.Nodes[0].CPUID, _ = json.Marshal("nonsense")
	for i, err := range l.prepare(ctx, 2, nil) {
		if err == nil {
			t.Errorf("node %d is prepared at the second time", i)
			l.release(i)
		}
	}
}

func TestPrepareTwice(t *testing.T) {
	l := newLocal(t, 2)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	first := make(chan []error, 1)
	go func() { first <- l.prepare(ctx, 1, nil) }()
	m := l.machines[0]
	eventually(t, "a VM under way", func() bool { return m.current() != nil })
	err := m.Prepare(ctx, &control.Job{Plan: l.plan}, func(control.Event) {})
	if err == nil || !strings.Contains(err.Error(), l.plan.VM.String()) {
		t.Errorf("a second VM: %v", err)
	}
	cancel()
	if errs := <-first; errs[0] == nil {
		t.Error("prepared without its peer")
	}
}

// TestLife is a VM of two nodes from Prepare to Release: the guest boots at node 0, writes and reads back pages that
// are homed at node 1, twice as many as node 0 may cache, says so on its console and switches the machine off.
func TestLife(t *testing.T) {
	const bound = spec.MinCache / wire.PageSize
	const pages = 2 * bound
	far := uint64(spec.MinBootMemory)
	a := minivm.NewAsm().MovImm(minivm.RBX, far).MovImm(minivm.RCX, pages)
	a.Label("write").Store(minivm.RBX, 8, minivm.RBX).AddImm(minivm.RBX, wire.PageSize).Dec(minivm.RCX).Jcc(minivm.NotEqual, "write")
	a.MovImm(minivm.RBX, far).MovImm(minivm.RCX, pages)
	a.Label("read").Load(minivm.RAX, minivm.RBX, 8).Cmp(minivm.RAX, minivm.RBX).Jcc(minivm.NotEqual, "bad")
	a.AddImm(minivm.RBX, wire.PageSize).Dec(minivm.RCX).Jcc(minivm.NotEqual, "read")
	say := func(text string) {
		for _, c := range []byte(text) {
			a.MovImm(minivm.RAX, uint64(c)).Out8(0x3f8)
		}
	}
	say("good")
	a.MovImm(minivm.RAX, 1<<5|devices.SleepTypeS5<<2).Out8(devices.SleepControl).Label("end").Pause().Jmp("end")
	a.Label("bad")
	say("bad")
	a.MovImm(minivm.RAX, devices.ACPIResetValue).Out8(devices.ACPIReset).Jmp("end")

	l := newLocal(t, 2)
	l.plan.Nodes[0].Cache = spec.MinCache
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := errors.Join(l.prepare(ctx, 2, minivm.Kernel(a.Bytes()))...); err != nil {
		if errors.Is(err, kvmhost.ErrNotSupported) {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	if want := []string{control.PhaseConnect, control.PhaseConnected, control.PhasePrepared}; !slices.Equal(l.phases, want) {
		t.Errorf("phases %q, want %q", l.phases, want)
	}
	for i := len(l.machines) - 1; i >= 0; i-- {
		if err := l.machines[i].Start(ctx); err != nil {
			t.Errorf("start of node %d: %v", i, err)
		}
	}
	if o := l.machines[0].Wait(ctx); o.Kind != control.PoweredOff {
		t.Errorf("node 0 ended: %v", o)
	}
	if got := l.consoles[0].text(); got != "good" {
		t.Errorf("console %q", got)
	}
	for i, m := range l.machines {
		r, err := m.Report(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if r.Counters["messages_refused"] != 0 || r.Counters["lane_dropped"] != 0 {
			t.Errorf("node %d refused messages: %v", i, r.Counters)
		}
		if i == 0 && r.Counters["write_faults"] < pages {
			t.Errorf("node 0 took %d write faults", r.Counters["write_faults"])
		}
		if most := r.Counters["cached_pages_most"]; i == 0 && (most > bound || r.Counters["evictions_dirty"] < pages-bound) {
			t.Errorf("node 0 cached %d pages, bound is %d, and evicted %d dirty ones", most, bound, r.Counters["evictions_dirty"])
		}
		if online := r.VCPUs[0].Online; online != (i == 0) {
			t.Errorf("node %d: online %t", i, online)
		}
	}
	l.release(0)
	if o := l.machines[1].Wait(ctx); o.Kind != control.PoweredOff {
		t.Errorf("node 1 ended: %v", o)
	}
	l.release(1)
	l.idle(0)
	l.idle(1)
}
