package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"

	"ironspan/fastpath/uffd"
	"ironspan/kvmhost"
	"ironspan/tools/ironspan/internal/doctor"
	"ironspan/verbs"
)

type doctorCmd struct {
	JSON   bool   `help:"Write JSON."`
	Fix    bool   `help:"Load rdma_rxe and make a soft-RoCE device if there is no RDMA device. Needs root."`
	Netdev string `placeholder:"NAME" help:"With --fix: the network device to make it on, if there are several."`
}

func (doctorCmd) Help() string {
	return `Every line is ok, a warning (it works, but slower or not everything), or broken, and what is not ok
comes with what to do about it.

Exit status: 0 all ok, 1 warnings, 2 something is broken.`
}

// examined is what doctor --json writes.
type examined struct {
	Status doctor.Status   `json:"status"`
	Checks []doctor.Result `json:"checks"`
	Fixed  string          `json:"fixed,omitempty"`
}

func (d *doctorCmd) Run(con *console) error {
	if d.Netdev != "" && !d.Fix {
		return fail(exitUsage, "--netdev goes with --fix")
	}
	s := thisSystem()
	var out examined
	if d.Fix {
		did, err := fixRDMA(s, d.Netdev)
		if err != nil {
			return fmt.Errorf("doctor --fix: %w", err)
		}
		out.Fixed = did
	}
	out.Checks = doctor.Examine(s)
	out.Status = doctor.Worst(out.Checks)
	if d.JSON {
		enc := json.NewEncoder(con.out)
		enc.SetIndent("", "  ")
		if err := enc.Encode(out); err != nil {
			return err
		}
	} else {
		printResults(con.out, out)
	}
	switch out.Status {
	case doctor.Warning:
		return &exitError{status: 1}
	case doctor.Broken:
		return &exitError{status: 2}
	}
	return nil
}

func printResults(w io.Writer, out examined) {
	if out.Fixed != "" {
		fmt.Fprintf(w, "fixed: %s\n", out.Fixed)
	}
	width := 0
	for _, r := range out.Checks {
		width = max(width, len(r.Title))
	}
	for _, r := range out.Checks {
		fmt.Fprintf(w, "%-7s  %-*s  %s\n", r.Status, width, r.Title, r.Detail)
		if r.Mend != "" {
			fmt.Fprintf(w, "%-7s  %-*s  -> %s\n", "", width, "", r.Mend)
		}
	}
}

// thisSystem is the machine this runs on.
func thisSystem() *doctor.System {
	s := &doctor.System{
		FS: os.DirFS("/"),
		KVM: func() (string, error) {
			sup, err := kvmhost.Probe()
			if err != nil {
				return "", err
			}
			return fmt.Sprintf("up to %d vCPUs, TSC at %d kHz", sup.MaxVCPUs, sup.TSCKHz), nil
		},
		Uffd: func() (bool, error) {
			sup, err := uffd.Probe()
			return sup.ContinueWP, err
		},
		RDMA:     rdmaLinks,
		RDMALack: func(err error) bool { return errors.Is(err, verbs.ErrNoDevice) },
	}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		s.Release = unix.ByteSliceToString(uts.Release[:])
	}
	var set unix.CPUSet
	if unix.SchedGetaffinity(0, &set) == nil {
		s.CPUs = set.Count()
	}
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_MEMLOCK, &lim) == nil {
		s.Memlock = lim.Cur
	}
	s.IPCLock = hasCapability(unix.CAP_IPC_LOCK)
	return s
}

// hasCapability reports whether a capability is effective in this process.
func hasCapability(c uint) bool {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		var caps uint64
		if n, err := fmt.Sscanf(line, "CapEff: %x", &caps); err == nil && n == 1 {
			return caps>>c&1 == 1
		}
	}
	return false
}

func rdmaLinks() ([]doctor.Link, error) {
	links, err := verbs.Links()
	if err != nil {
		return nil, err
	}
	var all []doctor.Link
	for _, l := range links {
		all = append(all, doctor.Link{
			Device: l.Device, Netdev: l.Netdev, State: l.State, Up: l.Up, NetMTU: l.MTU, PathMTU: l.PathMTU.Bytes(), Addrs: l.Addrs,
		})
	}
	return all, nil
}

// fixRDMA makes a soft-RoCE device unless there is an RDMA device, and says what it did.
func fixRDMA(s *doctor.System, netdev string) (string, error) {
	if links, err := s.RDMA(); err == nil && len(links) > 0 && netdev == "" {
		return fmt.Sprintf("nothing: there is an RDMA device, %s", links[0].Device), nil
	}
	devs := s.Netdevs()
	switch {
	case netdev != "":
	case len(devs) == 0:
		return "", errors.New("no ethernet device is up to make a soft-RoCE device on: bring one up, or name one with --netdev")
	case len(devs) > 1:
		return "", fmt.Errorf("several network devices are up (%s): name the one that leads to the other servers with --netdev", strings.Join(devs, ", "))
	default:
		netdev = devs[0]
	}
	// Where the kernel loads the module by itself this is not needed, and where it cannot be loaded, creating the
	// device fails and says so better.
	_ = exec.Command("modprobe", "rdma_rxe").Run()
	name := s.RxeName()
	if err := verbs.CreateRxe(name, netdev); err != nil {
		return "", err
	}
	return fmt.Sprintf("made the soft-RoCE device %s on %s", name, netdev), nil
}
