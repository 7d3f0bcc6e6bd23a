package shm

import (
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"os"

	"golang.org/x/sys/unix"

	"ironspan/engine/wire"
	"ironspan/fastpath/fabric"
)

// Options size a lane; the zero value is good.
type Options struct {
	Entries int // messages in a ring, a power of two; 0: 1024
	Backlog int // messages held back for a peer whose ring is full before it is lost; 0: 8192
}

const (
	defaultEntries = 1024
	defaultBacklog = 8192
	minEntries     = 64 // a page: rings are mapped one by one
	maxEntries     = 1 << 16
)

func validEntries(n int) bool {
	return n >= minEntries && n <= maxEntries && bits.OnesCount(uint(n)) == 1
}

// Lane is a node's end of a lane over shared memory. It implements fabric.Lane.
type Lane struct {
	cfg     fabric.Config
	entries int

	boardFD int
	board   []byte
	bell    [2]int // the pipe that peers strike
	epfd    int    // has the bell and the pidfds of the peers

	ram, slots []byte // this node's own

	links []link
	// Sets of links, by bit.
	up      uint64 // connected and not lost
	dying   uint64 // its process ended: lost as soon as its ring is empty
	posted  uint64 // has posts since the last Flush
	backlog uint64 // has messages in its backlog
	fresh   uint64 // lost, to be reported

	words []wire.Message // due, in order; as many as there are slots at most

	armed   bool
	polls   uint32
	next    uint32 // link that Poll begins with
	events  [8]unix.EpollEvent
	scratch [64]byte

	stats fabric.Stats
}

// link is the connection with one peer.
type link struct {
	in   ring   // in our board: the peer produces
	head uint32 // messages taken; ours is the truth, the word in the ring is for the peer

	out       ring   // in the peer's board: we produce
	tail      uint32 // messages put in
	published uint32 // of these, those that the peer knows of
	room      uint32 // tail may grow up to here, by the last look at the peer's head

	held     []wire.Message // backlog, a ring
	heldHead int
	heldLen  int

	board []byte // the peer's memory, mapped
	home  []byte
	slots []byte
	first uint64 // RAM offset of home[0]

	bell  int
	pidfd int
	lost  *fabric.PeerError
}

var _ fabric.Lane = (*Lane)(nil)

// New makes one end of a lane. cfg.RAM.FD and cfg.Slots.FD are memfds sealed against shrinking, as fastpath/ram
// makes them.
func New(cfg fabric.Config, opt Options) (_ *Lane, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if opt.Entries == 0 {
		opt.Entries = defaultEntries
	}
	if opt.Backlog == 0 {
		opt.Backlog = defaultBacklog
	}
	if !validEntries(opt.Entries) || opt.Backlog < 0 {
		return nil, fmt.Errorf("shm: rings of %d messages and a backlog of %d: want a power of two from %d to %d, and a positive number",
			opt.Entries, opt.Backlog, minEntries, maxEntries)
	}
	for _, m := range [...]fabric.Memory{cfg.RAM, cfg.Slots} {
		if m.Len != 0 && m.FD < 0 {
			return nil, errors.New("shm: memory without a memfd cannot be shared")
		}
	}
	l := &Lane{
		cfg: cfg, entries: opt.Entries, boardFD: -1, bell: [2]int{-1, -1}, epfd: -1,
		ram: bytesOf(cfg.RAM), slots: bytesOf(cfg.Slots), links: make([]link, cfg.Nodes),
		words: make([]wire.Message, 0, cfg.Slots.Len/wire.PageSize),
	}
	l.cfg.Homes = append([]fabric.Span(nil), cfg.Homes...)
	for i := range l.links {
		l.links[i].bell, l.links[i].pidfd = -1, -1
		l.links[i].held = make([]wire.Message, opt.Backlog)
	}
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	if err := l.makeBoard(); err != nil {
		return nil, err
	}
	if err := unix.Pipe2(l.bell[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, fmt.Errorf("shm: pipe: %w", err)
	}
	if l.epfd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("shm: epoll: %w", err)
	}
	return l, l.watch(l.bell[0], -1)
}

func (l *Lane) makeBoard() (err error) {
	step := ringSize(l.entries)
	size := step * l.cfg.Nodes
	if l.boardFD, err = unix.MemfdCreate("ironspan-board", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING); err != nil {
		return fmt.Errorf("shm: memfd_create: %w", err)
	}
	if err := unix.Ftruncate(l.boardFD, int64(size)); err != nil {
		return fmt.Errorf("shm: board of %d bytes: %w", size, err)
	}
	if _, err := unix.FcntlInt(uintptr(l.boardFD), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		return fmt.Errorf("shm: seal the board: %w", err)
	}
	if l.board, err = unix.Mmap(l.boardFD, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return fmt.Errorf("shm: map a board of %d bytes: %w", size, err)
	}
	if err := unix.Madvise(l.board, unix.MADV_DONTFORK); err != nil {
		return fmt.Errorf("shm: madvise: %w", err)
	}
	var nonce [8]byte
	for i := range l.links {
		if wire.NodeID(i) == l.cfg.Self {
			continue
		}
		if _, err := crand.Read(nonce[:]); err != nil {
			return fmt.Errorf("shm: random bytes: %w", err)
		}
		l.links[i].in = newRing(l.board[i*step:], l.entries)
		l.links[i].in.nonce.Store(binary.LittleEndian.Uint64(nonce[:]))
	}
	return nil
}

// watch makes the lane's descriptor readable when fd is. The event carries who it is about.
func (l *Lane) watch(fd int, who int32) error {
	e := unix.EpollEvent{Events: unix.EPOLLIN, Fd: who}
	if err := unix.EpollCtl(l.epfd, unix.EPOLL_CTL_ADD, fd, &e); err != nil {
		return fmt.Errorf("shm: epoll: %w", err)
	}
	return nil
}

// Connect links this end with peer. On an error nothing has changed.
func (l *Lane) Connect(peer wire.NodeID, b []byte) error {
	if err := l.checkPeer(peer); err != nil {
		return err
	}
	k := &l.links[peer]
	if k.board != nil {
		return fmt.Errorf("shm: node %d: %w", peer, fabric.ErrConnected)
	}
	o, err := l.decodeOffer(peer, b)
	if err != nil {
		return err
	}
	if err := l.open(k, o); err != nil {
		l.release(k)
		return fmt.Errorf("shm: node %d: %w: %w", peer, fabric.ErrOffer, err)
	}
	if int(o.PID) != os.Getpid() {
		if err := l.watch(k.pidfd, int32(peer)); err != nil {
			l.release(k)
			return err
		}
	}
	l.up |= 1 << peer
	return nil
}

// open maps what the offer names. The pidfd comes first: if the process behind it is alive at the end, all files
// were that process's.
func (l *Lane) open(k *link, o *offer) (err error) {
	if k.pidfd, err = unix.PidfdOpen(int(o.PID), 0); err != nil {
		k.pidfd = -1
		return fmt.Errorf("process %d: %w: it ended, or runs in another PID namespace", o.PID, err)
	}
	if k.bell, err = openFile(o.PID, o.Bell, unix.S_IFIFO); err != nil {
		k.bell = -1
		return fmt.Errorf("bell: %w", err)
	}
	step := uint64(ringSize(int(o.Entries)))
	// Other peers' rings are none of ours: only the one that we write is mapped.
	if k.board, err = mapFile(o.PID, o.Board, step*uint64(l.cfg.Self), step); err != nil {
		return fmt.Errorf("board: %w", err)
	}
	k.out = newRing(k.board, int(o.Entries))
	if k.out.nonce.Load() != o.Nonce {
		return errors.New("board: not the one that was offered")
	}
	if k.out.tail.Load() != 0 || k.out.head.Load() != 0 {
		return errors.New("board: in use already: an offer is good for one connection")
	}
	k.room = uint32(o.Entries)
	if n := o.Home.Last - o.Home.First; n != 0 {
		if k.home, err = mapFile(o.PID, o.RAM, o.Home.First, n); err != nil {
			return fmt.Errorf("ram: %w", err)
		}
		k.first = o.Home.First
	}
	if o.SlotsLen != 0 {
		if k.slots, err = mapFile(o.PID, o.Slots, 0, o.SlotsLen); err != nil {
			return fmt.Errorf("slots: %w", err)
		}
	}
	if err := unix.PidfdSendSignal(k.pidfd, 0, nil, 0); err != nil {
		return fmt.Errorf("process %d: %w", o.PID, err)
	}
	return nil
}

// release frees what a link holds of its peer.
func (l *Lane) release(k *link) {
	for _, b := range [...]*[]byte{&k.board, &k.home, &k.slots} {
		if *b != nil {
			_ = unix.Munmap(*b)
			*b = nil
		}
	}
	for _, fd := range [...]*int{&k.bell, &k.pidfd} {
		if *fd >= 0 {
			unix.Close(*fd)
			*fd = -1
		}
	}
	k.out = ring{}
}

// Close tells the peers that this end is gone and frees what the lane holds.
func (l *Lane) Close() error {
	for n := range l.links {
		k := &l.links[n]
		if l.up&(1<<n) != 0 {
			k.publish()
			k.out.closed.Store(1)
			strike(k.bell, l.scratch[:])
		}
		l.release(k)
	}
	l.up, l.dying, l.posted, l.backlog, l.fresh = 0, 0, 0, 0, 0
	if l.board != nil {
		_ = unix.Munmap(l.board)
		l.board = nil
	}
	for _, fd := range [...]*int{&l.boardFD, &l.bell[0], &l.bell[1], &l.epfd} {
		if *fd >= 0 {
			unix.Close(*fd)
			*fd = -1
		}
	}
	return nil
}
