package fastpath

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"ironspan/engine/coherence"
	"ironspan/engine/wire"
	"ironspan/fastpath/epoll"
	"ironspan/fastpath/fabric"
	"ironspan/fastpath/ram"
	"ironspan/fastpath/uffd"
)

// PollMode says what a shard does in a round without work.
type PollMode uint8

// The modes.
const (
	Adaptive PollMode = iota // poll for ShardConfig.Spin, then sleep; sleep at once if there are too few cores
	Busy                     // never sleep: for shards with a core to themselves
	Event                    // always sleep: least CPU time, highest latency
)

var pollNames = [...]string{Adaptive: "adaptive", Busy: "busy", Event: "event"}

// String returns adaptive, busy or event.
func (m PollMode) String() string {
	if int(m) < len(pollNames) {
		return pollNames[m]
	}
	return fmt.Sprintf("PollMode(%d)", uint8(m))
}

// ParsePollMode is the inverse of String.
func ParsePollMode(s string) (PollMode, error) {
	for m, name := range pollNames {
		if s == name {
			return PollMode(m), nil
		}
	}
	return 0, fmt.Errorf("fastpath: poll mode %q, want adaptive, busy or event", s)
}

// DefaultSpin is how long a shard polls before it sleeps in mode Adaptive: a few round trips of a fast fabric.
const DefaultSpin = 50 * time.Microsecond

const (
	messageBatch = 64 // messages taken from the lane in one round
	eventBatch   = 32 // faults taken from the userfaultfd in one round
	flushBatch   = 8  // messages after whose handling answers leave, even in the midst of a round
	hotMax       = 64 // hot pages in a snapshot
)

// ShardConfig is what a shard is made of. The parts belong to the shard's thread from Run until it returns; who
// made them closes them afterwards.
type ShardConfig struct {
	Agent    *coherence.Agent
	Homes    []coherence.Range // as in the agent's configuration
	RAM      *ram.RAM          // the shard's stripes are registered with Uffd
	Slots    *ram.Slots        // as many as the agent's configuration says
	Uffd     *uffd.FD
	Endpoint fabric.Endpoint // connected

	// CPU to pin the thread to; -1: none.
	CPU int
	// Poll, and for Adaptive: Spin, how long to poll before sleeping (0: DefaultSpin), and Threads, how many
	// threads this machine has that want a core of their own: vCPUs, shards, lanes, of all nodes on it. If it
	// is more than there are cores, the shard sleeps at once, whatever the mode: polling would keep the threads
	// it waits for from running. If it is 0, not known, Adaptive sleeps at once on fewer than 4 cores. Where it
	// would, it polls nevertheless, and yields, for pages that it fetches while all vCPUs of the node wait for some or are
	// halted, unless the mode is Event.
	Poll    PollMode
	Spin    time.Duration
	Threads int
	// VCPUs are the node's, the same for all of its shards; nil where peers are on this machine, too, and need the
	// cores of vCPUs that wait.
	VCPUs *VCPUs

	// OnPeerLost is told of each lost peer, once, on the shard's thread. It must not block. The shard goes on
	// serving the other peers.
	OnPeerLost func(*fabric.PeerError)
}

// Shard drives one coherence agent. Run is its life; Stop, Snapshot and Metrics may be called by anyone.
type Shard struct {
	agent  *coherence.Agent
	homes  []coherence.Range
	ram    *ram.RAM
	slots  *ram.Slots
	u      *uffd.FD
	ep     fabric.Endpoint
	onLost func(*fabric.PeerError)
	forget func(wire.PFN) unix.Errno

	cpu        int
	spin       int64  // nanoseconds to poll before sleeping; math.MaxInt64: never sleep
	vcpus      *VCPUs // to poll for while all of them wait; nil: not to
	continueWP bool

	zero    *ram.Slots // one page of zeros, to copy from
	wake    int        // eventfd that ends a sleep
	waits   *epoll.Set // for that, the userfaultfd and the endpoint
	base    time.Time  // the clock's zero
	scratch [8]byte

	in       [messageBatch]wire.Message
	events   [eventBatch]uffd.Event
	pending  pending
	gathered gathered
	transit  transit
	fetching int // pages that are being read from their homes
	ways     ways
	cause    *wire.Message // what the agent acts upon; nil for a fault or a deadline
	fault    current
	failure  failure

	metrics Metrics
	stop    atomic.Bool

	// idle is what SetIdle last said; told is what the agent knows of it, the thread's own. withholding is set
	// while the thread sleeps with deferrals: then SetIdle has to wake it. It is set before idle is looked at,
	// and idle is set before withholding is.
	idle        atomic.Bool
	told        bool
	withholding atomic.Bool
	shot        shot
}

// current is the fault that is being handled, if page is not noPage.
type current struct {
	page wire.PFN
	kind uffd.Kind
}

const noPage = wire.PFN(math.MaxUint64)

// failure is what ends the loop: a call of the kernel that must not fail. It is kept in parts because the loop
// builds no error.
type failure struct {
	op    string
	page  wire.PFN
	errno unix.Errno
}

// NewShard prepares a shard. Close frees what it holds.
func NewShard(c ShardConfig) (_ *Shard, err error) {
	switch {
	case c.Agent == nil || c.RAM == nil || c.Slots == nil || c.Uffd == nil || c.Endpoint == nil:
		return nil, errors.New("fastpath: a shard needs agent, RAM, slots, userfaultfd and endpoint")
	case len(c.Homes) == 0 || uint64(c.Homes[len(c.Homes)-1].Last)<<wire.PageShift != c.RAM.Size():
		return nil, fmt.Errorf("fastpath: home ranges do not cover %d bytes of RAM", c.RAM.Size())
	case int(c.Poll) >= len(pollNames):
		return nil, fmt.Errorf("fastpath: %v", c.Poll)
	case c.CPU >= runtime.NumCPU() && !cpuExists(c.CPU):
		return nil, fmt.Errorf("fastpath: no CPU %d for this process", c.CPU)
	}
	support, err := uffd.Probe()
	if err != nil {
		return nil, fmt.Errorf("fastpath: %w", err)
	}
	s := &Shard{
		agent: c.Agent, homes: append([]coherence.Range(nil), c.Homes...), ram: c.RAM, slots: c.Slots, u: c.Uffd,
		ep: c.Endpoint, onLost: c.OnPeerLost, cpu: c.CPU, spin: spinTime(&c, runtime.NumCPU()),
		continueWP: support.ContinueWP, wake: -1, base: time.Now(), fault: current{page: noPage},
		pending: newPending(c.Slots.Len() + pendingExtra), transit: newTransit(len(c.Homes), c.Slots.Len()),
	}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if s.spin == 0 && c.Poll != Event {
		s.vcpus = c.VCPUs
	}
	if s.onLost == nil {
		s.onLost = func(*fabric.PeerError) {}
	}
	s.shot.hot = make([]coherence.HotPage, 0, 1024)
	if s.zero, err = ram.NewSlots(1); err != nil {
		return nil, err
	}
	if s.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, fmt.Errorf("fastpath: eventfd: %w", err)
	}
	if s.waits, err = epoll.New(); err != nil {
		return nil, fmt.Errorf("fastpath: %w", err)
	}
	if err = errors.Join(s.waits.Add(s.wake, false), s.waits.Add(s.u.FD(), false), s.waits.Add(s.ep.FD(), true)); err != nil {
		return nil, fmt.Errorf("fastpath: %w", err)
	}
	return s, nil
}

// spinTime turns the policy into nanoseconds.
func spinTime(c *ShardConfig, cores int) int64 {
	switch {
	case c.Poll == Event, c.Threads > cores:
		return 0
	case c.Poll == Busy:
		return math.MaxInt64
	case c.Threads == 0 && cores < 4:
		return 0
	case c.Spin > 0:
		return int64(c.Spin)
	}
	return int64(DefaultSpin)
}

func cpuExists(cpu int) bool {
	var set unix.CPUSet
	return unix.SchedGetaffinity(0, &set) == nil && set.IsSet(cpu)
}

// Close frees what NewShard made. Run must not be running.
func (s *Shard) Close() error {
	var err error
	if s.zero != nil {
		err = s.zero.Close()
	}
	if s.waits != nil {
		err = errors.Join(err, s.waits.Close())
		s.waits = nil
	}
	if s.wake >= 0 {
		unix.Close(s.wake)
		s.wake = -1
	}
	return err
}

// Stop makes Run return, soon. It may be called at any time before Close, more than once.
func (s *Shard) Stop() {
	s.stop.Store(true)
	s.rouse()
}

// SetIdle says whether all vCPUs of this node are halted: then pages that the shard withholds for them are given up.
// Any thread; it costs a store, and a system call where pages are withheld.
func (s *Shard) SetIdle(idle bool) {
	s.idle.Store(idle)
	if idle && s.withholding.Load() {
		s.rouse()
	}
}

// rouse ends the thread's sleep, or keeps the next one from lasting.
func (s *Shard) rouse() {
	one := [8]byte{1}
	_, _ = unix.Write(s.wake, one[:]) // fails only if the count is at its maximum, and then it is readable
}

// Run serves faults and messages until Stop, on a thread of its own, pinned if so configured. An error means
// that the kernel refused what it must not, and that the guest's memory cannot be served any more.
func (s *Shard) Run() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	restore, err := pin(s.cpu)
	if err != nil {
		return err
	}
	defer restore()
	s.shot.begin()
	defer s.shot.end(s)
	s.loop()
	if s.failure.op != "" {
		return s.failure.error()
	}
	return nil
}

// pin binds the thread to a CPU and makes its timeouts sharp, and returns how to undo both.
func pin(cpu int) (restore func(), err error) {
	// The default slack of 50 us is longer than most tenures. It is about precision only: errors do not matter.
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	unslack := func() { _ = unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0) }
	if cpu < 0 {
		return unslack, nil
	}
	var old, set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &old); err != nil {
		unslack()
		return nil, fmt.Errorf("fastpath: read the thread's affinity: %w", err)
	}
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		unslack()
		return nil, fmt.Errorf("fastpath: pin a shard to CPU %d: %w", cpu, err)
	}
	return func() {
		_ = unix.SchedSetaffinity(0, &old)
		unslack()
	}, nil
}

// SetZero sets the zero of the shard's clock, by which nodes take turns: the same instant on all nodes, as closely
// as is known. Before Run.
func (s *Shard) SetZero(zero time.Time) { s.base = zero }

// SetForget gives the shard what is to be done with each page whose right goes, between the end of the right and the
// sending of its bytes: KVM's shadow page tables are made from pages as they were. Before Run.
func (s *Shard) SetForget(forget func(wire.PFN) unix.Errno) { s.forget = forget }

// clock returns nanoseconds since the clock's zero. Only the monotonic clock is read.
func (s *Shard) clock() int64 { return int64(time.Since(s.base)) }

func (s *Shard) loop() {
	readFaults := true
	busy := s.clock() // when there was something to do
	for !s.stop.Load() {
		now := s.clock()
		n, lost := s.ep.Poll(s.in[:])
		if lost != nil {
			s.onLost(lost)
		}
		for i := range s.in[:n] {
			if s.in[i].Kind == wire.Fetched {
				s.fetching--
			}
			if s.agent.Step(now, &s.in[i]) == coherence.OK { // what it refuses, it counts
				s.transit.arrive(now, &s.in[i])
			}
			s.cause = &s.in[i]
			s.perform(now)
			if i%flushBatch == flushBatch-1 {
				s.flush()
			}
		}
		s.cause = nil
		if n > 0 {
			s.flush()
			now = s.clock()
		}
		faults := 0
		if readFaults {
			faults = s.serveFaults(now)
		}
		if idle := s.idle.Load(); idle != s.told {
			s.told = idle
			s.agent.Idle(now, idle)
			s.perform(now)
			s.flush()
		}
		due := s.agent.Next() <= now
		if due {
			s.agent.Tick(now)
			s.perform(now)
		}
		if faults > 0 || due {
			s.flush()
		}
		if s.failure.op != "" {
			return
		}
		s.shot.answer(s)
		s.metrics.Rounds.Add(1)
		if n > 0 || faults > 0 || due || lost != nil {
			busy = now
		}
		switch {
		case s.spin == math.MaxInt64 || now-busy < s.spin:
			readFaults = true
			s.metrics.Spins.Add(1)
		case s.awaits(now, busy):
			readFaults = false // nobody is there who could have any
			s.metrics.Spins.Add(1)
			yield()
		default:
			readFaults = s.sleep(now)
		}
	}
}

// serveFaults handles the faults that are there, and returns how many.
func (s *Shard) serveFaults(now int64) int {
	n, errno := s.u.Read(s.events[:])
	if errno != 0 {
		s.fail("read faults", noPage, errno)
		return 0
	}
	for i := range s.events[:n] {
		e := &s.events[i]
		page, ok := s.ram.PageAt(e.Addr)
		if !ok {
			s.fail("fault outside of the guest view", noPage, unix.EFAULT)
			return n
		}
		s.metrics.Faults.Add(1)
		if s.pending.begin(page, now) && s.vcpus != nil {
			s.vcpus.waiting.Add(1)
		}
		s.fault = current{page: page, kind: e.Kind}
		if s.agent.Fault(now, page, e.Write) != coherence.OK {
			s.fail("fault on a page of another shard", page, unix.EINVAL)
			return n
		}
		s.perform(now)
		s.fault.page = noPage
	}
	return n
}

// sleep waits until there is something to do, and says whether there may be faults to read.
func (s *Shard) sleep(now int64) bool {
	if s.ep.Arm() {
		return true
	}
	timeout := epoll.Forever
	if next := s.agent.Next(); next != math.MaxInt64 {
		timeout = time.Duration(max(next-now, 0))
	}
	s.withholding.Store(timeout != epoll.Forever)
	defer s.withholding.Store(false)
	if s.idle.Load() != s.told {
		return true
	}
	s.metrics.Sleeps.Add(1)
	faults := false
	for _, e := range s.waits.Wait(timeout) {
		switch int(e.Fd) {
		case s.wake:
			_, _ = unix.Read(s.wake, s.scratch[:]) // resets the count; fails only if it is 0 already
		case s.u.FD():
			faults = true
		}
	}
	return faults
}

func (s *Shard) fail(op string, page wire.PFN, errno unix.Errno) {
	if s.failure.op == "" {
		s.failure = failure{op: op, page: page, errno: errno}
	}
}

func (f *failure) error() error {
	hint := ""
	switch f.errno {
	case unix.ENOMEM:
		hint = ": this node is out of memory"
	case unix.EINVAL:
		hint = ": the kernel does not know the operation; linux 6.4 or newer does"
	}
	if f.page == noPage {
		return fmt.Errorf("fastpath: %s: %w%s", f.op, f.errno, hint)
	}
	return fmt.Errorf("fastpath: %s page %d: %w%s", f.op, f.page, f.errno, hint)
}
