// Package engine composes a node from its rooms: guest RAM with its two views, the fabric's lanes, the coherence
// shards, the machine lane, KVM's vCPUs and, at node 0, the platform's devices. A [Machine] does so for one VM
// after the other, on behalf of a node's daemon.
package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"ironspan/engine/cluster"
	"ironspan/engine/control"
)

// Options are what a Machine needs of its daemon.
type Options struct {
	Listener *cluster.Listener // where peers reach this node
	Log      *slog.Logger      // default slog.Default()

	// StaticTables promises that the guest never changes its page tables. Only then can it be on several nodes where
	// KVM translates by shadow page tables and has no system management mode.
	StaticTables bool
}

// Machine is a node's share of one VM at a time. It implements [control.Machine].
type Machine struct {
	opts Options

	mu   sync.Mutex
	node *node // the VM's share between Prepare and Release, or nil
}

var _ control.Machine = (*Machine)(nil)

// New returns an idle Machine.
func New(opts Options) *Machine {
	if opts.Log == nil {
		opts.Log = slog.Default()
	}
	return &Machine{opts: opts}
}

var errIdle = errors.New("engine: no VM is prepared")

func (m *Machine) current() *node {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.node
}

// Info implements control.Machine.
func (m *Machine) Info(ctx context.Context) (*control.Info, error) { return hostInfo(ctx) }

// Prepare implements control.Machine.
func (m *Machine) Prepare(ctx context.Context, job *control.Job, progress control.Progress) error {
	n := newNode(m.opts, job, progress)
	m.mu.Lock()
	if m.node != nil {
		m.mu.Unlock()
		return fmt.Errorf("engine: this node still holds VM %s", m.node.plan.VM)
	}
	m.node = n
	m.mu.Unlock()
	return n.prepare(ctx)
}

// Start implements control.Machine.
func (m *Machine) Start(context.Context) error {
	n := m.current()
	if n == nil {
		return errIdle
	}
	return n.start()
}

// Wait implements control.Machine.
func (m *Machine) Wait(ctx context.Context) control.Outcome {
	n := m.current()
	if n == nil {
		return control.Outcome{Kind: control.Stopped, Reason: errIdle.Error()}
	}
	select {
	case <-n.ended:
	case <-ctx.Done():
		n.end(control.Outcome{Kind: control.Stopped, Reason: context.Cause(ctx).Error()})
		<-n.ended
	}
	n.flushConsole()
	return n.outcome
}

// Stop implements control.Machine.
func (m *Machine) Stop(reason string) {
	if n := m.current(); n != nil {
		n.end(control.Outcome{Kind: control.Stopped, Reason: reason})
	}
}

// Report implements control.Machine.
func (m *Machine) Report(context.Context) (*control.Report, error) {
	n := m.current()
	if n == nil {
		return nil, errIdle
	}
	return n.report(), nil
}

// Release implements control.Machine.
func (m *Machine) Release(ctx context.Context) error {
	n := m.current()
	if n == nil {
		return nil
	}
	err := n.release(ctx)
	m.mu.Lock()
	m.node = nil
	m.mu.Unlock()
	return err
}
