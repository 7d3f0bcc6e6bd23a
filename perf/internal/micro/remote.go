package micro

import (
	"bufio"
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"ironspan/fastpath/fabric/rdma"
)

// message is one line of JSON between the server that leads and one that serves. The leader asks, one thing at a time,
// and is answered with ok or failed. While guests run, the one who serves says when its vCPUs have come to a meeting, and
// is told when to let them go; and it says when its guests have ended.
type message struct {
	Op string `json:"op"`

	Token   string `json:"token,omitempty"` // hello
	Scale   string `json:"scale,omitempty"`
	Server  int    `json:"server,omitempty"`
	Servers int    `json:"servers,omitempty"`

	Bench  string                   `json:"bench,omitempty"`  // build
	Offers map[int]map[int][][]byte `json:"offers,omitempty"` // by node and peer: of a share, in the answer to build; of all, in connect
	VCPUs  int                      `json:"vcpus,omitempty"`  // of a share

	Outcome *Outcome `json:"outcome,omitempty"` // done
	Error   string   `json:"error,omitempty"`   // failed
}

const (
	opHello   = "hello"
	opBuild   = "build"
	opConnect = "connect"
	opStart   = "start"
	opRun     = "run"
	opGo      = "go"
	opStop    = "stop"
	opClose   = "close"

	opOK     = "ok"
	opFailed = "failed"
	opCame   = "came"
	opDone   = "done"
)

// maxMessage bounds a line. The largest has the outcome of a trial.
const maxMessage = 64 << 20

// link is a connection of messages. Any thread may send; one reads.
type link struct {
	conn net.Conn
	in   *bufio.Scanner
	mu   sync.Mutex // guards out
	out  *json.Encoder
}

func newLink(conn net.Conn) *link {
	l := &link{conn: conn, in: bufio.NewScanner(conn), out: json.NewEncoder(conn)}
	l.in.Buffer(nil, maxMessage)
	return l
}

func (l *link) send(m message) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.out.Encode(m); err != nil {
		return fmt.Errorf("micro: send %s: %w", m.Op, err)
	}
	return nil
}

var errLeft = errors.New("micro: the other side has left")

func (l *link) receive() (m message, err error) {
	if !l.in.Scan() {
		if err := l.in.Err(); err != nil {
			return m, fmt.Errorf("micro: receive: %w", err)
		}
		return m, errLeft
	}
	if err := json.Unmarshal(l.in.Bytes(), &m); err != nil {
		return m, fmt.Errorf("micro: receive: %w", err)
	}
	return m, nil
}

// ScaleNamed returns a scale by its name: host, host-quick, lab or lab-quick.
func ScaleNamed(name string) (Scale, error) {
	switch name {
	case "host":
		return Host, nil
	case "host-quick":
		return HostQuick, nil
	case "lab":
		return Lab, nil
	case "lab-quick":
		return LabQuick, nil
	}
	return Scale{}, fmt.Errorf("micro: no scale is called %q", name)
}

// find returns a benchmark by its name.
func find(benches []*Bench, name string) (*Bench, error) {
	i := slices.IndexFunc(benches, func(b *Bench) bool { return b.Name == name })
	if i < 0 {
		return nil, fmt.Errorf("micro: no benchmark is called %q", name)
	}
	return benches[i], nil
}

// Serve has a part in the trials of one leader, who knows the token, until it leaves. ready is called when it listens.
// The address should be of a private network: what the leader says is checked, but the nodes' lanes are as open as in any
// fabric.
func Serve(ctx context.Context, addr, token string, ready func()) error {
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("micro: %w", err)
	}
	defer listener.Close()
	defer context.AfterFunc(ctx, func() { listener.Close() })()
	ready()
	for {
		conn, err := listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("micro: %w", err)
		}
		v := &server{link: newLink(conn)}
		err = v.greet(token)
		if err != nil { // a stranger: the leader may still come
			_ = v.link.send(message{Op: opFailed, Error: err.Error()})
			conn.Close()
			continue
		}
		end := context.AfterFunc(ctx, func() { conn.Close() })
		err = v.serve(ctx)
		end()
		conn.Close()
		if errors.Is(err, errLeft) || ctx.Err() != nil {
			return nil
		}
		return err
	}
}

// server is a leader's view of a process that serves, from within.
type server struct {
	link            *link
	benches         []*Bench
	server, servers int
	share           *share
	finishing       sync.WaitGroup // finish, of this share
}

// helloWithin is how long a caller may take to say who it is.
const helloWithin = 10 * time.Second

func (v *server) greet(token string) error {
	if err := v.link.conn.SetReadDeadline(time.Now().Add(helloWithin)); err != nil {
		return fmt.Errorf("micro: %w", err)
	}
	m, err := v.link.receive()
	if err != nil {
		return err
	}
	if m.Op != opHello || subtle.ConstantTimeCompare([]byte(m.Token), []byte(token)) != 1 {
		return errors.New("micro: the leader's token is another one")
	}
	if m.Servers < 2 || m.Servers > 64 || m.Server < 1 || m.Server >= m.Servers {
		return fmt.Errorf("micro: server %d of %d", m.Server, m.Servers)
	}
	scale, err := ScaleNamed(m.Scale)
	if err != nil {
		return err
	}
	v.benches, v.server, v.servers = Catalogue(scale), m.Server, m.Servers
	if err := v.link.conn.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("micro: %w", err)
	}
	return v.link.send(message{Op: opOK})
}

func (v *server) serve(ctx context.Context) error {
	defer func() {
		if v.share != nil { // the leader has left in the midst of a trial: what there is to say, nobody hears
			_ = v.stop()
			_ = v.share.close()
		}
	}()
	for {
		m, err := v.link.receive()
		if err != nil {
			return err
		}
		if m.Op == opGo {
			if v.share != nil {
				v.share.gate.open()
			}
			continue
		}
		answer, err := v.act(ctx, &m)
		if err != nil {
			answer = message{Op: opFailed, Error: err.Error()}
		}
		if err := v.link.send(answer); err != nil {
			return err
		}
	}
}

// act does what the leader asks.
func (v *server) act(ctx context.Context, m *message) (answer message, err error) {
	answer.Op = opOK
	if (v.share == nil) != (m.Op == opBuild) {
		return answer, fmt.Errorf("micro: %q does not come now", m.Op)
	}
	switch m.Op {
	case opBuild:
		b, err := find(v.benches, m.Bench)
		if err != nil {
			return answer, err
		}
		if v.share, err = newShare(b.Trial(), v.server, v.servers, &rdma.Options{}); err != nil {
			v.share = nil
			return answer, err
		}
		v.share.gate.full = func() {
			if err := v.link.send(message{Op: opCame}); err != nil {
				v.share.fail(err)
			}
		}
		answer.VCPUs = v.share.vcpus
		answer.Offers, err = v.share.offers()
		return answer, err
	case opConnect:
		return answer, v.share.connect(m.Offers)
	case opStart:
		return answer, v.share.start()
	case opRun:
		v.share.run()
		s := v.share
		v.finishing.Go(func() { v.finish(ctx, s) })
		return answer, nil
	case opStop:
		return answer, v.stop()
	case opClose:
		s := v.share
		v.share = nil
		return answer, s.close()
	}
	return answer, fmt.Errorf("micro: %q is nothing to ask for", m.Op)
}

// stop ends the share's guests and service.
func (v *server) stop() error {
	v.share.abort()
	v.finishing.Wait()
	return v.share.stop()
}

// finish says how the guests here ended.
func (v *server) finish(ctx context.Context, s *share) {
	err := s.wait(ctx)
	m := message{Op: opDone}
	if err == nil {
		m.Outcome, err = s.collect()
	}
	if err != nil {
		m.Error = err.Error()
	}
	_ = v.link.send(m) // a link that fails ends serve, too
}
