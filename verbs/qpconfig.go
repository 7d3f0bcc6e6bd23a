package verbs

import (
	"fmt"
	"time"
)

// Access is what may be done with a memory region, or through a queue pair (enum ibv_access_flags).
type Access uint32

// The rights. Reading locally is always allowed; a remote write or atomic needs LocalWrite too.
const (
	LocalWrite   Access = 1 << 0
	RemoteWrite  Access = 1 << 1
	RemoteRead   Access = 1 << 2
	RemoteAtomic Access = 1 << 3
)

// QPState is the state of a queue pair (enum ibv_qp_state).
type QPState uint8

// The states of an RC queue pair.
const (
	StateReset QPState = iota
	StateInit
	StateRTR // ready to receive
	StateRTS // ready to send
	StateSQD // send queue draining
	StateSQE
	StateErr
)

// String names the state as the specification does.
func (s QPState) String() string {
	if n := [...]string{"RESET", "INIT", "RTR", "RTS", "SQD", "SQE", "ERR"}; int(s) < len(n) {
		return n[s]
	}
	return fmt.Sprintf("QPState(%d)", uint8(s))
}

// QPConfig describes a queue pair to be created. Zero fields take the default given.
type QPConfig struct {
	SendCQ, RecvCQ *CQ // required, may be the same
	SendWR         int // sends between post and completion; 64
	RecvWR         int // receives posted; 64
	SendSGE        int // entries of a send; 1
	RecvSGE        int // entries of a receive; 1
	MaxInline      int // bytes of a send that may travel inline; 0
	SignalAll      bool
}

func (c *QPConfig) fill() {
	def := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	def(&c.SendWR, 64)
	def(&c.RecvWR, 64)
	def(&c.SendSGE, 1)
	def(&c.RecvSGE, 1)
}

// PortConfig says through which port and address a queue pair talks, what the peer may do through it, and
// how long it tries.
type PortConfig struct {
	Port         int       // 0: the first active one
	GID          GIDSelect // zero: chosen by itself
	MTU          MTU       // 0: the port's active MTU; larger ones are cut to it
	Access       Access    // RemoteWrite, RemoteRead, RemoteAtomic: what the peer may do at all
	Retry        Retry
	ReadDepth    int // reads and atomics outstanding, each way; 0: 16, or what the device can
	TrafficClass uint8
	ServiceLevel uint8
}

// QPEndpoint is what a peer must know of a queue pair to connect to it.
type QPEndpoint struct {
	QPN       uint32 // 24 bits
	PSN       uint32 // 24 bits: first packet sequence number that this side sends
	LID       uint16 // InfiniBand only
	GID       GID
	MTU       MTU
	ReadDepth uint8 // reads and atomics of the peer that this side takes at a time; 0: as many as one's own
}

// Validate refuses an endpoint that no peer can have meant.
func (e *QPEndpoint) Validate() error {
	const op = "check peer's endpoint"
	switch {
	case e.QPN < 2 || e.QPN >= 1<<24:
		return opInvalid(op, "", "qp number %#x is not one of an rc qp", e.QPN)
	case e.PSN >= 1<<24:
		return opInvalid(op, "", "psn %#x has more than 24 bits", e.PSN)
	case !e.MTU.Valid():
		return opInvalid(op, "", "path mtu code %d is not 1 to 5", uint8(e.MTU))
	case e.GID.IsZero() && e.LID == 0:
		return opInvalid(op, "", "neither gid nor lid")
	case !e.GID.IsZero() && e.GID.Addr().IsMulticast():
		return opInvalid(op, "", "gid %s is a multicast address", e.GID)
	}
	return nil
}

// Retry bounds how long a queue pair tries before it gives its peer up. Zero fields take the default.
type Retry struct {
	// AckTimeout is how long a packet may stay unacknowledged before it is sent again; 268 ms. It is rounded up
	// to the next 4.096 us * 2^n; a device may take up to four times as long.
	AckTimeout time.Duration
	// Count is how often; 7, the most there is. Negative: never.
	Count int
	// RNRTimer is the pause that this side asks of its peer when it has no receive posted; 10.24 ms.
	RNRTimer time.Duration
	// RNRCount is how often this side tries again after such a pause; 6, the most there is: 7 would mean for
	// ever, and a dead peer would never be noticed. Negative: never.
	RNRCount int
}

// Bounds of Retry.
const (
	MaxAckTimeout = 4096 * time.Nanosecond << 21 // 8.6 s
	MaxRetries    = 7
	MaxRNRRetries = 6
	MaxRNRTimer   = 491520 * time.Microsecond

	defaultAckTimeout = 4096 * time.Nanosecond << 16
	defaultRNRTimer   = 10240 * time.Microsecond
)

// Bound is how long a request to a silent peer stays open before it completes with StatusRetryExceeded. A
// device may take up to four times as long; rxe stays near it.
func (r Retry) Bound() time.Duration {
	c, err := r.codes()
	if err != nil {
		return 0
	}
	return (4096 * time.Nanosecond << c.timeout) * time.Duration(1+int(c.count))
}

// retryCodes are the four fields as the transport encodes them.
type retryCodes struct{ timeout, count, rnrTimer, rnrCount uint8 }

func (r Retry) codes() (retryCodes, error) {
	const op = "check retry"
	count := func(v, def int) int {
		switch {
		case v == 0:
			return def
		case v < 0:
			return 0
		}
		return v
	}
	if r.AckTimeout == 0 {
		r.AckTimeout = defaultAckTimeout
	}
	if r.RNRTimer == 0 {
		r.RNRTimer = defaultRNRTimer
	}
	retries, rnr := count(r.Count, MaxRetries), count(r.RNRCount, MaxRNRRetries)
	switch {
	case r.AckTimeout < 0 || r.AckTimeout > MaxAckTimeout:
		return retryCodes{}, opInvalid(op, "", "ack timeout %v is not within 0 to %v", r.AckTimeout, MaxAckTimeout)
	case retries > MaxRetries:
		return retryCodes{}, opInvalid(op, "", "%d retries are more than %d", retries, MaxRetries)
	case rnr > MaxRNRRetries:
		return retryCodes{}, opInvalid(op, "", "%d receiver-not-ready retries are more than %d; 7 would mean for ever", rnr, MaxRNRRetries)
	case r.RNRTimer < 0 || r.RNRTimer > MaxRNRTimer:
		return retryCodes{}, opInvalid(op, "", "rnr timer %v is not within 0 to %v", r.RNRTimer, MaxRNRTimer)
	}
	c := retryCodes{timeout: 1, count: uint8(retries), rnrTimer: 31, rnrCount: uint8(rnr)}
	for 4096*time.Nanosecond<<c.timeout < r.AckTimeout {
		c.timeout++
	}
	for i, t := range rnrTimers {
		if t >= r.RNRTimer {
			c.rnrTimer = uint8(i + 1)
			break
		}
	}
	return c, nil
}

// rnrTimers are the pauses of the codes 1 to 31 (InfiniBand Architecture vol. 1, table "Encoding for RNR NAK
// Timer Field"). Code 0, the longest with 655.36 ms, is not used.
var rnrTimers = [31]time.Duration{
	10e3, 20e3, 30e3, 40e3, 60e3, 80e3, 120e3, 160e3, 240e3, 320e3, 480e3, 640e3, 960e3,
	1280e3, 1920e3, 2560e3, 3840e3, 5120e3, 7680e3, 10240e3, 15360e3, 20480e3, 30720e3, 40960e3, 61440e3,
	81920e3, 122880e3, 163840e3, 245760e3, 327680e3, 491520e3,
}
