//go:build linux

package main

import (
	"errors"
	"strconv"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	pageSize  = 4096
	pageWords = pageSize / 8
)

// sheet is a run of anonymous pages of its own, shared by all threads. Its words are addressed by
// page and word so that a phase can say what lies together on a page and what does not.
type sheet struct{ words []atomic.Uint64 }

func newSheet(pages int) (sheet, error) {
	mem, err := unix.Mmap(-1, 0, pages*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return sheet{}, errors.New("mmap of " + strconv.Itoa(pages) + " pages: " + err.Error())
	}
	// Small pages: a huge one would join what the phases keep apart. Refused by kernels without huge
	// pages, where it is not needed.
	_ = unix.Madvise(mem, unix.MADV_NOHUGEPAGE)
	// Safe: the mapping is page-aligned, of this very length, and unmapped by free alone.
	return sheet{unsafe.Slice((*atomic.Uint64)(unsafe.Pointer(&mem[0])), pages*pageWords)}, nil
}

func (s sheet) at(page, word int) *atomic.Uint64 { return &s.words[page*pageWords+word] }

func (s sheet) bytes() []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(&s.words[0])), len(s.words)*8)
}

// drop gives one page back to the kernel: the next touch finds a zero page, on any CPU.
func (s sheet) drop(page int) error {
	return unix.Madvise(s.bytes()[page*pageSize:(page+1)*pageSize], unix.MADV_DONTNEED)
}

func (s sheet) free() { _ = unix.Munmap(s.bytes()) }

// bank is memory taken from one NUMA node.
type bank []uint64

// newBank reserves size bytes that the kernel may only take from the given node. Nothing is taken
// before it is touched.
func newBank(nodeID int, bind bool, size int) (bank, error) {
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, errors.New("mmap of " + strconv.Itoa(size) + " bytes: " + err.Error())
	}
	// Huge pages where there are some: less of the kernel's own bookkeeping moves between the nodes.
	_ = unix.Madvise(mem, unix.MADV_HUGEPAGE)
	if bind {
		if err := bindTo(mem, nodeID); err != nil {
			_ = unix.Munmap(mem)
			return nil, err
		}
	}
	return unsafe.Slice((*uint64)(unsafe.Pointer(&mem[0])), size/8), nil
}

func (b bank) free() {
	_ = unix.Munmap(unsafe.Slice((*byte)(unsafe.Pointer(&b[0])), len(b)*8))
}

// bindTo has the kernel take the pages of mem, which begins on a page, from the given node alone.
func bindTo(mem []byte, nodeID int) error {
	const mpolBind = 2
	mask := [16]uint64{}
	mask[nodeID/64] = 1 << (nodeID % 64)
	// Safe: mem and mask outlive the call, which reads only mask.
	_, _, errno := unix.Syscall6(unix.SYS_MBIND, uintptr(unsafe.Pointer(&mem[0])), uintptr(len(mem)), mpolBind,
		uintptr(unsafe.Pointer(&mask[0])), uintptr(len(mask)*64), 0)
	if errno != 0 {
		return errors.New("mbind to node " + strconv.Itoa(nodeID) + ": " + errno.Error())
	}
	return nil
}

// currentCPU is the CPU the calling thread runs on.
func currentCPU() (int, error) {
	var cpu uint32
	// Safe: the kernel writes the one word.
	if _, _, errno := unix.RawSyscall(unix.SYS_GETCPU, uintptr(unsafe.Pointer(&cpu)), 0, 0); errno != 0 {
		return -1, errno
	}
	return int(cpu), nil
}
