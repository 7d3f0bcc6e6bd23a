package fastpath

import (
	"bytes"

	"golang.org/x/sys/unix"

	"ironspan/engine/coherence"
	"ironspan/engine/wire"
	"ironspan/fastpath/fabric"
	"ironspan/fastpath/uffd"
)

// perform does what the agent wants, in its order: a right is taken away before bytes are read, and bytes are
// on their way before their frame is freed.
func (s *Shard) perform(now int64) {
	actions := s.agent.Actions()
	for i := 0; i < len(actions); i++ {
		a := &actions[i]
		if !s.gathered.holds(a) {
			s.settle()
		}
		switch a.Op {
		case coherence.OpSend:
			s.stamp(&a.Msg)
			s.ep.Send(a.Peer, &a.Msg)
		case coherence.OpSendPage:
			s.sendPage(a)
		case coherence.OpProtect:
			i += s.protect(actions[i:]) - 1
		case coherence.OpUnmap:
			s.unmap(a.Page)
		case coherence.OpDiscard:
			s.check("discard", a.Page, s.ram.Discard(a.Page))
		case coherence.OpInstall:
			s.install(now, a)
		case coherence.OpZeroFrame:
			clear(s.ram.Page(a.Page))
		case coherence.OpUnprotect:
			s.check("unprotect", a.Page, s.u.WriteProtect(s.ram.GuestAddr(a.Page), wire.PageSize, false))
			s.resumed(now, a)
		case coherence.OpWake:
			s.wakeWaiters(a)
			s.resumed(now, a)
		case coherence.OpPark: // zeros, too: nobody looks for them when they are fetched
			s.ep.WriteBytes(a.Peer, fabric.RAM, uint64(a.Page)<<wire.PageShift, s.ram.Page(a.Page), &a.Msg)
		case coherence.OpFetch:
			s.stamp(&a.Msg)
			if s.fetching++; s.fetching == 1 {
				s.ways.begin()
			}
			s.ep.ReadPage(a.Peer, uint64(a.Page)<<wire.PageShift, a.Msg.Slot, &a.Msg)
		}
	}
	s.agent.Clear()
}

// protect write-protects the pages of the first actions, as far as these say so and the pages lie together, and returns
// how many they are.
func (s *Shard) protect(actions []coherence.Action) (n int) {
	first := actions[0].Page
	for ; n < len(actions) && actions[n].Op == coherence.OpProtect && actions[n].Page == first+wire.PFN(n); n++ {
		s.split(actions[n].Page)
	}
	began := s.clock()
	s.check("write-protect", first, s.u.WriteProtect(s.ram.GuestAddr(first), uintptr(n)*wire.PageSize, true))
	s.metrics.Stage[StageRevoke].Record(s.clock() - began)
	return n
}

func (s *Shard) unmap(page wire.PFN) {
	s.split(page)
	began := s.clock()
	s.check("unmap", page, s.ram.Unmap(page))
	gone := s.clock()
	s.metrics.Stage[StageRevoke].Record(gone - began)
	if s.forget != nil {
		s.check("forget", page, s.forget(page))
		s.metrics.Stage[StageForget].Record(s.clock() - gone)
	}
}

func (s *Shard) check(op string, page wire.PFN, errno unix.Errno) {
	if errno != 0 {
		s.fail(op, page, errno)
	}
}

var zeroPage [wire.PageSize]byte

// isZero says whether a page is all zeros. Most pages that are not differ in their first words.
func isZero(page []byte) bool {
	return page[0]|page[8]|page[16]|page[24] == 0 && bytes.Equal(page[:64], zeroPage[:64]) && bytes.Equal(page, zeroPage[:])
}

// sendPage puts a page at a peer, or just says that it is all zeros, and sends the message.
func (s *Shard) sendPage(a *coherence.Action) {
	began := s.clock()
	page := s.ram.Page(a.Page)
	a.Msg.Flags &^= wire.FlagData | wire.FlagZero
	if isZero(page) {
		a.Msg.Flags |= wire.FlagZero
		s.metrics.ZeroPages.Add(1)
		s.stamp(&a.Msg)
		s.ep.Send(a.Peer, &a.Msg)
		s.metrics.Stage[StageSend].Record(s.clock() - began)
		return
	}
	a.Msg.Flags |= wire.FlagData
	off := uint64(a.Page) << wire.PageShift
	dst, dstOff := fabric.Slots, uint64(a.Msg.Slot)<<wire.PageShift
	if h := s.homes[a.Peer]; a.Page >= h.First && a.Page < h.Last {
		dst, dstOff = fabric.RAM, off
	}
	if s.ram.IsHome(a.Page) {
		s.ep.WritePage(a.Peer, dst, dstOff, fabric.RAM, off)
	} else {
		s.ep.WriteBytes(a.Peer, dst, dstOff, page, nil)
	}
	s.stamp(&a.Msg)
	s.ep.Send(a.Peer, &a.Msg)
	s.metrics.Stage[StageSend].Record(s.clock() - began)
}

// leftoverTries bounds how often a page that is in the way is removed. Only this thread makes pages and mappings
// in its stripes, so once is enough; more would mean that something else is at work.
const leftoverTries = 3

func (s *Shard) install(now int64, a *coherence.Action) {
	zero := a.Msg.Flags&wire.FlagZero != 0
	if !zero && !s.ram.IsHome(a.Page) {
		s.gather(now, a)
		return
	}
	s.settle()
	if s.ram.IsHome(a.Page) {
		if zero {
			clear(s.ram.Page(a.Page))
		}
		s.mapHome(a.Page, a.Mode)
	} else {
		s.installZeros(a)
	}
	s.resumed(now, a)
}

func (s *Shard) installZeros(a *coherence.Action) {
	for range leftoverTries {
		errno := s.u.Copy(s.ram.GuestAddr(a.Page), s.zero.Addr(0), wire.PageSize, a.Mode == wire.Shared)
		if errno != unix.EEXIST {
			s.check("install", a.Page, errno)
			return
		}
		// A frame is there, with bytes of an earlier stay.
		s.metrics.Leftovers.Add(1)
		s.check("discard", a.Page, s.ram.Discard(a.Page))
	}
	s.fail("install", a.Page, unix.EEXIST)
}

// mapHome maps a home frame, whose bytes are good, in mode.
func (s *Shard) mapHome(page wire.PFN, mode wire.Mode) {
	if mode == wire.Shared && !s.continueWP {
		s.fail("map write-protected", page, unix.EINVAL)
		return
	}
	addr := s.ram.GuestAddr(page)
	for range leftoverTries {
		switch errno := s.u.Continue(addr, wire.PageSize, mode == wire.Shared); errno {
		case unix.EEXIST:
			s.metrics.Leftovers.Add(1)
			s.check("unmap", page, s.ram.Unmap(page))
		case unix.EFAULT:
			s.makeResident(page)
		default:
			s.check("map", page, errno)
			return
		}
	}
	s.fail("map", page, unix.EEXIST)
}

// makeResident gives a home frame that was not populated its memory, or gets it back from swap.
func (s *Shard) makeResident(page wire.PFN) {
	s.scratch[0] = s.ram.Page(page)[0]
}

// wakeWaiters lets waiters of a page try again. If the agent says that they have the right to it, the mapping is
// made good on the way, should the kernel have lost it; that is the same one system call.
func (s *Shard) wakeWaiters(a *coherence.Action) {
	addr := s.ram.GuestAddr(a.Page)
	kind := uffd.FaultMissing
	if s.fault.page == a.Page {
		kind = s.fault.kind
	}
	switch {
	case a.Mode == wire.None, a.Mode == wire.Shared && (kind == uffd.FaultWP || !s.continueWP):
		s.check("wake", a.Page, s.u.Wake(addr, wire.PageSize))
		return
	case kind == uffd.FaultWP:
		s.check("unprotect", a.Page, s.u.WriteProtect(addr, wire.PageSize, false))
		return
	}
	s.split(a.Page) // the kernel has lost the mapping of all of them
	errno := s.u.Continue(addr, wire.PageSize, a.Mode == wire.Shared)
	if errno == unix.EFAULT && s.ram.IsHome(a.Page) {
		s.makeResident(a.Page)
		errno = s.u.Continue(addr, wire.PageSize, a.Mode == wire.Shared)
	}
	switch errno {
	case 0:
		s.metrics.Remapped.Add(1)
	case unix.EEXIST:
		s.check("wake", a.Page, s.u.Wake(addr, wire.PageSize))
	default: // EFAULT: the frame of a page that this node holds is gone
		s.fail("lost the frame of", a.Page, errno)
	}
}

// resumed notes how long the page's first waiter waited. A page is installed without anybody waiting if a
// reader's request turned out to serve nobody any more.
func (s *Shard) resumed(now int64, a *coherence.Action) {
	w, ok := s.pending.end(a.Page)
	if !ok {
		return
	}
	if s.vcpus != nil {
		s.vcpus.waiting.Add(-1)
	}
	end := s.clock()
	kind := ReadFault
	switch {
	case a.Op == coherence.OpWake:
		kind = StaleFault
	case a.Page == s.fault.page:
		kind = LocalFault
	case a.Op == coherence.OpUnprotect:
		kind = UpgradeFault
	case a.Msg.Kind == wire.Fetched:
		kind = FetchFault
	case a.Msg.Flags&wire.FlagZero != 0:
		kind = ZeroFault
	case a.Mode == wire.Modified:
		kind = WriteFault
	}
	if kind == FetchFault {
		s.ways.end(end - w.start)
	}
	s.metrics.Latency[kind].Record(end - w.start)
	s.staged(now, end, a, &w)
}
