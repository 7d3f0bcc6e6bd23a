package lab

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"

	"ironspan/tools/lab/internal/ether"
	"ironspan/tools/lab/internal/remote"
)

// patience is how long a supervisor may take for an answer; it does no work for one.
const patience = 20 * time.Second

type op string

const (
	opStatus op = "status"
	opExec   op = "exec"
	opDown   op = "down"
	opKill   op = "kill"
	opLink   op = "link"
)

// call is one request to the supervisor: one line of JSON, answered by one line. After an opExec the
// connection is a stream to the server's agent.
type call struct {
	Op     op     `json:"op"`
	Server int    `json:"server"`
	Down   bool   `json:"down,omitempty"`
	Loss   uint32 `json:"loss,omitempty"`
}

type answer struct {
	Error  string  `json:"error,omitempty"`
	Status *Status `json:"status,omitempty"`
}

// Status of a lab.
type Status struct {
	Name       string         `json:"name"`
	State      string         `json:"state"` // booting, up, degraded (a server is dead), stale
	Supervisor int            `json:"supervisor,omitempty"`
	Since      time.Time      `json:"since,omitzero"`
	Kernel     string         `json:"kernel,omitempty"`
	Accel      string         `json:"accel,omitempty"`
	Dir        string         `json:"dir"`
	Share      string         `json:"share"`
	Servers    []ServerStatus `json:"servers"`
}

// ServerStatus of one server.
type ServerStatus struct {
	Server    int          `json:"server"`
	Host      string       `json:"host"`
	Addr      string       `json:"addr"`
	State     string       `json:"state"` // booting, up, dead
	Reason    string       `json:"reason,omitempty"`
	PID       int          `json:"pid"`
	BootSecs  float64      `json:"boot_seconds,omitempty"`
	RDMA      string       `json:"rdma,omitempty"`
	Port      string       `json:"port,omitempty"`
	ActiveMTU int          `json:"active_mtu,omitempty"`
	KVM       bool         `json:"kvm"`
	Kernel    string       `json:"kernel,omitempty"`
	Console   string       `json:"console"`
	Wire      *ether.Stats `json:"wire,omitempty"`
}

// stream is a connection whose first bytes may already be in a reader.
type stream struct {
	net.Conn
	r *bufio.Reader
}

func (s stream) Read(p []byte) (int, error) { return s.r.Read(p) }

func (d Dir) call(c call) (stream, *answer, error) {
	conn, err := net.Dial("unix", d.socket())
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
			return stream{}, nil, fmt.Errorf("lab: %s is %w: start it with `lab up`", d.Name, ErrNotUp)
		}
		return stream{}, nil, fmt.Errorf("lab: %w", err)
	}
	s := stream{conn, bufio.NewReader(conn)}
	a, err := s.exchange(c)
	if err != nil {
		conn.Close()
		return stream{}, nil, err
	}
	return s, a, nil
}

func (s stream) exchange(c call) (*answer, error) {
	b, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	s.SetDeadline(time.Now().Add(patience))
	defer s.SetDeadline(time.Time{})
	if _, err := s.Write(append(b, '\n')); err != nil {
		return nil, fmt.Errorf("lab: supervisor: %w", err)
	}
	line, err := s.r.ReadBytes('\n')
	if err != nil {
		return nil, fmt.Errorf("lab: supervisor: %w", err)
	}
	var a answer
	if err := json.Unmarshal(line, &a); err != nil {
		return nil, fmt.Errorf("lab: supervisor: %w", err)
	}
	if a.Error != "" {
		return nil, errors.New(a.Error)
	}
	return &a, nil
}

// Status asks the supervisor; a lab whose supervisor is gone is stale.
func (d Dir) Status() (*Status, error) {
	up, err := d.Up()
	if err != nil {
		return nil, err
	}
	if up {
		s, a, err := d.call(call{Op: opStatus})
		if err == nil {
			s.Close()
			return a.Status, nil
		}
		if !d.waitDown(time.Second) { // else it died in this moment
			return nil, err
		}
	}
	if _, err := os.Stat(d.Path()); err != nil {
		return nil, fmt.Errorf("lab: %s is %w: start it with `lab up`", d.Name, ErrNotUp)
	}
	return &Status{Name: d.Name, State: "stale", Dir: d.Path(), Share: d.Share()}, nil
}

// Exec runs a command in a server.
func (d Dir) Exec(server int, c *remote.Command, stdio remote.Stdio) (*remote.Exit, error) {
	s, _, err := d.call(call{Op: opExec, Server: server})
	if err != nil {
		return nil, err
	}
	return remote.Run(s, c, stdio)
}

// Await waits until a server can connect to TCP addresses.
func (d Dir) Await(server int, addrs []string, timeout time.Duration) error {
	s, _, err := d.call(call{Op: opExec, Server: server})
	if err != nil {
		return err
	}
	return remote.Await(s, &remote.Dial{Addrs: addrs, Timeout: timeout})
}

// Kill ends a server as a power cut would.
func (d Dir) Kill(server int) error { return d.simple(call{Op: opKill, Server: server}) }

// SetLink cuts or mends a server's link, and sets its loss: every n-th frame it sends is dropped, 0 none.
func (d Dir) SetLink(server int, down bool, lossEvery uint32) error {
	return d.simple(call{Op: opLink, Server: server, Down: down, Loss: lossEvery})
}

func (d Dir) simple(c call) error {
	s, _, err := d.call(c)
	if err != nil {
		return err
	}
	return s.Close()
}

// Down ends a lab and removes its state, in whatever condition it is. It returns false if there was none.
func (d Dir) Down() (bool, error) {
	up, err := d.Up()
	if err != nil {
		return false, err
	}
	if up {
		if s, _, err := d.call(call{Op: opDown}); err == nil {
			s.SetDeadline(time.Now().Add(patience))
			io.Copy(io.Discard, s) // until the supervisor is done
			s.Close()
		}
		if !d.waitDown(5 * time.Second) {
			// It does not answer: its death takes the servers along.
			if err := d.killSupervisor(); err != nil {
				return true, err
			}
		}
	}
	if _, err := os.Stat(d.Path()); errors.Is(err, fs.ErrNotExist) {
		return up, nil
	}
	f, err := d.lock()
	if err != nil {
		return true, err
	}
	if f == nil {
		return true, fmt.Errorf("lab: %s is being started by somebody else", d.Name)
	}
	defer d.unlock(f)
	return true, d.clean()
}

func (d Dir) waitDown(limit time.Duration) bool {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if up, err := d.Up(); err == nil && !up {
			return true
		}
	}
	return false
}

func (d Dir) killSupervisor() error {
	var p pidFile
	b, err := os.ReadFile(d.pids())
	if err == nil {
		err = json.Unmarshal(b, &p)
	}
	if err != nil {
		return fmt.Errorf("lab: %s has a supervisor that does not answer, and no record of its pid: %w", d.Name, err)
	}
	if err := p.Supervisor.kill(); err != nil {
		return fmt.Errorf("lab: %s: supervisor: %w", d.Name, err)
	}
	if !d.waitDown(5 * time.Second) {
		return fmt.Errorf("lab: %s: still locked after its supervisor was killed", d.Name)
	}
	return nil
}
