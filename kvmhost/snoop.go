package kvmhost

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"
)

// Shadow page tables are a cache of the guest's page tables that does not snoop: KVM keeps them right by catching the
// writes of its own vCPUs, and knows nothing of a page-table page that another server writes. So a page that leaves
// this server must be forgotten: whatever KVM has derived from its contents has to go before somebody else can change
// them. KVM has no call for that, but it does it by itself for each write that its instruction emulator makes to a
// page that is shadowed. A snooper is a vCPU that makes such writes. It is not the guest's; it exists in system
// management mode alone, whose address space (KVM's number 1) only it has: there the VM's RAM is the node's service
// view, so that the write meets no userfault. The instruction is INSB, which KVM always emulates, and the byte that it
// writes is the one that is there.
//
// Why the trouble: with nested paging on AMD, each walk of the guest's page tables is a write to them, and servers
// take them from each other all the time. With shadow page tables walks are reads, done by KVM, and each server has a
// copy. See docs/architecture.md.

// Translation is how KVM gets from guest-virtual to host-physical addresses.
type Translation uint8

// The kinds of translation.
const (
	Nested Translation = iota // a second level of page tables, walked by the processor (AMD's NPT, Intel's EPT)
	Shadow                    // page tables made by KVM from the guest's
)

// String returns nested or shadow.
func (t Translation) String() string {
	if t == Nested {
		return "nested"
	}
	return "shadow"
}

// translation reads how KVM's module was loaded, and says whether the processor's walks of the guest's page tables
// count as writes to them. What has no such parameters is a form of KVM without hardware for nested paging.
func translation() (t Translation, walksWrite bool) {
	on := func(parameter string) bool {
		b, err := os.ReadFile("/sys/module/" + parameter)
		return err == nil && len(b) > 0 && (b[0] == 'Y' || b[0] == '1')
	}
	switch {
	case on("kvm_amd/parameters/npt"):
		return Nested, true
	case on("kvm_intel/parameters/ept"):
		return Nested, on("kvm_intel/parameters/eptad")
	}
	return Shadow, false
}

const (
	// snoopBase is where the snoopers' own pages are, in their address space: in the hole below 4 GiB.
	snoopBase  = 0xd0000000
	snoopLimit = 0xfe000000

	smmSpace = 1 << 16 // address space of memory slots, in the slot's number

	smiValid = 8 // KVM_VCPUEVENT_VALID_SMM

	largePage  = 2 << 20
	gigabyte   = 1 << 30
	pageBytes  = 4096
	tableFlags = 1<<0 | 1<<1 | 1<<5 | 1<<6 // present, writable, accessed, dirty
	tableLarge = 1 << 7

	mailbox = 0x800 // in the snooper's page: the address that it writes to next

	// SnoopOffset is the byte of a page that is written. One that neither starts an entry of a page table nor fills
	// one makes KVM forget the page as a whole.
	SnoopOffset = 1
)

// snoopCode reads the mailbox and writes a byte from port 0 to the address that it has, over and over.
var snoopCode = []byte{
	0x48, 0x8b, 0x3d, (mailbox - 7) & 0xff, (mailbox - 7) >> 8, 0, 0, // mov rdi, [rip + to the mailbox]
	0x6c,       // insb
	0xeb, 0xf6, // jmp to the start
}

// Snooper makes KVM forget what it derived from a page. One thread at a time may use it.
type Snooper struct {
	fd   int
	run  runPage
	page []byte // its own: code and mailbox
}

// snoopMemory is what all snoopers of a VM share: a page for each, and page tables that map the whole of the VM's RAM
// and these pages to themselves.
type snoopMemory struct {
	mem  []byte
	root uint64
}

// newSnoopMemory prepares the memory for n snoopers over RAM in slots, and tells KVM of it and of the RAM.
func newSnoopMemory(vm int, n int, slots []Slot) (_ *snoopMemory, err error) {
	gigs := map[uint64]bool{snoopBase / gigabyte: true} // that snoopLimit is in as well
	for _, s := range slots {
		if s.GPA < snoopLimit && s.GPA+s.Size > snoopBase {
			return nil, fmt.Errorf("memory slot at %#x leaves no room for the snoopers at %#x", s.GPA, uint64(snoopBase))
		}
		for g := s.GPA / gigabyte; g <= (s.GPA+s.Size-1)/gigabyte; g++ {
			gigs[g] = true
		}
	}
	dirs := map[uint64]bool{} // page directory pointer tables, by number
	for g := range gigs {
		dirs[g/512] = true
	}
	size := (n + 1 + len(dirs) + len(gigs)) * pageBytes
	if size > snoopLimit-snoopBase {
		return nil, fmt.Errorf("%d GiB of RAM are too many for the snoopers", len(gigs))
	}
	m := &snoopMemory{}
	if m.mem, err = unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err != nil {
		return nil, fmt.Errorf("memory for the snoopers: %w", err)
	}
	defer func() {
		if err != nil {
			m.close()
		}
	}()
	next := uint64(snoopBase + n*pageBytes)
	take := func() uint64 {
		next += pageBytes
		return next - pageBytes
	}
	put := func(table, index, entry uint64) {
		binary.LittleEndian.PutUint64(m.mem[table-snoopBase+8*index:], entry)
	}
	m.root = take()
	pointers := map[uint64]uint64{}
	for d := range dirs {
		if d >= 512 {
			return nil, fmt.Errorf("RAM above %d TiB", 256)
		}
		pointers[d] = take()
		put(m.root, d, pointers[d]|tableFlags)
	}
	for g := range gigs {
		dir := take()
		put(pointers[g/512], g%512, dir|tableFlags)
		for i := range uint64(512) {
			put(dir, i, g*gigabyte+i*largePage|tableFlags|tableLarge)
		}
	}
	for i, s := range slots {
		if err := setSlot(vm, smmSpace|i, s); err != nil {
			return nil, fmt.Errorf("memory slot %d of the snoopers: %w", i, err)
		}
	}
	own := Slot{GPA: snoopBase, Size: uint64(size), HVA: addressOfBytes(m.mem)}
	if err := setSlot(vm, smmSpace|len(slots), own); err != nil {
		return nil, fmt.Errorf("the snoopers' own memory slot: %w", err)
	}
	return m, nil
}

func (m *snoopMemory) close() error { return unix.Munmap(m.mem) }

// newSnooper makes the i-th snooper of a VM, as its vCPU number id, and tries it.
func newSnooper(vm int, m *snoopMemory, i, id int, cpuid CPUIDSet, runSize int) (_ *Snooper, err error) {
	at := uint64(snoopBase + i*pageBytes)
	s := &Snooper{fd: -1, page: m.mem[i*pageBytes : (i+1)*pageBytes]}
	copy(s.page, snoopCode)
	fd, err := kvm.CreateVCPU(uintptr(vm), id)
	if err != nil {
		return nil, fmt.Errorf("create: %w", err)
	}
	s.fd = int(fd)
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.run, err = mapRunPage(s.fd, runSize); err != nil {
		return nil, err
	}
	if err := setCPUID(s.fd, cpuid.entries()); err != nil {
		return nil, fmt.Errorf("set cpuid: %w", err)
	}
	if err := ioctlPtr(s.fd, reqSetEvents, &kvm.VCPUEvents{Flags: smiValid, S: kvm.SMI{SMM: 1}}); err != nil {
		return nil, fmt.Errorf("enter system management mode: %w", err)
	}
	var sregs kvm.Sregs
	if err := ioctlPtr(s.fd, reqGetSregs, &sregs); err != nil {
		return nil, fmt.Errorf("get special registers: %w", err)
	}
	data := kvm.Segment{Selector: 16, Limit: 0xffffffff, Typ: 3, Present: 1, S: 1, DB: 1, G: 1}
	sregs.CS = kvm.Segment{Selector: 8, Limit: 0xffffffff, Typ: 11, Present: 1, S: 1, L: 1, G: 1}
	sregs.DS, sregs.ES, sregs.SS, sregs.FS, sregs.GS = data, data, data, data, data
	sregs.TR = kvm.Segment{Selector: 24, Limit: 0xfff, Typ: 11, Present: 1}
	sregs.LDT = kvm.Segment{Typ: 2, Present: 1}
	sregs.CR0 = 1<<0 | 1<<1 | 1<<4 | 1<<5 | 1<<16 | 1<<31 // PE, MP, ET, NE, WP, PG
	sregs.CR3 = m.root
	sregs.CR4 = 1 << 5           // PAE
	sregs.EFER = 1<<8 | 1<<10    // LME, LMA
	sregs.IDT = kvm.Descriptor{} // an exception ends in a triple fault, which Forget reports
	if err := ioctlPtr(s.fd, reqSetSregs, &sregs); err != nil {
		return nil, fmt.Errorf("set special registers: %w", err)
	}
	if err := ioctlPtr(s.fd, reqSetRegs, &kvm.Regs{RIP: at, RFLAGS: 2}); err != nil {
		return nil, fmt.Errorf("set registers: %w", err)
	}
	if errno := s.Forget(at, s.page[SnoopOffset]); errno != 0 {
		return nil, fmt.Errorf("trial: %w (last exit: %s)", errno, exitName(s.run.ExitReason))
	}
	return s, nil
}

// Forget makes KVM drop everything that it derived from the page at gpa. The guest must have lost its right to the page
// already, so that KVM cannot read it any more, and the page's frame must still be there in the service view, with
// keep as its byte at SnoopOffset. When it returns, no vCPU uses a translation that came from the page.
func (s *Snooper) Forget(gpa uint64, keep byte) unix.Errno {
	binary.LittleEndian.PutUint64(s.page[mailbox:], gpa+SnoopOffset)
	for {
		errno := ioctlRun(s.fd)
		if errno == unix.EINTR || errno == unix.EAGAIN {
			continue
		}
		if errno != 0 {
			return errno
		}
		break
	}
	io := s.run.io()
	if s.run.ExitReason != uint32(kvm.EXITIO) || io.Size != 1 || io.Count != 1 || io.Offset >= uint64(len(s.run.raw)) {
		return unix.EPROTO
	}
	s.run.raw[io.Offset] = keep
	// This entry completes the instruction and goes no further.
	s.run.ImmediateExit = 1
	errno := ioctlRun(s.fd)
	s.run.ImmediateExit = 0
	if errno != unix.EINTR {
		return unix.EPROTO
	}
	return 0
}

func (s *Snooper) close() error {
	var errs []error
	if s.run.raw != nil {
		errs = append(errs, unix.Munmap(s.run.raw))
	}
	if s.fd >= 0 {
		errs = append(errs, unix.Close(s.fd))
	}
	return errors.Join(errs...)
}
