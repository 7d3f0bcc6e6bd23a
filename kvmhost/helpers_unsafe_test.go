package kvmhost

import (
	"sync/atomic"
	"unsafe"
)

// atomicWord is an aligned word of the guest's memory, which the guest writes too.
func atomicWord(ram []byte, addr uint64) *atomic.Uint64 {
	_ = ram[addr+7]
	return (*atomic.Uint64)(unsafe.Pointer(&ram[addr]))
}
