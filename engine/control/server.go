package control

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"ironspan/engine/spec"
	"ironspan/engine/wire"
)

const (
	// ProtocolVersion is the control plane's version; client and node must have the same.
	ProtocolVersion = 1

	// MaxKernel and MaxInitrd bound the boot images, in bytes.
	MaxKernel = 256 << 20
	MaxInitrd = 4 << 30

	maxPlan = 4 << 20 // bytes of a job: 64 nodes with their CPUID blobs
)

// ErrorCode tells apart what a node refuses or fails at.
type ErrorCode string

// The codes of errors that a node answers with.
const (
	CodeBad          ErrorCode = "bad-request"  // the request makes no sense: another version, or a bug
	CodeUnauthorized ErrorCode = "unauthorized" // not a client's certificate
	CodeBusy         ErrorCode = "busy"         // the node runs another VM
	CodeRefused      ErrorCode = "refused"      // the job does not fit this node
	CodeUnknown      ErrorCode = "unknown-vm"   // no such VM here, or not any more
	CodeState        ErrorCode = "state"        // not now: the VM is in another state
	CodeFailed       ErrorCode = "failed"       // the machine could not do it
)

// Error is a node's refusal or failure, as it travels.
type Error struct {
	Code    ErrorCode `json:"code"`
	Message string    `json:"error"`
}

// Error implements error.
func (e *Error) Error() string { return e.Message }

func errorf(code ErrorCode, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

var httpStatus = map[ErrorCode]int{
	CodeBad: http.StatusBadRequest, CodeUnauthorized: http.StatusForbidden, CodeBusy: http.StatusConflict,
	CodeRefused: http.StatusUnprocessableEntity, CodeUnknown: http.StatusNotFound, CodeState: http.StatusConflict,
	CodeFailed: http.StatusInternalServerError,
}

// ServerOptions say who a node is and whom it serves.
type ServerOptions struct {
	Name      string                           // the node's name
	Version   string                           // of this ironspan, for Info
	Authorize func(*tls.ConnectionState) error // refuses callers; nil lets everyone in
	Covers    func(name string) bool           // whether a name in a plan means this node; nil: Name only
	Dir       string                           // where boot images wait, in files that have no name; default os.TempDir()
	Lost      time.Duration                    // silence after which a client counts as gone, default 15 s
	Log       *slog.Logger                     // default slog.Default()
}

// Server is the node side of the control plane. It runs at most one VM at a time on its Machine.
type Server struct {
	machine Machine
	opts    ServerOptions
	http    *http.Server

	mu      sync.Mutex
	vm      *vm    // the VM that is here, nil when idle
	spoilt  string // why no VM can be taken any more: one could not be released
	closing bool
}

// NewServer makes a Server. Serve runs it.
func NewServer(m Machine, opts ServerOptions) *Server {
	if opts.Log == nil {
		opts.Log = slog.Default()
	}
	if opts.Covers == nil {
		opts.Covers = func(name string) bool { return name == opts.Name }
	}
	if opts.Lost == 0 {
		opts.Lost = 15 * time.Second
	}
	s := &Server{machine: m, opts: opts}
	var protocols http.Protocols
	protocols.SetHTTP2(true)
	s.http = &http.Server{
		Handler:           s.routes(),
		Protocols:         &protocols,
		ReadHeaderTimeout: opts.Lost,
		HTTP2: &http.HTTP2Config{
			SendPingTimeout:  opts.Lost / 2,
			PingTimeout:      opts.Lost / 2,
			WriteByteTimeout: 2 * opts.Lost,
		},
		ErrorLog: log.New(logWriter{opts.Log}, "", 0),
	}
	return s
}

// logWriter passes net/http's complaints to slog.
type logWriter struct{ log *slog.Logger }

func (w logWriter) Write(b []byte) (int, error) {
	w.log.Debug("control: " + strings.TrimSpace(string(b)))
	return len(b), nil
}

// Serve answers on a listener whose connections are *tls.Conn that negotiated h2, until Shutdown. It returns nil
// then.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("control: %w", err)
	}
	return nil
}

// Shutdown stops the VM that is here, waits until it is released, and closes all connections; ctx bounds it.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.closing = true
	v := s.vm
	s.mu.Unlock()
	var err error
	if v != nil {
		v.abandon("the node is shutting down")
		select {
		case <-v.released:
			// The lease's last events are on their way: let them out.
			grace, cancel := context.WithTimeout(ctx, time.Second)
			err = s.http.Shutdown(grace)
			cancel()
			if ctx.Err() == nil {
				err = nil
			}
		case <-ctx.Done():
			err = fmt.Errorf("control: shutdown: VM %s is not released: %w", v.plan.VM, context.Cause(ctx))
		}
	}
	s.http.Close()
	return err
}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/info", s.info)
	mux.HandleFunc("POST /v1/vms", s.open)
	mux.HandleFunc("GET /v1/report", s.report)
	for pattern, h := range map[string]func(*vm, http.ResponseWriter, *http.Request){
		"PUT /v1/vms/{id}/kernel":   (*vm).putKernel,
		"PUT /v1/vms/{id}/initrd":   (*vm).putInitrd,
		"POST /v1/vms/{id}/prepare": (*vm).prepare,
		"POST /v1/vms/{id}/start":   (*vm).start,
		"POST /v1/vms/{id}/console": (*vm).stream,
		"POST /v1/vms/{id}/stop":    (*vm).stop,
		"GET /v1/vms/{id}/report":   (*vm).report,
		"GET /v1/vms/{id}/losses":   (*vm).losses,
		"DELETE /v1/vms/{id}":       (*vm).delete,
	} {
		mux.HandleFunc(pattern, s.withVM(h))
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.opts.Authorize != nil {
			if err := s.opts.Authorize(r.TLS); err != nil {
				s.opts.Log.Warn("control: refused", "remote", r.RemoteAddr, "err", err)
				writeError(w, errorf(CodeUnauthorized, "%s", err))
				return
			}
		}
		mux.ServeHTTP(w, r)
	})
}

// withVM finds the VM a request is about.
func (s *Server) withVM(h func(*vm, http.ResponseWriter, *http.Request)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		v := s.vm
		s.mu.Unlock()
		if v == nil || v.plan.VM.String() != r.PathValue("id") {
			writeError(w, errorf(CodeUnknown, "VM %.64q is not on this node, or not any more", r.PathValue("id")))
			return
		}
		h(v, w, r)
	}
}

func (s *Server) info(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 30*time.Second)
	defer cancel()
	info, err := s.machine.Info(ctx)
	if err != nil {
		writeError(w, errorf(CodeFailed, "%s", err))
		return
	}
	out := *info
	out.Name, out.Proto, out.Wire = s.opts.Name, ProtocolVersion, wire.Version
	if s.opts.Version != "" {
		out.Version = s.opts.Version
	}
	s.mu.Lock()
	if s.vm != nil {
		out.Busy = fmt.Sprintf("%s (%s)", s.vm.plan.Name, s.vm.plan.VM)
	} else if s.spoilt != "" {
		out.Busy = s.spoilt
	}
	s.mu.Unlock()
	writeJSON(w, http.StatusOK, out)
}

// ErrIdle says that a node has no VM that counts anything.
var ErrIdle = errors.New("control: no VM runs here")

// Report returns what the node's VM has counted so far; ErrIdle if there is none, or none yet.
func (s *Server) Report(ctx context.Context) (*Report, error) {
	s.mu.Lock()
	v := s.vm
	s.mu.Unlock()
	if v == nil {
		return nil, ErrIdle
	}
	return v.count(ctx)
}

// report answers anyone who watches, not only who brought the VM.
func (s *Server) report(w http.ResponseWriter, r *http.Request) {
	rep, err := s.Report(r.Context())
	switch {
	case errors.Is(err, ErrIdle):
		writeError(w, errorf(CodeUnknown, "no VM runs on this node"))
	case err != nil:
		writeError(w, errorf(CodeFailed, "%s", err))
	default:
		writeJSON(w, http.StatusOK, rep)
	}
}

// openRequest is the body of POST /v1/vms.
type openRequest struct {
	Proto  int             `json:"proto"`
	Node   wire.NodeID     `json:"node"`
	Plan   json.RawMessage `json:"plan"`
	Kernel *imageSpec      `json:"kernel,omitempty"` // at node 0
	Initrd *imageSpec      `json:"initrd,omitempty"`
}

// imageSpec announces a boot image.
type imageSpec struct {
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

func (i *imageSpec) check(what string, max int64) *Error {
	if i == nil {
		return nil
	}
	if i.Size <= 0 || i.Size > max {
		return errorf(CodeRefused, "the %s has %d bytes, 1 to %d are allowed", what, i.Size, max)
	}
	if b, err := hex.DecodeString(i.SHA256); err != nil || len(b) != sha256.Size {
		return errorf(CodeBad, "the %s's SHA-256 is none", what)
	}
	return nil
}

// decodeOpen reads and checks a job.
func decodeOpen(b []byte) (*openRequest, *spec.Plan, *Error) {
	var req openRequest
	if err := json.Unmarshal(b, &req); err != nil {
		return nil, nil, errorf(CodeBad, "job: %s", err)
	}
	if req.Proto != ProtocolVersion {
		return nil, nil, errorf(CodeBad, "control protocol %d, this node speaks %d: install the same ironspan everywhere", req.Proto, ProtocolVersion)
	}
	plan, err := spec.DecodePlan(req.Plan)
	if err != nil {
		return nil, nil, errorf(CodeBad, "%s", strings.TrimPrefix(err.Error(), "spec: "))
	}
	if int(req.Node) >= len(plan.Nodes) {
		return nil, nil, errorf(CodeBad, "node %d of a plan of %d", req.Node, len(plan.Nodes))
	}
	if e := req.Kernel.check("kernel", MaxKernel); e != nil {
		return nil, nil, e
	}
	if e := req.Initrd.check("initrd", MaxInitrd); e != nil {
		return nil, nil, e
	}
	if (req.Node == 0) != (req.Kernel != nil) || req.Node != 0 && req.Initrd != nil {
		return nil, nil, errorf(CodeBad, "boot images go to node 0, and a kernel has to")
	}
	return &req, plan, nil
}

// open takes a job and streams its events until the VM is released.
func (s *Server) open(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxPlan))
	if err != nil {
		writeError(w, errorf(CodeBad, "job: %s", err))
		return
	}
	req, plan, bad := decodeOpen(b)
	if bad != nil {
		writeError(w, bad)
		return
	}
	if name := plan.Nodes[req.Node].Name; !s.opts.Covers(name) {
		writeError(w, errorf(CodeRefused, "this node is %q, the plan means %q: check addr and name in the spec", s.opts.Name, name))
		return
	}
	v := newVM(s, plan, req)
	if e := s.take(v); e != nil {
		writeError(w, e)
		return
	}
	log := s.opts.Log.With("vm", plan.Name, "id", plan.VM.String(), "node", req.Node)
	log.Info("control: VM accepted", "client", r.RemoteAddr)

	// From here on the VM ends with this handler.
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-r.Context().Done():
			v.abandon("the client is gone")
		case <-v.gone:
		}
		v.release(log)
		s.drop(v)
	}()
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	v.events.add(Event{Kind: KindState, Phase: PhaseAccepted})
	v.pump(r.Context(), w)
	<-done
}

// take makes v the server's VM, unless there is one.
func (s *Server) take(v *vm) *Error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closing:
		return errorf(CodeBusy, "the node is shutting down")
	case s.spoilt != "":
		return errorf(CodeBusy, "%s", s.spoilt)
	case s.vm != nil:
		return errorf(CodeBusy, "the node runs VM %s (%s): a node has one at a time", s.vm.plan.Name, s.vm.plan.VM)
	}
	s.vm = v
	return nil
}

func (s *Server) drop(v *vm) {
	s.mu.Lock()
	s.vm = nil
	s.mu.Unlock()
	close(v.released)
}

// spoil makes the node refuse further VMs: what is left of the last would be in their way.
func (s *Server) spoil(why string) {
	s.mu.Lock()
	s.spoilt = why
	s.mu.Unlock()
}

// vmState is where a VM's share is in its life.
type vmState int

const (
	vmOpen      vmState = iota // accepted; images may arrive
	vmPreparing                // Machine.Prepare is under way
	vmPrepared                 // it could start
	vmFailed                   // Prepare failed
	vmRunning                  // Machine.Wait is under way
	vmEnded                    // it has an outcome
)

var vmStates = [...]string{"open", "being prepared", "prepared", "failed", "running", "ended"}

func (s vmState) String() string { return vmStates[s] }

// vm is the server's one VM.
type vm struct {
	s       *Server
	plan    *spec.Plan
	node    wire.NodeID
	events  *events
	console *console

	ctx      context.Context // ends when the VM is abandoned; Prepare and Wait live under it
	cancel   context.CancelFunc
	gone     chan struct{} // closed by delete or abandon: release it
	released chan struct{} // closed when nothing of it is left
	work     sync.WaitGroup
	asks     sync.WaitGroup // what the machine is being asked, by others than release

	mu       sync.Mutex
	state    vmState
	reason   string // why it was abandoned
	goneOnce bool
	touched  bool // Prepare was called: Release has to be
	kernel   *image
	initrd   *image
	outcome  *Outcome
}

func newVM(s *Server, plan *spec.Plan, req *openRequest) *vm {
	v := &vm{
		s: s, plan: plan, node: req.Node, events: newEvents(req.Node),
		gone: make(chan struct{}), released: make(chan struct{}),
		kernel: newImage("kernel", req.Kernel), initrd: newImage("initrd", req.Initrd),
	}
	if req.Node == 0 {
		v.console = newConsole()
	}
	v.ctx, v.cancel = context.WithCancel(context.Background())
	return v
}

// pump writes events to the lease until they end or the client is gone.
func (v *vm) pump(ctx context.Context, w http.ResponseWriter) {
	rc := http.NewResponseController(w)
	enc := json.NewEncoder(w)
	for {
		es, err := v.events.next(ctx)
		if err != nil {
			return
		}
		for _, e := range es {
			if enc.Encode(e) != nil {
				return // the context ends, too
			}
		}
		if rc.Flush() != nil {
			return
		}
	}
}

// abandon ends the VM whatever it is doing.
func (v *vm) abandon(reason string) {
	v.mu.Lock()
	if v.reason == "" {
		v.reason = reason
	}
	first := !v.goneOnce
	v.goneOnce = true
	v.mu.Unlock()
	if first {
		close(v.gone)
	}
}

// release gives back everything the VM took.
func (v *vm) release(log *slog.Logger) {
	v.mu.Lock()
	touched, state, reason := v.touched, v.state, v.reason
	v.mu.Unlock()
	ended := state == vmEnded || state == vmFailed
	if touched && !ended {
		log.Info("control: stopping", "reason", reason)
		v.events.add(Event{Kind: KindState, Phase: PhaseStopping, Text: reason})
		v.s.machine.Stop(reason)
	}
	// Wait ends soon after Stop; its context is the means for one that does not.
	patience := time.AfterFunc(v.plan.Timeouts.Stop.Std(), v.cancel)
	if state != vmRunning {
		v.cancel() // cuts a Prepare short
	}
	finished := make(chan struct{})
	go func() { v.work.Wait(); close(finished) }()
	select {
	case <-finished:
	case <-time.After(2 * v.plan.Timeouts.Stop.Std()):
		log.Error("control: the machine does not stop")
	}
	patience.Stop()
	v.cancel()
	if v.console != nil {
		v.console.close()
	}
	v.asks.Wait()
	if touched {
		ctx, cancel := context.WithTimeout(context.Background(), v.plan.Timeouts.Stop.Std())
		if err := v.s.machine.Release(ctx); err != nil {
			log.Error("control: release", "err", err)
			v.s.spoil(fmt.Sprintf("the node could not clean up after VM %s (%s): restart its daemon", v.plan.Name, err))
			v.events.add(Event{Kind: KindLog, Text: "not cleaned up: " + err.Error()})
		}
		cancel()
	}
	v.kernel.close()
	v.initrd.close()
	log.Info("control: VM released")
	v.events.close()
}

// move changes the state if it is one of from. Who moves to vmPreparing or vmRunning owes a work.Done.
func (v *vm) move(to vmState, from ...vmState) *Error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.goneOnce {
		return errorf(CodeState, "the VM is being stopped: %s", v.reason)
	}
	for _, f := range from {
		if v.state == f {
			v.state = to
			if to == vmPreparing || to == vmRunning {
				v.touched = true
				v.work.Add(1) // under the lock: release waits for it from the moment it sees touched
			}
			return nil
		}
	}
	return errorf(CodeState, "the VM is %s", v.state)
}

func (v *vm) putKernel(w http.ResponseWriter, r *http.Request) { v.put(v.kernel, w, r) }
func (v *vm) putInitrd(w http.ResponseWriter, r *http.Request) { v.put(v.initrd, w, r) }

// put receives a boot image.
func (v *vm) put(i *image, w http.ResponseWriter, r *http.Request) {
	if i == nil {
		writeError(w, errorf(CodeBad, "this image was not announced"))
		return
	}
	if e := v.move(vmOpen, vmOpen); e != nil {
		writeError(w, e)
		return
	}
	if err := i.receive(r.Body, v.s.opts.Dir); err != nil {
		var e *Error
		if !errors.As(err, &e) {
			e = errorf(CodeFailed, "%s: %s", i.what, err)
		}
		writeError(w, e)
		return
	}
	writeJSON(w, http.StatusOK, struct{}{})
}

// prepare runs Machine.Prepare and answers when it is through.
func (v *vm) prepare(w http.ResponseWriter, r *http.Request) {
	if !v.kernel.complete() || !v.initrd.complete() {
		writeError(w, errorf(CodeState, "boot images are missing"))
		return
	}
	if e := v.move(vmPreparing, vmOpen); e != nil {
		writeError(w, e)
		return
	}
	ctx, cancel := context.WithTimeoutCause(v.ctx, v.plan.Timeouts.Prepare.Std(),
		fmt.Errorf("not ready within %v (timeouts: prepare in the spec)", v.plan.Timeouts.Prepare))
	job := &Job{Plan: v.plan, Node: v.node, Kernel: v.kernel.job(), Initrd: v.initrd.job()}
	if v.console != nil {
		job.Console = v.console
	}
	result := make(chan error, 1)
	// Not in this goroutine, where net/http would recover a panic and leave half a VM behind.
	go func() {
		defer v.work.Done()
		defer cancel()
		err := v.s.machine.Prepare(ctx, job, v.events.add)
		if err == nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		v.mu.Lock()
		if err != nil {
			v.state = vmFailed
			v.outcome = &Outcome{Kind: Failed, Reason: err.Error()}
		} else {
			v.state = vmPrepared
		}
		v.mu.Unlock()
		if err == nil {
			v.kernel.close() // they are in guest RAM now
			v.initrd.close()
			v.events.add(Event{Kind: KindState, Phase: PhasePrepared})
		}
		result <- err
	}()
	select {
	case err := <-result:
		if err != nil {
			writeError(w, errorf(CodeFailed, "%s", err))
			return
		}
		writeJSON(w, http.StatusOK, struct{}{})
	case <-r.Context().Done():
		// The lease decides what becomes of it.
	}
}

// start lets the VM run and watches for its end.
func (v *vm) start(w http.ResponseWriter, r *http.Request) {
	if e := v.move(vmRunning, vmPrepared); e != nil {
		writeError(w, e)
		return
	}
	if err := v.s.machine.Start(v.ctx); err != nil {
		defer v.work.Done()
		v.end(Outcome{Kind: Failed, Reason: err.Error()})
		writeError(w, errorf(CodeFailed, "%s", err))
		return
	}
	v.events.add(Event{Kind: KindState, Phase: PhaseBooting})
	go func() {
		defer v.work.Done()
		v.end(v.s.machine.Wait(v.ctx))
	}()
	writeJSON(w, http.StatusOK, struct{}{})
}

func (v *vm) end(o Outcome) {
	v.mu.Lock()
	v.state, v.outcome = vmEnded, &o
	v.mu.Unlock()
	if v.console != nil {
		v.console.end()
	}
	v.s.opts.Log.Info("control: VM ended", "vm", v.plan.Name, "id", v.plan.VM.String(), "outcome", o.String())
	v.events.add(Event{Kind: KindEnded, Outcome: &o})
}

// stream joins the request's body and the response to the console.
func (v *vm) stream(w http.ResponseWriter, r *http.Request) {
	if v.console == nil {
		writeError(w, errorf(CodeBad, "node %d has no console: node 0 has", v.node))
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.WriteHeader(http.StatusOK)
	rc := http.NewResponseController(w)
	if rc.Flush() != nil {
		return
	}
	go func() { // ends with the request's body, at the latest when this handler returns
		b := make([]byte, 4096)
		for {
			n, err := r.Body.Read(b)
			if n > 0 && v.console.put(r.Context(), b[:n]) != nil || err != nil {
				return
			}
		}
	}()
	for {
		b, err := v.console.take(r.Context())
		if err != nil {
			return
		}
		if _, err := w.Write(b); err != nil || rc.Flush() != nil {
			return
		}
	}
}

// stopRequest is the body of POST /v1/vms/{id}/stop.
type stopRequest struct {
	Reason string `json:"reason"`
}

// stop ends the VM but keeps it for its report.
func (v *vm) stop(w http.ResponseWriter, r *http.Request) {
	var req stopRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4096)).Decode(&req); err != nil {
		writeError(w, errorf(CodeBad, "stop: %s", err))
		return
	}
	v.mu.Lock()
	state := v.state
	v.mu.Unlock()
	if state == vmPreparing || state == vmPrepared || state == vmRunning {
		v.s.machine.Stop(req.Reason)
	}
	writeJSON(w, http.StatusOK, struct{}{})
}

func (v *vm) report(w http.ResponseWriter, r *http.Request) {
	rep, err := v.count(r.Context())
	switch {
	case errors.Is(err, ErrIdle):
		writeError(w, errorf(CodeState, "the VM is not prepared: nothing was counted"))
	case err != nil:
		writeError(w, errorf(CodeFailed, "%s", err))
	default:
		writeJSON(w, http.StatusOK, rep)
	}
}

// count asks the machine for its counters, if there can be any.
func (v *vm) count(ctx context.Context) (*Report, error) {
	if v.ask(vmPrepared, vmRunning, vmEnded) != nil {
		return nil, ErrIdle
	}
	defer v.asks.Done()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	rep, err := v.s.machine.Report(ctx)
	if err != nil {
		return nil, err
	}
	out := *rep
	out.Node, out.Name, out.VM = v.node, v.plan.Nodes[v.node].Name, v.plan.Name
	return &out, nil
}

// ask keeps the VM from being released until asks.Done, if it is in one of the states.
func (v *vm) ask(in ...vmState) *Error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.goneOnce {
		return errorf(CodeState, "the VM is being released")
	}
	if !slices.Contains(in, v.state) {
		return errorf(CodeState, "the VM is %s", v.state)
	}
	v.asks.Add(1) // under the lock: release waits for it from the moment the VM is gone
	return nil
}

// losses answers once the VM has ended here.
func (v *vm) losses(w http.ResponseWriter, r *http.Request) {
	lost, e := parseLost(v.plan, v.node, r.URL.Query().Get("of"))
	if e != nil {
		writeError(w, e)
		return
	}
	if e := v.ask(vmEnded); e != nil {
		writeError(w, errorf(CodeState, "%s: what was lost is known when it has ended", e.Message))
		return
	}
	defer v.asks.Done()
	part, err := v.s.machine.Losses(r.Context(), lost)
	if err != nil {
		writeError(w, errorf(CodeFailed, "%s", err))
		return
	}
	writeJSON(w, http.StatusOK, part)
}

func (v *vm) delete(w http.ResponseWriter, r *http.Request) {
	v.abandon("the client released it")
	select {
	case <-v.released:
		writeJSON(w, http.StatusOK, struct{}{})
	case <-r.Context().Done():
	}
}

// image is a boot image on its way in. It waits in a file without a name, so that nothing can be left behind.
type image struct {
	what string
	want imageSpec

	mu   sync.Mutex
	f    *os.File
	busy bool
	full bool
	over bool // closed: what still arrives is thrown away
}

func newImage(what string, want *imageSpec) *image {
	if want == nil {
		return nil
	}
	return &image{what: what, want: *want}
}

// receive stores the image and checks size and digest.
func (i *image) receive(body io.Reader, dir string) error {
	i.mu.Lock()
	if i.busy || i.full {
		i.mu.Unlock()
		return errorf(CodeState, "the %s is here already", i.what)
	}
	i.busy = true
	i.mu.Unlock()
	f, err := i.store(body, dir)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.busy = false
	switch {
	case err != nil:
		return err
	case i.over:
		f.Close()
		return errorf(CodeState, "the VM is being stopped")
	}
	i.f, i.full = f, true
	return nil
}

func (i *image) store(body io.Reader, dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "ironspan-"+i.what+"-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, sum), io.LimitReader(body, i.want.Size+1))
	switch {
	case err != nil:
	case n != i.want.Size:
		err = errorf(CodeBad, "the %s has another size than announced: %d bytes", i.what, i.want.Size)
	case hexSum(sum) != i.want.SHA256:
		err = errorf(CodeBad, "the %s was damaged on its way: its SHA-256 differs", i.what)
	default:
		return f, nil
	}
	f.Close()
	return nil, err
}

func hexSum(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

// complete reports whether nothing is missing; an image that was not announced is complete.
func (i *image) complete() bool {
	if i == nil {
		return true
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.full
}

func (i *image) job() *Image {
	if i == nil {
		return nil
	}
	return &Image{ReaderAt: i.f, Size: i.want.Size}
}

func (i *image) close() {
	if i == nil {
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.over = true
	if i.f != nil {
		i.f.Close()
		i.f = nil
	}
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		status, b = http.StatusInternalServerError, []byte(`{"code":"failed","error":"the answer cannot be written as JSON"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(b) // a client that is gone needs no answer
}

func writeError(w http.ResponseWriter, e *Error) { writeJSON(w, httpStatus[e.Code], e) }
