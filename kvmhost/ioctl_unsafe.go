package kvmhost

import (
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"
)

// The ioctls. gokvm supplies numbers and structures; the calls that take a pointer are made here, because
// gokvm turns the pointer into a uintptr one call too early: between its own Ioctl being entered and the
// system call, a growing stack may move the structure.

// Requests that gokvm has no number for, or keeps to itself (linux/kvm.h, asm/kvm.h).
var (
	reqCheckExtension = kvm.IIO(0x03)
	reqGetCPUID       = kvm.IIOWR(0x05, 8)
	reqSetMemory      = kvm.IIOW(0x46, unsafe.Sizeof(kvm.UserspaceMemoryRegion{}))
	reqSetIdentityMap = kvm.IIOW(0x48, 8)
	reqGetRegs        = kvm.IIOR(0x81, unsafe.Sizeof(kvm.Regs{}))
	reqSetRegs        = kvm.IIOW(0x82, unsafe.Sizeof(kvm.Regs{}))
	reqGetSregs       = kvm.IIOR(0x83, unsafe.Sizeof(kvm.Sregs{}))
	reqSetSregs       = kvm.IIOW(0x84, unsafe.Sizeof(kvm.Sregs{}))
	reqInterrupt      = kvm.IIOW(0x86, 4)
	reqSetMSRs        = kvm.IIOW(0x89, 8)
	reqSetSignalMask  = kvm.IIOW(0x8b, 4)
	reqSetCPUID2      = kvm.IIOW(0x90, 8)
	reqNMI            = kvm.IIO(0x9a)
	reqSetEvents      = kvm.IIOW(0xa0, unsafe.Sizeof(kvm.VCPUEvents{}))
	reqSetDebugRegs   = kvm.IIOW(0xa2, unsafe.Sizeof(kvm.DebugRegs{}))
	reqEnableCap      = kvm.IIOW(0xa3, unsafe.Sizeof(enableCapArg{}))
	reqSetMSRFilter   = kvm.IIOW(0xc6, unsafe.Sizeof(msrFilter{}))
	reqSetDeviceAttr  = kvm.IIOW(0xe1, unsafe.Sizeof(deviceAttr{}))
	reqGetDeviceAttr  = kvm.IIOW(0xe2, unsafe.Sizeof(deviceAttr{}))
	reqRun            = kvm.IIO(0x80)
)

type enableCapArg struct {
	Cap   uint32
	Flags uint32
	Args  [4]uint64
	_     [64]byte
}

type deviceAttr struct {
	Flags uint32
	Group uint32
	Attr  uint64
	Addr  uint64
}

type msrFilterRange struct {
	Flags  uint32
	Count  uint32
	Base   uint32
	_      uint32
	Bitmap *byte
}

type msrFilter struct {
	Flags  uint32
	_      uint32
	Ranges [16]msrFilterRange
}

// ioctl is a call whose argument is a number.
func ioctl(fd int, req, arg uintptr) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, arg)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// ioctlPtr is a call whose argument is a structure. The conversion stands in the system call's own argument
// list, so the structure stays where it is until the kernel is done.
func ioctlPtr[T any](fd int, req uintptr, p *T) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(unsafe.Pointer(p))); errno != 0 {
		return errno
	}
	return nil
}

// ioctlRun enters the guest. The error is an errno, not an interface: nothing is allocated.
func ioctlRun(fd int) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), reqRun, 0)
	return errno
}

// ioctlInterrupt queues an external interrupt. vector must live in the vCPU, off the stack.
func ioctlInterrupt(fd int, vector *uint32) unix.Errno {
	_, _, errno := unix.RawSyscall(unix.SYS_IOCTL, uintptr(fd), reqInterrupt, uintptr(unsafe.Pointer(vector)))
	return errno
}

func ioctlNMI(fd int) unix.Errno {
	_, _, errno := unix.RawSyscall(unix.SYS_IOCTL, uintptr(fd), reqNMI, 0)
	return errno
}

// setSignalMask gives the mask that holds inside KVM_RUN.
func setSignalMask(fd int, blocked uint64) error {
	arg := struct {
		Len  uint32
		Mask [8]byte
	}{Len: 8}
	*(*uint64)(unsafe.Pointer(&arg.Mask)) = blocked // x86 allows the unaligned store
	return ioctlPtr(fd, reqSetSignalMask, &arg)
}

func enableCap(fd int, cap uint32, arg0 uint64) error {
	return ioctlPtr(fd, reqEnableCap, &enableCapArg{Cap: cap, Args: [4]uint64{arg0}})
}

// setMSRFilter denies reads and writes of each range's MSRs; the rest stays allowed.
func setMSRFilter(fd int, ranges []msrRange) error {
	f := &msrFilter{}
	for i, r := range ranges {
		bitmap := make([]byte, (r.count+7)/8) // all bits 0: denied
		f.Ranges[i] = msrFilterRange{Flags: msrFilterRead | msrFilterWrite, Count: r.count, Base: r.base, Bitmap: &bitmap[0]}
	}
	return ioctlPtr(fd, reqSetMSRFilter, f)
}

const (
	msrFilterRead  = 1 << 0
	msrFilterWrite = 1 << 1
)

type msrRange struct{ base, count uint32 }

// Control of a vCPU's TSC (KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET).
const (
	tscCtrlGroup  = 0
	tscOffsetAttr = 0
)

func setTSCOffset(vcpu int, offset int64) error {
	v := new(uint64)
	*v = uint64(offset)
	a := &deviceAttr{Group: tscCtrlGroup, Attr: tscOffsetAttr, Addr: addressOf(v)}
	err := ioctlPtr(vcpu, reqSetDeviceAttr, a)
	keep(v)
	return err
}

func getTSCOffset(vcpu int) (int64, error) {
	v := new(uint64)
	a := &deviceAttr{Group: tscCtrlGroup, Attr: tscOffsetAttr, Addr: addressOf(v)}
	err := ioctlPtr(vcpu, reqGetDeviceAttr, a)
	keep(v)
	return int64(*v), err
}

// escaped makes what passes through keep live on the heap, where it does not move.
var escaped atomic.Pointer[uint64]

func addressOf(v *uint64) uint64 {
	escaped.Store(v)
	return uint64(uintptr(unsafe.Pointer(v)))
}

func keep(v *uint64) { escaped.Store(v) }

// msrBlock is struct kvm_msrs with room for a handful.
type msrBlock struct {
	Count   uint32
	_       uint32
	Entries [8]struct {
		Index uint32
		_     uint32
		Data  uint64
	}
}

func setMSR(vcpu int, index uint32, value uint64) error {
	b := &msrBlock{Count: 1}
	b.Entries[0].Index, b.Entries[0].Data = index, value
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(vcpu), reqSetMSRs, uintptr(unsafe.Pointer(b)))
	if errno != 0 {
		return errno
	}
	if n != 1 {
		return fmt.Errorf("msr %#x refused", index)
	}
	return nil
}

// maxCPUIDEntries is more than any processor has (KVM's own bound is 256).
const maxCPUIDEntries = 256

type cpuidBlock struct {
	Count   uint32
	_       uint32
	Entries [maxCPUIDEntries]kvm.CPUIDEntry2
}

func supportedCPUID(dev int) ([]kvm.CPUIDEntry2, error) {
	b := &cpuidBlock{Count: maxCPUIDEntries}
	if err := ioctlPtr(dev, reqGetCPUID, b); err != nil {
		return nil, err
	}
	return b.Entries[:b.Count], nil
}

func setCPUID(vcpu int, entries []kvm.CPUIDEntry2) error {
	if len(entries) > maxCPUIDEntries {
		return unix.E2BIG
	}
	b := &cpuidBlock{Count: uint32(len(entries))}
	copy(b.Entries[:], entries)
	return ioctlPtr(vcpu, reqSetCPUID2, b)
}

// runPage is a vCPU's kvm_run structure, shared with the kernel.
type runPage struct {
	raw []byte // the whole mapping; port data lies behind the structure
	*kvm.RunData
}

func mapRunPage(vcpu, size int) (runPage, error) {
	if size < int(unsafe.Sizeof(kvm.RunData{})) {
		return runPage{}, fmt.Errorf("kvm_run of %d bytes", size)
	}
	raw, err := unix.Mmap(vcpu, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return runPage{}, os.NewSyscallError("mmap", err)
	}
	return runPage{raw, (*kvm.RunData)(unsafe.Pointer(&raw[0]))}, nil
}

// mmioExit is the exit's part of kvm_run for KVM_EXIT_MMIO.
type mmioExit struct {
	Addr    uint64
	Data    [8]byte
	Len     uint32
	IsWrite uint8
}

// ioExit is the part for KVM_EXIT_IO.
type ioExit struct {
	Direction uint8
	Size      uint8
	Port      uint16
	Count     uint32
	Offset    uint64
}

// msrExit is the part for KVM_EXIT_X86_RDMSR and KVM_EXIT_X86_WRMSR.
type msrExit struct {
	Error  uint8
	_      [7]byte
	Reason uint32
	Index  uint32
	Data   uint64
}

func (r runPage) mmio() *mmioExit { return (*mmioExit)(unsafe.Pointer(&r.Data)) }
func (r runPage) io() *ioExit     { return (*ioExit)(unsafe.Pointer(&r.Data)) }
func (r runPage) msr() *msrExit   { return (*msrExit)(unsafe.Pointer(&r.Data)) }

// addressOfBytes is the address of mmap'd memory.
func addressOfBytes(b []byte) uintptr { return uintptr(unsafe.Pointer(&b[0])) }
