// Package ram holds a node's share of the VM's memory: one sparse memfd as large as the VM's RAM and its two
// mappings.
//
//   - The guest view is what KVM maps for the guest. It is registered with userfaultfd, and touching a page of
//     it that is not mapped waits for a shard thread. Go code must never do that: the garbage collector would wait
//     for the access and the access for a thread that the collector stopped. So the guest view is an address
//     here, never a slice.
//   - The service view is always accessible. Shard threads and, under a lease, devices use it.
//
// A page homed at this node has its frame from Populate on, for as long as the RAM lives. Any other page has a
// frame only while it is cached: UFFDIO_COPY makes it, Discard frees it.
package ram

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"ironspan/engine/wire"
	"ironspan/fastpath/fabric"
	"ironspan/fastpath/uffd"
)

// Align is what home ranges are aligned to: the huge page size of x86-64.
const Align = 2 << 20

// Config says how large the VM's RAM is, and which part is homed here.
type Config struct {
	Size uint64      // bytes of the whole VM's RAM, a multiple of wire.PageSize
	Home fabric.Span // home range of this node, page-aligned; may be empty

	// Small keeps the home range from being backed with huge pages. It is needed where the stripes of several shards are
	// smaller than one.
	Small bool
}

// RAM is a node's memory. Unmap, Discard, Whole and Split may be called by any shard thread for its pages, the rest by
// the thread that sets the node up and takes it down.
type RAM struct {
	cfg     Config
	fd      int
	service []byte
	guest   uintptr
	huge    uint64 // bytes in blocks that were whole when Populate had made them
	whole   []bool // for each block of the VM's RAM; from Register on, of the shard whose stripe has the block
}

// New maps memory for cfg. Nothing is resident yet.
func New(cfg Config) (_ *RAM, err error) {
	if cfg.Size == 0 || cfg.Size%wire.PageSize != 0 || cfg.Size > 1<<62 {
		return nil, fmt.Errorf("ram: %d bytes, want a multiple of %d", cfg.Size, wire.PageSize)
	}
	if h := cfg.Home; h.First > h.Last || h.Last > cfg.Size || h.First%wire.PageSize != 0 || h.Last%wire.PageSize != 0 {
		return nil, fmt.Errorf("ram: home range %#x-%#x is not a page-aligned part of %#x bytes", h.First, h.Last, cfg.Size)
	}
	r := &RAM{cfg: cfg, fd: -1, whole: make([]bool, alignUp(cfg.Size)>>blockShift)}
	defer func() {
		if err != nil {
			r.Close()
		}
	}()
	if r.fd, err = newMemfd("ironspan-ram", cfg.Size); err != nil {
		return nil, err
	}
	if r.service, err = mapService(r.fd, uintptr(cfg.Size)); err != nil {
		return nil, memoryError("map the service view", cfg.Size, err)
	}
	if r.guest, err = mapGuest(r.fd, uintptr(cfg.Size)); err != nil {
		return nil, memoryError("map the guest view", cfg.Size, err)
	}
	// Huge pages that the kernel makes would tie the state of 512 pages together; a child would share what it must
	// not; a core dump would read the guest view and wait for its faults for ever.
	for _, view := range [...]uintptr{r.guest, addressOf(r.service)} {
		for _, advice := range [...]int{unix.MADV_NOHUGEPAGE, unix.MADV_DONTFORK, unix.MADV_DONTDUMP} {
			errno := madvise(view, uintptr(cfg.Size), advice)
			if errno != 0 && (errno != unix.EINVAL || advice != unix.MADV_NOHUGEPAGE) { // a kernel without huge pages
				return nil, fmt.Errorf("ram: madvise %d: %w", advice, errno)
			}
		}
	}
	return r, nil
}

// newMemfd returns a memfd whose size cannot change any more, so that whoever maps it cannot be made to touch
// what is not there.
func newMemfd(name string, size uint64) (int, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, memoryError("memfd_create", size, err)
	}
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		unix.Close(fd)
		return -1, memoryError("size a memfd", size, err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("ram: seal a memfd: %w", err)
	}
	return fd, nil
}

// populateStep is how much is made resident between two calls of progress: about 10 ms of work.
const populateStep = 16 << 20

// Populate makes the home range resident and maps it in both views, so that pages nobody else wants never
// fault, and by huge pages where the host gives them. It must be called before Register: afterwards it would fault into
// itself. It takes about 0.1 s for each GiB, and 0.8 s without huge pages; progress, if not nil, is told how far it is,
// in bytes.
func (r *RAM) Populate(progress func(done, total uint64)) error {
	total := r.cfg.Home.Last - r.cfg.Home.First
	if free, ok := available(); ok && total > free {
		return &MemoryError{Op: "populate the home range", Want: total, Available: free, Err: unix.ENOMEM}
	}
	refused := refusals
	if r.welcomeHuge(true) {
		refused = 0
		defer r.welcomeHuge(false)
	}
	service := addressOf(r.service)
	for done := uint64(0); done < total; {
		// Steps end where blocks do.
		off := r.cfg.Home.First + done
		n := min(off&^(blockSize-1)+populateStep-off, total-done)
		refused = r.makeHuge(off, n, refused)
		for _, view := range [...]uintptr{r.guest, service} {
			if err := populate(view+uintptr(off), uintptr(n)); err != nil {
				return memoryError("populate the home range", total-done, err)
			}
		}
		done += n
		if progress != nil {
			progress(done, total)
		}
	}
	return nil
}

// populate makes a range resident and mapped for writing. Kernels before 5.14 cannot; userfaultfd needs newer.
func populate(addr, length uintptr) error {
	for {
		switch errno := madvise(addr, length, unix.MADV_POPULATE_WRITE); errno {
		case 0:
			return nil
		case unix.EINTR, unix.EAGAIN:
		default:
			return errno
		}
	}
}

// Register makes faults on shard's stripes of the guest view events of u. A page p is in a stripe of the
// shard if (p >> stripeShift) % shards == shard.
func (r *RAM) Register(u *uffd.FD, shard, shards int, stripeShift uint) error {
	if shards < 1 || shard < 0 || shard >= shards || stripeShift > 40 {
		return fmt.Errorf("ram: shard %d of %d with stripes of 2^%d pages", shard, shards, stripeShift)
	}
	if shards == 1 {
		return r.register(u, 0, r.cfg.Size)
	}
	stripe := uint64(wire.PageSize) << stripeShift
	if r.huge > 0 && stripe < blockSize {
		return fmt.Errorf("ram: stripes of %d KiB divide huge pages: use small pages", stripe>>10)
	}
	for off := uint64(shard) * stripe; off < r.cfg.Size; off += uint64(shards) * stripe {
		if err := r.register(u, off, min(stripe, r.cfg.Size-off)); err != nil {
			return fmt.Errorf("%w; %d stripes of %d KiB need as many mappings", err, r.cfg.Size/stripe, stripe>>10)
		}
	}
	return nil
}

func (r *RAM) register(u *uffd.FD, off, length uint64) error {
	err := u.Register(r.guest+uintptr(off), uintptr(length), uffd.Missing|uffd.Minor|uffd.WP)
	if err != nil {
		return fmt.Errorf("ram: %w", err)
	}
	return nil
}

// Size returns the bytes of the VM's RAM.
func (r *RAM) Size() uint64 { return r.cfg.Size }

// Home returns this node's home range, in bytes of VM RAM.
func (r *RAM) Home() fabric.Span { return r.cfg.Home }

// IsHome says whether page's frame is a home frame here.
func (r *RAM) IsHome(page wire.PFN) bool {
	off := uint64(page) << wire.PageShift
	return off >= r.cfg.Home.First && off < r.cfg.Home.Last
}

// Service returns the service view: the VM's RAM from offset 0. Reading a page that has no frame makes one, so
// only home frames and pages held in S or M may be touched.
func (r *RAM) Service() []byte { return r.service }

// Page returns page's frame in the service view.
func (r *RAM) Page(page wire.PFN) []byte {
	off := uint64(page) << wire.PageShift
	return r.service[off : off+wire.PageSize : off+wire.PageSize]
}

// GuestView returns the address of the guest view, for KVM's memory slots and for userfaultfd.
func (r *RAM) GuestView() uintptr { return r.guest }

// ServiceView returns the address of the service view.
func (r *RAM) ServiceView() uintptr { return addressOf(r.service) }

// GuestAddr returns page's address in the guest view.
func (r *RAM) GuestAddr(page wire.PFN) uintptr { return r.guest + uintptr(page)<<wire.PageShift }

// PageAt returns the page at an address of the guest view.
func (r *RAM) PageAt(addr uintptr) (wire.PFN, bool) {
	if addr < r.guest || addr-r.guest >= uintptr(r.cfg.Size) {
		return 0, false
	}
	return wire.PFN((addr - r.guest) >> wire.PageShift), true
}

// FD returns the memfd. Its size is sealed.
func (r *RAM) FD() int { return r.fd }

// Memory describes the service view to a fabric.
func (r *RAM) Memory() fabric.Memory {
	return fabric.Memory{Addr: addressOf(r.service), Len: r.cfg.Size, FD: r.fd}
}

// Unmap takes page, which must not be part of a whole block, out of the guest view. When it returns, no thread and no
// vCPU can access it any more; its frame stays. Waiters are not woken.
func (r *RAM) Unmap(page wire.PFN) unix.Errno {
	return drop(r.GuestAddr(page), wire.PageSize)
}

// Discard frees page's frame, and takes the page out of both views. A home frame is never discarded: a device
// may be writing to it.
func (r *RAM) Discard(page wire.PFN) unix.Errno {
	if r.IsHome(page) {
		return unix.EBUSY
	}
	return punchHole(r.fd, int64(page)<<wire.PageShift, wire.PageSize)
}

// Close unmaps both views and frees the memory. No vCPU may be running, and no fabric may be using it.
func (r *RAM) Close() error {
	var errs []error
	if r.guest != 0 {
		if errno := munmap(r.guest, uintptr(r.cfg.Size)); errno != 0 {
			errs = append(errs, fmt.Errorf("ram: unmap the guest view: %w", errno))
		}
		r.guest = 0
	}
	if r.service != nil {
		if errno := munmap(addressOf(r.service), uintptr(r.cfg.Size)); errno != 0 {
			errs = append(errs, fmt.Errorf("ram: unmap the service view: %w", errno))
		}
		r.service = nil
	}
	if r.fd >= 0 {
		if err := unix.Close(r.fd); err != nil {
			errs = append(errs, fmt.Errorf("ram: close: %w", err))
		}
		r.fd = -1
	}
	return errors.Join(errs...)
}
