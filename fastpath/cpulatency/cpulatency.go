// Package cpulatency is a process' say in how deep the machine's idle cores sleep. A remote fault has threads sleep and
// wake a handful of times, each time perhaps on a core that has to be woken, too.
package cpulatency

import (
	"encoding/binary"
	"fmt"
	"os"
	"strings"
)

// The kernel's interface for requests for CPU latency quality of service (PM QoS): a process that has the file open
// writes the request, in microseconds, as a native 32-bit number, and the end of the process withdraws it.
const latencyFile = "/dev/cpu_dma_latency"

// idleDriverFile names the driver that puts idle cores to sleep. It says "none" where there is nothing but HLT, which no
// request changes.
const idleDriverFile = "/sys/devices/system/cpu/cpuidle/current_driver"

// What is requested, in microseconds. shallowIdle lets a core halt (C1) and keeps it from states that it takes 10 us to
// hundreds of them to leave. In a virtual machine a halt is the hypervisor's affair, and takes as long; there cores
// poll while they have nothing to do. anyIdle is the kernel's word for no request.
const (
	shallowIdle = 2
	pollingIdle = 0
	anyIdle     = -1
)

// Request is one to the kernel, for CPU latency quality of service. One goroutine at a time may use it.
type Request struct {
	file  *os.File
	micro int32
	held  bool
}

// Open opens the kernel's interface and requests nothing yet. It takes root, or the right to open
// /dev/cpu_dma_latency.
func Open() (*Request, error) { return open(latencyFile, idleDriverFile) }

func open(file, driver string) (*Request, error) {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("cpulatency: %w", err)
	}
	r := &Request{file: f, micro: shallowIdle}
	if name, err := os.ReadFile(driver); err == nil && strings.TrimSpace(string(name)) == "haltpoll" {
		r.micro = pollingIdle
	}
	return r, nil
}

// Hold requests that idle cores wake quickly, or, with false, lets them sleep as deep as the kernel likes.
func (r *Request) Hold(hold bool) error {
	if r.held == hold {
		return nil
	}
	micro := int32(anyIdle)
	if hold {
		micro = r.micro
	}
	if _, err := r.file.Write(binary.NativeEndian.AppendUint32(nil, uint32(micro))); err != nil {
		return fmt.Errorf("cpulatency: %w", err)
	}
	r.held = hold
	return nil
}

// Close withdraws the request.
func (r *Request) Close() error {
	r.held = false
	return r.file.Close()
}
