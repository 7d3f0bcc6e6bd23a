// Package nodetest gives tests nodes that run mini-guests: those of package mininode, in the test's process, over the
// shared-memory fabric, with one shard each, until the test ends.
package nodetest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"ironspan/engine/coherence"
	"ironspan/engine/mininode"
	"ironspan/engine/wire"
	"ironspan/fastpath"
	"ironspan/fastpath/uffd"
	"ironspan/kvmhost"
)

const epoch = wire.Epoch(0x5eed)

// Config is what nodes are made of: see mininode.Config.
type Config struct {
	Pages int // homed at each node
	Image int // page of a node's range at which its guest's image begins; only that node touches it
	Slots int

	Tenure      coherence.Tenure
	ReadAsWrite bool
	Migratory   bool
	Prefetch    int
	CoverFrom   int
	Cache       int

	Code [][][]byte // the programs: of each node's vCPUs. A node without only serves the others
}

// Addr is the guest-physical address of a page of a node's range.
func (c *Config) Addr(node, page int) uint64 { return uint64(node*c.Pages+page) * wire.PageSize }

func (c *Config) node(t testing.TB, self int) mininode.Config {
	return mininode.Config{
		Nodes: len(c.Code), Pages: c.Pages, Slots: c.Slots, Epoch: epoch, Self: wire.NodeID(self),
		Tenure: c.Tenure, ReadAsWrite: c.ReadAsWrite, Migratory: c.Migratory, Prefetch: c.Prefetch, CoverFrom: c.CoverFrom,
		Cache: c.Cache,
		Poll:  fastpath.Event, Guest: mininode.Guest{Image: c.Image, Code: c.Code[self]},
		OnError: func(err error) { t.Error(err) },
	}
}

// Node is a node that runs until the test ends.
type Node struct {
	*mininode.Node
	Agent *coherence.Agent
	Shard *fastpath.Shard

	t testing.TB
}

// Need skips the test where this host cannot run such nodes.
func Need(t testing.TB) {
	t.Helper()
	if _, err := kvmhost.Probe(); errors.Is(err, kvmhost.ErrNotSupported) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	if _, err := uffd.Probe(); err != nil {
		t.Skip(err)
	}
}

// New makes and connects the nodes and starts their shards. Their guests wait for Run.
func New(t testing.TB, c Config) []*Node {
	t.Helper()
	Need(t)
	var cs []mininode.Config
	for i := range c.Code {
		cs = append(cs, c.node(t, i))
	}
	t.Cleanup(mininode.PrepareRuntime(cs...))
	cluster, err := mininode.NewCluster(cs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(cluster.Stop(), cluster.Close()); err != nil {
			t.Error(err)
		}
	})
	var ns []*Node
	for _, n := range cluster {
		ns = append(ns, &Node{Node: n, Agent: n.Agents[0], Shard: n.Shards[0], t: t})
	}
	return ns
}

// OnPort has f called, on the vCPU's thread, with what the guest writes to a port.
func (n *Node) OnPort(port uint16, width uint32, f func(data []byte)) {
	n.t.Helper()
	if err := n.Node.OnPort(port, width, f); err != nil {
		n.t.Fatalf("node %d: %v", n.Config.Self, err)
	}
}

// Wait is for the end of the guest.
func (n *Node) Wait(limit time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(context.Background(), limit, fmt.Errorf("it had %v", limit))
	defer cancel()
	return n.Node.Wait(ctx)
}
