package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"ironspan/tools/lab/internal/kernel"
	"ironspan/tools/lab/internal/lab"
	"ironspan/tools/lab/internal/qemu"
)

// mebibytes is a size: a number with M or G behind it; M if nothing is.
type mebibytes int

func (m *mebibytes) UnmarshalText(b []byte) error {
	s, unit := strings.TrimSuffix(strings.ToUpper(string(b)), "IB"), 1
	switch {
	case strings.HasSuffix(s, "G"):
		unit = 1024
		s = s[:len(s)-1]
	case strings.HasSuffix(s, "M"):
		s = s[:len(s)-1]
	}
	n, err := strconv.Atoi(s)
	if err != nil || n <= 0 || n > 1<<20 {
		return fmt.Errorf("%q is not a size: write 512M or 2G", b)
	}
	*m = mebibytes(n * unit)
	return nil
}

const (
	defaultVCPUs  = 2
	defaultMemory = mebibytes(2048)
)

// machineFlags say what servers are made of.
type machineFlags struct {
	ServerVcpus  int           `help:"vCPUs of each server (default: 2; for run, what the VM needs)."`
	ServerMemory mebibytes     `help:"Memory of each server (default: 2G; for run, what the VM needs)." placeholder:"SIZE"`
	LabKernel    string        `help:"Kernel of the servers: 6.1, 6.12 or newest." default:"6.12" env:"IRONSPAN_LAB_KERNEL"`
	Accel        qemu.Accel    `help:"How servers run: auto, tcg or kvm (needs nested virtualization)." default:"auto" enum:"auto,tcg,kvm"`
	Write        []string      `help:"Directory the servers may write, at the same path." placeholder:"DIR" sep:"none"`
	BootTimeout  time.Duration `help:"How long a server may take to come up." default:"3m"`
	ServerAppend string        `help:"Further words for the servers' kernel command line." placeholder:"WORDS"`
}

type upCmd struct {
	Servers int `help:"How many servers." default:"2" short:"s"`
	machineFlags
}

func (u *upCmd) Run(ctx context.Context, c *cli) error {
	d, err := c.dir()
	if err != nil {
		return err
	}
	begin := time.Now()
	cfg, err := u.config(ctx, u.Servers)
	if err != nil {
		return err
	}
	if _, err := lab.Start(ctx, d, cfg, progress(begin)); err != nil {
		return err
	}
	say(begin, "lab %s is up: %d servers, Linux %s, %s", c.Name, cfg.Servers, cfg.Release, cfg.Accel)
	return nil
}

// say writes a line of progress with the seconds since begin.
func say(begin time.Time, format string, args ...any) {
	fmt.Fprintf(os.Stderr, "[%6.1f s] %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, args...))
}

func progress(begin time.Time) func(int, string) {
	return func(server int, text string) {
		if server >= 0 {
			text = fmt.Sprintf("server %d: %s", server, text)
		}
		say(begin, "%s", text)
	}
}

// config completes the flags by what this machine has, fetching what it has not.
func (m *machineFlags) config(ctx context.Context, servers int) (*lab.Config, error) {
	track, err := kernel.FindTrack(m.LabKernel)
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	image, err := track.Get(ctx, func(format string, args ...any) { say(begin, format, args...) })
	if err != nil {
		return nil, err
	}
	own, _ := qemu.Installed(ctx) // the lab gets one where there is none
	accel := m.Accel
	if ok, why := qemu.NestedKVM(); accel == qemu.Auto {
		accel = qemu.TCG
		if ok {
			accel = qemu.KVM
		}
	} else if accel == qemu.KVM && !ok {
		return nil, fmt.Errorf("lab: --accel kvm: %s", why)
	}
	if m.ServerVcpus == 0 {
		m.ServerVcpus = defaultVCPUs
	}
	if m.ServerMemory == 0 {
		m.ServerMemory = defaultMemory
	}
	cfg := &lab.Config{
		Servers: servers, VCPUs: m.ServerVcpus, MemoryMiB: int(m.ServerMemory), Accel: accel, QEMU: own,
		Kernel: image.Path, Modules: image.Modules, Release: image.Release, Append: m.ServerAppend,
		Timeout: m.BootTimeout,
	}
	for _, w := range m.Write {
		abs, err := filepath.Abs(w)
		if err != nil {
			return nil, err
		}
		if st, err := os.Stat(abs); err != nil {
			return nil, fmt.Errorf("lab: --write: %w", err)
		} else if !st.IsDir() {
			return nil, fmt.Errorf("lab: --write: %s is not a directory", abs)
		}
		cfg.Writable = append(cfg.Writable, abs)
	}
	if wd, err := os.Getwd(); err == nil {
		cfg.Visible = append(cfg.Visible, wd)
	}
	return cfg, nil
}
