package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"ironspan/engine/control"
	"ironspan/fastpath/uffd"
	"ironspan/kvmhost"
	"ironspan/verbs"
)

// hostInfo probes this server.
func hostInfo(ctx context.Context) (*control.Info, error) {
	i := &control.Info{CPUs: cpus()}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err == nil {
		i.Kernel = unix.ByteSliceToString(uts.Release[:])
	}
	i.Memory, i.Free = memory()
	i.HostID = hostID()

	if s, err := kvmhost.Probe(); err != nil {
		i.KVM.Detail = err.Error()
	} else {
		i.KVM = control.Probe{OK: true, Detail: fmt.Sprintf("up to %d vcpus, tsc at %d kHz", s.MaxVCPUs, s.TSCKHz)}
		i.TSCKHz = s.TSCKHz
		set, err := kvmhost.HostCPUID()
		if err != nil {
			return nil, err
		}
		if i.CPUID, err = json.Marshal(set); err != nil {
			return nil, fmt.Errorf("engine: cpuid: %w", err)
		}
	}
	if s, err := uffd.Probe(); err != nil {
		i.Uffd.Detail = err.Error()
	} else {
		i.Uffd = control.Probe{OK: true, Detail: "missing, minor and write-protect faults on shared memory"}
		if !s.ContinueWP {
			i.Uffd.Detail += "; before linux 6.4, so a home's reads ask to write"
		}
	}
	i.Devices = rdmaDevices()
	return i, ctx.Err()
}

// rdmaDevices describes the RDMA ports of this server; none is no error.
func rdmaDevices() []control.Device {
	links, err := verbs.Links()
	if err != nil {
		return nil
	}
	var all []control.Device
	for _, l := range links {
		d := control.Device{Name: l.Device, Netdev: l.Netdev, State: l.State, Usable: l.Up, MTU: l.PathMTU.Bytes()}
		if !l.Up {
			d.Detail = "the network device is down: ip link set " + l.Netdev + " up"
		}
		all = append(all, d)
	}
	return all
}

// cpus is the number of CPUs this process may run on.
func cpus() int {
	var set unix.CPUSet
	if unix.SchedGetaffinity(0, &set) == nil {
		return set.Count()
	}
	return runtime.NumCPU()
}

// memory returns the server's RAM and what of it a VM could have, in bytes; zeros if it cannot be told.
func memory() (total, free uint64) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, 0
	}
	for line := range bytes.Lines(b) {
		var kib uint64
		switch {
		case scan(line, "MemTotal: %d kB", &kib):
			total = kib << 10
		case scan(line, "MemAvailable: %d kB", &kib):
			free = kib << 10
		}
	}
	return total, free
}

func scan(line []byte, format string, v *uint64) bool {
	n, err := fmt.Sscanf(string(line), format, v)
	return err == nil && n == 1
}

// hostID names this boot of this kernel: processes with the same one can share memory.
func hostID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
