// Package controltest has a control.Machine without a VM, for tests of everything above one. It meets its peers in
// a real mesh, and does what the guest's command line says.
package controltest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"ironspan/engine/cluster"
	"ironspan/engine/control"
	"ironspan/engine/wire"
)

// Machine pretends to run a VM. Words of the plan's append tell it what happens:
//
//	fake.prepare=error|hang      Prepare fails, or waits for its context
//	fake.prepare.node=N          only there
//	fake.guest=poweroff|reset|crash|run|echo|fail
//	fake.guest=link              node 0 says that it has lost node 1
//	fake.after=DURATION          until the guest does it (default 50ms)
//	fake.release=error           Release fails
//	fake.losses=error            Losses fails
//	fake.deaf=1                  Stop is not heard, contexts are
//
// A guest that echoes answers what is typed and powers off at the line "quit".
type Machine struct {
	Listener *cluster.Listener // to meet peers; nil: there are none

	mu       sync.Mutex
	job      *control.Job
	mesh     *cluster.Mesh
	over     chan struct{}
	overOnce *sync.Once
	outcome  control.Outcome
	progress control.Progress
	console  sync.WaitGroup
	started  time.Time

	prepared, released int
	kernel, initrd     string
}

// Calls returns how often Prepare and Release were called.
func (m *Machine) Calls() (prepared, released int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.prepared, m.released
}

// Images returns what the last Prepare read of the boot images.
func (m *Machine) Images() (kernel, initrd string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.kernel, m.initrd
}

var _ control.Machine = (*Machine)(nil)

// word returns what a word of the command line is set to.
func (m *Machine) word(key string) string {
	for _, w := range strings.Fields(m.job.Plan.Append) {
		if v, ok := strings.CutPrefix(w, "fake."+key+"="); ok {
			return v
		}
	}
	return ""
}

// Info implements control.Machine.
func (m *Machine) Info(context.Context) (*control.Info, error) {
	return &control.Info{
		Kernel: "6.12", CPUs: 4, Memory: 8 << 30, Free: 4 << 30, TSCKHz: 2_000_000, CPUID: []byte("cpuid"), HostID: "here",
		KVM: control.Probe{OK: true}, Uffd: control.Probe{OK: true},
		Devices: []control.Device{{Name: "rxe0", Netdev: "eth0", State: "active", MTU: 4096, Usable: true}},
	}, nil
}

// Prepare implements control.Machine.
func (m *Machine) Prepare(ctx context.Context, job *control.Job, progress control.Progress) error {
	m.mu.Lock()
	m.job, m.progress = job, progress
	m.over, m.overOnce = make(chan struct{}), new(sync.Once)
	m.prepared++
	over := m.over
	m.mu.Unlock()
	for i := range uint64(5) {
		progress(control.Event{Phase: control.PhasePopulate, Done: i + 1, Total: 5})
	}
	kernel, err := readImage(job.Kernel)
	if err != nil {
		return err
	}
	initrd, err := readImage(job.Initrd)
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.kernel, m.initrd = kernel, initrd
	m.mu.Unlock()
	if at := m.word("prepare.node"); at == "" || at == fmt.Sprint(job.Node) {
		switch m.word("prepare") {
		case "error":
			return errors.New("engine: no RAM left: take some away from others")
		case "hang":
			if m.word("deaf") != "" {
				<-ctx.Done()
				return context.Cause(ctx)
			}
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-over:
				return errors.New("engine: stopped")
			}
		}
	}
	if m.Listener == nil || len(job.Plan.Nodes) == 1 {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-over:
			cancel()
		case <-ctx.Done():
		}
	}()
	mesh, err := m.Listener.Join(ctx, cluster.ConfigFor(job.Plan, job.Node, slog.New(slog.DiscardHandler)))
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.mesh = mesh
	m.mu.Unlock()
	if _, err := mesh.Exchange(ctx, "fabric", nil); err != nil {
		return err
	}
	progress(control.Event{Kind: control.KindState, Phase: control.PhaseConnected})
	return mesh.Barrier(ctx, "prepared")
}

func readImage(i *control.Image) (string, error) {
	if i == nil {
		return "", nil
	}
	b, err := io.ReadAll(io.NewSectionReader(i, 0, i.Size))
	return string(b), err
}

// end ends the VM here, once.
func (m *Machine) end(o control.Outcome) {
	m.mu.Lock()
	once, over, mesh := m.overOnce, m.over, m.mesh
	m.mu.Unlock()
	if once == nil {
		return
	}
	once.Do(func() {
		m.mu.Lock()
		m.outcome = o
		m.mu.Unlock()
		if mesh != nil {
			mesh.Leave(string(o.Kind), o.Reason)
		}
		close(over)
	})
}

// Start implements control.Machine.
func (m *Machine) Start(context.Context) error {
	m.started = time.Now()
	if m.mesh != nil {
		go m.watch(m.mesh, m.over)
	}
	if m.job.Node != 0 {
		return nil
	}
	after := 50 * time.Millisecond
	if d, err := time.ParseDuration(m.word("after")); err == nil {
		after = d
	}
	fmt.Fprintf(m.job.Console, "booting %s\r\n", m.job.Plan.Name)
	outcome := control.Outcome{Kind: control.PoweredOff, Reason: "ACPI power-off"}
	switch m.word("guest") {
	case "reset":
		outcome = control.Outcome{Kind: control.GuestReset, Reason: "reset register"}
	case "crash":
		outcome = control.Outcome{Kind: control.GuestCrash, Reason: "triple fault on vCPU 0"}
	case "fail":
		outcome = control.Outcome{Kind: control.Failed, Reason: "device error"}
	case "link":
		outcome = control.LostNode(1, "retries exceeded")
	case "run":
		return nil
	case "echo":
		m.console.Go(m.echo)
		return nil
	}
	over := m.over
	go func() {
		select {
		case <-time.After(after):
			fmt.Fprint(m.job.Console, "good night\r\n")
			m.end(outcome)
		case <-over:
		}
	}()
	return nil
}

// echo is a guest that answers its console.
func (m *Machine) echo() {
	lines := bufio.NewScanner(m.job.Console)
	for lines.Scan() {
		fmt.Fprintf(m.job.Console, "you said %q\r\n", lines.Text())
		if lines.Text() == "quit" {
			go m.end(control.Outcome{Kind: control.PoweredOff})
			return
		}
	}
}

// watch ends the VM when a peer is gone.
func (m *Machine) watch(mesh *cluster.Mesh, over <-chan struct{}) {
	select {
	case p := <-mesh.Lost():
		switch {
		case p.Goodbye && p.Kind == string(control.PoweredOff):
			m.end(control.Outcome{Kind: control.PoweredOff, Reason: p.Reason})
		case p.Goodbye:
			m.end(control.Outcome{Kind: control.Stopped, Reason: p.Reason})
		default:
			m.end(control.LostNode(p.Node, p.Reason))
		}
	case <-over:
	}
}

// Wait implements control.Machine.
func (m *Machine) Wait(ctx context.Context) control.Outcome {
	select {
	case <-m.over:
	case <-ctx.Done():
		m.end(control.Outcome{Kind: control.Stopped, Reason: context.Cause(ctx).Error()})
		<-m.over
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.outcome
}

// Stop implements control.Machine.
func (m *Machine) Stop(reason string) {
	m.mu.Lock()
	deaf := m.job == nil || m.word("deaf") != ""
	m.mu.Unlock()
	if !deaf {
		go m.end(control.Outcome{Kind: control.Stopped, Reason: reason})
	}
}

// Report implements control.Machine.
func (m *Machine) Report(context.Context) (*control.Report, error) {
	return &control.Report{
		Seconds: time.Since(m.started).Seconds(),
		Faults: map[string]control.Latency{"read": {
			Count: 3, SumNS: 80_000, P50NS: 20_000, P99NS: 40_000, P999NS: 40_000, MaxNS: 40_000,
			Buckets: [][2]uint64{{20_000, 2}, {40_000, 1}},
		}},
		Verbs: map[string]control.Ops{"write": {Ops: 3, Bytes: 3 * wire.PageSize}},
		Exits: map[string]uint64{"io": 7},
	}, nil
}

// Losses implements control.Machine: the node has the first quarter of the lost nodes' pages, does not know of the
// second, and the first page of its own was at one of them.
func (m *Machine) Losses(_ context.Context, lost []wire.NodeID) (*control.LossPart, error) {
	if m.word("losses") == "error" {
		return nil, errors.New("engine: it has forgotten")
	}
	var kept, uncertain []control.PageRun
	for _, n := range lost {
		r := m.job.Plan.Nodes[n].RAM
		kept = append(kept, control.PageRun{First: r.First, Pages: r.Pages() / 4})
		uncertain = append(uncertain, control.PageRun{First: r.First + wire.PFN(r.Pages()/4), Pages: r.Pages() / 4})
	}
	var own []control.PageRun
	if len(lost) > 0 {
		own = append(own, control.PageRun{First: m.job.Plan.Nodes[m.job.Node].RAM.First, Pages: 1})
	}
	return &control.LossPart{
		Kept: control.NewPageSet(kept, 0), Lost: control.NewPageSet(own, 0), Uncertain: control.NewPageSet(uncertain, 0),
	}, nil
}

// Release implements control.Machine.
func (m *Machine) Release(context.Context) error {
	m.end(control.Outcome{Kind: control.Stopped, Reason: "released"})
	m.console.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.released++
	err := error(nil)
	if m.word("release") == "error" {
		err = errors.New("engine: a thread does not end")
	}
	if m.mesh != nil {
		m.mesh.Close()
	}
	m.job, m.mesh, m.over, m.overOnce = nil, nil, nil, nil
	return err
}
