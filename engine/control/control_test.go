package control_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ironspan/engine/cluster"
	"ironspan/engine/control"
	"ironspan/engine/control/controltest"
	"ironspan/engine/spec"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// node is a daemon in this process.
type node struct {
	machine  *controltest.Machine
	listener *cluster.Listener
	server   *control.Server
	served   chan error
}

// farm is a cluster of daemons on loopback.
type farm struct {
	t      *testing.T
	ca     *cluster.Authority
	client *cluster.Identity
	nodes  []*node
	events eventLog
}

type eventLog struct {
	mu  sync.Mutex
	all []control.Event
}

func (l *eventLog) add(e control.Event) {
	l.mu.Lock()
	l.all = append(l.all, e)
	l.mu.Unlock()
}

func (l *eventLog) has(phase string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.all {
		if e.Phase == phase {
			return true
		}
	}
	return false
}

func (l *eventLog) wait(t *testing.T, phase string) {
	t.Helper()
	for range 1000 {
		if l.has(phase) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("no event %s", phase)
}

func newFarm(t *testing.T, n int) *farm {
	t.Helper()
	ca, err := cluster.NewAuthority(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	f := &farm{t: t, ca: ca}
	if f.client, err = ca.IssueClient("c", time.Hour); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		f.nodes = append(f.nodes, f.start(fmt.Sprintf("n%d", i)))
	}
	return f
}

func (f *farm) start(name string) *node {
	id, err := f.ca.IssueNode(cluster.Subject{Name: name}, time.Hour)
	if err != nil {
		f.t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	l, err := cluster.Listen("127.0.0.1:0", id, cluster.ListenerOptions{Log: log})
	if err != nil {
		f.t.Fatal(err)
	}
	n := &node{machine: &controltest.Machine{Listener: l}, listener: l, served: make(chan error, 1)}
	n.server = control.NewServer(n.machine, control.ServerOptions{
		Name: name, Version: "test", Covers: id.Covers, Log: log, Dir: f.t.TempDir(), Lost: 2 * time.Second,
		Authorize: func(s *tls.ConnectionState) error { return cluster.RequireRole(s, cluster.RoleClient) },
	})
	go func() { n.served <- n.server.Serve(l.Control()) }()
	f.t.Cleanup(n.close)
	return n
}

func (n *node) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	n.server.Shutdown(ctx)
	n.listener.Close()
	<-n.served
	n.served <- nil
}

// spec describes a VM over all nodes of the farm.
func (f *farm) spec(words string) *spec.Spec {
	f.t.Helper()
	dir := f.t.TempDir()
	for _, i := range []string{"kernel", "initrd"} {
		if err := os.WriteFile(filepath.Join(dir, i), bytes.Repeat([]byte(i), 50_000), 0o600); err != nil {
			f.t.Fatal(err)
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "kernel: kernel\ninitrd: initrd\nappend: \"%s\"\ntimeouts: {connect: 3s, prepare: 10s, heartbeat: 100ms, lost: 3s, stop: 2s}\nnodes:\n", words)
	for i, n := range f.nodes {
		fmt.Fprintf(&b, "  - {addr: '%s', name: n%d, memory: 64M}\n", n.listener.Addr(), i)
	}
	path := filepath.Join(dir, "vm.yaml")
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		f.t.Fatal(err)
	}
	s, err := spec.Load(path)
	if err != nil {
		f.t.Fatal(err)
	}
	if err := s.CheckCluster(); err != nil {
		f.t.Fatal(err)
	}
	return s
}

func (f *farm) options(in io.Reader, out io.Writer) control.RunOptions {
	return control.RunOptions{
		TLS:    func(name string) *tls.Config { return f.client.ClientTLS(name, cluster.ALPNControl) },
		Events: f.events.add, In: in, Out: out,
	}
}

func (f *farm) run(words string) (*control.RunReport, string, error) {
	var out syncBuffer
	rep, err := control.Run(within(f.t, 60*time.Second), f.spec(words), f.options(nil, &out))
	return rep, out.String(), err
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// idle checks that every node has released what it prepared and takes another VM.
func (f *farm) idle() {
	f.t.Helper()
	for i, n := range f.nodes {
		for range 500 {
			if p, r := n.machine.Calls(); p == r {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if p, r := n.machine.Calls(); p != r {
			f.t.Errorf("node %d: prepared %d times, released %d times", i, p, r)
		}
	}
	rep, out, err := f.run("fake.guest=poweroff")
	if err != nil || !rep.OK || !strings.Contains(out, "good night") {
		f.t.Errorf("the next VM: %v, %+v, %q", err, rep, out)
	}
}

func TestRun(t *testing.T) {
	for _, n := range []int{1, 2, 4} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			f := newFarm(t, n)
			rep, out, err := f.run("fake.guest=poweroff")
			if err != nil {
				t.Fatal(err)
			}
			if !rep.OK || rep.Outcome.Kind != control.PoweredOff || len(rep.Nodes) != n || len(rep.Missing) != 0 {
				t.Errorf("%+v", rep)
			}
			if out != "booting vm\r\ngood night\r\n" {
				t.Errorf("console: %q", out)
			}
			for i, r := range rep.Nodes {
				if int(r.Node) != i || r.Name != fmt.Sprintf("n%d", i) || r.Faults["read"].P99NS != 40_000 {
					t.Errorf("%+v", r)
				}
			}
			if k, i := f.nodes[0].machine.Images(); len(k) != 300_000 || !strings.HasPrefix(i, "initrdinitrd") {
				t.Errorf("boot images: %d and %d bytes", len(k), len(i))
			}
			for _, phase := range []string{control.PhaseAccepted, control.PhaseUpload, control.PhasePopulate, control.PhasePrepared, control.PhaseBooting} {
				if !f.events.has(phase) {
					t.Errorf("no event %s", phase)
				}
			}
			if string(rep.Plan.Nodes[n-1].CPUID) != "cpuid" || rep.Plan.Nodes[0].TSCKHz == 0 {
				t.Error("the plan lacks what the nodes said of themselves")
			}
			f.idle()
		})
	}
}

func TestOutcomes(t *testing.T) {
	f := newFarm(t, 2)
	for guest, want := range map[string]control.OutcomeKind{"reset": control.GuestReset, "crash": control.GuestCrash, "fail": control.Failed} {
		rep, _, err := f.run("fake.guest=" + guest)
		if err != nil || rep.OK || rep.Outcome.Kind != want || rep.Outcome.Reason == "" {
			t.Errorf("%s: %+v %v", guest, rep, err)
		}
	}
	f.idle()
}

func TestConsole(t *testing.T) {
	f := newFarm(t, 2)
	pr, pw := io.Pipe()
	go func() {
		for _, l := range []string{"hello", strings.Repeat("x", 5000), "quit"} {
			fmt.Fprintln(pw, l)
		}
	}()
	var out syncBuffer
	rep, err := control.Run(within(t, 30*time.Second), f.spec("fake.guest=echo"), f.options(pr, &out))
	pr.Close()
	if err != nil || !rep.OK {
		t.Fatal(rep, err)
	}
	if s := out.String(); !strings.Contains(s, `you said "hello"`) || !strings.HasSuffix(s, "you said \"quit\"\r\n") || len(s) < 5000 {
		t.Errorf("%q", s)
	}
}

func TestPrepareFails(t *testing.T) {
	f := newFarm(t, 3)
	_, _, err := f.run("fake.prepare=error fake.prepare.node=1")
	if !errors.Is(err, control.ErrPrepare) || !strings.Contains(err.Error(), "node 1 (") || !strings.Contains(err.Error(), "no RAM left") {
		t.Errorf("%v", err)
	}
	f.idle()
}

func TestPrepareTakesTooLong(t *testing.T) {
	f := newFarm(t, 2)
	s := f.spec("fake.prepare=hang fake.prepare.node=1")
	s.Timeouts.Prepare = spec.Duration(300 * time.Millisecond)
	_, err := control.Run(within(t, 30*time.Second), s, f.options(nil, nil))
	if !errors.Is(err, control.ErrPrepare) || !strings.Contains(err.Error(), "not ready within 300ms") {
		t.Errorf("%v", err)
	}
	f.idle()
}

// TestInterrupt ends Run's context in every stage: nothing may be left, and the cause comes back.
func TestInterrupt(t *testing.T) {
	cause := errors.New("ctrl-c")
	for name, tt := range map[string]struct{ words, phase string }{
		"prepare":      {"fake.prepare=hang fake.prepare.node=1", control.PhasePopulate},
		"deaf prepare": {"fake.prepare=hang fake.deaf=1", control.PhasePopulate},
		"running":      {"fake.guest=run", control.PhaseBooting},
		"deaf running": {"fake.guest=run fake.deaf=1", control.PhaseBooting},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFarm(t, 2)
			ctx, cancel := context.WithCancelCause(within(t, 60*time.Second))
			go func() {
				f.events.wait(t, tt.phase)
				time.Sleep(50 * time.Millisecond)
				cancel(cause)
			}()
			began := time.Now()
			rep, err := control.Run(ctx, f.spec(tt.words), f.options(nil, nil))
			if err == nil {
				if rep.Outcome.Kind != control.Stopped || !strings.Contains(rep.Outcome.Reason, "ctrl-c") {
					t.Errorf("%+v", rep.Outcome)
				}
			} else if !errors.Is(err, cause) {
				t.Error(err)
			}
			if d := time.Since(began); d > 12*time.Second {
				t.Errorf("it took %v", d)
			}
			f.idle()
		})
	}
}

// TestClientVanishes cuts the client's connections while the VM runs.
func TestClientVanishes(t *testing.T) {
	f := newFarm(t, 2)
	conns := &dials{}
	relays := f.relay(conns)
	s := f.spec("fake.guest=run")
	done := make(chan error, 1)
	opts := f.options(nil, nil)
	for i := range s.Nodes {
		s.Nodes[i].Addr = relays[i]
	}
	go func() {
		rep, err := control.Run(within(t, 60*time.Second), s, opts)
		if err == nil && rep.Outcome.Kind != control.NodeLost {
			err = fmt.Errorf("%+v", rep.Outcome)
		}
		done <- err
	}()
	f.events.wait(t, control.PhaseBooting)
	time.Sleep(100 * time.Millisecond) // all have been started
	conns.cut()
	if err := <-done; err != nil {
		t.Errorf("%v", err)
	}
	f.idle()
}

// dials are connections through a relay.
type dials struct {
	mu  sync.Mutex
	all []net.Conn
}

func (d *dials) add(c net.Conn) {
	d.mu.Lock()
	d.all = append(d.all, c)
	d.mu.Unlock()
}

func (d *dials) cut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range d.all {
		c.Close()
	}
}

// relay puts a TCP relay in front of every node and returns the addresses.
func (f *farm) relay(d *dials) []string {
	var addrs []string
	for _, n := range f.nodes {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			f.t.Fatal(err)
		}
		f.t.Cleanup(func() { ln.Close(); d.cut() })
		addrs = append(addrs, ln.Addr().String())
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				up, err := net.Dial("tcp", n.listener.Addr().String())
				if err != nil {
					c.Close()
					return
				}
				d.add(c)
				d.add(up)
				go func() { io.Copy(up, c); up.Close() }()
				go func() { io.Copy(c, up); c.Close() }()
			}
		}()
	}
	return addrs
}

// TestNodeDies takes a node's daemon away while the VM runs.
func TestNodeDies(t *testing.T) {
	f := newFarm(t, 3)
	go func() {
		f.events.wait(t, control.PhaseBooting)
		time.Sleep(50 * time.Millisecond)
		f.nodes[1].close()
	}()
	rep, _, err := f.run("fake.guest=run")
	if err != nil {
		t.Fatal(err)
	}
	// A daemon that is shut down says so: its share was stopped, by name.
	if rep.OK || rep.Outcome.Kind != control.Stopped && rep.Outcome.Kind != control.NodeLost || !strings.Contains(rep.Outcome.Reason, "shutting down") {
		t.Errorf("%+v", rep.Outcome)
	}
}

func TestRefusals(t *testing.T) {
	f := newFarm(t, 2)
	run := func(s *spec.Spec, o control.RunOptions) error {
		t.Helper()
		_, err := control.Run(within(t, 30*time.Second), s, o)
		if !errors.Is(err, control.ErrRefused) {
			t.Errorf("not refused: %v", err)
			return errors.New("")
		}
		return err
	}
	says := func(err error, want ...string) {
		t.Helper()
		for _, w := range want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("lacks %q: %v", w, err)
			}
		}
	}

	s := f.spec("")
	s.Nodes[1].Addr = "127.0.0.1:1"
	says(run(s, f.options(nil, nil)), "node 1 (127.0.0.1:1)", "connection refused", "does `ironspan node` run there?")

	s = f.spec("")
	s.Nodes[1].Name = "other"
	says(run(s, f.options(nil, nil)), "node 1", "certificate is refused", "other")

	s = f.spec("")
	s.Nodes[1].Device = "mlx5_0"
	says(run(s, f.options(nil, nil)), "no RDMA device mlx5_0", "rxe0 (active)")

	s = f.spec("")
	s.Nodes[1].Memory = 64 << 30
	says(run(s, f.options(nil, nil)), "64GiB", "8192 MiB")

	s = f.spec("")
	s.Kernel = "/nonexistent"
	says(run(s, f.options(nil, nil)), "kernel", "no such file")

	stranger, err := cluster.NewAuthority(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	o := f.options(nil, nil)
	other, err := stranger.IssueClient("c", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	o.TLS = func(name string) *tls.Config { return other.ClientTLS(name, cluster.ALPNControl) }
	says(run(f.spec(""), o), "unknown authority")
	o.TLS = func(name string) *tls.Config {
		c := other.ClientTLS(name, cluster.ALPNControl)
		c.InsecureSkipVerify, c.VerifyConnection = true, nil
		return c
	}
	says(run(f.spec(""), o), "unknown certificate authority")

	asNode, err := f.ca.IssueNode(cluster.Subject{Name: "n1"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	o.TLS = func(name string) *tls.Config { return asNode.ClientTLS(name, cluster.ALPNControl) }
	says(run(f.spec(""), o), "node certificate, a client certificate is needed")
	f.idle()
}

func TestBusy(t *testing.T) {
	f := newFarm(t, 2)
	ctx, cancel := context.WithCancel(within(t, 60*time.Second))
	first := make(chan struct{})
	go func() {
		control.Run(ctx, f.spec("fake.guest=run"), f.options(nil, nil))
		close(first)
	}()
	f.events.wait(t, control.PhaseBooting)
	_, err := control.Run(within(t, 30*time.Second), f.spec(""), f.options(nil, nil))
	if !errors.Is(err, control.ErrRefused) || !strings.Contains(err.Error(), "busy: vm (") {
		t.Errorf("%v", err)
	}
	cancel()
	<-first
	f.idle()
}

// TestSpoilt has a node that cannot clean up: it takes no further VM and says why.
func TestSpoilt(t *testing.T) {
	f := newFarm(t, 1)
	if rep, _, err := f.run("fake.release=error"); err != nil || !rep.OK {
		t.Errorf("%+v %v", rep, err)
	}
	_, _, err := f.run("")
	if !errors.Is(err, control.ErrRefused) || !strings.Contains(err.Error(), "restart its daemon") {
		t.Errorf("%v", err)
	}
}

func TestProtocol(t *testing.T) {
	f := newFarm(t, 1)
	c := control.NewClient(f.nodes[0].listener.Addr().String(), f.client.ClientTLS("n0", cluster.ALPNControl), control.ClientOptions{})
	defer c.Close()
	ctx := within(t, 30*time.Second)
	info, err := c.Info(ctx)
	if err != nil || info.Name != "n0" || info.Proto != control.ProtocolVersion || info.Version != "test" {
		t.Fatal(info, err)
	}
	s := f.spec("")
	plan, err := s.Derive(nil)
	if err != nil {
		t.Fatal(err)
	}
	kernel, file, err := control.OpenBoot(s.Kernel, "kernel", control.MaxKernel)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	code := func(err error, want control.ErrorCode) {
		t.Helper()
		var e *control.Error
		if !errors.As(err, &e) || e.Code != want {
			t.Errorf("want %s: %v", want, err)
		}
	}
	_, err = c.Open(ctx, plan, 1, nil, nil)
	code(err, control.CodeBad)
	_, err = c.Open(ctx, plan, 0, nil, nil)
	code(err, control.CodeBad)
	bad := *plan
	bad.Epoch = 0
	_, err = c.Open(ctx, &bad, 0, kernel, nil)
	code(err, control.CodeBad)
	other := *plan
	other.Nodes = append([]spec.PlanNode{}, plan.Nodes...)
	other.Nodes[0].Name = "elsewhere"
	_, err = c.Open(ctx, &other, 0, kernel, nil)
	code(err, control.CodeRefused)
	vast := *kernel
	vast.Size = control.MaxKernel + 1
	_, err = c.Open(ctx, plan, 0, &vast, nil)
	code(err, control.CodeRefused)

	l, err := c.Open(ctx, plan, 0, kernel, nil)
	if err != nil {
		t.Fatal(err)
	}
	drained := make(chan struct{})
	go func() {
		for range l.Events() {
		}
		close(drained)
	}()
	code(l.Prepare(ctx), control.CodeState) // the kernel is missing
	code(l.Start(ctx), control.CodeState)
	_, err = l.Report(ctx)
	code(err, control.CodeState)
	code(l.Upload(ctx, "initrd", kernel, nil), control.CodeBad)
	short := *kernel
	short.Size -= 5
	code(l.Upload(ctx, "kernel", &short, nil), control.CodeBad)
	wrong := *kernel
	wrong.ReaderAt = bytes.NewReader(make([]byte, kernel.Size))
	code(l.Upload(ctx, "kernel", &wrong, nil), control.CodeBad)
	if err := l.Upload(ctx, "kernel", kernel, nil); err != nil {
		t.Fatal(err)
	}
	code(l.Upload(ctx, "kernel", kernel, nil), control.CodeState)
	if err := l.Prepare(ctx); err != nil {
		t.Fatal(err)
	}
	code(l.Prepare(ctx), control.CodeState)
	if err := l.Stop(ctx, "enough"); err != nil {
		t.Error(err)
	}
	if err := l.Release(ctx); err != nil {
		t.Error(err)
	}
	<-drained
	if err := l.Err(); err != nil {
		t.Errorf("the stream did not end properly: %v", err)
	}
	code(l.Start(ctx), control.CodeUnknown)
	f.idle()
}

func TestShutdownWithVM(t *testing.T) {
	f := newFarm(t, 1)
	go func() {
		f.events.wait(t, control.PhaseBooting)
		f.nodes[0].close()
	}()
	rep, _, err := f.run("fake.guest=run")
	if err != nil || rep.OK {
		t.Errorf("%+v %v", rep, err)
	}
	if _, r := f.nodes[0].machine.Calls(); r != 1 {
		t.Errorf("released %d times", r)
	}
}
