package micro

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"ironspan/engine/lane"
	"ironspan/engine/mininode"
	"ironspan/engine/wire"
	"ironspan/fastpath/fabric/rdma"
)

// share is a trial's nodes in this process, from build to close.
type share struct {
	trial *Trial
	nodes map[int]*mininode.Node
	gate  *gate
	vcpus int // here

	restore func() // of Go's processors
	after   func() // of Trial.Prepare
	done    atomic.Int32

	grace  context.Context // ends a while after the trial failed: guests that still wait for a page are not waited for
	giveUp context.CancelFunc

	mu  sync.Mutex
	err error // the first thing that went wrong
}

// graceful is how long a stopped guest may take to end where nodes still serve.
const graceful = 2 * time.Second

// placed is the server of a node, of so many.
func placed(node, servers int) int { return node % servers }

// newShare builds the nodes that are placed on a server. Their guests meet at the gate, whose full is to be set.
func newShare(t *Trial, server, servers int, verbs *rdma.Options) (_ *share, err error) {
	t.fill()
	s := &share{trial: t, nodes: map[int]*mininode.Node{}}
	s.grace, s.giveUp = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	var cs []mininode.Config
	for i := range t.Config.Nodes {
		if placed(i, servers) != server {
			continue
		}
		c := t.node(i)
		c.Verbs = verbs
		c.OnError = s.fail
		cs = append(cs, c)
		s.vcpus += len(c.Guest.Code)
	}
	s.restore = mininode.PrepareRuntime(cs...)
	s.gate = newGate(s.vcpus)
	for _, c := range cs {
		n, err := mininode.New(c)
		if err != nil {
			return nil, err
		}
		s.nodes[int(c.Self)] = n
		if n.Image != nil && n.Image.End > t.addr(int(c.Self), areaPage) {
			return nil, fmt.Errorf("micro: the image of node %d ends at %#x, among its samples", c.Self, n.Image.End)
		}
		err = errors.Join(
			n.OnPort(meetPort, 1, func([]byte) { s.gate.come() }),
			n.OnPort(donePort, 1, func([]byte) {
				if int(s.done.Add(1)) == s.vcpus {
					s.stopVMs()
				}
			}),
			n.Bus.AddPort("free port", freePort, 4, idleDevice{}))
		if c.Self == lane.Platform {
			err = errors.Join(err,
				n.Bus.AddPort("platform's port", platformPort, 4, idleDevice{}),
				n.Bus.AddMMIO("platform's device", platformDevice, wire.PageSize, idleDevice{}))
		}
		if err != nil {
			return nil, err
		}
	}
	return s, nil
}

// idleDevice takes everything and reads as zeros.
type idleDevice struct{}

func (idleDevice) Read(_ uint64, data []byte) { clear(data) }
func (idleDevice) Write(uint64, []byte)       {}

// fail ends the trial for the first of all reasons. Any thread.
func (s *share) fail(err error) {
	s.mu.Lock()
	if s.err == nil {
		s.err = err
	}
	s.mu.Unlock()
	s.abort()
}

// abort lets all guests end, and wait return.
func (s *share) abort() {
	s.gate.end()
	s.stopVMs()
	time.AfterFunc(graceful, s.giveUp)
}

func (s *share) failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *share) stopVMs() {
	for _, n := range s.nodes {
		n.StopVM()
	}
}

// offers of the nodes here: by node, and by peer.
func (s *share) offers() (map[int]map[int][][]byte, error) {
	all := map[int]map[int][][]byte{}
	for i, n := range s.nodes {
		all[i] = map[int][][]byte{}
		for peer := range s.trial.Config.Nodes {
			if peer == i || s.trial.Config.Plain {
				continue
			}
			o, err := n.Offers(wire.NodeID(peer))
			if err != nil {
				return nil, err
			}
			all[i][peer] = o
		}
	}
	return all, nil
}

// connect links the nodes here with all others, whose offers these are.
func (s *share) connect(offers map[int]map[int][][]byte) error {
	for i, n := range s.nodes {
		for peer := range s.trial.Config.Nodes {
			if peer == i || s.trial.Config.Plain {
				continue
			}
			o, found := offers[peer][i]
			if !found {
				return fmt.Errorf("micro: node %d offers nothing to node %d", peer, i)
			}
			if err := n.Connect(wire.NodeID(peer), o); err != nil {
				return err
			}
		}
	}
	return nil
}

// start lets the nodes serve.
func (s *share) start() error {
	zero := time.Now()
	for _, n := range s.nodes {
		n.Start(zero)
	}
	if s.nodes[0] != nil && s.trial.Prepare != nil {
		after, err := s.trial.Prepare(s)
		if err != nil {
			return err
		}
		s.after = after
	}
	return nil
}

// run starts the guests.
func (s *share) run() {
	for _, n := range s.nodes {
		n.Run()
	}
}

// wait is for the end of all guests here.
func (s *share) wait(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { s.fail(context.Cause(ctx)) })()
	var errs []error
	for _, n := range s.nodes {
		if err := n.Wait(s.grace); err != nil {
			s.fail(err)
			errs = append(errs, err)
		}
	}
	if s.after != nil {
		s.after()
		s.after = nil
	}
	if err := s.failed(); err != nil {
		return err
	}
	return errors.Join(errs...)
}

// collect reads what the vCPUs and nodes here have measured. The guests have ended.
func (s *share) collect() (*Outcome, error) {
	t := s.trial
	o := &Outcome{Samples: make([][]int64, len(t.VCPUs)), Nodes: make([]NodeOutcome, t.Config.Nodes)}
	seen := map[int]int{}
	for i, v := range t.VCPUs {
		n, here := s.nodes[v.Node]
		if !here {
			continue
		}
		var err error
		if o.Samples[i], err = t.samples(n, seen[v.Node]); err != nil {
			return nil, err
		}
		seen[v.Node]++
	}
	for i, n := range s.nodes {
		for _, shard := range n.Shards {
			o.Nodes[i].Shards = append(o.Nodes[i].Shards, shard.Snapshot())
		}
	}
	if s.nodes[0] != nil && t.Collect != nil {
		t.Collect(s, o)
	}
	return o, nil
}

// merge takes in what was measured elsewhere.
func (o *Outcome) merge(from *Outcome) error {
	if len(from.Samples) != len(o.Samples) || len(from.Nodes) != len(o.Nodes) {
		return fmt.Errorf("micro: an outcome of %d vcpus and %d nodes, want %d and %d",
			len(from.Samples), len(from.Nodes), len(o.Samples), len(o.Nodes))
	}
	for i, ns := range from.Samples {
		if o.Samples[i] == nil {
			o.Samples[i] = ns
		}
	}
	for i := range from.Nodes {
		if o.Nodes[i].Shards == nil {
			o.Nodes[i] = from.Nodes[i]
		}
	}
	return nil
}

// stop ends guests and service. All shares stop before one of them closes.
func (s *share) stop() error {
	if s.gate != nil {
		s.gate.end()
	}
	s.stopVMs()
	if s.after != nil {
		s.after()
		s.after = nil
	}
	var errs []error
	for _, n := range s.nodes {
		errs = append(errs, n.Stop())
	}
	s.giveUp()
	return errors.Join(errs...)
}

func (s *share) close() error {
	var errs []error
	for _, n := range s.nodes {
		errs = append(errs, n.Close())
	}
	if s.restore != nil {
		s.restore()
	}
	return errors.Join(errs...)
}
