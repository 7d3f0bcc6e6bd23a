// Package remote is what the lab's host and the agent inside a lab server say to each other.
//
// The transport is one virtio-serial port per server with yamux on it. Every yamux stream carries one
// request: it starts with a Request, the rest depends on its kind. Command streams are made of frames:
// one byte kind, four bytes big-endian length, payload.
package remote

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

// PortName is the name of the virtio-serial port the agent serves.
const PortName = "ironspan.lab"

// Request is the first frame of a stream.
type Request struct {
	// Setup configures the server; sent once, answered by Progress frames and one Result.
	Setup *Setup `json:"setup,omitempty"`
	// Command runs a process.
	Command *Command `json:"command,omitempty"`
	// Dial waits until TCP addresses can be connected to from the server; answered by one Result.
	Dial *Dial `json:"dial,omitempty"`
}

// Dial is a wait for listeners.
type Dial struct {
	Addrs   []string      `json:"addrs"`
	Timeout time.Duration `json:"timeout"`
}

// Setup tells a fresh server who it is.
type Setup struct {
	Server  int      `json:"server"`
	Servers int      `json:"servers"`
	Host    string   `json:"host"`             // host name
	Addr    string   `json:"addr"`             // CIDR on the wire
	Peers   []string `json:"peers"`            // addresses of all servers, by index
	MAC     string   `json:"mac"`              // of the wire's NIC
	MTU     int      `json:"mtu"`              // of the wire
	Shares  []Share  `json:"shares"`           // further 9p exports
	Visible []string `json:"visible"`          // host directories that must be seen even below a fresh mount
	Sysctl  []string `json:"sysctl,omitempty"` // name=value
}

// Share is a 9p export of the host that appears at the same or another path in the server.
type Share struct {
	Tag      string `json:"tag"`
	Path     string `json:"path"`
	ReadOnly bool   `json:"read_only"`
}

// Progress is one line of a server's way up.
type Progress struct {
	Text string `json:"text"`
}

// Result ends a Setup.
type Result struct {
	Error     string `json:"error,omitempty"`
	Kernel    string `json:"kernel"`
	RDMA      string `json:"rdma"`       // device
	State     string `json:"state"`      // of its port
	ActiveMTU int    `json:"active_mtu"` // bytes
	KVM       bool   `json:"kvm"`
}

// Command is a process to be run in a server.
type Command struct {
	Args []string `json:"args"`
	Dir  string   `json:"dir"`
	Env  []string `json:"env"`
	// Stdin is false when the caller has none to forward: the process reads /dev/null.
	Stdin bool `json:"stdin"`
	// Stage copies the program into the server's memory first.
	Stage bool `json:"stage,omitempty"`
}

// Exit is how a process ended.
type Exit struct {
	Code   int    `json:"code"`
	Signal int    `json:"signal,omitempty"`
	Error  string `json:"error,omitempty"` // it could not be started
}

// Kind of a frame.
type Kind byte

// The frames of a command stream.
const (
	KindRequest  Kind = iota + 1 // JSON Request
	KindStdin                    // bytes
	KindStdinEOF                 //
	KindSignal                   // one byte: signal number, for the process group
	KindStdout                   // bytes
	KindStderr                   // bytes
	KindCredit                   // four bytes: so many stdin bytes were consumed
	KindProgress                 // JSON Progress
	KindResult                   // JSON Result
	KindExit                     // JSON Exit; the last frame
)

const (
	headerSize = 5
	// MaxPayload bounds a frame, so that a broken peer cannot make us allocate at will.
	MaxPayload = 1 << 20
	// StdinWindow is how many stdin bytes may be under way unacknowledged. It keeps a process that does
	// not read from holding up the signal frames behind its input.
	StdinWindow = 256 << 10
	chunk       = 32 << 10
)

// ErrFrame says that the peer sent something that is not a frame.
var ErrFrame = errors.New("remote: malformed frame")

// Stream writes and reads frames. Writes may come from several goroutines.
type Stream struct {
	rw io.ReadWriteCloser
	mu sync.Mutex // guards writes: a frame is one unit
}

// NewStream makes frames of rw.
func NewStream(rw io.ReadWriteCloser) *Stream { return &Stream{rw: rw} }

// Close closes what is below.
func (s *Stream) Close() error { return s.rw.Close() }

// Write sends one frame.
func (s *Stream) Write(k Kind, payload []byte) error {
	if len(payload) > MaxPayload {
		return fmt.Errorf("remote: frame of %d bytes exceeds %d", len(payload), MaxPayload)
	}
	buf := make([]byte, headerSize+len(payload))
	buf[0] = byte(k)
	binary.BigEndian.PutUint32(buf[1:], uint32(len(payload)))
	copy(buf[headerSize:], payload)
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.rw.Write(buf)
	return err
}

// WriteJSON sends v as one frame.
func (s *Stream) WriteJSON(k Kind, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return s.Write(k, b)
}

// Read receives one frame.
func (s *Stream) Read() (Kind, []byte, error) {
	var h [headerSize]byte
	if _, err := io.ReadFull(s.rw, h[:]); err != nil {
		return 0, nil, err
	}
	k, n := Kind(h[0]), binary.BigEndian.Uint32(h[1:])
	if k < KindRequest || k > KindExit || n > MaxPayload {
		return 0, nil, ErrFrame
	}
	p := make([]byte, n)
	if _, err := io.ReadFull(s.rw, p); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return k, p, nil
}

// Config is yamux's, for a peer that is emulated on a loaded machine: nothing times out that may merely
// be slow. A dead server is seen by its QEMU's end, not by silence.
func Config() *yamux.Config {
	c := yamux.DefaultConfig()
	c.EnableKeepAlive = false
	c.ConnectionWriteTimeout = 10 * time.Minute
	c.StreamOpenTimeout = 0
	c.StreamCloseTimeout = time.Minute
	c.LogOutput = io.Discard
	return c
}
