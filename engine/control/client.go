package control

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"ironspan/engine/spec"
	"ironspan/engine/wire"
)

// ClientOptions tune a Client; the zero value is good.
type ClientOptions struct {
	Connect time.Duration // to reach the node and shake hands, default 10 s
	Lost    time.Duration // silence after which the node counts as lost, default 15 s
}

// Client is the control plane of one node.
type Client struct {
	addr string
	http *http.Client
	tr   *http.Transport
	opts ClientOptions
}

// NewClient makes a Client of the node at addr. conf authenticates both sides; it must offer h2 alone.
func NewClient(addr string, conf *tls.Config, opts ClientOptions) *Client {
	if opts.Connect == 0 {
		opts.Connect = 10 * time.Second
	}
	if opts.Lost == 0 {
		opts.Lost = 15 * time.Second
	}
	var protocols http.Protocols
	protocols.SetHTTP2(true)
	tr := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: opts.Connect}).DialContext,
		TLSClientConfig:     conf,
		TLSHandshakeTimeout: opts.Connect,
		Protocols:           &protocols,
		HTTP2: &http.HTTP2Config{
			SendPingTimeout:  opts.Lost / 2,
			PingTimeout:      opts.Lost / 2,
			WriteByteTimeout: 2 * opts.Lost,
		},
	}
	return &Client{addr: addr, tr: tr, http: &http.Client{Transport: tr}, opts: opts}
}

// Addr returns the node's address.
func (c *Client) Addr() string { return c.addr }

// Close closes the connection. A lease that is open breaks.
func (c *Client) Close() { c.tr.CloseIdleConnections() }

// Info asks what the node has to offer.
func (c *Client) Info(ctx context.Context) (*Info, error) {
	var info Info
	if err := c.call(ctx, http.MethodGet, "/v1/info", nil, &info); err != nil {
		return nil, err
	}
	return &info, nil
}

// Report asks for the counters of the VM that is on the node, whoever brought it.
func (c *Client) Report(ctx context.Context) (*Report, error) {
	var r Report
	if err := c.call(ctx, http.MethodGet, "/v1/report", nil, &r); err != nil {
		return nil, err
	}
	return &r, nil
}

// call makes one request with a JSON answer.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("control: %w", err)
		}
		body = bytes.NewReader(b)
	}
	resp, err := c.do(ctx, method, path, body, -1)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return c.broken(err)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("control: %s: answer to %s: %w", c.addr, path, err)
	}
	return nil
}

// do makes one request and returns the response if it is a good one.
func (c *Client) do(ctx context.Context, method, path string, body io.Reader, size int64) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "https://"+c.addr+path, body)
	if err != nil {
		return nil, fmt.Errorf("control: %w", err)
	}
	if size >= 0 {
		req.ContentLength = size
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("control: %s: %w", c.addr, context.Cause(ctx))
		}
		if refusal := c.refusal(ctx); refusal != nil {
			err = refusal
		}
		return nil, c.broken(err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	var e Error
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // half an answer is judged below
	if json.Unmarshal(b, &e) != nil || e.Message == "" {
		return nil, fmt.Errorf("control: %s answers %s: is it an ironspan node?", c.addr, resp.Status)
	}
	return nil, &e
}

// Unreachable is a node that could not be talked to.
type Unreachable struct {
	Addr string
	Err  error
}

// Error implements error.
func (e *Unreachable) Error() string {
	return fmt.Sprintf("control: %s: %s", e.Addr, connReason(e.Err))
}

// Unwrap returns the cause.
func (e *Unreachable) Unwrap() error { return e.Err }

func (c *Client) broken(err error) error { return &Unreachable{Addr: c.addr, Err: err} }

// connReason says in a line why a connection failed, and what to do where that is known.
func connReason(err error) string {
	var cert *tls.CertificateVerificationError
	var rec tls.RecordHeaderError
	var op *net.OpError
	switch {
	case errors.As(err, &cert):
		return "its certificate is refused: " + cert.Err.Error()
	case errors.As(err, &rec):
		return "it does not speak TLS: is it an ironspan node?"
	case errors.As(err, &op) && op.Op == "remote error":
		return "it refuses this certificate: " + op.Err.Error() + " (are both from the same cluster's authority?)"
	case errors.As(err, &op) && op.Op == "dial":
		return op.Err.Error() + ": does `ironspan node` run there?"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "it closed the connection"
	}
	var u interface{ Unwrap() error }
	if errors.As(err, &u) {
		if in := u.Unwrap(); in != nil {
			return in.Error()
		}
	}
	return err.Error()
}

// refusal asks a node that a request failed at why it refuses this client, if it does. In TLS 1.3 a server judges the
// client's certificate after the client is done with its handshake, and HTTP/2 may notice no more of that than that the
// connection is gone.
func (c *Client) refusal(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.opts.Connect)
	defer cancel()
	conn, err := (&tls.Dialer{Config: c.tr.TLSClientConfig}).DialContext(ctx, "tcp", c.addr)
	if err != nil {
		return nil // then the request's own error tells
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if conn.SetReadDeadline(deadline) != nil {
		return nil
	}
	var op *net.OpError
	if _, err := conn.Read(make([]byte, 1)); errors.As(err, &op) && op.Op == "remote error" {
		return err
	}
	return nil
}

// Lease is a VM's share on one node, held by this process.
type Lease struct {
	c    *Client
	path string

	cancel context.CancelFunc
	events chan Event

	mu  sync.Mutex
	err error // why the event stream ended; nil after a proper release
}

// Boot is a boot image to send to node 0.
type Boot struct {
	io.ReaderAt
	Size   int64
	SHA256 string
}

// OpenBoot opens a boot image and takes its digest. The caller closes f.
func OpenBoot(path, what string, max int64) (b *Boot, f *os.File, err error) {
	defer func() {
		if err != nil && f != nil {
			f.Close()
			f = nil
		}
	}()
	if f, err = os.Open(path); err != nil {
		return nil, nil, fmt.Errorf("control: %s: %w", what, err)
	}
	st, err := f.Stat()
	switch {
	case err != nil:
		return nil, f, fmt.Errorf("control: %s: %w", what, err)
	case !st.Mode().IsRegular():
		return nil, f, fmt.Errorf("control: %s: %s is no regular file", what, path)
	case st.Size() == 0 || st.Size() > max:
		return nil, f, fmt.Errorf("control: %s: %s has %d bytes, 1 to %d are allowed", what, path, st.Size(), max)
	}
	sum := sha256.New()
	n, err := io.Copy(sum, f)
	if err != nil {
		return nil, f, fmt.Errorf("control: %s: %w", what, err)
	}
	return &Boot{ReaderAt: f, Size: n, SHA256: hexSum(sum)}, f, nil
}

func (b *Boot) spec() *imageSpec {
	if b == nil {
		return nil
	}
	return &imageSpec{Size: b.Size, SHA256: b.SHA256}
}

// Open gives the node its share of a VM. Boot images are announced to node 0 here and sent with Upload. The lease
// lasts until Release, or until ctx ends or the connection breaks, whereupon the node stops the VM by itself.
func (c *Client) Open(ctx context.Context, plan *spec.Plan, node wire.NodeID, kernel, initrd *Boot) (*Lease, error) {
	p, err := json.Marshal(plan)
	if err != nil {
		return nil, fmt.Errorf("control: %w", err)
	}
	b, err := json.Marshal(openRequest{Proto: ProtocolVersion, Node: node, Plan: p, Kernel: kernel.spec(), Initrd: initrd.spec()})
	if err != nil {
		return nil, fmt.Errorf("control: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	slow := time.AfterFunc(c.opts.Connect+c.opts.Lost, cancel)
	resp, err := c.do(ctx, http.MethodPost, "/v1/vms", bytes.NewReader(b), int64(len(b)))
	if !slow.Stop() && err == nil {
		resp.Body.Close()
		err = fmt.Errorf("control: %s: the node does not answer", c.addr)
	}
	if err != nil {
		cancel()
		return nil, err
	}
	l := &Lease{c: c, path: "/v1/vms/" + plan.VM.String(), cancel: cancel, events: make(chan Event, 64)}
	go l.read(ctx, resp.Body)
	return l, nil
}

// read passes on the lease's events until the stream ends.
func (l *Lease) read(ctx context.Context, body io.ReadCloser) {
	defer close(l.events)
	defer body.Close()
	d := json.NewDecoder(body)
	for {
		var e Event
		if err := d.Decode(&e); err != nil {
			if err == io.EOF { // the node ended it: it has released the VM
				return
			}
			if ctx.Err() == nil {
				err = l.c.broken(err)
			}
			l.mu.Lock()
			l.err = err
			l.mu.Unlock()
			return
		}
		select {
		case l.events <- e:
		case <-ctx.Done():
			l.mu.Lock()
			l.err = ctx.Err()
			l.mu.Unlock()
			return
		}
	}
}

// Events delivers the VM's events at this node. It must be read; it is closed when the node has released the VM
// or the lease broke, see Err.
func (l *Lease) Events() <-chan Event { return l.events }

// Err says why the lease broke, after Events is closed; nil if the node released the VM properly.
func (l *Lease) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Upload sends a boot image, kernel or initrd. sent is called as bytes leave, from another goroutine.
func (l *Lease) Upload(ctx context.Context, what string, b *Boot, sent func(done, total uint64)) error {
	body := &counter{r: io.NewSectionReader(b, 0, b.Size), total: uint64(b.Size), sent: sent}
	resp, err := l.c.do(ctx, http.MethodPut, l.path+"/"+what, body, b.Size)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// counter tells how much of a body was read.
type counter struct {
	r           io.Reader
	done, total uint64
	sent        func(done, total uint64)
}

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.done += uint64(n)
	if c.sent != nil && n > 0 {
		c.sent(c.done, c.total)
	}
	return n, err
}

// Prepare readies the VM and returns when it could start.
func (l *Lease) Prepare(ctx context.Context) error {
	return l.c.call(ctx, http.MethodPost, l.path+"/prepare", nil, nil)
}

// Start lets the VM's share on this node run.
func (l *Lease) Start(ctx context.Context) error {
	return l.c.call(ctx, http.MethodPost, l.path+"/start", nil, nil)
}

// Stop ends the VM's share on this node; its report stays until Release.
func (l *Lease) Stop(ctx context.Context, reason string) error {
	return l.c.call(ctx, http.MethodPost, l.path+"/stop", stopRequest{Reason: reason}, nil)
}

// Report asks for the node's counters.
func (l *Lease) Report(ctx context.Context) (*Report, error) {
	var r Report
	if err := l.c.call(ctx, http.MethodGet, l.path+"/report", nil, &r); err != nil {
		return nil, err
	}
	return &r, nil
}

// Release gives the VM back and returns when nothing of it is left at the node.
func (l *Lease) Release(ctx context.Context) error {
	return l.c.call(ctx, http.MethodDelete, l.path, nil, nil)
}

// Abandon breaks the lease: the node finds out and cleans up by itself.
func (l *Lease) Abandon() { l.cancel() }

// Console joins in and out to node 0's console until the guest's output ends. A nil in sends nothing. in is read
// from a goroutine that may outlive the call by one Read.
func (l *Lease) Console(ctx context.Context, in io.Reader, out io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pr, pw := io.Pipe()
	defer pw.Close()
	resp, err := l.c.do(ctx, http.MethodPost, l.path+"/console", pr, -1)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if in != nil {
		go func() {
			// The end of the input is not the end of the console: the guest may have more to say.
			_, _ = io.Copy(pw, in)
		}()
	}
	if _, err := io.Copy(out, resp.Body); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return l.c.broken(err)
	}
	return nil
}
