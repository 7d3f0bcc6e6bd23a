package lab

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/yamux"
	"golang.org/x/sys/unix"

	"ironspan/fastpath/cpulatency"
	"ironspan/tools/lab/internal/agent"
	"ironspan/tools/lab/internal/ether"
	"ironspan/tools/lab/internal/kernel"
	"ironspan/tools/lab/internal/qemu"
	"ironspan/tools/lab/internal/remote"
)

// gracePeriod is how long a starter waits for a failed lab to clean up behind itself.
const gracePeriod = 20 * time.Second

// consoleTail is how many lines of a server's console a failure shows.
const consoleTail = 25

type supervisor struct {
	dir     Dir
	config  Config
	lock    *os.File
	events  *os.File
	since   time.Time
	wire    *ether.Switch
	servers []*server
	stop    chan struct{} // closed once, to end the lab
	once    sync.Once
}

type server struct {
	n    int
	cmd  *exec.Cmd
	dead chan struct{} // closed after QEMU ended

	mu      sync.Mutex // guards below
	state   string
	reason  string
	boot    time.Duration
	result  *remote.Result
	session *yamux.Session
}

// The states of a server.
const (
	booting = "booting"
	running = "up"
	dead    = "dead"
	// degraded is a lab with a dead server.
	degraded = "degraded"
)

// Supervise is the life of a lab. It returns when the lab is down and its state removed.
func Supervise(name string) error {
	// QEMU's parent-death signal is bound to the thread that started it: this one stays until the end.
	runtime.LockOSThread()
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	d, err := Open(name)
	if err != nil {
		return err
	}
	s := &supervisor{
		dir: d, since: time.Now(), stop: make(chan struct{}),
		lock: os.NewFile(fdLock, "lock"), events: os.NewFile(fdEvents, "events"),
	}
	for _, f := range []*os.File{s.lock, s.events} {
		if f == nil {
			return fmt.Errorf("lab: `%s` is started by `lab up`, not by hand", SuperviseCommand)
		}
		unix.CloseOnExec(int(f.Fd()))
	}
	tether := os.NewFile(fdTether, "tether")
	unix.CloseOnExec(fdTether)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() { <-signals; s.end() }()

	err = s.start(tether)
	if err != nil {
		slog.Error("lab failed", "err", err)
	} else {
		<-s.stop
	}
	s.teardown()
	if err != nil {
		s.emit(event{Server: -1, Error: err.Error()})
	}
	return err
}

func (s *supervisor) end() { s.once.Do(func() { close(s.stop) }) }

func (s *supervisor) emit(e event) {
	b, err := json.Marshal(e)
	if err == nil {
		s.events.Write(append(b, '\n')) // the starter may be gone; its tether tells
	}
}

func (s *supervisor) say(server int, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	slog.Info(text, "server", server)
	s.emit(event{Server: server, Text: text})
}

func (s *supervisor) start(tether *os.File) error {
	b, err := os.ReadFile(s.dir.config())
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	if err := json.Unmarshal(b, &s.config); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	listener, err := net.Listen("unix", s.dir.socket())
	if err != nil {
		return fmt.Errorf("lab: control socket: %w", err)
	}
	up := make(chan struct{})
	go s.tethered(tether, up)
	modules, err := kernel.LabModules(s.config.Modules)
	if err != nil {
		return err
	}
	if err := kernel.WriteInitramfs(s.dir.initramfs(), "/proc/self/exe", agent.Path, agent.ModuleDir, modules); err != nil {
		return err
	}
	if err := s.launch(); err != nil {
		return err
	}
	go s.serve(listener)
	if err := s.await(); err != nil {
		return err
	}
	os.Remove(s.dir.initramfs())
	close(up)
	s.emit(event{Server: -1, Ready: true})
	return nil
}

// tethered ends the lab when its starter's end of the pipe closes: before the lab is up in any case,
// afterwards if it was asked for.
func (s *supervisor) tethered(tether *os.File, up <-chan struct{}) {
	io.Copy(io.Discard, tether)
	select {
	case <-up:
		if !s.config.Tether {
			return
		}
	default:
	}
	s.end()
}

// launch starts all QEMUs. It runs on the supervisor's locked thread.
func (s *supervisor) launch() error {
	var ports []*os.File
	wireEnds := make([]*os.File, s.config.Servers)
	for i := range wireEnds {
		a, b, err := pair("wire")
		if err != nil {
			return err
		}
		ports, wireEnds[i] = append(ports, a), b
	}
	s.wire = ether.New(ports)
	go s.wire.Run()
	// Each frame wakes three processes, one after the other.
	go func() {
		if err := cpulatency.KeepAwake(s.stop, s.wire.Frames, nil); err != nil {
			slog.Info("idle cores sleep as the kernel likes, and frames wait for them to wake", "reason", err)
		}
	}()
	var pids pidFile
	pids.Supervisor = identify(os.Getpid())
	for n := range s.config.Servers {
		srv, err := s.launchOne(n, wireEnds[n])
		wireEnds[n].Close()
		if err != nil {
			return err
		}
		s.servers = append(s.servers, srv)
		pids.Servers = append(pids.Servers, identify(srv.cmd.Process.Pid))
		b, err := json.Marshal(pids)
		if err != nil {
			return err
		}
		if err := os.WriteFile(s.dir.pids(), b, 0o600); err != nil {
			return fmt.Errorf("lab: %w", err)
		}
	}
	return nil
}

func (s *supervisor) launchOne(n int, wireEnd *os.File) (*server, error) {
	mine, theirs, err := pair("agent")
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	conn, err := net.FileConn(mine)
	mine.Close()
	if err != nil {
		return nil, fmt.Errorf("lab: agent socket: %w", err)
	}
	m := qemu.Machine{
		Name: "ironspan-lab-" + s.dir.Name + "-" + Host(n), QEMU: s.config.QEMU, Accel: s.config.Accel,
		VCPUs: s.config.VCPUs, MemoryMiB: s.config.MemoryMiB,
		Kernel: s.config.Kernel, Initrd: s.dir.initramfs(), Append: s.config.Append,
		Console: s.dir.Console(n), MAC: mac(n), MTU: MTU, Port: remote.PortName,
		WireFD: 3, AgentFD: 4,
		Exports: []qemu.Export{{Tag: "root", Path: "/", ReadOnly: true}, {Tag: "live", Path: "/", ReadOnly: true}},
	}
	shares := s.shares()
	for _, sh := range shares {
		path := sh.Path
		if sh.Path == ShareMount {
			path = s.dir.Share()
		}
		m.Exports = append(m.Exports, qemu.Export{Tag: sh.Tag, Path: path, ReadOnly: sh.ReadOnly})
	}
	cmd := m.Command()
	cmd.ExtraFiles = []*os.File{wireEnd, theirs}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	var complaint bytes.Buffer
	cmd.Stderr = io.MultiWriter(os.Stderr, &limited{&complaint, 4096})
	slog.Info("start", "server", n, "cmd", cmd.String())
	if err := cmd.Start(); err != nil {
		conn.Close()
		return nil, fmt.Errorf("lab: server %d: %w", n, err)
	}
	srv := &server{n: n, cmd: cmd, state: booting, dead: make(chan struct{})}
	go func() {
		err := cmd.Wait()
		conn.Close()
		reason := "its machine was switched off or reset itself (kernel panic?)"
		if err != nil {
			reason = strings.TrimSpace(fmt.Sprintf("qemu: %v: %s", err, complaint.String()))
		}
		srv.mu.Lock()
		srv.state, srv.reason = dead, reason
		srv.mu.Unlock()
		slog.Info("ended", "server", n, "reason", reason)
		close(srv.dead)
	}()
	setup := &remote.Setup{
		Server: n, Servers: s.config.Servers, Host: Host(n), Addr: Addr(n) + "/24", MAC: mac(n), MTU: MTU,
		Shares: shares, Visible: s.config.Visible,
		Sysctl: []string{
			"vm.unprivileged_userfaultfd=1", "kernel.hung_task_timeout_secs=0", "kernel.printk=4",
			"net.core.rmem_max=16777216", "net.core.wmem_max=16777216",
			"net.core.rmem_default=4194304", "net.core.wmem_default=4194304",
		},
	}
	for i := range s.config.Servers {
		setup.Peers = append(setup.Peers, Addr(i))
	}
	go s.bring(srv, conn, setup)
	return srv, nil
}

func (s *supervisor) shares() []remote.Share {
	shares := []remote.Share{{Tag: "share", Path: ShareMount}}
	for i, w := range s.config.Writable {
		shares = append(shares, remote.Share{Tag: fmt.Sprintf("write%d", i), Path: w})
	}
	return shares
}

// bring takes one server from its first instruction to its answer.
func (s *supervisor) bring(srv *server, conn net.Conn, setup *remote.Setup) {
	begin := time.Now()
	fail := func(err error) {
		select {
		case <-srv.dead: // then QEMU's end is the reason, not the silence it leaves
		case <-time.After(2 * time.Second):
		}
		srv.mu.Lock()
		defer srv.mu.Unlock()
		if srv.state != dead {
			srv.state, srv.reason = dead, err.Error()
			srv.cmd.Process.Kill()
		}
	}
	session, err := yamux.Client(conn, remote.Config())
	if err != nil {
		fail(err)
		return
	}
	st, err := session.Open()
	if err != nil {
		fail(err)
		return
	}
	first := true
	r, err := remote.Configure(st, setup, func(text string) {
		if first {
			s.say(srv.n, "kernel up after %.1f s", time.Since(begin).Seconds())
			first = false
		}
		s.say(srv.n, "%s", text)
	})
	if err != nil {
		fail(err)
		return
	}
	srv.mu.Lock()
	defer srv.mu.Unlock()
	if srv.state == booting {
		srv.state, srv.session, srv.result, srv.boot = running, session, r, time.Since(begin)
		s.say(srv.n, "up after %.1f s: Linux %s, %s %s, active_mtu %d, kvm %v",
			srv.boot.Seconds(), r.Kernel, r.RDMA, r.State, r.ActiveMTU, r.KVM)
	}
}

// await returns when all servers are up, or the first has failed.
func (s *supervisor) await() error {
	deadline := time.NewTimer(s.config.Timeout)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	beat := time.Now()
	for {
		waiting := 0
		for _, srv := range s.servers {
			srv.mu.Lock()
			state, reason := srv.state, srv.reason
			srv.mu.Unlock()
			switch state {
			case dead:
				return fmt.Errorf("lab: server %d did not come up: %s\n%s", srv.n, reason, s.tail(srv.n))
			case booting:
				waiting++
			}
		}
		if waiting == 0 {
			return nil
		}
		if time.Since(beat) > 10*time.Second {
			beat = time.Now()
			s.say(-1, "waiting for %d of %d servers", waiting, len(s.servers))
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			for _, srv := range s.servers {
				srv.mu.Lock()
				state := srv.state
				srv.mu.Unlock()
				if state == booting {
					return fmt.Errorf("lab: server %d did not come up within %v (--boot-timeout)\n%s", srv.n, s.config.Timeout, s.tail(srv.n))
				}
			}
		case <-s.stop:
			return errors.New("lab: interrupted while starting")
		}
	}
}

func (s *supervisor) tail(n int) string {
	b, err := os.ReadFile(s.dir.Console(n))
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	if len(lines) > consoleTail {
		lines = lines[len(lines)-consoleTail:]
	}
	return fmt.Sprintf("--- end of the console of server %d ---\n%s", n, strings.Join(lines, "\n"))
}

func (s *supervisor) teardown() {
	for _, srv := range s.servers {
		srv.cmd.Process.Kill()
	}
	for _, srv := range s.servers {
		<-srv.dead
	}
	if s.wire != nil {
		s.wire.Close()
	}
	if err := os.RemoveAll(s.dir.Path()); err != nil {
		slog.Error("state not removed", "err", err)
	}
	s.dir.unlock(s.lock)
}

func (s *supervisor) serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go s.answer(c)
	}
}

func (s *supervisor) answer(c net.Conn) {
	r := bufio.NewReader(c)
	line, err := r.ReadBytes('\n')
	if err != nil {
		c.Close()
		return
	}
	var req call
	var a answer
	var agentStream net.Conn
	if err := json.Unmarshal(line, &req); err != nil {
		a.Error = err.Error()
	} else if err := s.handle(req, &a, &agentStream); err != nil {
		a.Error = err.Error()
	}
	b, err := json.Marshal(a)
	if err != nil {
		c.Close()
		return
	}
	c.Write(append(b, '\n'))
	switch {
	case agentStream != nil:
		splice(stream{c, r}, agentStream)
	case req.Op == opDown:
		s.end() // the connection stays open until this process ends: that tells the caller
	default:
		c.Close()
	}
}

func (s *supervisor) handle(req call, a *answer, agentStream *net.Conn) error {
	if req.Op == opStatus {
		a.Status = s.status()
		return nil
	}
	if req.Op == opDown {
		return nil
	}
	if req.Server < 0 || req.Server >= len(s.servers) {
		return fmt.Errorf("lab: there is no server %d: %s has servers 0 to %d", req.Server, s.dir.Name, len(s.servers)-1)
	}
	srv := s.servers[req.Server]
	switch req.Op {
	case opExec:
		srv.mu.Lock()
		state, reason, session := srv.state, srv.reason, srv.session
		srv.mu.Unlock()
		if state != running {
			return fmt.Errorf("lab: server %d is %s: %s", req.Server, state, reason)
		}
		st, err := session.Open()
		if err != nil {
			return fmt.Errorf("lab: server %d: %w", req.Server, err)
		}
		*agentStream = st
	case opKill:
		srv.cmd.Process.Kill()
		<-srv.dead
	case opLink:
		p, err := s.wire.Port(req.Server)
		if err != nil {
			return err
		}
		p.SetDown(req.Down)
		p.SetLoss(req.Loss)
	default:
		return fmt.Errorf("lab: unknown request %q", req.Op)
	}
	return nil
}

func (s *supervisor) status() *Status {
	st := &Status{
		Name: s.dir.Name, State: running, Supervisor: os.Getpid(), Since: s.since, Kernel: s.config.Release,
		Accel: string(s.config.Accel), Dir: s.dir.Path(), Share: s.dir.Share(),
	}
	for _, srv := range s.servers {
		srv.mu.Lock()
		x := ServerStatus{
			Server: srv.n, Host: Host(srv.n), Addr: Addr(srv.n), State: srv.state, Reason: srv.reason,
			PID: srv.cmd.Process.Pid, BootSecs: srv.boot.Seconds(), Console: s.dir.Console(srv.n),
		}
		if r := srv.result; r != nil {
			x.RDMA, x.Port, x.ActiveMTU, x.KVM, x.Kernel = r.RDMA, r.State, r.ActiveMTU, r.KVM, r.Kernel
		}
		srv.mu.Unlock()
		switch {
		case x.State == booting:
			st.State = booting
		case x.State == dead && st.State == running:
			st.State = degraded
		}
		if p, err := s.wire.Port(srv.n); err == nil {
			w := p.Stats()
			x.Wire = &w
		}
		st.Servers = append(st.Servers, x)
	}
	return st
}

// splice joins two connections until either ends.
func splice(a, b net.Conn) {
	var wg sync.WaitGroup
	move := func(to, from net.Conn) {
		io.Copy(to, from)
		to.Close()
		from.Close()
	}
	wg.Go(func() { move(a, b) })
	wg.Go(func() { move(b, a) })
	wg.Wait()
}

func pair(name string) (*os.File, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("lab: %s socket: %w", name, err)
	}
	for _, fd := range fds {
		// Room for a burst of jumbo frames; the system's limit may make it less.
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 4<<20)
	}
	return os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name), nil
}

// limited keeps the first bytes and swallows the rest.
type limited struct {
	w    io.Writer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	n := min(len(p), l.left)
	l.left -= n
	if _, err := l.w.Write(p[:n]); err != nil {
		return 0, err
	}
	return len(p), nil
}
