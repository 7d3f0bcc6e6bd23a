package ram

import (
	"golang.org/x/sys/unix"

	"ironspan/engine/wire"
	"ironspan/fastpath/uffd"
)

// A block is as much memory as a huge page: 2 MiB of the VM's RAM, from a multiple of it on.
//
// The home range's blocks are huge pages where the host gives them, and mapped as such before Register. Userfaultfd
// leaves a mapping that is there alone, so a block stays whole, and KVM maps it whole to the guest, until the right
// to one of its pages goes. Then the kernel would drop the mapping of all 512 to change that of one. So Split drops
// it first and maps the block's pages one by one, in between of which an access of them is a fault that waits.
// Nothing makes a block whole again: a page that was wanted elsewhere will be wanted again.
//
// Both views are advised against huge pages but for the time in which Populate makes them, so that the kernel makes no
// others by itself.
const (
	blockShift = 21
	blockSize  = 1 << blockShift
	blockPages = blockSize / wire.PageSize
)

const (
	// collapseTries is how often a block that the kernel is busy with is tried.
	collapseTries = 3

	// refusals is how many blocks in a row are tried in vain before the rest gets small pages: on a machine whose memory
	// is in pieces each takes the kernel a long search.
	refusals = 16
)

// Whole says whether page is part of a block that is mapped as one. Then Split has to come before anything that is
// about one page of it.
func (r *RAM) Whole(page wire.PFN) bool { return r.whole[page/blockPages] }

// HugeBytes is how much of the home range Populate has backed with huge pages.
func (r *RAM) HugeBytes() uint64 { return r.huge }

// Split maps the pages of page's block one by one, writable, as they were before; it belongs to the thread that owns
// the block's stripe and u. It takes 0.13 ms, and who touches the block meanwhile waits for it. Waiters are woken.
func (r *RAM) Split(u *uffd.FD, page wire.PFN) unix.Errno {
	first := page &^ (blockPages - 1)
	if errno := drop(r.GuestAddr(first), blockSize); errno != 0 {
		return errno
	}
	r.whole[page/blockPages] = false
	for done, failed := uintptr(0), 0; done < blockSize; {
		n, errno := u.ContinueRange(r.GuestAddr(first)+done, blockSize-done, false)
		done += n
		switch {
		case errno == 0:
		case errno == unix.EEXIST:
			done += wire.PageSize // mapped already: nobody but this thread takes rights away
		case errno == unix.EFAULT && failed < blockPages: // it was swapped out
			failed++
			if err := populate(r.ServiceView()+uintptr(first)<<wire.PageShift+done, wire.PageSize); err != nil {
				return unix.ENOMEM
			}
		default:
			return errno
		}
	}
	return 0
}

// welcomeHuge lets the whole blocks of the home range be huge pages, or ends that. It says whether the kernel knows
// huge pages.
func (r *RAM) welcomeHuge(on bool) bool {
	first, last := alignUp(r.cfg.Home.First), r.cfg.Home.Last&^(blockSize-1)
	if r.cfg.Small || first >= last {
		return false
	}
	advice := unix.MADV_NOHUGEPAGE
	if on {
		advice = unix.MADV_HUGEPAGE
	}
	for _, view := range [...]uintptr{r.guest, addressOf(r.service)} {
		if madvise(view+uintptr(first), uintptr(last-first), advice) != 0 {
			return false
		}
	}
	return true
}

// makeHuge backs the blocks that lie in the span with huge pages, maps them in the guest view, and returns how many in
// a row, up to the last one, the host has refused. A file's first page is all that a huge page can be made of: the rest
// is then zeroed at once, which is eight times as quick as to make 512 pages.
func (r *RAM) makeHuge(off, length uint64, refused int) int {
	for b := alignUp(off); b+blockSize <= off+length && refused < refusals; b += blockSize {
		if populate(r.guest+uintptr(b), wire.PageSize) != nil {
			return refused // populating the range will say it again, and why
		}
		errno := unix.EAGAIN
		for try := 0; try < collapseTries && (errno == unix.EAGAIN || errno == unix.EBUSY); try++ {
			errno = collapse(r.guest+uintptr(b), blockSize)
		}
		if errno != 0 {
			refused++
			continue
		}
		refused = 0
		r.whole[b>>blockShift] = true
		r.huge += blockSize
	}
	return refused
}

func alignUp(off uint64) uint64 { return (off + blockSize - 1) &^ (blockSize - 1) }
