package peers

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"time"
)

// qmp is a connection to a QEMU's monitor (docs/interop/qmp-spec of QEMU).
type qmp struct {
	conn net.Conn
	r    *bufio.Reader
}

const (
	maxAnswer       = 1 << 20 // bytes of a line of the monitor's
	monitorPatience = 30 * time.Second
)

func newQMP(conn net.Conn) *qmp { return &qmp{conn: conn, r: bufio.NewReaderSize(conn, maxAnswer)} }

// dialQMP connects to a monitor's socket, which the QEMU makes soon after its start.
func dialQMP(ctx context.Context, socket string, q *child) (*qmp, error) {
	for deadline := time.Now().Add(30 * time.Second); ; {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			m := newQMP(conn)
			return m, m.greet()
		}
		select {
		case <-q.ended:
			return nil, fmt.Errorf("peers: qemu ended: %v", q.err)
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("peers: qemu's monitor: %w", err)
		}
	}
}

func (m *qmp) greet() error {
	m.conn.SetDeadline(time.Now().Add(monitorPatience))
	if err := m.line(&struct {
		QMP json.RawMessage `json:"QMP"`
	}{}); err != nil {
		return err
	}
	return m.do("qmp_capabilities", nil, nil)
}

func (m *qmp) close() error { return m.conn.Close() }

func (m *qmp) line(into any) error {
	line, err := m.r.ReadSlice('\n')
	if err == nil {
		err = json.Unmarshal(line, into)
	}
	if err != nil {
		return fmt.Errorf("peers: qemu's monitor: %w", err)
	}
	return nil
}

// do executes a command; into may be nil. Events that come meanwhile are dropped.
func (m *qmp) do(command string, arguments, into any) error {
	b, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, arguments})
	if err != nil {
		return fmt.Errorf("peers: qemu: %s: %w", command, err)
	}
	m.conn.SetDeadline(time.Now().Add(monitorPatience))
	if _, err := m.conn.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("peers: qemu: %s: %w", command, err)
	}
	for {
		var a struct {
			Event  string          `json:"event"`
			Return json.RawMessage `json:"return"`
			Error  *struct {
				Desc string `json:"desc"`
			} `json:"error"`
		}
		if err := m.line(&a); err != nil {
			return err
		}
		switch {
		case a.Event != "":
			continue
		case a.Error != nil:
			return fmt.Errorf("peers: qemu: %s: %s", command, a.Error.Desc)
		case into == nil:
			return nil
		}
		if err := json.Unmarshal(a.Return, into); err != nil {
			return fmt.Errorf("peers: qemu: %s: %w", command, err)
		}
		return nil
	}
}
