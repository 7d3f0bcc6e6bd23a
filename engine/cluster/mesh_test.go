package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"ironspan/engine/spec"
	"ironspan/engine/wire"
)

// logBuffer is a log that a test can read.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// contains waits until the log has a text.
func (l *logBuffer) contains(t *testing.T, want string) {
	t.Helper()
	for range 500 {
		if strings.Contains(l.String(), want) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("the log lacks %q:\n%s", want, l.String())
}

// rig is N nodes on loopback that may form a mesh.
type rig struct {
	t         *testing.T
	ca        *Authority
	listeners []*Listener
	configs   []Config
	logs      []*logBuffer
}

func newRig(t *testing.T, n int) *rig {
	t.Helper()
	r := &rig{t: t, ca: authority(t)}
	vm := spec.NewVMID()
	var members []Member
	for i := range n {
		log := new(logBuffer)
		r.logs = append(r.logs, log)
		name := fmt.Sprintf("n%d", i)
		l, err := Listen("127.0.0.1:0", r.node(name), ListenerOptions{Handshake: time.Second, Log: slog.New(slog.NewTextHandler(log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		r.listeners = append(r.listeners, l)
		members = append(members, Member{Name: name, Addr: l.Addr().String()})
	}
	for i := range n {
		r.configs = append(r.configs, Config{
			VM: vm, Epoch: 7, Plan: "p", Self: wire.NodeID(i), Members: members,
			Handshake: 2 * time.Second, Heartbeat: 50 * time.Millisecond, Lost: 3 * time.Second,
			Log: slog.New(slog.NewTextHandler(r.logs[i], nil)),
		})
	}
	return r
}

func authority(t testing.TB) *Authority {
	t.Helper()
	ca, err := NewAuthority(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func (r *rig) node(name string) *Identity { return issue(r.t, r.ca, RoleNode, name) }

func issue(t testing.TB, ca *Authority, role Role, name string) *Identity {
	t.Helper()
	id, err := ca.issue(role, Subject{Name: name}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// join joins the given nodes at once.
func (r *rig) join(ctx context.Context, nodes ...int) ([]*Mesh, []error) {
	ms, errs := make([]*Mesh, len(nodes)), make([]error, len(nodes))
	var wg sync.WaitGroup
	for k, i := range nodes {
		wg.Go(func() { ms[k], errs[k] = r.listeners[i].Join(ctx, r.configs[i]) })
	}
	wg.Wait()
	for _, m := range ms {
		if m != nil {
			r.t.Cleanup(func() { m.Close() })
		}
	}
	return ms, errs
}

func (r *rig) mustJoin() []*Mesh {
	r.t.Helper()
	var all []int
	for i := range r.listeners {
		all = append(all, i)
	}
	ms, errs := r.join(within(r.t, 20*time.Second), all...)
	if err := errors.Join(errs...); err != nil {
		r.t.Fatal(err)
	}
	return ms
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func lost(t *testing.T, m *Mesh) PeerLost {
	t.Helper()
	select {
	case p := <-m.Lost():
		return p
	case <-time.After(10 * time.Second):
		t.Fatalf("node %d: nobody is lost", m.Self())
		return PeerLost{}
	}
}

func quiet(t *testing.T, m *Mesh, d time.Duration) {
	t.Helper()
	select {
	case p := <-m.Lost():
		t.Fatalf("node %d: %v", m.Self(), p)
	case <-time.After(d):
	}
}

func TestMeshOfFour(t *testing.T) {
	r := newRig(t, 4)
	ms := r.mustJoin()
	ctx := within(t, 20*time.Second)

	got := make([]map[wire.NodeID][]byte, 4)
	errs := make([]error, 4)
	var wg sync.WaitGroup
	for i, m := range ms {
		wg.Go(func() {
			offers := map[wire.NodeID][]byte{}
			for j := range ms {
				if j != i && j != 3 { // node 3 is sent nothing
					offers[wire.NodeID(j)] = fmt.Appendf(nil, "%d to %d", i, j)
				}
			}
			if got[i], errs[i] = m.Exchange(ctx, "fabric", offers); errs[i] == nil {
				errs[i] = m.Barrier(ctx, "ready")
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for i := range ms {
		if len(got[i]) != 3 {
			t.Errorf("node %d got %v", i, got[i])
		}
		for j, b := range got[i] {
			want := fmt.Sprintf("%d to %d", j, i)
			if i == 3 {
				want = ""
			}
			if string(b) != want {
				t.Errorf("node %d got %q from %d", i, b, j)
			}
		}
	}
	if _, err := ms[0].Exchange(ctx, "fabric", nil); err == nil {
		t.Error("a tag was used twice")
	}
	if _, err := ms[0].Exchange(ctx, "self", map[wire.NodeID][]byte{0: nil}); err == nil {
		t.Error("an offer to oneself")
	}
	if _, err := ms[0].Exchange(ctx, "big", map[wire.NodeID][]byte{1: make([]byte, maxOffer+1)}); err == nil {
		t.Error("an offer beyond the limit")
	}
	for _, m := range ms {
		quiet(t, m, 50*time.Millisecond)
	}
}

func TestBigOffers(t *testing.T) {
	ms := newRig(t, 3).mustJoin()
	ctx := within(t, 20*time.Second)
	var wg sync.WaitGroup
	for i, m := range ms {
		wg.Go(func() {
			offers := map[wire.NodeID][]byte{}
			for j := range ms {
				if j != i {
					offers[wire.NodeID(j)] = bytes.Repeat([]byte{byte(i)}, maxOffer)
				}
			}
			got, err := m.Exchange(ctx, "big", offers)
			if err != nil {
				t.Error(err)
			}
			for j, b := range got {
				if len(b) != maxOffer || b[0] != byte(j) || b[maxOffer-1] != byte(j) {
					t.Errorf("node %d: %d bytes from %d", i, len(b), j)
				}
			}
		})
	}
	wg.Wait()
}

func TestGoodbye(t *testing.T) {
	ms := newRig(t, 3).mustJoin()
	ms[1].Leave("powered-off", "the guest\x1b powered off")
	for _, i := range []int{0, 2} {
		p := lost(t, ms[i])
		if !p.Goodbye || p.Node != 1 || p.Kind != "powered-off" || p.Reason != "the guest? powered off" {
			t.Errorf("node %d: %+v", i, p)
		}
	}
	quiet(t, ms[1], 100*time.Millisecond) // who left hears no more
	quiet(t, ms[0], 100*time.Millisecond) // once is enough
	if err := ms[1].Barrier(within(t, time.Second), "late"); err == nil {
		t.Error("a barrier after leaving")
	}
}

func TestLeaveTogether(t *testing.T) {
	ms := newRig(t, 4).mustJoin()
	began := time.Now()
	var wg sync.WaitGroup
	for _, m := range ms {
		wg.Go(func() { m.Leave("stop", "all of us") })
	}
	wg.Wait()
	if d := time.Since(began); d > 3*time.Second {
		t.Errorf("leaving took %v", d)
	}
}

// TestKill cuts a node's connections, which is what its peers see when its process is killed.
func TestKill(t *testing.T) {
	r := newRig(t, 4)
	ms := r.mustJoin()
	wait := make(chan error, 1)
	go func() { wait <- ms[0].Barrier(context.Background(), "never") }()
	for _, p := range ms[2].others() {
		p.conn.raw.(*net.TCPConn).SetLinger(0)
		p.conn.raw.Close()
	}
	for _, i := range []int{0, 1, 3} {
		if p := lost(t, ms[i]); p.Node != 2 || p.Goodbye || p.Name != "n2" || !strings.Contains(p.Reason, "without a goodbye") {
			t.Errorf("node %d: %+v", i, p)
		}
	}
	var p PeerLost
	if err := <-wait; !errors.As(err, &p) || p.Node != 2 {
		t.Errorf("barrier: %v", err)
	}
	r.logs[0].contains(t, "mesh: peer lost")

	// The epoch is over for it: another try with the same certificate is refused.
	err := r.call(r.node("n2"), 0, r.hello(2, 0))
	if refusedAs(t, err) != Gone {
		t.Errorf("reconnect: %v", err)
	}
}

// TestSilence stops a node from answering without closing anything.
func TestSilence(t *testing.T) {
	r := newRig(t, 2)
	r.configs[0].Lost = 300 * time.Millisecond
	r.configs[1].Heartbeat, r.configs[1].Lost = time.Hour, 2*time.Hour // says nothing
	ms := r.mustJoin()
	if p := lost(t, ms[0]); p.Node != 1 || !strings.Contains(p.Reason, "silent for 300ms") {
		t.Errorf("%+v", p)
	}
}

func TestMissingMember(t *testing.T) {
	r := newRig(t, 3)
	_, errs := r.join(within(t, 700*time.Millisecond), 0, 1)
	for i, err := range errs {
		if err == nil || !strings.Contains(err.Error(), "node 2 (n2 at "+r.configs[0].Members[2].Addr) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("node %d: %v", i, err)
		}
	}
	// The listeners are free again.
	r.mustJoin()
}

func TestLateMember(t *testing.T) {
	r := newRig(t, 2)
	done := make(chan error, 1)
	go func() {
		_, errs := r.join(within(t, 10*time.Second), 1)
		done <- errs[0]
	}()
	time.Sleep(200 * time.Millisecond) // node 1 calls and hears not-ready
	if _, errs := r.join(within(t, 10*time.Second), 0); errs[0] != nil {
		t.Fatal(errs[0])
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// dialRaw opens an authenticated mesh connection to a node.
func (r *rig) dialRaw(id *Identity, to int) *meshConn {
	r.t.Helper()
	raw, err := net.Dial("tcp", r.configs[to].Members[to].Addr)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { raw.Close() })
	raw.SetDeadline(time.Now().Add(10 * time.Second))
	c := newMeshConn(raw, tls.Client(raw, id.ClientTLS(r.configs[to].Members[to].Name, ALPNMesh)))
	return c
}

func (r *rig) hello(from, to int) hello {
	c := r.configs[to]
	return hello{Version: ProtocolVersion, Wire: wire.Version, VM: c.VM, Epoch: c.Epoch, Plan: c.Plan,
		Nodes: len(c.Members), From: wire.NodeID(from), To: wire.NodeID(to)}
}

// call says hello to a node and returns how it answers: nil for a hello, else the refusal.
func (r *rig) call(id *Identity, to int, h hello) error {
	r.t.Helper()
	c := r.dialRaw(id, to)
	if err := c.Handshake(); err != nil {
		return err
	}
	if err := writeFrame(c, frameHello, encodeJSON(h)); err != nil {
		return err
	}
	return r.answerOf(c)
}

func (r *rig) answerOf(c *meshConn) error {
	typ, b, err := readFrame(c.r, maxHandshake)
	if err != nil {
		return err
	}
	if typ == frameRefuse {
		ref, err := decodeRefusal(b)
		if err != nil {
			r.t.Fatal(err)
		}
		return &Refused{Code: ref.Code, Reason: ref.Reason, Remote: true}
	}
	return nil
}

func refusedAs(t *testing.T, err error) Code {
	t.Helper()
	var ref *Refused
	if !errors.As(err, &ref) {
		t.Fatalf("not refused but: %v", err)
	}
	return ref.Code
}

// TestRefusals sends wrong handshakes of all sorts to a node that waits for its peer; each is refused with a reason
// there and here, and the right peer is let in afterwards.
func TestRefusals(t *testing.T) {
	r := newRig(t, 3)
	joined := make(chan []error, 1)
	go func() {
		_, errs := r.join(within(t, 60*time.Second), 0, 1)
		joined <- errs
	}()
	for { // until node 0 waits
		r.listeners[0].mu.Lock()
		m := r.listeners[0].mesh
		r.listeners[0].mu.Unlock()
		if m != nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	other := authority(t)
	good := func() hello { return r.hello(2, 0) }
	tests := []struct {
		name string
		id   *Identity
		h    func() hello
		code Code
		log  string
	}{
		{"wrong VM", r.node("n2"), func() hello { h := good(); h.VM = spec.NewVMID(); return h }, WrongVM, "wrong VM"},
		{"wrong epoch", r.node("n2"), func() hello { h := good(); h.Epoch++; return h }, WrongEpoch, "wrong epoch 8"},
		{"wrong plan", r.node("n2"), func() hello { h := good(); h.Plan = "q"; return h }, WrongPlan, "another plan"},
		{"wrong number of nodes", r.node("n2"), func() hello { h := good(); h.Nodes = 4; return h }, WrongPlan, "another plan"},
		{"wrong version", r.node("n2"), func() hello { h := good(); h.Version = 9; return h }, WrongVersion, "mesh 9"},
		{"wrong wire", r.node("n2"), func() hello { h := good(); h.Wire = 9; return h }, WrongVersion, "wire 9"},
		{"no member", r.node("n2"), func() hello { h := good(); h.From = 5; return h }, WrongMember, "no member 5"},
		{"oneself", r.node("n2"), func() hello { h := good(); h.From = 0; return h }, WrongMember, "no member 0"},
		{"for another", r.node("n2"), func() hello { h := good(); h.To = 1; return h }, WrongMember, "node 1 is meant"},
		{"another's name", r.node("n1"), good, BadCertificate, `is \"n2\", the certificate says \"n1\"`},
		{"a stranger's name", r.node("x"), good, BadCertificate, `the certificate says \"x\"`},
		{"a client", issue(t, r.ca, RoleClient, "n2"), good, BadCertificate, "client certificate"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := r.call(tt.id, 0, tt.h())
			if c := refusedAs(t, err); c != tt.code {
				t.Errorf("refused as %s: %v", c, err)
			}
			r.logs[0].contains(t, tt.log)
		})
	}

	t.Run("wrong authority", func(t *testing.T) {
		c := r.dialRaw(issue(t, other, RoleNode, "n2"), 0)
		if err := c.Handshake(); err == nil || !strings.Contains(err.Error(), "unknown authority") {
			t.Errorf("the caller takes a stranger for node 0: %v", err)
		}
		// A caller that does not check the node is still told why it is refused.
		raw, err := net.Dial("tcp", r.configs[0].Members[0].Addr)
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		conf := issue(t, other, RoleNode, "n2").ClientTLS("n0", ALPNMesh)
		conf.InsecureSkipVerify, conf.VerifyConnection = true, nil
		tc := tls.Client(raw, conf)
		err = tc.Handshake()
		if err == nil {
			_, err = tc.Read(make([]byte, 1))
		}
		if err == nil || !strings.Contains(err.Error(), "unknown certificate authority") {
			t.Errorf("refused as %v", err)
		}
		r.logs[0].contains(t, "unknown authority")
	})
	t.Run("no certificate", func(t *testing.T) {
		raw, err := net.Dial("tcp", r.configs[0].Members[0].Addr)
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		tc := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{ALPNMesh}})
		err = tc.Handshake()
		if err == nil {
			_, err = tc.Read(make([]byte, 1))
		}
		if err == nil || !strings.Contains(err.Error(), "certificate required") {
			t.Errorf("refused as %v", err)
		}
	})
	t.Run("other protocol", func(t *testing.T) {
		raw, err := net.Dial("tcp", r.configs[0].Members[0].Addr)
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		conf := r.node("n2").ClientTLS("n0", "smtp")
		if err := tls.Client(raw, conf).Handshake(); err == nil {
			t.Error("speaks smtp")
		}
	})
	t.Run("old TLS", func(t *testing.T) {
		conf := r.node("n2").ClientTLS("n0", ALPNMesh)
		conf.MinVersion, conf.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
		raw, err := net.Dial("tcp", r.configs[0].Members[0].Addr)
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		if err := tls.Client(raw, conf).Handshake(); err == nil {
			t.Error("speaks TLS 1.2")
		}
	})
	t.Run("not TLS", func(t *testing.T) {
		raw, err := net.Dial("tcp", r.configs[0].Members[0].Addr)
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		raw.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
		io.Copy(io.Discard, raw)
		r.logs[0].contains(t, "not TLS")
	})
	t.Run("garbage", func(t *testing.T) {
		for _, b := range []string{"GET / HTTP/1.1\r\n\r\n", "IM\x01\x00\xff\xff\xff\xff", "IM\x63\x00\x00\x00\x00\x00",
			"IM\x05\x00\x00\x00\x00\x00", "IM\x01\x00\x00\x00\x00\x02{]", "IM\x01\x00\x00\x00\x00\x09{\"vm\":12}"} {
			c := r.dialRaw(r.node("n2"), 0)
			if err := c.Handshake(); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Write([]byte(b)); err != nil {
				t.Fatal(err)
			}
			if code := refusedAs(t, r.answerOf(c)); code != Garbled {
				t.Errorf("%q: refused as %s", b, code)
			}
		}
		r.logs[0].contains(t, "garbled")
	})
	t.Run("garbage for ready", func(t *testing.T) {
		c := r.dialRaw(r.node("n2"), 0)
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
		if err := writeFrame(c, frameHello, encodeJSON(good())); err != nil {
			t.Fatal(err)
		}
		if err := r.answerOf(c); err != nil {
			t.Fatal(err)
		}
		if err := writeFrame(c, framePing, nil); err != nil {
			t.Fatal(err)
		}
		if code := refusedAs(t, r.answerOf(c)); code != Garbled {
			t.Errorf("refused as %s", code)
		}
	})
	t.Run("slow hello", func(t *testing.T) {
		c := r.dialRaw(r.node("n2"), 0)
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
		stop := make(chan struct{})
		var drip sync.WaitGroup
		drip.Go(func() { // one byte at a time, as a slowloris does
			frame := append([]byte("IM\x01\x00\x00\x00\x01\x00"), make([]byte, 256)...)
			for _, b := range frame {
				if _, err := c.Write([]byte{b}); err != nil {
					return
				}
				select {
				case <-time.After(50 * time.Millisecond):
				case <-stop:
					return
				}
			}
		})
		if code := refusedAs(t, r.answerOf(c)); code != Slow {
			t.Errorf("refused as %s", code)
		}
		close(stop)
		drip.Wait()
	})
	t.Run("slow TLS", func(t *testing.T) {
		raw, err := net.Dial("tcp", r.configs[0].Members[0].Addr)
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		raw.SetDeadline(time.Now().Add(10 * time.Second))
		raw.Write([]byte{0x16, 3, 1})
		if _, err := raw.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		r.logs[0].contains(t, "took too long")
	})

	// After all that the right one is let in.
	if _, errs := r.join(within(t, 20*time.Second), 2); errs[0] != nil {
		t.Fatal(errs[0])
	}
	if err := errors.Join(<-joined...); err != nil {
		t.Fatal(err)
	}
	// A second one that claims to be node 2 is refused, and the first stays.
	if code := refusedAs(t, r.call(r.node("n2"), 0, good())); code != Duplicate {
		t.Errorf("a second node 2 is refused as %s", code)
	}
}

// TestWrongNode has somebody else's daemon at a member's address: the caller finds out by the certificate and says
// so, and its Join fails at once instead of running into its time-out.
func TestWrongNode(t *testing.T) {
	r := newRig(t, 3)
	r.configs[1].Members = append([]Member{}, r.configs[1].Members...)
	r.configs[1].Members[0].Addr = r.configs[1].Members[2].Addr
	began := time.Now()
	_, errs := r.join(within(t, 30*time.Second), 1)
	if errs[0] == nil || !strings.Contains(errs[0].Error(), "n2, not n0") {
		t.Errorf("%v", errs[0])
	}
	if time.Since(began) > 10*time.Second {
		t.Error("it tried for long")
	}
}

func TestRemoteRefusalEndsJoin(t *testing.T) {
	r := newRig(t, 2)
	r.configs[1].Epoch++
	ctx, cancel := context.WithCancel(within(t, 20*time.Second))
	done := make(chan []error, 1)
	go func() {
		_, errs := r.join(ctx, 0)
		done <- errs
	}()
	_, errs := r.join(within(t, 20*time.Second), 1)
	var ref *Refused
	if !errors.As(errs[0], &ref) || !ref.Remote || ref.Code != WrongEpoch || ref.Node != 0 {
		t.Errorf("%v", errs[0])
	}
	r.logs[0].contains(t, "wrong epoch 8")
	cancel()
	<-done
}

func TestJoinRefusesNonsense(t *testing.T) {
	r := newRig(t, 2)
	for name, spoil := range map[string]func(*Config){
		"self":      func(c *Config) { c.Self = 2 },
		"members":   func(c *Config) { c.Members = nil },
		"vm":        func(c *Config) { c.VM = spec.VMID{} },
		"heartbeat": func(c *Config) { c.Lost = c.Heartbeat },
		"name":      func(c *Config) { c.Members = []Member{{"other", ""}, {"n1", ""}} },
	} {
		c := r.configs[0]
		spoil(&c)
		if _, err := r.listeners[0].Join(within(t, time.Second), c); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := NewListener(nil, issue(t, r.ca, RoleClient, "c"), ListenerOptions{}); err == nil {
		t.Error("a client listens")
	}
}

func TestGarbageAfterHandshake(t *testing.T) {
	r := newRig(t, 2)
	done := make(chan []*Mesh, 1)
	go func() {
		ms, errs := r.join(within(t, 20*time.Second), 0)
		if errs[0] != nil {
			t.Error(errs[0])
		}
		done <- ms
	}()
	var c *meshConn
	for { // node 0 may not wait yet
		c = r.dialRaw(r.node("n1"), 0)
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
		if err := writeFrame(c, frameHello, encodeJSON(r.hello(1, 0))); err != nil {
			t.Fatal(err)
		}
		err := r.answerOf(c)
		if err == nil {
			break
		}
		if refusedAs(t, err) != NotReady {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := writeFrame(c, frameReady, nil); err != nil {
		t.Fatal(err)
	}
	m := (<-done)[0]
	if _, err := c.Write([]byte("nonsense")); err != nil {
		t.Fatal(err)
	}
	if p := lost(t, m); p.Node != 1 || !strings.Contains(p.Reason, "garbled") {
		t.Errorf("%+v", p)
	}
}

func TestListenerCloses(t *testing.T) {
	r := newRig(t, 1)
	raw, err := net.Dial("tcp", r.listeners[0].Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	ctl := r.listeners[0].Control()
	got := make(chan error, 1)
	go func() { _, err := ctl.Accept(); got <- err }()
	time.Sleep(20 * time.Millisecond)
	r.listeners[0].Close()
	if err := <-got; !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

func TestTooManyHandshakes(t *testing.T) {
	ca := authority(t)
	log := new(logBuffer)
	l, err := Listen("127.0.0.1:0", issue(t, ca, RoleNode, "n0"),
		ListenerOptions{Handshake: time.Minute, Pending: 2, Log: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range 3 {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	log.contains(t, "too many handshakes")
}

func TestAlone(t *testing.T) {
	m := newRig(t, 1).mustJoin()[0]
	if got, err := m.Exchange(context.Background(), "x", nil); err != nil || len(got) != 0 {
		t.Error(got, err)
	}
	if err := m.Barrier(context.Background(), "x"); err != nil {
		t.Error(err)
	}
}
