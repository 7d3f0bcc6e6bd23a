package rdma

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"ironspan/engine/wire"
	"ironspan/fastpath/fabric"
	"ironspan/verbs"
)

// Options choose the device and size the lanes; the zero value is good.
type Options struct {
	Device       string // "": the first one with an active port
	Port         int    // 0: the first active one
	GID          verbs.GIDSelect
	MTU          verbs.MTU   // 0: the port's
	Retry        verbs.Retry // zero AckTimeout: half a second, so that a peer may stall for four before it is lost
	TrafficClass uint8

	Depth   int // messages on their way to this node, for each peer and lane; 0: 256
	SendWR  int // depth of the send queue to each peer, rounded up to a power of two; 0: 512
	Backlog int // messages, writes and reads held back for a peer before it is lost; 0: 8192
	Bounce  int // bounce pages for each peer; 0: from 64 to 1024, by the number of slots
}

const (
	defaultDepth   = 256
	defaultSendWR  = 512
	defaultBacklog = 8192
	defaultAck     = 500 * time.Millisecond

	minDepth, maxDepth   = 2, 1 << 14
	minSendWR, maxSendWR = 8, 1 << 14
	maxBounce            = 1 << 14
)

func (o *Options) fill(slots int) error {
	def := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	def(&o.Depth, defaultDepth)
	def(&o.SendWR, defaultSendWR)
	def(&o.Backlog, defaultBacklog)
	if o.Retry.AckTimeout == 0 {
		o.Retry.AckTimeout = defaultAck
	}
	def(&o.Bounce, min(max(4*slots, 64), 1024))
	switch {
	case o.Depth < minDepth || o.Depth > maxDepth:
		return fmt.Errorf("rdma: depth %d is not within %d to %d", o.Depth, minDepth, maxDepth)
	case o.SendWR < minSendWR || o.SendWR > maxSendWR:
		return fmt.Errorf("rdma: send queue of %d is not within %d to %d", o.SendWR, minSendWR, maxSendWR)
	case o.Backlog < 1:
		return fmt.Errorf("rdma: backlog of %d is not positive", o.Backlog)
	case o.Bounce < 2 || o.Bounce > maxBounce:
		return fmt.Errorf("rdma: %d bounce pages are not within 2 to %d", o.Bounce, maxBounce)
	}
	n := minSendWR
	for n < o.SendWR {
		n *= 2
	}
	o.SendWR = n
	return nil
}

// Adapter is an open device. Its methods may be called from any goroutine. The registration of the home frames
// lives as long as the adapter: close it before the memory is unmapped.
type Adapter struct {
	opt Options
	dev *verbs.Device
	pd  *verbs.PD

	mu    sync.Mutex // guards what follows; set-up and Close only
	home  *verbs.MR  // this node's home frames, registered by the first lane that has any
	first uint64     // RAM offset of home's first byte
	lanes map[*Lane]struct{}
	own   bool // belongs to its one lane and closes with it
}

// Open opens the device that opt names.
func Open(opt Options) (*Adapter, error) {
	if err := (&Options{Depth: opt.Depth, SendWR: opt.SendWR, Backlog: opt.Backlog, Bounce: opt.Bounce}).fill(0); err != nil {
		return nil, err
	}
	dev, err := verbs.Open(opt.Device)
	if err != nil {
		return nil, fmt.Errorf("rdma: %w", err)
	}
	pd, err := dev.AllocPD()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("rdma: %w", err), dev.Close())
	}
	return &Adapter{opt: opt, dev: dev, pd: pd, lanes: map[*Lane]struct{}{}}, nil
}

// Device is the open device, for its asynchronous events and its name.
func (a *Adapter) Device() *verbs.Device { return a.dev }

// Close closes all lanes, and the device.
func (a *Adapter) Close() error {
	a.mu.Lock()
	lanes := make([]*Lane, 0, len(a.lanes))
	for l := range a.lanes {
		lanes = append(lanes, l)
	}
	a.mu.Unlock()
	var errs []error
	for _, l := range lanes {
		errs = append(errs, l.Close())
	}
	return errors.Join(append(errs, a.dev.Close())...)
}

// New opens a device for one lane alone.
func New(cfg fabric.Config, opt Options) (*Lane, error) {
	a, err := Open(opt)
	if err != nil {
		return nil, err
	}
	a.own = true
	l, err := a.NewLane(cfg)
	if err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return l, nil
}

// homeMR registers the node's home frames, once for all lanes.
func (a *Adapter) homeMR(cfg *fabric.Config) (*verbs.MR, error) {
	if len(cfg.Homes) == 0 {
		return nil, nil
	}
	h := cfg.Homes[cfg.Self]
	if h.First == h.Last {
		return nil, nil
	}
	addr := cfg.RAM.Addr + uintptr(h.First)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.home != nil {
		if a.first != h.First || a.home.Addr() != uint64(addr) || a.home.Len() != h.Last-h.First {
			return nil, errors.New("rdma: the lanes of an adapter must have the same home range")
		}
		return a.home, nil
	}
	mr, err := a.pd.RegMR(addr, h.Last-h.First, verbs.LocalWrite|verbs.RemoteWrite|verbs.RemoteRead)
	if err != nil {
		return nil, fmt.Errorf("rdma: home frames: %w", err)
	}
	a.home, a.first = mr, h.First
	return mr, nil
}

// slotCount is the number of receive slots of a lane.
func slotCount(cfg *fabric.Config) int { return int(cfg.Slots.Len / wire.PageSize) }
