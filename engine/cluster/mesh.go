package cluster

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"ironspan/engine/spec"
	"ironspan/engine/wire"
)

// Code says why a handshake was refused.
type Code string

// The reasons for a refusal.
const (
	NotReady       Code = "not-ready"   // no VM is being formed here (yet): worth another try
	WrongVersion   Code = "version"     // another version of Ironspan
	WrongVM        Code = "vm"          // another VM
	WrongEpoch     Code = "epoch"       // another incarnation of the VM
	WrongPlan      Code = "plan"        // another plan of the VM
	WrongMember    Code = "member"      // not a member, or not the one that was expected
	BadCertificate Code = "certificate" // the certificate is not that member's
	Duplicate      Code = "duplicate"   // the member is connected already
	Gone           Code = "gone"        // the member was lost: it does not come back in this epoch
	Garbled        Code = "garbled"     // not the mesh's protocol
	Slow           Code = "slow"        // the handshake took too long
)

// Refused is a handshake that one side refused.
type Refused struct {
	Node   wire.NodeID // the other side, if known
	Addr   string      // its address
	Code   Code
	Reason string
	Remote bool // the other side refused, not this one
}

// Error implements error.
func (e *Refused) Error() string {
	if e.Remote {
		return fmt.Sprintf("cluster: node %d at %s refused: %s", e.Node, e.Addr, e.Reason)
	}
	return fmt.Sprintf("cluster: refused %s: %s", e.Addr, e.Reason)
}

// PeerLost is a member that is gone. It is an error, too.
type PeerLost struct {
	Node    wire.NodeID
	Name    string
	Goodbye bool   // it left by itself: Kind and Reason are its own words
	Kind    string // what it passed to Leave
	Reason  string
}

// Error implements error.
func (e PeerLost) Error() string {
	if e.Goodbye {
		return fmt.Sprintf("cluster: node %d (%s) left: %s", e.Node, e.Name, e.Reason)
	}
	return fmt.Sprintf("cluster: node %d (%s) lost: %s", e.Node, e.Name, e.Reason)
}

// Member is a node of a VM, as its peers have to know it.
type Member struct {
	Name string // that its certificate must carry: host name or IP address
	Addr string // host:port of its daemon
}

// Config is what a node has to know to join the mesh of a VM.
type Config struct {
	VM      spec.VMID
	Epoch   wire.Epoch
	Plan    string // digest of the plan, so that no two nodes mean different ones
	Self    wire.NodeID
	Members []Member // by node number

	Handshake time.Duration // for one handshake, default 10 s
	Heartbeat time.Duration // between two signs of life, default 1 s
	Lost      time.Duration // silence after which a peer counts as lost, default 10 s; at least 2 heartbeats
	Log       *slog.Logger  // default slog.Default()
}

// ConfigFor returns the Config of one node of a plan.
func ConfigFor(p *spec.Plan, self wire.NodeID, log *slog.Logger) Config {
	c := Config{
		VM: p.VM, Epoch: p.Epoch, Plan: p.Digest(), Self: self,
		Handshake: p.Timeouts.Connect.Std(), Heartbeat: p.Timeouts.Heartbeat.Std(), Lost: p.Timeouts.Lost.Std(),
		Log: log,
	}
	for _, n := range p.Nodes {
		c.Members = append(c.Members, Member{Name: n.Name, Addr: n.Addr})
	}
	return c
}

func (c *Config) check() error {
	if c.Handshake == 0 {
		c.Handshake = 10 * time.Second
	}
	if c.Heartbeat == 0 {
		c.Heartbeat = time.Second
	}
	if c.Lost == 0 {
		c.Lost = 10 * time.Second
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	switch {
	case len(c.Members) == 0 || len(c.Members) > wire.MaxNodes:
		return fmt.Errorf("cluster: a VM has 1 to %d nodes, not %d", wire.MaxNodes, len(c.Members))
	case int(c.Self) >= len(c.Members):
		return fmt.Errorf("cluster: node %d of %d", c.Self, len(c.Members))
	case c.VM.IsZero():
		return errors.New("cluster: the VM has no id")
	case c.Heartbeat < time.Millisecond || c.Lost < 2*c.Heartbeat:
		return fmt.Errorf("cluster: a peer cannot be lost after %v with a heartbeat every %v", c.Lost, c.Heartbeat)
	}
	return nil
}

type peerState uint8

const (
	peerAbsent    peerState = iota
	peerJoining             // a handshake with it is under way
	peerConnected           // its connection is up
	peerGone                // it was connected, and is not any more: final
)

// peer is a member as seen from this node.
type peer struct {
	id     wire.NodeID
	member Member
	wmu    sync.Mutex // held while a frame is written
	heard  atomic.Uint64
	done   chan struct{} // closed when the reader has ended

	// Guarded by Mesh.mu.
	state peerState
	conn  *meshConn // set once, with peerConnected
	lost  *PeerLost // set once, with peerGone
	inbox map[string][]byte
	seen  map[string]bool // tags it has sent
}

// Mesh is a node's connections to all other members of its VM.
type Mesh struct {
	cfg  Config
	l    *Listener
	lost chan PeerLost
	wg   sync.WaitGroup
	stop chan struct{} // closed by Leave

	mu      sync.Mutex
	peers   []*peer         // by node; nil at Self
	changed chan struct{}   // closed and replaced whenever anything below or a peer changed
	used    map[string]bool // tags of Exchange
	closed  bool
	dialErr []error // by node: why the last dial failed
}

// Join connects this node to all other members and returns when it has them all. It fails when ctx ends, naming
// who is missing and why, when a member refuses or cannot be trusted, or when one that was connected is lost.
// A Listener is in at most one mesh at a time.
func (l *Listener) Join(ctx context.Context, cfg Config) (*Mesh, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if me := cfg.Members[cfg.Self].Name; !l.id.Covers(me) {
		return nil, fmt.Errorf("cluster: the plan calls this node %q, its certificate says %q", me, l.id.Name())
	}
	m := &Mesh{
		cfg: cfg, l: l,
		lost:    make(chan PeerLost, len(cfg.Members)),
		stop:    make(chan struct{}),
		changed: make(chan struct{}),
		used:    map[string]bool{},
		dialErr: make([]error, len(cfg.Members)),
	}
	for i, mem := range cfg.Members {
		var p *peer
		if wire.NodeID(i) != cfg.Self {
			p = &peer{id: wire.NodeID(i), member: mem, inbox: map[string][]byte{}, seen: map[string]bool{}, done: make(chan struct{})}
		}
		m.peers = append(m.peers, p)
	}
	if err := l.setMesh(m); err != nil {
		return nil, err
	}

	dctx, cancel := context.WithCancel(ctx)
	fatal := make(chan error, len(m.peers))
	var dials sync.WaitGroup
	for _, p := range m.peers[:cfg.Self] {
		dials.Go(func() {
			if err := m.dialUntil(dctx, p); err != nil {
				fatal <- err
			}
		})
	}
	err := m.waitConnected(ctx, fatal)
	cancel()
	dials.Wait()
	if err != nil {
		m.Leave("failed", strings.TrimPrefix(err.Error(), "cluster: "))
		return nil, err
	}
	return m, nil
}

// waitConnected waits until all peers are connected.
func (m *Mesh) waitConnected(ctx context.Context, fatal <-chan error) error {
	for {
		m.mu.Lock()
		changed, missing := m.changed, false
		for _, p := range m.others() {
			if p.lost != nil {
				m.mu.Unlock()
				return *p.lost
			}
			missing = missing || p.state != peerConnected
		}
		m.mu.Unlock()
		if !missing {
			return nil
		}
		select {
		case <-changed:
		case err := <-fatal:
			return err
		case <-ctx.Done():
			return m.missing(ctx)
		}
	}
}

// missing says who is not connected, and why as far as is known.
func (m *Mesh) missing(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var who []string
	for _, p := range m.others() {
		if p.state == peerConnected {
			continue
		}
		s := fmt.Sprintf("node %d (%s at %s)", p.id, p.member.Name, p.member.Addr)
		if err := m.dialErr[p.id]; err != nil {
			s += ": " + strings.TrimPrefix(err.Error(), "cluster: ")
		} else if p.id > m.cfg.Self {
			s += ": it has not called"
		}
		who = append(who, s)
	}
	return fmt.Errorf("cluster: not connected to %s: %w", strings.Join(who, "; "), context.Cause(ctx))
}

func (m *Mesh) others() []*peer {
	var ps []*peer
	for _, p := range m.peers {
		if p != nil {
			ps = append(ps, p)
		}
	}
	return ps
}

// notify wakes everyone who waits for a change. The caller holds mu.
func (m *Mesh) notify() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// dialUntil dials a peer until it is connected or ctx ends. It returns an error only for what another try
// would not mend.
func (m *Mesh) dialUntil(ctx context.Context, p *peer) error {
	wait := 20 * time.Millisecond
	for {
		err := m.dial(ctx, p)
		if err == nil || ctx.Err() != nil {
			return nil
		}
		m.mu.Lock()
		m.dialErr[p.id] = err
		m.mu.Unlock()
		if !worthAnotherTry(err) {
			m.cfg.Log.Warn("mesh: cannot connect", "node", p.id, "name", p.member.Name, "addr", p.member.Addr, "err", err)
			return err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
		wait = min(2*wait, time.Second)
	}
}

func worthAnotherTry(err error) bool {
	var r *Refused
	if errors.As(err, &r) {
		return r.Code == NotReady || r.Code == Slow
	}
	var cert *tls.CertificateVerificationError
	var alert tls.AlertError
	var remote *net.OpError
	switch {
	case errors.As(err, &cert), errors.As(err, &alert):
		return false
	case errors.As(err, &remote) && remote.Op == "remote error": // a TLS alert from the peer
		return false
	case errors.Is(err, errGarbled):
		return false
	}
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return !dns.IsNotFound
	}
	return true
}

// dial makes one attempt to connect to a lower member.
func (m *Mesh) dial(ctx context.Context, p *peer) error {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Handshake)
	defer cancel()
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", p.member.Addr)
	if err != nil {
		return fmt.Errorf("cluster: node %d: %w", p.id, err)
	}
	conn := newMeshConn(raw, tls.Client(raw, m.l.id.ClientTLS(p.member.Name, ALPNMesh)))
	if err := m.greet(ctx, p, conn); err != nil {
		conn.linger()
		return err
	}
	return nil
}

// greet is the dialler's half of the handshake.
func (m *Mesh) greet(ctx context.Context, p *peer, conn *meshConn) error {
	addr := p.member.Addr
	stop := context.AfterFunc(ctx, func() { conn.raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := conn.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("cluster: node %d at %s: %w", p.id, addr, err)
	}
	if err := writeFrame(conn, frameHello, encodeJSON(m.hello(p.id))); err != nil {
		return fmt.Errorf("cluster: node %d at %s: %w", p.id, addr, err)
	}
	t, b, err := readFrame(conn.r, maxHandshake)
	switch {
	case errors.Is(err, errGarbled):
		return m.refuse(conn, p.id, Garbled, err.Error())
	case err != nil:
		return fmt.Errorf("cluster: node %d at %s: %w", p.id, addr, err)
	case t == frameRefuse:
		r, err := decodeRefusal(b)
		if err != nil {
			return fmt.Errorf("cluster: node %d at %s: %w", p.id, addr, err)
		}
		return &Refused{Node: p.id, Addr: addr, Code: r.Code, Reason: r.Reason, Remote: true}
	case t != frameHello:
		return m.refuse(conn, p.id, Garbled, fmt.Sprintf("garbled: frame type %d in place of a hello", t))
	}
	h, err := decodeHello(b)
	if err != nil {
		return m.refuse(conn, p.id, Garbled, err.Error())
	}
	if r := m.judge(h, conn.ConnectionState()); r != nil {
		return m.refuse(conn, p.id, r.Code, r.Reason)
	}
	if h.From != p.id {
		return m.refuse(conn, p.id, WrongMember, fmt.Sprintf("node %d answers where node %d was called", h.From, p.id))
	}
	if r := m.reserve(p); r != nil {
		return m.refuse(conn, p.id, r.Code, r.Reason)
	}
	if err := writeFrame(conn, frameReady, nil); err != nil {
		m.unreserve(p)
		return fmt.Errorf("cluster: node %d at %s: %w", p.id, addr, err)
	}
	if !stop() {
		m.unreserve(p)
		return fmt.Errorf("cluster: node %d at %s: %w", p.id, addr, context.Cause(ctx))
	}
	m.connected(p, conn)
	return nil
}

// answer is the acceptor's half of the handshake. The caller has set conn's deadline.
func (m *Mesh) answer(h hello, conn *meshConn) error {
	if r := m.judge(h, conn.ConnectionState()); r != nil {
		return m.refuse(conn, h.From, r.Code, r.Reason)
	}
	if h.From < m.cfg.Self {
		return m.refuse(conn, h.From, WrongMember, fmt.Sprintf("node %d calls node %d: the higher number calls", h.From, m.cfg.Self))
	}
	p := m.peers[h.From]
	if r := m.reserve(p); r != nil {
		return m.refuse(conn, h.From, r.Code, r.Reason)
	}
	err := writeFrame(conn, frameHello, encodeJSON(m.hello(h.From)))
	if err != nil {
		m.unreserve(p)
		return err
	}
	t, b, err := readFrame(conn.r, maxHandshake)
	switch {
	case err != nil:
		m.unreserve(p)
		return err
	case t == frameRefuse:
		m.unreserve(p)
		r, err := decodeRefusal(b)
		if err != nil {
			return err
		}
		return &Refused{Node: p.id, Addr: conn.RemoteAddr().String(), Code: r.Code, Reason: r.Reason, Remote: true}
	case t != frameReady || len(b) != 0:
		m.unreserve(p)
		return m.refuse(conn, h.From, Garbled, fmt.Sprintf("garbled: frame type %d in place of ready", t))
	}
	conn.raw.SetDeadline(time.Time{})
	m.connected(p, conn)
	return nil
}

func (m *Mesh) hello(to wire.NodeID) hello {
	return hello{
		Version: ProtocolVersion, Wire: wire.Version, VM: m.cfg.VM, Epoch: m.cfg.Epoch, Plan: m.cfg.Plan,
		Nodes: len(m.cfg.Members), From: m.cfg.Self, To: to,
	}
}

// judge says what is wrong with a peer's hello on a connection, or nil.
func (m *Mesh) judge(h hello, s tls.ConnectionState) *refusal {
	no := func(c Code, format string, args ...any) *refusal { return &refusal{c, fmt.Sprintf(format, args...)} }
	c := &m.cfg
	switch {
	case h.Version != ProtocolVersion || h.Wire != wire.Version:
		return no(WrongVersion, "versions differ: mesh %d, wire %d; here mesh %d, wire %d: install the same ironspan everywhere",
			h.Version, h.Wire, ProtocolVersion, wire.Version)
	case h.VM != c.VM:
		return no(WrongVM, "wrong VM %s, this is %s", h.VM, c.VM)
	case h.Epoch != c.Epoch:
		return no(WrongEpoch, "wrong epoch %d of VM %s, this is %d", h.Epoch, c.VM, c.Epoch)
	case h.Plan != c.Plan || h.Nodes != len(c.Members):
		return no(WrongPlan, "another plan of VM %s", c.VM)
	case int(h.From) >= len(c.Members) || h.From == c.Self:
		return no(WrongMember, "no member %d can call node %d of %d", h.From, c.Self, len(c.Members))
	case h.To != c.Self:
		return no(WrongMember, "node %d is meant, this is node %d", h.To, c.Self)
	}
	if err := RequireRole(&s, RoleNode); err != nil {
		return no(BadCertificate, "%s", strings.TrimPrefix(err.Error(), "cluster: "))
	}
	cert := s.PeerCertificates[0]
	if want := c.Members[h.From].Name; cert.VerifyHostname(want) != nil {
		return no(BadCertificate, "node %d is %q, the certificate says %q", h.From, want, clean(cert.Subject.CommonName, 64))
	}
	return nil
}

// refuse tells the other side why it is refused and returns that as an error.
func (m *Mesh) refuse(conn *meshConn, node wire.NodeID, code Code, reason string) error {
	return refuse(conn, node, code, reason)
}

func refuse(conn *meshConn, node wire.NodeID, code Code, reason string) error {
	reason = clean(reason, maxReason)
	// A deadline that has passed is the reason of some refusals; the peer is told all the same.
	conn.raw.SetDeadline(time.Now().Add(time.Second))
	_ = writeFrame(conn, frameRefuse, encodeJSON(refusal{code, reason})) // it may be gone; the log has it
	return &Refused{Node: node, Addr: conn.RemoteAddr().String(), Code: code, Reason: reason}
}

// reserve makes p's place taken by the handshake of the caller.
func (m *Mesh) reserve(p *peer) *refusal {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.closed:
		return &refusal{Gone, "this node has left the VM"}
	case p.state == peerAbsent:
		p.state = peerJoining
		return nil
	case p.state == peerGone:
		return &refusal{Gone, fmt.Sprintf("node %d was lost in this epoch (%s) and cannot come back", p.id, p.lost.Reason)}
	}
	return &refusal{Duplicate, fmt.Sprintf("node %d is connected already", p.id)}
}

func (m *Mesh) unreserve(p *peer) {
	m.mu.Lock()
	p.state = peerAbsent
	m.mu.Unlock()
}

// connected makes a reserved peer's connection live.
func (m *Mesh) connected(p *peer, conn *meshConn) {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		conn.Close()
		return
	}
	p.state, p.conn = peerConnected, conn
	m.wg.Go(func() { m.read(p) })
	m.wg.Go(func() { m.beat(p) })
	m.notify()
	m.mu.Unlock()
	m.cfg.Log.Info("mesh: connected", "node", p.id, "name", p.member.Name, "addr", conn.RemoteAddr().String())
}

// read takes a peer's frames until its connection ends.
func (m *Mesh) read(p *peer) {
	defer close(p.done)
	for {
		t, b, err := readFrame(p.conn.r, maxFrame)
		if err != nil {
			m.lose(p, PeerLost{Reason: closedReason(err)})
			return
		}
		p.heard.Add(1)
		switch t {
		case framePing:
		case frameExchange:
			err = m.take(p, b)
		case frameGoodbye:
			var g goodbye
			if g, err = decodeGoodbye(b); err == nil {
				m.lose(p, PeerLost{Goodbye: true, Kind: g.Kind, Reason: g.Reason})
				return
			}
		default:
			err = fmt.Errorf("%w: frame type %d after the handshake", errGarbled, t)
		}
		if err != nil {
			m.lose(p, PeerLost{Reason: err.Error()})
			return
		}
	}
}

func closedReason(err error) string {
	if errors.Is(err, errGarbled) {
		return err.Error()
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil {
		err = op.Err
	}
	return "its connection ended without a goodbye (" + err.Error() + "): the process or its host died"
}

// unwritable says why a frame could not be sent.
func unwritable(err error) string {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return "it takes nothing any more: the process hangs, or the network to it is down"
	}
	return closedReason(err)
}

// take stores a peer's part of an exchange.
func (m *Mesh) take(p *peer, b []byte) error {
	tag, offer, err := decodeExchange(b)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	// A peer is ahead of this node by a few exchanges at most.
	if p.seen[tag] || len(p.inbox) >= 16 || len(p.seen) >= 1024 {
		return fmt.Errorf("%w: exchange %q twice, or too many of them", errGarbled, tag)
	}
	p.seen[tag] = true
	p.inbox[tag] = offer
	m.notify()
	return nil
}

// beat sends heartbeats to a peer and counts those it misses itself.
func (m *Mesh) beat(p *peer) {
	tick := time.NewTicker(m.cfg.Heartbeat)
	defer tick.Stop()
	limit := max(2, int(m.cfg.Lost/m.cfg.Heartbeat))
	last, silent := p.heard.Load(), 0
	for {
		select {
		case <-p.done:
			return
		case <-tick.C:
		}
		if now := p.heard.Load(); now != last {
			last, silent = now, 0
		} else if silent++; silent >= limit {
			m.lose(p, PeerLost{Reason: fmt.Sprintf("silent for %v: the process hangs, or the network to it is down",
				time.Duration(silent)*m.cfg.Heartbeat)})
			return
		}
		if err := m.write(p, framePing, nil); err != nil {
			m.lose(p, PeerLost{Reason: unwritable(err)})
			return
		}
	}
}

func (m *Mesh) write(p *peer, t frameType, payload []byte) error {
	p.wmu.Lock()
	defer p.wmu.Unlock()
	p.conn.SetWriteDeadline(time.Now().Add(m.cfg.Lost))
	return writeFrame(p.conn, t, payload)
}

// lose makes a peer gone, once, and reports it unless this node has left.
func (m *Mesh) lose(p *peer, why PeerLost) {
	why.Node, why.Name = p.id, p.member.Name
	m.mu.Lock()
	if p.state == peerGone {
		m.mu.Unlock()
		return
	}
	p.state, p.lost = peerGone, &why
	m.notify()
	closed := m.closed
	if !closed {
		m.lost <- why // never blocks: one event for each peer fits
	}
	m.mu.Unlock()
	p.conn.Close()
	if closed {
		return
	}
	if why.Goodbye {
		m.cfg.Log.Info("mesh: peer left", "node", p.id, "name", p.member.Name, "kind", why.Kind, "reason", why.Reason)
	} else {
		m.cfg.Log.Warn("mesh: peer lost", "node", p.id, "name", p.member.Name, "reason", why.Reason)
	}
}

// Self returns this node's number.
func (m *Mesh) Self() wire.NodeID { return m.cfg.Self }

// Lost delivers every peer that is lost or leaves, once each, until this node leaves; then nothing more. The
// channel has room for all of them and is never closed.
func (m *Mesh) Lost() <-chan PeerLost { return m.lost }

// Exchange gives every peer its offer and returns those of the peers: the result has an entry for every other
// member. A peer without an entry in offers is sent an empty one. All members call it with the same tags in the
// same order; a tag is printable ASCII, at most 64 bytes, used once in a mesh's life. An offer is at most 1 MiB.
// It fails with a PeerLost if a member is lost meanwhile, or when ctx ends.
func (m *Mesh) Exchange(ctx context.Context, tag string, offers map[wire.NodeID][]byte) (map[wire.NodeID][]byte, error) {
	if err := m.checkExchange(tag, offers); err != nil {
		return nil, err
	}
	peers := m.others()
	var sends sync.WaitGroup
	for _, p := range peers {
		sends.Go(func() {
			if err := m.write(p, frameExchange, encodeExchange(tag, offers[p.id])); err != nil {
				m.lose(p, PeerLost{Reason: unwritable(err)})
			}
		})
	}
	got, err := m.collect(ctx, tag, peers)
	if err != nil && ctx.Err() != nil {
		return nil, err // a write that hangs ends by its own deadline
	}
	sends.Wait()
	return got, err
}

func (m *Mesh) checkExchange(tag string, offers map[wire.NodeID][]byte) error {
	if !validTag(tag) {
		return fmt.Errorf("cluster: exchange: bad tag %q", tag)
	}
	for n, o := range offers {
		if int(n) >= len(m.peers) || m.peers[n] == nil {
			return fmt.Errorf("cluster: exchange %s: an offer for node %d, which is no peer", tag, n)
		}
		if len(o) > maxOffer {
			return fmt.Errorf("cluster: exchange %s: offer for node %d of %d bytes, at most %d", tag, n, len(o), maxOffer)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return fmt.Errorf("cluster: exchange %s: this node has left", tag)
	}
	if m.used[tag] {
		return fmt.Errorf("cluster: exchange %s: tag used before", tag)
	}
	m.used[tag] = true
	return nil
}

// collect waits for the tag's offer of all peers.
func (m *Mesh) collect(ctx context.Context, tag string, peers []*peer) (map[wire.NodeID][]byte, error) {
	got := make(map[wire.NodeID][]byte, len(peers))
	for {
		m.mu.Lock()
		changed, closed := m.changed, m.closed
		var lost *PeerLost
		for _, p := range peers {
			if _, ok := got[p.id]; ok {
				continue
			}
			if o, ok := p.inbox[tag]; ok { // also of one that is gone by now: the exchange was complete
				got[p.id] = o
				delete(p.inbox, tag)
			} else if p.lost != nil && lost == nil {
				lost = p.lost
			}
		}
		m.mu.Unlock()
		switch {
		case len(got) == len(peers):
			return got, nil
		case lost != nil:
			return nil, *lost
		case closed:
			return nil, fmt.Errorf("cluster: exchange %s: this node has left", tag)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			var late []string
			for _, p := range peers {
				if _, ok := got[p.id]; !ok {
					late = append(late, fmt.Sprintf("%d (%s)", p.id, p.member.Name))
				}
			}
			slices.Sort(late)
			return nil, fmt.Errorf("cluster: exchange %s: nothing from node %s: %w", tag, strings.Join(late, ", "), context.Cause(ctx))
		}
	}
}

// Barrier returns when every member has called it with the same name. Names are used once, like Exchange's tags.
func (m *Mesh) Barrier(ctx context.Context, name string) error {
	_, err := m.Exchange(ctx, "barrier/"+name, nil)
	return err
}

// Leave tells the peers why this node goes and closes its connections; kind is a word for programs, reason a
// line for people. Nothing is reported on Lost any more. Only the first call has an effect; all return when
// everything is closed.
func (m *Mesh) Leave(kind, reason string) {
	m.mu.Lock()
	first := !m.closed
	m.closed = true
	var live []*peer
	for _, p := range m.others() {
		if first && p.state == peerConnected {
			live = append(live, p)
		}
	}
	m.notify()
	m.mu.Unlock()
	if first {
		close(m.stop)
		var byes sync.WaitGroup
		for _, p := range live {
			byes.Go(func() { m.sayGoodbye(p, kind, reason) })
		}
		byes.Wait()
		m.l.clearMesh(m)
	}
	m.wg.Wait()
}

// Close is Leave without a word.
func (m *Mesh) Close() error {
	m.Leave("closed", "closed")
	return nil
}

// sayGoodbye ends one connection so that the goodbye arrives: the peer reads it and closes its side, which ends
// the reader here. A peer that does not is given a second.
func (m *Mesh) sayGoodbye(p *peer, kind, reason string) {
	defer p.conn.Close()
	p.conn.SetWriteDeadline(time.Now().Add(time.Second)) // also cuts short a write under way
	p.wmu.Lock()
	defer p.wmu.Unlock()
	p.conn.SetWriteDeadline(time.Now().Add(time.Second))
	if writeFrame(p.conn, frameGoodbye, encodeJSON(goodbye{clean(kind, 32), clean(reason, maxReason)})) != nil {
		return
	}
	_ = p.conn.CloseWrite()
	select {
	case <-p.done:
	case <-time.After(time.Second):
	}
}

// meshConn is a TLS connection with the TCP connection below it and a buffered reader above.
type meshConn struct {
	*tls.Conn
	raw net.Conn
	r   *bufio.Reader
}

func newMeshConn(raw net.Conn, t *tls.Conn) *meshConn {
	return &meshConn{Conn: t, raw: raw, r: bufio.NewReader(t)}
}

// linger closes a connection so that what was written last still arrives.
func (c *meshConn) linger() { linger(c.raw) }
