package qemu

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	kvmDevice            = "/dev/kvm"
	kvmGetSupportedCPUID = 0xc008ae05
	cpuidEntries         = 256
	cpuidHeader          = 8
	cpuidEntry           = 40
)

// NestedKVM says whether this machine's KVM can run servers that have KVM themselves. A loadable kvm
// module proves nothing (it may not be hardware's), so KVM is asked which CPUID it would show to a guest:
// SVM or VMX appear there only when the hardware has it and nesting is on.
func NestedKVM() (bool, string) {
	f, err := os.OpenFile(kvmDevice, os.O_RDWR, 0)
	if err != nil {
		return false, err.Error()
	}
	defer f.Close()
	buf := make([]byte, cpuidHeader+cpuidEntries*cpuidEntry)
	binary.LittleEndian.PutUint32(buf, cpuidEntries)
	// The kernel fills buf during the call only.
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), kvmGetSupportedCPUID, uintptr(unsafe.Pointer(&buf[0])))
	runtime.KeepAlive(buf)
	if errno != 0 {
		return false, fmt.Sprintf("%s: supported cpuid: %v", kvmDevice, errno)
	}
	return nested(buf)
}

// nested reads a struct kvm_cpuid2.
func nested(buf []byte) (bool, string) {
	n := int(binary.LittleEndian.Uint32(buf))
	for i := range min(n, cpuidEntries) {
		e := buf[cpuidHeader+i*cpuidEntry:]
		function, ecx := binary.LittleEndian.Uint32(e), binary.LittleEndian.Uint32(e[20:])
		switch {
		case function == 1 && ecx&(1<<5) != 0:
			return true, "VMX is offered to guests"
		case function == 0x80000001 && ecx&(1<<2) != 0:
			return true, "SVM is offered to guests"
		}
	}
	return false, "this machine's KVM offers its guests neither SVM nor VMX"
}
