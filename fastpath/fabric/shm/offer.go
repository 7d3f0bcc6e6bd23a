package shm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"ironspan/engine/wire"
	"ironspan/fastpath/fabric"
)

// offerVersion is the version of the offer and of the board's layout.
const offerVersion = 1

var offerMagic = [4]byte{'I', 'S', 'h', 'm'}

// file names an open file of a process so that another one can tell whether it got the right one.
type file struct {
	FD       int32 // -1: none
	Dev, Ino uint64
}

// offer is what a node tells a peer, in its binary form fixed by encoding/binary: little endian, no padding.
type offer struct {
	Magic         [4]byte
	Version, Lane uint16
	Epoch         uint32
	From, To      uint8
	Nodes         uint8
	_             uint8
	PID           int32
	Entries       uint32
	Nonce         uint64
	Board, Bell   file
	RAM, Slots    file
	RAMLen        uint64
	Home          fabric.Span
	SlotsLen      uint64
}

var offerSize = binary.Size(offer{})

func describe(fd int) (file, error) {
	if fd < 0 {
		return file{FD: -1}, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return file{}, fmt.Errorf("shm: offer: descriptor %d: %w", fd, err)
	}
	return file{FD: int32(fd), Dev: st.Dev, Ino: st.Ino}, nil
}

// Offer returns what peer has to know to connect.
func (l *Lane) Offer(peer wire.NodeID) ([]byte, error) {
	if err := l.checkPeer(peer); err != nil {
		return nil, err
	}
	o := offer{
		Magic: offerMagic, Version: offerVersion, Lane: l.cfg.Lane, Epoch: uint32(l.cfg.Epoch),
		From: uint8(l.cfg.Self), To: uint8(peer), Nodes: uint8(l.cfg.Nodes), PID: int32(os.Getpid()),
		Entries: uint32(l.entries), Nonce: l.links[peer].in.nonce.Load(),
		RAMLen: l.cfg.RAM.Len, SlotsLen: l.cfg.Slots.Len,
	}
	if len(l.cfg.Homes) != 0 {
		o.Home = l.cfg.Homes[l.cfg.Self]
	}
	for _, f := range [...]struct {
		to *file
		fd int
	}{{&o.Board, l.boardFD}, {&o.Bell, l.bell[0]}, {&o.RAM, memoryFD(l.cfg.RAM)}, {&o.Slots, memoryFD(l.cfg.Slots)}} {
		var err error
		if *f.to, err = describe(f.fd); err != nil {
			return nil, err
		}
	}
	return binary.Append(nil, binary.LittleEndian, &o)
}

func memoryFD(m fabric.Memory) int {
	if m.Len == 0 {
		return -1
	}
	return m.FD
}

func (l *Lane) checkPeer(peer wire.NodeID) error {
	if int(peer) >= l.cfg.Nodes || peer == l.cfg.Self {
		return fmt.Errorf("shm: node %d is no peer of node %d of %d", peer, l.cfg.Self, l.cfg.Nodes)
	}
	return nil
}

// decodeOffer checks everything in an offer that can be judged without opening anything.
func (l *Lane) decodeOffer(peer wire.NodeID, b []byte) (*offer, error) {
	refuse := func(format string, args ...any) (*offer, error) {
		return nil, fmt.Errorf("shm: node %d: %w: %s", peer, fabric.ErrOffer, fmt.Sprintf(format, args...))
	}
	var o offer
	if len(b) != offerSize {
		return refuse("%d bytes long, want %d", len(b), offerSize)
	}
	if _, err := binary.Decode(b, binary.LittleEndian, &o); err != nil {
		return refuse("%v", err)
	}
	var home fabric.Span
	if len(l.cfg.Homes) != 0 {
		home = l.cfg.Homes[peer]
	}
	hasRAM, hasSlots := home.First != home.Last, l.cfg.Slots.Len != 0
	switch {
	case o.Magic != offerMagic:
		return refuse("not an offer of this fabric: do both nodes use the same one?")
	case o.Version != offerVersion:
		return refuse("version %d, want %d: run the same release on all nodes", o.Version, offerVersion)
	case wire.Epoch(o.Epoch) != l.cfg.Epoch:
		return refuse("epoch %d, want %d", o.Epoch, l.cfg.Epoch)
	case o.Lane != l.cfg.Lane:
		return refuse("lane %d, want %d", o.Lane, l.cfg.Lane)
	case wire.NodeID(o.From) != peer || wire.NodeID(o.To) != l.cfg.Self:
		return refuse("from node %d to node %d, this is node %d", o.From, o.To, l.cfg.Self)
	case int(o.Nodes) != l.cfg.Nodes:
		return refuse("a VM of %d nodes, want %d", o.Nodes, l.cfg.Nodes)
	case o.PID <= 0:
		return refuse("process %d", o.PID)
	case !validEntries(int(o.Entries)):
		return refuse("rings of %d messages", o.Entries)
	case o.RAMLen != l.cfg.RAM.Len || o.Home != home:
		return refuse("home range %#x-%#x of %#x bytes of RAM, want %#x-%#x of %#x", o.Home.First, o.Home.Last, o.RAMLen,
			home.First, home.Last, l.cfg.RAM.Len)
	case o.SlotsLen != l.cfg.Slots.Len:
		return refuse("%#x bytes of slots, want %#x", o.SlotsLen, l.cfg.Slots.Len)
	case o.Board.FD < 0 || o.Bell.FD < 0 || hasRAM && o.RAM.FD < 0 || hasSlots && o.Slots.FD < 0:
		return refuse("no descriptor for its board, bell or memory")
	}
	return &o, nil
}

// openFile opens a file of another process and sees that it is the one that was offered.
func openFile(pid int32, f file, kind uint32) (int, error) {
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/fd/%d", pid, f.FD), unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	switch {
	case errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM):
		return -1, fmt.Errorf("open a file of process %d: %w: run all nodes as the same user", pid, err)
	case errors.Is(err, unix.ENOENT):
		return -1, fmt.Errorf("open a file of process %d: %w: it ended, or runs in another PID namespace", pid, err)
	case err != nil:
		return -1, fmt.Errorf("open a file of process %d: %w", pid, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("stat: %w", err)
	}
	if st.Dev != f.Dev || st.Ino != f.Ino || st.Mode&unix.S_IFMT != kind {
		unix.Close(fd)
		return -1, fmt.Errorf("descriptor %d of process %d is not the file that was offered", f.FD, pid)
	}
	return fd, nil
}

// mapFile maps length bytes at off of a memfd of another process, which must not be able to shrink it: a
// truncated mapping would kill this process with SIGBUS.
func mapFile(pid int32, f file, off, length uint64) ([]byte, error) {
	fd, err := openFile(pid, f, unix.S_IFREG)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil || seals&unix.F_SEAL_SHRINK == 0 {
		return nil, fmt.Errorf("descriptor %d of process %d is not a memfd sealed against shrinking", f.FD, pid)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("stat: %w", err)
	}
	if end := off + length; end < off || end > uint64(st.Size) {
		return nil, fmt.Errorf("descriptor %d of process %d has %d bytes, want %d", f.FD, pid, st.Size, end)
	}
	b, err := unix.Mmap(fd, int64(off), int(length), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("mmap %d bytes: %w", length, err)
	}
	// A child process must not keep a peer's memory alive.
	if err := unix.Madvise(b, unix.MADV_DONTFORK); err != nil {
		_ = unix.Munmap(b)
		return nil, fmt.Errorf("madvise: %w", err)
	}
	return b, nil
}
