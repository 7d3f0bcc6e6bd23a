package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/goccy/go-yaml"

	"ironspan/tools/lab/internal/kernel"
	"ironspan/tools/lab/internal/lab"
	"ironspan/tools/lab/internal/remote"
)

type runCmd struct {
	Servers  int      `help:"How many servers the VM spans." default:"2" short:"s"`
	Vcpus    counts   `help:"vCPUs on each server: one number, or one for each (default: 1)." placeholder:"N,..."`
	Mem      sizes    `help:"Memory on each server: one size, or one for each (default: 512M)." placeholder:"SIZE,..."`
	Fabric   string   `help:"verbs: RDMA over rxe between the servers; shm: as many node processes in one server, over shared memory." default:"verbs" enum:"verbs,shm"`
	Kernel   string   `help:"The guest's kernel, a bzImage (default: the servers' own)." placeholder:"BZIMAGE"`
	Initrd   string   `help:"The guest's initrd." placeholder:"FILE"`
	Append   string   `help:"Words for the guest's kernel command line." placeholder:"STR"`
	Dilate   string   `help:"How many times slower than hardware the guest's clock shall believe to be, or auto to measure it (default: 60, or 200 where there are more servers than cores)." placeholder:"F|auto"`
	Timeout  int      `help:"Give up when the guest has not powered off so many seconds after its start." placeholder:"SECS"`
	Report   string   `help:"Write what was counted to this file, as JSON." placeholder:"FILE"`
	Keep     bool     `help:"Leave the servers up afterwards, to look around."`
	Ironspan string   `help:"The ironspan binary (default: beside this one, else in PATH)." placeholder:"FILE"`
	Verbose  bool     `help:"Show the nodes' logs." short:"v"`
	Spec     []string `help:"A further line for the span.yaml, such as 'shards: 2'." placeholder:"LINE" sep:"none"`
	machineFlags
}

// Help is kong's.
func (*runCmd) Help() string {
	return `The guest's console is standard output (and standard input); everything else is on standard error. The exit
status is 0 if the guest powered off by itself; otherwise it is that of ironspan run: 1 failure, 2 usage, 3 guest
reset or crashed, 4 a node was lost, 5 a node refused, 6 time-out, 130 interrupted. Nothing is left behind.

  lab run --servers 2 --vcpus 1,1 --mem 512M,512M --initrd build/demo/initrd --timeout 300`
}

// defaultDilate suits an emulated server: its instructions, faults and messages take so many times longer than
// on hardware. Where servers share cores they wait for each other at each message, and ticks at that pace would leave
// a guest little time for anything else: with three servers on two cores it boots in 268 s by the first, in 102 s by the
// second.
const (
	defaultDilate = 60
	crowdedDilate = 200
)

// nodePort is where nodes listen on the wire.
const nodePort = 7440

// overhead is what a server needs beside the VM's memory: its kernel, two Go processes, page tables.
const overhead = mebibytes(1024)

type counts []int

func (c *counts) UnmarshalText(b []byte) error {
	*c = nil
	for f := range strings.SplitSeq(string(b), ",") {
		n, err := strconv.Atoi(strings.TrimSpace(f))
		if err != nil || n < 0 {
			return fmt.Errorf("%q is not a list of numbers like 1,1", b)
		}
		*c = append(*c, n)
	}
	return nil
}

type sizes []mebibytes

func (s *sizes) UnmarshalText(b []byte) error {
	*s = nil
	for f := range strings.SplitSeq(string(b), ",") {
		var m mebibytes
		if err := m.UnmarshalText([]byte(strings.TrimSpace(f))); err != nil {
			return err
		}
		*s = append(*s, m)
	}
	return nil
}

// spread makes one value stand for all servers, and any other number of values an error.
func spread[T any](flag string, values []T, servers int, otherwise T) ([]T, error) {
	switch len(values) {
	case 0:
		values = []T{otherwise}
		fallthrough
	case 1:
		out := make([]T, servers)
		for i := range out {
			out[i] = values[0]
		}
		return out, nil
	case servers:
		return values, nil
	}
	return nil, fmt.Errorf("lab: --%s gives %d values for %d servers", flag, len(values), servers)
}

// span is the span.yaml of a run.
type span struct {
	Name     string     `yaml:"name"`
	Kernel   string     `yaml:"kernel"`
	Initrd   string     `yaml:"initrd,omitempty"`
	Append   string     `yaml:"append,omitempty"`
	Fabric   string     `yaml:"fabric"`
	Dilate   float64    `yaml:"dilate"`
	Tenure   tenure     `yaml:"tenure"`
	Nodes    []spanNode `yaml:"nodes"`
	Timeouts timeouts   `yaml:"timeouts"`
}

// tenure is how long a node keeps a page that is fought over.
type tenure struct {
	Base string `yaml:"base"`
	Max  string `yaml:"max"`
}

type spanNode struct {
	Addr   string `yaml:"addr,omitempty"`
	Name   string `yaml:"name,omitempty"`
	VCPUs  int    `yaml:"vcpus"`
	Memory string `yaml:"memory"`
}

// timeouts are longer than hardware needs: an emulated server on a busy machine is slow, not dead.
type timeouts struct {
	Connect string `yaml:"connect"`
	Prepare string `yaml:"prepare"`
	Lost    string `yaml:"lost"`
	Stop    string `yaml:"stop"`
}

// Run is the command.
func (r *runCmd) Run(ctx context.Context) (err error) {
	v, err := r.plan(ctx)
	if err != nil {
		return err
	}
	begin := time.Now()
	v.dir, v.stop, err = r.bring(ctx, v.servers)
	if err != nil {
		return err
	}
	defer v.stop()
	if v.span.Dilate == 0 {
		if v.span.Dilate, err = v.calibrate(ctx); err != nil {
			return err
		}
		say(begin, "dilate %g", v.span.Dilate)
	}
	say(begin, "%d servers up; starting the VM: %d nodes over %s", v.servers, len(v.span.Nodes), r.Fabric)
	return v.run(ctx, r)
}

func (r *runCmd) bring(ctx context.Context, servers int) (lab.Dir, func(), error) {
	if !r.Keep {
		return r.private(ctx, "run", servers)
	}
	d, err := lab.Open(fmt.Sprintf("run-%d", os.Getpid()))
	if err != nil {
		return d, nil, err
	}
	cfg, err := r.config(ctx, servers)
	if err != nil {
		return d, nil, err
	}
	if _, err := lab.Start(ctx, d, cfg, progress(time.Now())); err != nil {
		return d, nil, err
	}
	return d, func() {
		fmt.Fprintf(os.Stderr, "lab: the servers stay up: `lab --name %[1]s exec 0 -- …`, `lab --name %[1]s down`\n", d.Name)
	}, nil
}

// vm is one run.
type vm struct {
	span    span
	extra   []string
	servers int
	binary  string
	copies  map[string]string // into the share: name -> file here
	dir     lab.Dir
	stop    func()
	verbose bool
}

// plan checks everything that can be checked before servers are up.
func (r *runCmd) plan(ctx context.Context) (*vm, error) {
	if r.Servers < 1 || r.Servers > lab.MaxServers {
		return nil, fmt.Errorf("lab: --servers %d: from 1 to %d", r.Servers, lab.MaxServers)
	}
	vcpus, err := spread("vcpus", r.Vcpus, r.Servers, 1)
	if err != nil {
		return nil, err
	}
	mem, err := spread("mem", r.Mem, r.Servers, 512)
	if err != nil {
		return nil, err
	}
	v := &vm{servers: r.Servers, extra: r.Spec, copies: map[string]string{}, verbose: r.Verbose}
	v.span = span{
		Name: "lab", Append: r.Append, Fabric: r.Fabric,
		// A fault served by another emulated server takes 2 to 7 ms; see coherence.DefaultTenure.
		Tenure:   tenure{Base: "4ms", Max: "300ms"},
		Timeouts: timeouts{Connect: "1m", Prepare: "10m", Lost: "10s", Stop: "30s"},
	}
	switch r.Dilate {
	case "auto":
	case "":
		if v.span.Dilate = defaultDilate; r.Servers > runtime.NumCPU() {
			v.span.Dilate = crowdedDilate
		}
	default:
		v.span.Dilate, err = strconv.ParseFloat(r.Dilate, 64)
		if err != nil || !(v.span.Dilate >= 1 && v.span.Dilate <= 1000) {
			return nil, fmt.Errorf("lab: --dilate %q: a number from 1 to 1000, or auto", r.Dilate)
		}
	}
	if r.Timeout < 0 {
		return nil, errors.New("lab: --timeout is not negative")
	}
	if r.Report != "" {
		if st, err := os.Stat(filepath.Dir(r.Report)); err != nil || !st.IsDir() {
			return nil, fmt.Errorf("lab: --report: %s is no directory", filepath.Dir(r.Report))
		}
	}
	if v.binary, err = r.binary(); err != nil {
		return nil, err
	}
	guest := r.Kernel
	if guest == "" {
		t, err := kernel.FindTrack(r.LabKernel)
		if err != nil {
			return nil, err
		}
		begin := time.Now()
		i, err := t.Get(ctx, func(format string, args ...any) { say(begin, format, args...) })
		if err != nil {
			return nil, err
		}
		guest = i.Path
	}
	if v.span.Kernel, err = v.inside("kernel", guest); err != nil {
		return nil, err
	}
	if r.Initrd != "" {
		if v.span.Initrd, err = v.inside("initrd", r.Initrd); err != nil {
			return nil, err
		}
	}
	total, most := mebibytes(0), 0
	for i := range r.Servers {
		n := spanNode{VCPUs: vcpus[i], Memory: fmt.Sprintf("%dMiB", mem[i])}
		if r.Fabric == "verbs" {
			n.Addr, n.Name = fmt.Sprintf("%s:%d", lab.Addr(i), nodePort), lab.Host(i)
		}
		v.span.Nodes = append(v.span.Nodes, n)
		total += mem[i]
		most = max(most, vcpus[i])
	}
	if r.Fabric == "shm" {
		v.servers, most = 1, 0
		for _, n := range vcpus {
			most += n
		}
		total *= 2 // pages of one node cached by another
	}
	if r.ServerMemory == 0 {
		// Any page of the VM may be cached on any server.
		r.ServerMemory = total + overhead
	}
	if r.ServerVcpus == 0 {
		// An emulated CPU is a busy thread here: more of them than cores make each message wait for a core.
		r.ServerVcpus = max(1, min(most+1, runtime.NumCPU()/v.servers))
	}
	return v, nil
}

// inside returns where a server finds a file of this machine.
func (v *vm) inside(what, file string) (string, error) {
	abs, err := filepath.Abs(file)
	if err != nil {
		return "", err
	}
	st, err := os.Stat(abs)
	if err != nil {
		return "", fmt.Errorf("lab: --%s: %w", what, err)
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil && st.Mode().IsRegular() && !kernelFS(real) {
		return filepath.Join(lab.HostMount, real), nil
	}
	if st.IsDir() {
		return "", fmt.Errorf("lab: --%s: %s is a directory", what, file)
	}
	v.copies[what] = abs // a pipe, say: it can be read here only, and once
	return filepath.Join(lab.ShareMount, what), nil
}

func kernelFS(path string) bool {
	for _, p := range []string{"/proc/", "/dev/", "/sys/"} {
		if strings.HasPrefix(path, p) {
			return true
		}
	}
	return false
}

// binary finds ironspan.
func (r *runCmd) binary() (string, error) {
	if r.Ironspan != "" {
		abs, err := filepath.Abs(r.Ironspan)
		if err == nil {
			_, err = os.Stat(abs)
		}
		if err != nil {
			return "", fmt.Errorf("lab: --ironspan: %w", err)
		}
		return abs, nil
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "ironspan")
		if st, err := os.Stat(beside); err == nil && st.Mode().IsRegular() {
			return beside, nil
		}
	}
	if p, err := exec.LookPath("ironspan"); err == nil {
		return filepath.Abs(p)
	}
	return "", errors.New("lab: there is no ironspan beside this binary nor in PATH: `make`, or go build -o bin/ironspan ./tools/ironspan")
}

// calibrate asks server 0 how slow it is.
func (v *vm) calibrate(ctx context.Context) (float64, error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	var out strings.Builder
	if err := v.exec(ctx, 0, &out, os.Stderr, self, "calibrate"); err != nil {
		return 0, fmt.Errorf("lab: calibration: %w", err)
	}
	f, err := strconv.ParseFloat(strings.TrimSpace(out.String()), 64)
	if err != nil {
		return 0, fmt.Errorf("lab: calibration: %w", err)
	}
	return f, nil
}

// exec runs a command in a server to its end.
func (v *vm) exec(ctx context.Context, server int, stdout, stderr io.Writer, args ...string) error {
	exit, err := v.start(ctx, server, args, remote.Stdio{Out: stdout, Err: stderr})
	if err != nil {
		return err
	}
	if exit.Code != 0 {
		return fmt.Errorf("%s: exit status %d %s", filepath.Base(args[0]), exit.Code, exit.Error)
	}
	return nil
}

// start runs a command; the end of ctx interrupts it, and kills it if that does not help.
func (v *vm) start(ctx context.Context, server int, args []string, stdio remote.Stdio) (*remote.Exit, error) {
	env, err := environment(nil)
	if err != nil {
		return nil, err
	}
	signals := make(chan os.Signal, 2)
	stdio.Signals = signals
	over := make(chan struct{})
	defer close(over)
	go func() {
		for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
			select {
			case <-ctx.Done():
			case <-over:
				return
			}
			signals <- sig
			select {
			case <-time.After(2 * grace):
			case <-over:
				return
			}
		}
	}()
	return v.dir.Exec(server, &remote.Command{Args: args, Dir: "/", Env: env, Stage: true}, stdio)
}

// exitNodeLost is ironspan run's status for it.
const exitNodeLost = exitStatus(4)

// Places in a server.
const (
	certs     = lab.ShareMount + "/certs" // made once, seen by all
	spanFile  = lab.ShareMount + "/span.yaml"
	reportOut = lab.ShareMount + "/report.json"
)

// run starts the nodes and the VM.
func (v *vm) run(ctx context.Context, r *runCmd) error {
	if err := v.writeSpan(); err != nil {
		return err
	}
	for name, file := range v.copies {
		if err := copyFile(filepath.Join(v.dir.Share(), name), file); err != nil {
			return err
		}
	}
	args := []string{v.binary, "run", spanFile, "--report", reportOut}
	if r.Timeout > 0 {
		args = append(args, "--timeout", fmt.Sprintf("%ds", r.Timeout))
	}
	var logs []*tail
	if r.Fabric == "shm" {
		args = append(args, "--local", strconv.Itoa(len(v.span.Nodes)))
		if v.verbose {
			args = append(args, "--verbose")
		}
	} else {
		args = append(args, "--cert-dir", certs)
		nodes, stop, err := v.nodes(ctx)
		if err != nil {
			return err
		}
		defer stop()
		logs = nodes
	}
	said := &tail{}
	exit, err := v.start(ctx, 0, args, remote.Stdio{In: os.Stdin, Out: os.Stdout, Err: io.MultiWriter(os.Stderr, said)})
	if errors.Is(err, remote.ErrGone) {
		fmt.Fprintf(os.Stderr, "lab: node 0 was lost: server 0, where ironspan run was at work too, went away\n")
		return exitNodeLost
	}
	if err != nil {
		return err
	}
	if r.Report != "" {
		if err := copyFile(r.Report, filepath.Join(v.dir.Share(), filepath.Base(reportOut))); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if exit.Code == 0 {
		return nil
	}
	if !v.verbose {
		for i, l := range logs {
			fmt.Fprintf(os.Stderr, "--- end of the log of node %d ---\n%s", i, l.String())
		}
	}
	// The reason once more, as the last line.
	reason := said.last()
	if exit.Error != "" {
		reason = exit.Error
	}
	fmt.Fprintf(os.Stderr, "lab: the VM did not end well: exit status %d: %s\n", exit.Code, reason)
	return exitStatus(exit.Code)
}

func (v *vm) writeSpan() error {
	text, err := v.text()
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(v.dir.Share(), filepath.Base(spanFile)), text, 0o644); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	return nil
}

// text is the span.yaml.
func (v *vm) text() ([]byte, error) {
	b, err := yaml.Marshal(v.span)
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	for _, l := range v.extra {
		b = append(b, l+"\n"...)
	}
	return b, nil
}

// nodes makes the certificates and starts a node on every server; stop ends them.
func (v *vm) nodes(ctx context.Context) (logs []*tail, stop func(), err error) {
	var subjects, addrs []string
	for _, n := range v.span.Nodes {
		host, _, _ := strings.Cut(n.Addr, ":")
		subjects = append(subjects, n.Name+"="+host)
		addrs = append(addrs, n.Addr)
	}
	var out strings.Builder
	if err := v.exec(ctx, 0, &out, &out, v.binary, "cert", "init", "--dir", certs, "--nodes", strings.Join(subjects, ",")); err != nil {
		return nil, nil, fmt.Errorf("lab: certificates: %w: %s", err, out.String())
	}
	// The nodes outlive an interrupt of the run, which stops the VM in order, and end with stop.
	nodeCtx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	stop = func() {
		cancel()
		all.Wait()
	}
	died := make(chan error, len(v.span.Nodes))
	for i, n := range v.span.Nodes {
		l := &tail{prefix: fmt.Sprintf("[node %d] ", i), echo: v.verbose}
		logs = append(logs, l)
		all.Go(func() {
			exit, err := v.start(nodeCtx, i, []string{v.binary, "node", "--listen", n.Addr, "--cert-dir", certs, "--name", n.Name},
				remote.Stdio{Out: l, Err: l})
			if err == nil {
				err = fmt.Errorf("exit status %d %s", exit.Code, exit.Error)
			}
			if nodeCtx.Err() == nil {
				died <- fmt.Errorf("lab: node %d ended early: %w", i, err)
			}
		})
	}
	listening := make(chan error, 1)
	go func() { listening <- v.dir.Await(0, addrs, time.Minute) }()
	select {
	case err = <-listening:
	case err = <-died:
	case <-ctx.Done():
		err = errors.New("lab: interrupted")
	}
	if err != nil {
		stop()
		for i, l := range logs {
			fmt.Fprintf(os.Stderr, "--- end of the log of node %d ---\n%s", i, l.String())
		}
		return nil, nil, err
	}
	return logs, stop, nil
}

// tail keeps the last lines of a log, and shows all of them if asked to.
type tail struct {
	prefix string
	echo   bool

	mu    sync.Mutex // guards below
	part  []byte
	lines []string
}

const tailLines = 20

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.part = append(t.part, p...)
	for {
		i := strings.IndexByte(string(t.part), '\n')
		if i < 0 {
			return len(p), nil
		}
		line := string(t.part[:i])
		t.part = t.part[i+1:]
		if t.echo {
			fmt.Fprintln(os.Stderr, t.prefix+line)
		}
		if t.lines = append(t.lines, line); len(t.lines) > tailLines {
			t.lines = t.lines[1:]
		}
	}
}

// last is the last line.
func (t *tail) last() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.lines) == 0 {
		return ""
	}
	return t.lines[len(t.lines)-1]
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var b strings.Builder
	for _, l := range t.lines {
		fmt.Fprintf(&b, "%s%s\n", t.prefix, l)
	}
	return b.String()
}
