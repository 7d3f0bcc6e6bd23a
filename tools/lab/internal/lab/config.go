package lab

import (
	"context"
	"fmt"
	"strings"
	"time"

	"ironspan/tools/lab/internal/agent"
	"ironspan/tools/lab/internal/qemu"
)

// ShareMount is where a server sees the lab's writable share.
const ShareMount = "/lab"

// HostMount is where a server sees all files of the host, read-only.
const HostMount = agent.HostView

const (
	// MTU of the wire: a page and its headers in one frame, so that rxe takes its largest MTU.
	MTU = 9000
	// MaxServers is what the address plan holds.
	MaxServers = 64
)

// Config is what a lab is made of. Start completes it: the supervisor looks nothing up.
type Config struct {
	Servers   int           `json:"servers"`
	VCPUs     int           `json:"vcpus"`
	MemoryMiB int           `json:"memory_mib"`
	Accel     qemu.Accel    `json:"accel"`
	QEMU      qemu.QEMU     `json:"qemu"`    // this machine's own, if any; after Start, the one chosen
	Kernel    string        `json:"kernel"`  // vmlinuz
	Modules   string        `json:"modules"` // lib/modules/<release>
	Release   string        `json:"release"`
	Append    string        `json:"append"`
	Writable  []string      `json:"writable"` // host directories the servers may write, at the same path
	Visible   []string      `json:"visible"`  // host directories shown even if below /tmp or /run
	Timeout   time.Duration `json:"timeout"`  // for a server to come up
	Tether    bool          `json:"tether"`   // the lab ends with the process that started it
}

func (c *Config) validate() error {
	switch {
	case c.Servers < 1 || c.Servers > MaxServers:
		return fmt.Errorf("lab: servers %d: from 1 to %d", c.Servers, MaxServers)
	case c.VCPUs < 1:
		return fmt.Errorf("lab: a server needs at least one vCPU")
	case c.MemoryMiB < 256:
		return fmt.Errorf("lab: a server needs at least 256M of memory")
	}
	return nil
}

// complete chooses the QEMU, and has the servers' KVM page as it allows.
func (c *Config) complete(ctx context.Context, say func(format string, args ...any)) (err error) {
	if c.QEMU, err = qemu.Choose(ctx, c.Accel, c.QEMU, say); err != nil {
		return err
	}
	say("servers run in %v", c.QEMU)
	c.Append = withPaging(c.Append, c.Accel == qemu.TCG && c.QEMU.ShadowPaging())
	return nil
}

// withPaging adds to a server's kernel command line that its KVM shall use shadow paging, if it can and nothing else
// is said there: with nested paging every page-table walk of a guest would be a write to its page tables.
func withPaging(words string, shadow bool) string {
	const npt = "kvm_amd.npt="
	for _, w := range strings.Fields(words) {
		if strings.HasPrefix(strings.ReplaceAll(w, "-", "_"), npt) {
			return words
		}
	}
	if !shadow {
		return words
	}
	return strings.TrimSpace(words + " " + npt + "0")
}

// Host is the name of server n.
func Host(n int) string { return fmt.Sprintf("lab%d", n) }

// Addr is the wire address of server n.
func Addr(n int) string { return fmt.Sprintf("10.77.0.%d", n+1) }

func mac(n int) string { return fmt.Sprintf("52:54:00:77:00:%02x", n+1) }

// parseStartTime takes field 22 of /proc/PID/stat; the command's name, in parentheses, may hold anything.
func parseStartTime(stat string) string {
	i := strings.LastIndexByte(stat, ')')
	if i < 0 {
		return ""
	}
	f := strings.Fields(stat[i+1:])
	if len(f) < 20 || f[0] == "Z" || f[0] == "X" {
		return ""
	}
	return f[19]
}
