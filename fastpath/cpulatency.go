package fastpath

import (
	"encoding/binary"
	"fmt"
	"os"
	"strings"
)

// The kernel's interface for requests for CPU latency quality of service (PM QoS): a process that has the file open
// writes the request, in microseconds, as a native 32-bit number, and the end of the process withdraws it.
const cpuLatencyFile = "/dev/cpu_dma_latency"

// cpuIdleDriverFile names the driver that puts idle cores to sleep; it is absent where there is none but HLT, which no
// request changes.
const cpuIdleDriverFile = "/sys/devices/system/cpu/cpuidle/current_driver"

// What is requested, in microseconds. shallowIdle lets a core halt (C1) and keeps it from states that it takes 10 us to
// hundreds of them to leave. In a virtual machine a halt is the hypervisor's affair, and takes as long; there cores
// poll while they have nothing to do. anyIdle is the kernel's word for no request.
const (
	shallowIdle = 2
	pollingIdle = 0
	anyIdle     = -1
)

// CPULatency is this process' say in how deep the machine's idle cores sleep. A remote fault has threads sleep and wake
// a handful of times, each time perhaps on a core that has to be woken, too.
type CPULatency struct {
	file  *os.File
	micro int32
	held  bool
}

// OpenCPULatency opens the kernel's interface and requests nothing yet. It takes root, or the right to open
// /dev/cpu_dma_latency.
func OpenCPULatency() (*CPULatency, error) { return openCPULatency(cpuLatencyFile, cpuIdleDriverFile) }

func openCPULatency(file, driver string) (*CPULatency, error) {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("fastpath: CPU latency: %w", err)
	}
	c := &CPULatency{file: f, micro: shallowIdle}
	if name, err := os.ReadFile(driver); err == nil && strings.TrimSpace(string(name)) == "haltpoll" {
		c.micro = pollingIdle
	}
	return c, nil
}

// Hold requests that idle cores wake quickly, or, with false, lets them sleep as deep as the kernel likes.
func (c *CPULatency) Hold(hold bool) error {
	if c.held == hold {
		return nil
	}
	micro := int32(anyIdle)
	if hold {
		micro = c.micro
	}
	if _, err := c.file.Write(binary.NativeEndian.AppendUint32(nil, uint32(micro))); err != nil {
		return fmt.Errorf("fastpath: CPU latency: %w", err)
	}
	c.held = hold
	return nil
}

// Held says whether the request stands.
func (c *CPULatency) Held() bool { return c.held }

// Close withdraws the request.
func (c *CPULatency) Close() error {
	c.held = false
	return c.file.Close()
}
