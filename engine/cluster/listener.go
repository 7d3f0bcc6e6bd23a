package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"time"
)

// ListenerOptions tune a Listener; the zero value is good.
type ListenerOptions struct {
	Handshake time.Duration // for a TLS handshake, and again for a mesh hello; default 10 s
	Pending   int           // connections in handshake at a time, default 128; more are dropped
	Log       *slog.Logger  // default slog.Default()
}

// Listener is a node's port. It checks who calls, hands control connections to Control and mesh connections to
// the mesh that was joined last.
type Listener struct {
	id    *Identity
	ln    net.Listener
	tls   *tls.Config
	opts  ListenerOptions
	slots chan struct{} // one taken by each handshake
	done  chan struct{} // closed by Close
	ctl   chan net.Conn
	wg    sync.WaitGroup

	mu      sync.Mutex
	mesh    *Mesh
	pending map[net.Conn]bool // connections in handshake
	closed  bool
}

// Listen opens a node's port.
func Listen(addr string, id *Identity, opts ListenerOptions) (*Listener, error) {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	l, err := NewListener(ln, id, opts)
	if err != nil {
		ln.Close()
		return nil, err
	}
	return l, nil
}

// NewListener makes a node's port of an open listener.
func NewListener(ln net.Listener, id *Identity, opts ListenerOptions) (*Listener, error) {
	if id.Role() != RoleNode {
		return nil, fmt.Errorf("cluster: %q is a %s's identity: a node needs a node's", id.Name(), id.Role())
	}
	if opts.Handshake == 0 {
		opts.Handshake = 10 * time.Second
	}
	if opts.Pending == 0 {
		opts.Pending = 128
	}
	if opts.Log == nil {
		opts.Log = slog.Default()
	}
	l := &Listener{
		id: id, ln: ln, tls: id.ServerTLS(), opts: opts,
		slots:   make(chan struct{}, opts.Pending),
		done:    make(chan struct{}),
		ctl:     make(chan net.Conn),
		pending: map[net.Conn]bool{},
	}
	l.wg.Go(l.accept)
	return l, nil
}

// Addr returns the address listened on.
func (l *Listener) Addr() net.Addr { return l.ln.Addr() }

// Identity returns the node's identity.
func (l *Listener) Identity() *Identity { return l.id }

// Close closes the port and all connections that are in handshake. Connections handed on stay open.
func (l *Listener) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	close(l.done)
	for c := range l.pending {
		c.Close()
	}
	l.mu.Unlock()
	err := l.ln.Close()
	l.wg.Wait()
	return err
}

func (l *Listener) accept() {
	for {
		raw, err := l.ln.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of descriptors, most likely: wait for some to come back.
			l.opts.Log.Warn("listener: accept", "err", err)
			select {
			case <-time.After(100 * time.Millisecond):
				continue
			case <-l.done:
				return
			}
		}
		select {
		case l.slots <- struct{}{}:
		default:
			l.opts.Log.Warn("listener: refused, too many handshakes under way", "remote", raw.RemoteAddr().String())
			raw.Close()
			continue
		}
		if !l.track(raw) {
			raw.Close()
			return
		}
		l.wg.Go(func() {
			defer func() { <-l.slots }()
			l.handshake(raw)
			l.untrack(raw)
		})
	}
}

func (l *Listener) track(c net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.pending[c] = true
	return true
}

func (l *Listener) untrack(c net.Conn) {
	l.mu.Lock()
	delete(l.pending, c)
	l.mu.Unlock()
}

// handshake takes a connection through TLS and to whom it is for.
func (l *Listener) handshake(raw net.Conn) {
	remote := raw.RemoteAddr().String()
	raw.SetDeadline(time.Now().Add(l.opts.Handshake))
	conn := tls.Server(raw, l.tls)
	if err := conn.HandshakeContext(context.Background()); err != nil {
		l.opts.Log.Warn("listener: refused", "remote", remote, "reason", tlsReason(err))
		linger(raw)
		return
	}
	switch p := conn.ConnectionState().NegotiatedProtocol; p {
	case ALPNControl:
		raw.SetDeadline(time.Time{})
		select {
		case l.ctl <- conn:
		case <-l.done:
			conn.Close()
		case <-time.After(l.opts.Handshake):
			l.opts.Log.Warn("listener: refused", "remote", remote, "reason", "nobody takes control connections")
			conn.Close()
		}
	case ALPNMesh:
		mc := newMeshConn(raw, conn)
		if err := l.greet(mc); err != nil {
			level := slog.LevelWarn
			var r *Refused
			if errors.As(err, &r) && r.Code == NotReady {
				level = slog.LevelDebug // a peer that is faster: it comes again
			}
			l.opts.Log.Log(context.Background(), level, "listener: mesh connection refused", "remote", remote,
				"reason", strings.TrimPrefix(err.Error(), "cluster: "))
			mc.linger()
		}
	default:
		l.opts.Log.Warn("listener: refused", "remote", remote, "reason", fmt.Sprintf("protocol %q", p))
		linger(raw)
	}
}

// greet reads a mesh connection's hello and passes it to the mesh.
func (l *Listener) greet(conn *meshConn) error {
	state := conn.ConnectionState()
	conn.raw.SetDeadline(time.Now().Add(l.opts.Handshake))
	if err := RequireRole(&state, RoleNode); err != nil {
		return refuse(conn, 0, BadCertificate, strings.TrimPrefix(err.Error(), "cluster: "))
	}
	t, b, err := readFrame(conn.r, maxHandshake)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return refuse(conn, 0, Slow, fmt.Sprintf("no hello within %v", l.opts.Handshake))
	case errors.Is(err, errGarbled):
		return refuse(conn, 0, Garbled, err.Error())
	case err != nil:
		return err
	case t != frameHello:
		return refuse(conn, 0, Garbled, fmt.Sprintf("garbled: frame type %d in place of a hello", t))
	}
	h, err := decodeHello(b)
	if err != nil {
		return refuse(conn, 0, Garbled, err.Error())
	}
	l.mu.Lock()
	m := l.mesh
	l.mu.Unlock()
	if m == nil {
		return refuse(conn, h.From, NotReady, fmt.Sprintf("no VM is being formed here, VM %s neither", h.VM))
	}
	conn.raw.SetDeadline(time.Now().Add(l.opts.Handshake))
	err = m.answer(h, conn)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return refuse(conn, h.From, Slow, fmt.Sprintf("handshake not finished within %v", l.opts.Handshake))
	}
	return err
}

func (l *Listener) setMesh(m *Mesh) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return errors.New("cluster: join: the listener is closed")
	}
	if l.mesh != nil {
		return fmt.Errorf("cluster: join: this node is in the mesh of VM %s still", l.mesh.cfg.VM)
	}
	l.mesh = m
	return nil
}

func (l *Listener) clearMesh(m *Mesh) {
	l.mu.Lock()
	if l.mesh == m {
		l.mesh = nil
	}
	l.mu.Unlock()
}

// Control returns the listener's control connections as a net.Listener for an HTTP server. They are *tls.Conn
// with the handshake done. Closing it does not close the Listener.
func (l *Listener) Control() net.Listener { return &control{l: l, done: make(chan struct{})} }

type control struct {
	l    *Listener
	once sync.Once
	done chan struct{}
}

func (c *control) Accept() (net.Conn, error) {
	select {
	case conn := <-c.l.ctl:
		return conn, nil
	case <-c.l.done:
	case <-c.done:
	}
	return nil, net.ErrClosed
}

func (c *control) Addr() net.Addr { return c.l.Addr() }

func (c *control) Close() error {
	c.once.Do(func() { close(c.done) })
	return nil
}

// tlsReason says in a line why a TLS handshake failed.
func tlsReason(err error) string {
	var cert *tls.CertificateVerificationError
	var rec tls.RecordHeaderError
	var op *net.OpError
	switch {
	case errors.As(err, &op) && op.Op == "remote error":
		return fmt.Sprintf("the caller refuses this node's certificate or protocol (%v): is it of another cluster, or does it mean another node?", op.Err)
	case errors.As(err, &cert):
		return "certificate refused: " + strings.TrimPrefix(cert.Err.Error(), "x509: ")
	case errors.As(err, &rec):
		return "not TLS"
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "the TLS handshake took too long"
	case errors.Is(err, io.EOF):
		return "the caller hung up in the TLS handshake"
	}
	return strings.TrimPrefix(err.Error(), "tls: ")
}

// linger closes a connection so that what was written last still arrives: unread input would make the kernel
// reset the connection, and the reset would overtake it.
func linger(c net.Conn) {
	defer c.Close()
	if t, ok := c.(*net.TCPConn); ok && t.CloseWrite() == nil {
		c.SetReadDeadline(time.Now().Add(time.Second))
		_, _ = io.CopyN(io.Discard, c, 64<<10)
	}
}
