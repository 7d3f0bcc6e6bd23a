//go:build linux

package main

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

// program is machine code, on pages of its own.
type program []byte

func newProgram(code []byte) (program, error) {
	mem, err := unix.Mmap(-1, 0, len(code), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, errors.New("mmap for machine code: " + err.Error())
	}
	copy(mem, code)
	if err := unix.Mprotect(mem, unix.PROT_READ|unix.PROT_EXEC); err != nil {
		_ = unix.Munmap(mem)
		return nil, errors.New("mprotect of machine code: " + err.Error())
	}
	return mem, nil
}

// call runs the function at an offset of the program. Go cannot stop a thread that is in it: a signal finds no Go code
// there and lets it go on.
func (p program) call(at int, records bank, count int) {
	// Safe: neither mapping moves, and the caller holds both until it is back.
	call(uintptr(unsafe.Pointer(&p[at])), uintptr(unsafe.Pointer(&records[0])), uintptr(count))
}

func (p program) free() { _ = unix.Munmap(p) }

// call is in call_amd64.s.
func call(code, records, count uintptr)

// arena is memory whose pages come from the NUMA nodes by turns, two from each: neighbours are of one node, or of two.
type arena []byte

// newArena takes pages from the nodes with these ids; from anywhere if it is one node only.
func newArena(pages int, nodes []int) (arena, error) {
	mem, err := unix.Mmap(-1, 0, pages*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, errors.New("mmap for variables: " + err.Error())
	}
	_ = unix.Madvise(mem, unix.MADV_NOHUGEPAGE) // refused by kernels without huge pages, where it is not needed
	for page := 0; page < pages && len(nodes) > 1; page++ {
		if err := bindTo(mem[page*pageSize:(page+1)*pageSize], nodes[page/2%len(nodes)]); err != nil {
			_ = unix.Munmap(mem)
			return nil, err
		}
	}
	return mem, nil
}

// addr is the address of a byte.
func (a arena) addr(offset int) uint64 { return uint64(uintptr(unsafe.Pointer(&a[offset]))) }

func (a arena) free() { _ = unix.Munmap(a) }
