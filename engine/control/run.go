package control

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"ironspan/engine/spec"
	"ironspan/engine/wire"
)

// RunOptions say how Run reaches the nodes and where it shows what happens.
type RunOptions struct {
	// TLS authenticates this client to the node with a certificate name.
	TLS func(name string) *tls.Config

	// Events takes every event of every node, in order for each. It is not called concurrently.
	Events func(Event)

	// In and Out are the guest's console; either may be nil.
	In  io.Reader
	Out io.Writer

	// Started, if not nil, is called when the guest's first instruction is about to run.
	Started func(*spec.Plan)
}

// RunReport is a VM's whole life, as `ironspan run --report` writes it.
type RunReport struct {
	OK      bool       `json:"ok"` // the guest powered off by itself
	Outcome Outcome    `json:"outcome"`
	Plan    *spec.Plan `json:"plan"`
	Began   time.Time  `json:"began"`
	Prepare float64    `json:"prepare_seconds"` // until every node was ready
	Seconds float64    `json:"run_seconds"`     // from start to end
	Nodes   []Report   `json:"nodes"`           // those that could still be asked
	Missing []string   `json:"missing,omitempty"`
	Losses  *Losses    `json:"losses,omitempty"` // if nodes were lost, or their connection
}

// ErrRefused marks errors of a run that no node has begun: a node is out of reach, refuses, or lacks something.
var ErrRefused = errors.New("refused")

// ErrPrepare marks errors of a VM that could not be made ready.
var ErrPrepare = errors.New("not prepared")

// stageError is an error of a run, with the node and the stage it came from. It reads like its cause.
type stageError struct {
	stage error
	node  int
	name  string
	err   error
}

func (e *stageError) Error() string {
	msg := e.err.Error()
	for _, p := range []string{"control: ", "engine: ", "spec: "} {
		msg = strings.TrimPrefix(msg, p)
	}
	if e.node < 0 {
		return msg
	}
	return fmt.Sprintf("node %d (%s): %s", e.node, e.name, msg)
}

func (e *stageError) Unwrap() []error { return []error{e.stage, e.err} }

// Run takes a VM through its life on all of its nodes: asks what they have, derives the plan, sends the boot
// images, prepares and starts, joins the console, waits for the end, collects the counters, and releases
// everything. sp must have passed CheckCluster or Local, and every node an address.
//
// The error is nil if the guest ran, however that ended: see the report's Outcome. Otherwise it wraps ErrRefused
// or ErrPrepare, or the cause of ctx. When Run returns, no node holds anything of the VM that could be reached.
func Run(ctx context.Context, sp *spec.Spec, opts RunOptions) (*RunReport, error) {
	r := &runner{spec: sp, opts: opts, began: time.Now(), lost: map[wire.NodeID]bool{}}
	defer r.close()
	rep, err := r.run(ctx)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return rep, err
}

// runner is the state of one Run.
type runner struct {
	spec    *spec.Spec
	opts    RunOptions
	plan    *spec.Plan
	began   time.Time
	clients []*Client
	leases  []*Lease
	kernel  *Boot
	initrd  *Boot
	files   []*os.File

	emitMu sync.Mutex

	ends    chan nodeEnd // each lease's end, once each
	readers sync.WaitGroup
	lost    map[wire.NodeID]bool // nodes that nothing is asked of any more
}

// nodeEnd is how a node's share ended: by an outcome, or because its lease broke.
type nodeEnd struct {
	node    wire.NodeID
	outcome *Outcome
	err     error
}

func (r *runner) emit(e Event) {
	if r.opts.Events == nil {
		return
	}
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	r.emitMu.Lock()
	defer r.emitMu.Unlock()
	r.opts.Events(e)
}

func (r *runner) fail(stage error, node int, err error) error {
	e := &stageError{stage: stage, node: node, err: err}
	if node >= 0 {
		e.name = r.spec.Nodes[node].Addr
	}
	return e
}

// each does something at every node at once and returns the error that says most.
func (r *runner) each(ctx context.Context, stage error, do func(ctx context.Context, i int) error) error {
	outer := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		node int
		err  error
	}
	results := make(chan result)
	n := len(r.clients)
	for i := range n {
		go func() { results <- result{i, do(ctx, i)} }()
	}
	var errs []error
	for range n {
		res := <-results
		if res.err == nil || errors.Is(res.err, context.Canceled) {
			continue
		}
		errs = append(errs, r.fail(stage, res.node, res.err))
		if len(errs) == 1 {
			// The others are about to fail because of this one; what else is wrong is worth a moment.
			time.AfterFunc(500*time.Millisecond, cancel)
		}
	}
	if len(errs) > 0 {
		return errs[0]
	}
	return context.Cause(outer)
}

func (r *runner) run(ctx context.Context) (*RunReport, error) {
	if err := r.openImages(); err != nil {
		return nil, r.fail(ErrRefused, -1, err)
	}
	for _, n := range r.spec.Nodes {
		r.clients = append(r.clients, NewClient(n.Addr, r.opts.TLS(n.Name),
			ClientOptions{Connect: r.spec.Timeouts.Connect.Std(), Lost: r.spec.Timeouts.Lost.Std()}))
	}
	infos, err := r.ask(ctx)
	if err != nil {
		return nil, err
	}
	hosts := make([]spec.Host, len(infos))
	for i, in := range infos {
		hosts[i] = spec.Host{CPUs: in.CPUs, CPUID: in.CPUID, TSCKHz: in.TSCKHz}
	}
	if r.plan, err = r.spec.Derive(hosts); err != nil {
		return nil, r.fail(ErrRefused, -1, err)
	}

	// Leases outlive ctx: an interrupted VM is still stopped in order, and asked for its counters.
	lctx, abandon := context.WithCancel(context.WithoutCancel(ctx))
	defer abandon()
	if err := r.lease(ctx, lctx); err != nil {
		r.finish("the VM was refused elsewhere")
		return nil, err
	}
	if err := r.prepare(ctx); err != nil {
		r.finish("the VM could not be prepared")
		return nil, err
	}
	prepared := time.Now()
	consoleDone := r.joinConsole(lctx)
	outcome, err := r.execute(ctx)
	if err != nil {
		r.finish("the VM could not be started")
		return nil, err
	}
	rep := &RunReport{
		OK: outcome.Kind == PoweredOff, Outcome: outcome, Plan: r.plan, Began: r.began,
		Prepare: prepared.Sub(r.began).Seconds(), Seconds: time.Since(prepared).Seconds(),
	}
	r.collect(rep)
	rep.Losses = r.losses(outcome)
	r.finish(outcome.String())
	select {
	case <-consoleDone:
	case <-time.After(2 * time.Second):
	}
	return rep, nil
}

func (r *runner) openImages() error {
	var err error
	open := func(path, what string, max int64) *Boot {
		if path == "" || err != nil {
			return nil
		}
		var b *Boot
		var f *os.File
		if b, f, err = OpenBoot(path, what, max); err == nil {
			r.files = append(r.files, f)
		}
		return b
	}
	r.kernel = open(r.spec.Kernel, "kernel", MaxKernel)
	r.initrd = open(r.spec.Initrd, "initrd", MaxInitrd)
	if err == nil && uint64(r.kernel.Size)*2+r.initrdSize() > r.spec.Nodes[0].Memory {
		err = fmt.Errorf("kernel and initrd do not fit into node 0's %s of memory: give it more", spec.FormatSize(r.spec.Nodes[0].Memory))
	}
	return err
}

func (r *runner) initrdSize() uint64 {
	if r.initrd == nil {
		return 0
	}
	return uint64(r.initrd.Size)
}

// ask collects what the nodes have and refuses what cannot work.
func (r *runner) ask(ctx context.Context) ([]*Info, error) {
	infos := make([]*Info, len(r.clients))
	limit := r.spec.Timeouts.Connect.Std() + 30*time.Second
	err := r.each(ctx, ErrRefused, func(ctx context.Context, i int) error {
		ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %v", limit))
		defer cancel()
		info, err := r.clients[i].Info(ctx)
		if err != nil {
			return err
		}
		infos[i] = info
		return r.fits(i, info)
	})
	if err != nil {
		return nil, err
	}
	if r.spec.Fabric == spec.FabricSHM {
		for i, in := range infos {
			if in.HostID != infos[0].HostID {
				return nil, r.fail(ErrRefused, i, errors.New("it is on another host than node 0: fabric: shm is for one host, verbs joins several"))
			}
		}
	}
	return infos, nil
}

// fits says what node i lacks for its share.
func (r *runner) fits(i int, in *Info) error {
	n := r.spec.Nodes[i]
	multi := len(r.spec.Nodes) > 1
	switch {
	case in.Proto != ProtocolVersion || in.Wire != wire.Version:
		return fmt.Errorf("its ironspan is %s with protocol %d and wire %d, this one has %d and %d: install the same everywhere",
			in.Version, in.Proto, in.Wire, ProtocolVersion, wire.Version)
	case in.Busy != "":
		return fmt.Errorf("it is busy: %s", in.Busy)
	case n.VCPUs > 0 && !in.KVM.OK:
		return fmt.Errorf("no KVM there: %s", in.KVM.Detail)
	case multi && !in.Uffd.OK:
		return fmt.Errorf("no userfaultfd there: %s", in.Uffd.Detail)
	case in.Memory > 0 && n.Memory > in.Memory:
		return fmt.Errorf("it is to give %s of memory and has %d MiB", spec.FormatSize(n.Memory), in.Memory>>20)
	}
	if multi && r.spec.Fabric == spec.FabricVerbs {
		if err := hasDevice(n.Device, in.Devices); err != nil {
			return err
		}
	}
	if in.Free > 0 && n.Memory > in.Free {
		r.emit(Event{Kind: KindLog, Node: wire.NodeID(i),
			Text: fmt.Sprintf("warning: %s are to be taken and %d MiB are available", spec.FormatSize(n.Memory), in.Free>>20)})
	}
	if n.VCPUs > in.CPUs {
		r.emit(Event{Kind: KindLog, Node: wire.NodeID(i),
			Text: fmt.Sprintf("warning: %d vCPUs on %d CPUs", n.VCPUs, in.CPUs)})
	}
	return nil
}

func hasDevice(want string, devices []Device) error {
	var names []string
	for _, d := range devices {
		if want == spec.DeviceAuto && d.Usable {
			return nil
		}
		if d.Name == want {
			if d.Usable {
				return nil
			}
			return fmt.Errorf("its RDMA device %s cannot be used: %s", d.Name, d.Detail)
		}
		names = append(names, d.Name+" ("+d.State+")")
	}
	has := "it has none"
	if len(names) > 0 {
		has = "it has " + strings.Join(names, ", ")
	}
	if want == spec.DeviceAuto {
		return fmt.Errorf("no usable RDMA device there, %s: `ironspan doctor --fix` makes a soft-RoCE one", has)
	}
	return fmt.Errorf("no RDMA device %s there, %s", want, has)
}

// lease opens all leases and begins to read their events.
func (r *runner) lease(ctx, lctx context.Context) error {
	r.leases = make([]*Lease, len(r.clients))
	r.ends = make(chan nodeEnd, 2*len(r.clients))
	return r.each(ctx, ErrRefused, func(ctx context.Context, i int) error {
		var kernel, initrd *Boot
		if i == 0 {
			kernel, initrd = r.kernel, r.initrd
		}
		node := wire.NodeID(i)
		// The lease is not under this stage's context, but must not outlive its cancellation unnoticed.
		l, err := r.clients[i].Open(lctx, r.plan, node, kernel, initrd)
		if err != nil {
			return err
		}
		r.leases[i] = l
		r.readers.Go(func() { r.follow(node, l) })
		return ctx.Err()
	})
}

// follow passes a lease's events on and reports its end.
func (r *runner) follow(node wire.NodeID, l *Lease) {
	ended := false
	for e := range l.Events() {
		e.Node = node
		r.emit(e)
		if e.Kind == KindEnded && e.Outcome != nil && !ended {
			ended = true
			r.ends <- nodeEnd{node: node, outcome: e.Outcome}
		}
	}
	if !ended {
		err := l.Err()
		if err == nil {
			err = errors.New("the node gave the VM up")
		}
		r.ends <- nodeEnd{node: node, err: err}
	}
}

// prepare sends the boot images and readies all nodes.
func (r *runner) prepare(ctx context.Context) error {
	for _, img := range []struct {
		what string
		b    *Boot
	}{{"kernel", r.kernel}, {"initrd", r.initrd}} {
		if img.b == nil {
			continue
		}
		var last time.Time
		err := r.leases[0].Upload(ctx, img.what, img.b, func(done, total uint64) {
			if now := time.Now(); done == total || now.Sub(last) > 200*time.Millisecond {
				last = now
				r.emit(Event{Kind: KindProgress, Phase: PhaseUpload, Done: done, Total: total, Text: img.what})
			}
		})
		if err != nil {
			return r.fail(ErrPrepare, 0, err)
		}
	}
	return r.each(ctx, ErrPrepare, func(ctx context.Context, i int) error { return r.leases[i].Prepare(ctx) })
}

// joinConsole connects the console and returns a channel that is closed when the guest's output has ended.
func (r *runner) joinConsole(ctx context.Context) <-chan struct{} {
	done := make(chan struct{})
	out := r.opts.Out
	if out == nil {
		out = io.Discard
	}
	go func() {
		defer close(done)
		if err := r.leases[0].Console(ctx, r.opts.In, out); err != nil && ctx.Err() == nil {
			r.emit(Event{Kind: KindLog, Text: "console: " + err.Error()})
		}
	}()
	return done
}

// execute starts the VM and waits for its end; node 0 is started last, because it begins to run the guest.
func (r *runner) execute(ctx context.Context) (Outcome, error) {
	err := r.each(ctx, ErrPrepare, func(ctx context.Context, i int) error {
		if i == 0 {
			return nil
		}
		return r.leases[i].Start(ctx)
	})
	if err != nil {
		return Outcome{}, err
	}
	if r.opts.Started != nil {
		r.opts.Started(r.plan)
	}
	if err := r.leases[0].Start(ctx); err != nil {
		return Outcome{}, r.fail(ErrPrepare, 0, err)
	}
	return r.wait(ctx), nil
}

// wait waits until the VM has ended on every node that can still say so, and decides how.
func (r *runner) wait(ctx context.Context) Outcome {
	var ends []nodeEnd
	var first Outcome
	select {
	case e := <-r.ends:
		ends = append(ends, e)
		first = Decide(r.plan, ends2outcomes(ends), ends2broken(ends))
	case <-ctx.Done():
		first = Outcome{Kind: Stopped, Reason: context.Cause(ctx).Error()}
	}
	// The end is on its way through the mesh. Wait a moment, then stop who has not heard of it, and give whom the
	// others have lost another moment to speak for itself.
	patience := min(2*time.Second, r.plan.Timeouts.Stop.Std())
	grace := time.After(patience)
	if ctx.Err() != nil {
		grace = time.After(0)
	}
	var silence <-chan time.Time
	asked := false
	limit := time.After(2 * r.plan.Timeouts.Stop.Std())
	for !r.allEnded(ends, asked) {
		select {
		case e := <-r.ends:
			ends = append(ends, e)
		case <-grace:
			reason := first.String()
			if first.Kind == Stopped {
				reason = first.Reason
			}
			r.stopOthers(ends, reason)
			silence = time.After(patience)
		case <-silence:
			asked = true
		case <-limit:
			r.emit(Event{Kind: KindLog, Text: "not every node has said how the VM ended there"})
			r.allEnded(ends, true)
			return r.decide(ctx, first, ends)
		}
	}
	return r.decide(ctx, first, ends)
}

// allEnded reports whether every node has said how the VM ended there. One that the others have lost, and that was
// asked and does not answer, may never do so.
func (r *runner) allEnded(ends []nodeEnd, asked bool) bool {
	missing := len(r.leases) - len(ends)
	for n := range ends2broken(ends) {
		r.lost[n] = true
	}
	if !asked {
		return missing == 0
	}
	for _, o := range ends2outcomes(ends) {
		if o.Kind == NodeLost && o.Lost != nil && int(*o.Lost) < len(r.leases) && !r.lost[*o.Lost] &&
			!slices.ContainsFunc(ends, func(e nodeEnd) bool { return e.node == *o.Lost }) {
			r.lost[*o.Lost] = true
		}
	}
	for n := range r.lost {
		if !slices.ContainsFunc(ends, func(e nodeEnd) bool { return e.node == n }) {
			missing--
		}
	}
	return missing == 0
}

func (r *runner) decide(ctx context.Context, first Outcome, ends []nodeEnd) Outcome {
	if ctx.Err() != nil && first.Kind == Stopped {
		return first
	}
	return Decide(r.plan, ends2outcomes(ends), ends2broken(ends))
}

func ends2outcomes(ends []nodeEnd) map[wire.NodeID]Outcome {
	m := map[wire.NodeID]Outcome{}
	for _, e := range ends {
		if e.outcome != nil {
			m[e.node] = *e.outcome
		}
	}
	return m
}

func ends2broken(ends []nodeEnd) map[wire.NodeID]error {
	m := map[wire.NodeID]error{}
	for _, e := range ends {
		if e.outcome == nil {
			m[e.node] = e.err
		}
	}
	return m
}

// Decide says how a VM ended from what its nodes say: outcomes of those that did, and errors of those whose
// connection to the client broke.
//
// A guest that powered off or was reset did so, whatever happened on the way out. A node whose connection broke
// is lost. A node that its peers call lost but that speaks for itself is taken at its word, and if it has nothing else
// to say, it was the connection between the two that broke.
func Decide(plan *spec.Plan, outcomes map[wire.NodeID]Outcome, broken map[wire.NodeID]error) Outcome {
	name := func(n wire.NodeID) string {
		if int(n) < len(plan.Nodes) {
			return fmt.Sprintf("%s at %s", plan.Nodes[n].Name, plan.Nodes[n].Addr)
		}
		return "no member"
	}
	order := make([]wire.NodeID, 0, len(outcomes))
	for n := range outcomes {
		order = append(order, n)
	}
	slices.Sort(order)
	find := func(k OutcomeKind) (wire.NodeID, Outcome, bool) {
		for _, n := range order {
			o := outcomes[n]
			if o.Kind != k {
				continue
			}
			if k == NodeLost && o.Lost != nil {
				if _, speaks := outcomes[*o.Lost]; speaks {
					continue
				}
			}
			return n, o, true
		}
		return 0, Outcome{}, false
	}
	for _, k := range []OutcomeKind{PoweredOff, GuestReset} {
		if _, o, ok := find(k); ok {
			return o
		}
	}
	lost := make([]wire.NodeID, 0, len(broken))
	for n := range broken {
		lost = append(lost, n)
	}
	slices.Sort(lost)
	if len(lost) > 0 {
		var who []string
		for _, n := range order {
			if o := outcomes[n]; o.Kind == NodeLost && o.Lost != nil && *o.Lost == lost[0] {
				who = append(who, fmt.Sprintf("; node %d: %s", n, o.Reason))
				break
			}
		}
		for _, n := range lost[1:] {
			who = append(who, fmt.Sprintf("; node %d (%s) as well", n, name(n)))
		}
		return LostNode(lost[0], fmt.Sprintf("%s: %s%s", name(lost[0]), trimOwn(broken[lost[0]]), strings.Join(who, "")))
	}
	if by, o, ok := find(NodeLost); ok && o.Lost != nil {
		return LostNode(*o.Lost, fmt.Sprintf("%s: seen by node %d: %s", name(*o.Lost), by, o.Reason))
	}
	for _, k := range []OutcomeKind{GuestCrash, Failed} {
		if n, o, ok := find(k); ok {
			o.Reason = fmt.Sprintf("node %d (%s): %s", n, name(n), o.Reason)
			return o
		}
	}
	for _, n := range order {
		if o := outcomes[n]; o.Kind == NodeLost && o.Lost != nil && *o.Lost != n {
			return lostLink(n, *o.Lost, fmt.Sprintf("both still answer; seen by node %d (%s): %s", n, name(n), o.Reason))
		}
	}
	for _, k := range []OutcomeKind{NodeLost, Stopped} {
		if n, o, ok := find(k); ok {
			if k != Stopped {
				o.Reason = fmt.Sprintf("node %d (%s): %s", n, name(n), o.Reason)
			}
			return o
		}
	}
	return Outcome{Kind: Failed, Reason: "no node says how the VM ended"}
}

func trimOwn(err error) string {
	if err == nil {
		return "its connection broke"
	}
	return "connection lost: " + strings.TrimPrefix(err.Error(), "control: ")
}

// stopOthers stops the VM on the nodes that have not ended.
func (r *runner) stopOthers(ends []nodeEnd, reason string) {
	ctx, cancel := context.WithTimeout(context.Background(), r.plan.Timeouts.Stop.Std())
	for i, l := range r.leases {
		if slices.ContainsFunc(ends, func(e nodeEnd) bool { return e.node == wire.NodeID(i) }) {
			continue
		}
		r.readers.Go(func() { _ = l.Stop(ctx, reason) }) // if it cannot be reached, its lease says so
	}
	go func() { r.readers.Wait(); cancel() }()
}

// collect asks all nodes for their counters.
func (r *runner) collect(rep *RunReport) {
	ctx, cancel := context.WithTimeout(context.Background(), max(5*time.Second, r.plan.Timeouts.Stop.Std()))
	defer cancel()
	got := make([]*Report, len(r.leases))
	errs := make([]error, len(r.leases))
	var wg sync.WaitGroup
	for i, l := range r.leases {
		if r.lost[wire.NodeID(i)] {
			errs[i] = errors.New("lost")
			continue
		}
		wg.Go(func() { got[i], errs[i] = l.Report(ctx) })
	}
	wg.Wait()
	for i := range got {
		if got[i] != nil {
			rep.Nodes = append(rep.Nodes, *got[i])
		} else {
			rep.Missing = append(rep.Missing, fmt.Sprintf("node %d: %s", i, strings.TrimPrefix(errs[i].Error(), "control: ")))
		}
	}
}

// finish releases all leases and waits until the nodes are through with it.
func (r *runner) finish(reason string) {
	ctx, cancel := context.WithTimeout(context.Background(), 4*r.spec.Timeouts.Stop.Std())
	defer cancel()
	var wg sync.WaitGroup
	for i, l := range r.leases {
		if l == nil {
			continue
		}
		if r.lost[wire.NodeID(i)] {
			l.Abandon()
			continue
		}
		wg.Go(func() {
			err := l.Release(ctx)
			var e *Error
			var u *Unreachable
			switch {
			case err == nil, errors.As(err, &u):
			case errors.As(err, &e) && e.Code == CodeUnknown: // it released the VM by itself
			default:
				r.emit(Event{Kind: KindLog, Node: wire.NodeID(i), Text: "not released: " + err.Error()})
			}
			l.Abandon()
		})
	}
	wg.Wait()
}

func (r *runner) close() {
	for _, l := range r.leases {
		if l != nil {
			l.Abandon()
		}
	}
	r.readers.Wait()
	for _, c := range r.clients {
		c.Close()
	}
	for _, f := range r.files {
		f.Close()
	}
}
