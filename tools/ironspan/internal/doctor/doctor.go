// Package doctor looks a server over before Ironspan runs on it: every [Check] says whether one thing is ok, and
// if not, how to mend it.
//
// Checks are functions of a [System], which is a file system (the host's root, or a made-up one in tests) and a
// few probes.
package doctor

import (
	"fmt"
	"io/fs"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Status is how a check turned out.
type Status string

// The statuses, from good to bad.
const (
	OK      Status = "ok"
	Warning Status = "warning" // works, but slower, or not everything
	Broken  Status = "broken"  // this server cannot be a node
)

// Result is what a check found.
type Result struct {
	ID     string `json:"id"`
	Title  string `json:"title"`
	Status Status `json:"status"`
	Detail string `json:"detail"`
	Mend   string `json:"mend,omitempty"` // what to do about it
}

// Link is an RDMA port and what carries it.
type Link struct {
	Device, Netdev, State string
	Up                    bool
	NetMTU                int // the netdev's, bytes
	PathMTU               int // bytes of payload in a packet
	Addrs                 []netip.Prefix
}

// System is the server that is looked over.
type System struct {
	FS       fs.FS  // its root
	Release  string // kernel release, as uname -r has it
	CPUs     int    // that this process may run on
	Memlock  uint64 // RLIMIT_MEMLOCK in bytes, ^0 if there is none
	IPCLock  bool   // whether CAP_IPC_LOCK makes the limit moot
	KVM      func() (detail string, err error)
	Uffd     func() (continueWP bool, err error)
	RDMA     func() ([]Link, error)
	RDMALack func(error) bool // whether RDMA's error only says that there is no device
}

// Check is one thing to look at.
type Check struct {
	ID, Title string
	Look      func(*System) Result
}

// Checks returns all checks in the order in which they are worth reading.
func Checks() []Check {
	return []Check{
		{"kernel", "kernel version", checkKernel},
		{"kvm", "KVM", checkKVM},
		{"userfaultfd", "userfaultfd", checkUffd},
		{"rdma", "RDMA device", checkRDMA},
		{"rdma-mtu", "RDMA MTU", checkRDMAMTU},
		{"memlock", "locked memory", checkMemlock},
		{"page-walk", "page-table walks", checkPageWalk},
		{"tsc", "time-stamp counter", checkTSC},
		{"wake-up", "idle cores", checkWakeup},
		{"cpus", "CPUs", checkCPUs},
		{"memory", "free memory", checkMemory},
		{"hugepages", "huge pages", checkHugepages},
		{"ksm", "same-page merging", checkKSM},
		{"swap", "swap", checkSwap},
	}
}

// Examine makes all checks.
func Examine(s *System) []Result {
	var all []Result
	for _, c := range Checks() {
		r := c.Look(s)
		r.ID, r.Title = c.ID, c.Title
		all = append(all, r)
	}
	return all
}

// Worst returns the worst status of the results.
func Worst(rs []Result) Status {
	w := OK
	for _, r := range rs {
		if r.Status == Broken || r.Status == Warning && w == OK {
			w = r.Status
		}
	}
	return w
}

func ok(format string, args ...any) Result {
	return Result{Status: OK, Detail: fmt.Sprintf(format, args...)}
}

func warn(mend, format string, args ...any) Result {
	return Result{Status: Warning, Detail: fmt.Sprintf(format, args...), Mend: mend}
}

func broken(mend, format string, args ...any) Result {
	return Result{Status: Broken, Detail: fmt.Sprintf(format, args...), Mend: mend}
}

// read returns a small file's text, trimmed, or "" if it cannot be read.
func (s *System) read(name string) string {
	b, err := fs.ReadFile(s.FS, name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func (s *System) exists(name string) bool {
	_, err := fs.Stat(s.FS, name)
	return err == nil
}

// meminfo returns a line of /proc/meminfo, in bytes or, for counts, as it stands.
func (s *System) meminfo(key string) (uint64, bool) {
	for line := range strings.Lines(s.read("proc/meminfo")) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != key+":" {
			continue
		}
		n, err := strconv.ParseUint(f[1], 10, 64)
		if err != nil {
			return 0, false
		}
		if len(f) > 2 && f[2] == "kB" {
			n <<= 10
		}
		return n, true
	}
	return 0, false
}

// cpuFlags returns the flags of the first CPU.
func (s *System) cpuFlags() []string {
	for line := range strings.Lines(s.read("proc/cpuinfo")) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "flags" {
			return strings.Fields(v)
		}
	}
	return nil
}

// parseRelease returns major and minor of a kernel release.
func parseRelease(r string) (major, minor int, ok bool) {
	a, rest, ok := strings.Cut(r, ".")
	if !ok {
		return 0, 0, false
	}
	end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if end >= 0 {
		rest = rest[:end]
	}
	major, err1 := strconv.Atoi(a)
	minor, err2 := strconv.Atoi(rest)
	return major, minor, err1 == nil && err2 == nil
}

func checkKernel(s *System) Result {
	const mend = "install a kernel from 6.1 on, such as Debian 12's"
	major, minor, known := parseRelease(s.Release)
	if !known {
		return warn(mend, "kernel %q has no version that is understood", s.Release)
	}
	at := func(a, b int) bool { return major > a || major == a && minor >= b }
	switch {
	case !at(5, 19):
		return broken(mend, "kernel %s lacks write-protection of shared memory by userfaultfd (5.19)", s.Release)
	case !at(6, 1):
		return warn(mend, "kernel %s should do, but Ironspan is tested from 6.1 on", s.Release)
	}
	return ok("%s", s.Release)
}

func checkKVM(s *System) Result {
	detail, err := s.KVM()
	if err != nil {
		return broken("see the reason; typically modprobe kvm_intel or kvm_amd, nested virtualisation switched on where this "+
			"is a VM, and the user in group kvm", "%s", err)
	}
	flags := s.cpuFlags()
	virtual := slices.Contains(flags, "hypervisor")
	hw := slices.Contains(flags, "vmx") || slices.Contains(flags, "svm")
	switch {
	case !hw:
		return warn("use a machine with VMX or SVM, or a VM with nesting, for guests with a kernel of their own",
			"KVM works here without hardware virtualisation: a guest's kernel is emulated and boots very slowly (%s)", detail)
	case virtual:
		return ok("nested: this machine is a VM itself, exits cost several times more (%s)", detail)
	}
	return ok("%s", detail)
}

func checkUffd(s *System) Result {
	cont, err := s.Uffd()
	switch {
	case err != nil:
		return broken("allow it: run as root, or chmod /dev/userfaultfd, or sysctl vm.unprivileged_userfaultfd=1; needs CONFIG_USERFAULTFD", "%s", err)
	case !cont:
		return ok("missing, minor and write-protect faults; before Linux 6.4, so a home's own reads take pages for writing")
	}
	return ok("missing, minor and write-protect faults, continue write-protected")
}

const (
	fixMend = "`ironspan doctor --fix` loads rdma_rxe and makes a soft-RoCE device on a network device"
)

// links returns the RDMA ports; none is no error.
func (s *System) links() ([]Link, error) {
	links, err := s.RDMA()
	if err != nil && s.RDMALack != nil && s.RDMALack(err) {
		return nil, nil
	}
	return links, err
}

func checkRDMA(s *System) Result {
	links, err := s.links()
	if err != nil {
		return warn(fixMend, "%s", err)
	}
	if len(links) == 0 {
		return warn(fixMend, "none: only nodes of one host (`ironspan run --local`, fabric: shm) can be joined")
	}
	var up, down []string
	for _, l := range links {
		on := l.Device
		if l.Netdev != "" {
			on += " on " + l.Netdev
		}
		if l.Up {
			up = append(up, on)
		} else {
			down = append(down, fmt.Sprintf("%s is %s", on, l.State))
		}
	}
	if len(up) == 0 {
		mend := "bring the link up"
		if links[0].Netdev != "" {
			mend = "ip link set " + links[0].Netdev + " up"
		}
		return warn(mend, "%s", strings.Join(down, ", "))
	}
	if len(links) > 0 && !hasAddr(links) {
		return warn("give the network device an address: ip addr add ADDRESS/24 dev "+links[0].Netdev,
			"%s without an IP address: there is no RoCE v2 GID", strings.Join(up, ", "))
	}
	return ok("%s", strings.Join(append(up, down...), ", "))
}

func hasAddr(links []Link) bool {
	return slices.ContainsFunc(links, func(l Link) bool { return l.Up && (len(l.Addrs) > 0 || l.Netdev == "") })
}

func checkRDMAMTU(s *System) Result {
	links, err := s.links()
	if err != nil || len(links) == 0 {
		return ok("no RDMA device")
	}
	var slow, fine []string
	mend := ""
	for _, l := range links {
		if !l.Up {
			continue
		}
		if l.PathMTU > 0 && l.PathMTU < 4096 {
			slow = append(slow, fmt.Sprintf("%s moves %d bytes in a packet: a page takes %d", l.Device, l.PathMTU, (4096+l.PathMTU-1)/l.PathMTU))
			if mend == "" && l.Netdev != "" {
				mend = fmt.Sprintf("ip link set %s mtu 9000, on every server and switch between them (now %d)", l.Netdev, l.NetMTU)
			}
			continue
		}
		fine = append(fine, fmt.Sprintf("%s %d", l.Device, l.PathMTU))
	}
	if len(slow) > 0 {
		return warn(mend, "%s", strings.Join(slow, ", "))
	}
	if len(fine) == 0 {
		return ok("no RDMA device is up")
	}
	return ok("%s", strings.Join(fine, ", "))
}

func checkMemlock(s *System) Result {
	const most = ^uint64(0)
	total, _ := s.meminfo("MemTotal")
	switch {
	case s.Memlock == most || s.IPCLock:
		return ok("no limit")
	case total > 0 && s.Memlock >= total:
		return ok("limit %d MiB", s.Memlock>>20)
	}
	return warn("ulimit -l unlimited in the daemon's service (LimitMEMLOCK=infinity), or in /etc/security/limits.conf",
		"at most %d MiB may be locked: a node's whole RAM is registered with the RDMA device", s.Memlock>>20)
}

func checkPageWalk(s *System) Result {
	switch eptad := s.read("sys/module/kvm_intel/parameters/eptad"); {
	case eptad == "Y" || eptad == "1":
		return warn("modprobe -r kvm_intel && modprobe kvm_intel eptad=0, for good: echo 'options kvm_intel eptad=0' > /etc/modprobe.d/ironspan.conf",
			"kvm_intel writes accessed and dirty bits (eptad): a walk of the guest's page tables counts as a write, and they move between nodes")
	case eptad != "":
		return ok("kvm_intel with eptad=0: walks of the guest's page tables are reads")
	}
	switch npt := s.read("sys/module/kvm_amd/parameters/npt"); {
	case npt == "Y" || npt == "1":
		return warn("modprobe -r kvm_amd && modprobe kvm_amd npt=0, for good: echo 'options kvm_amd npt=0' > /etc/modprobe.d/ironspan.conf",
			"kvm_amd with nested paging (npt): a walk of the guest's page tables counts as a write, and they move between nodes; "+
				"with shadow paging each node has its copies, and VMs on several servers gain more than one on a single server loses")
	case npt != "":
		return ok("kvm_amd with npt=0: walks of the guest's page tables are reads")
	}
	return ok("neither kvm_intel nor kvm_amd is loaded")
}

func checkWakeup(s *System) Result {
	const idle = "sys/devices/system/cpu/cpuidle/current_driver"
	driver := s.read(idle)
	switch {
	case driver == "" || driver == "none":
		return ok("they halt, there is no deeper sleep")
	case !s.exists("dev/cpu_dma_latency"):
		return warn("give the daemon /dev/cpu_dma_latency (a container has to be given it), or boot with processor.max_cstate=1 intel_idle.max_cstate=1",
			"nothing keeps them from deep sleep (%s), and faults wait for cores to wake", driver)
	}
	return ok("%s; kept from deep sleep while pages move", driver)
}

func checkTSC(s *System) Result {
	flags := s.cpuFlags()
	if !slices.Contains(flags, "constant_tsc") || !slices.Contains(flags, "nonstop_tsc") {
		return warn("where this is a VM, give it an invariant TSC (in QEMU: -cpu host,+invtsc)",
			"the CPU does not promise a TSC that runs at a constant rate and never stops: guests of several nodes may see time differ")
	}
	source := s.read("sys/devices/system/clocksource/clocksource0/current_clocksource")
	if source != "" && source != "tsc" {
		return warn("boot with clocksource=tsc tsc=reliable once you know that the TSC is good",
			"the host keeps time by %s, not by the TSC: it may have found the TSC unreliable", source)
	}
	return ok("invariant, and the host's clock source")
}

func checkCPUs(s *System) Result {
	if s.CPUs < 2 {
		return warn("use a machine with more", "%d CPU for vCPUs, shards and the rest together", s.CPUs)
	}
	return ok("%d", s.CPUs)
}

func checkMemory(s *System) Result {
	free, known := s.meminfo("MemAvailable")
	switch {
	case !known:
		return warn("is /proc mounted?", "/proc/meminfo does not say")
	case free < 256<<20:
		return broken("free some, or use a bigger machine", "%d MiB available: not enough for any node", free>>20)
	case free < 1<<30:
		return warn("free some, or give this node less", "%d MiB available", free>>20)
	}
	return ok("%d MiB available", free>>20)
}

func checkHugepages(s *System) Result {
	total, _ := s.meminfo("MemTotal")
	n, _ := s.meminfo("HugePages_Total")
	unused, _ := s.meminfo("HugePages_Free")
	size, _ := s.meminfo("Hugepagesize")
	if total > 0 && unused*size > total/2 {
		return warn("sysctl vm.nr_hugepages=0", "%d MiB are set aside for huge pages, which guest RAM does not use", unused*size>>20)
	}
	thp := selected(s.read("sys/kernel/mm/transparent_hugepage/shmem_enabled"))
	if thp == "always" || thp == "force" {
		return ok("%d reserved; shared memory in huge pages is %s, which guest RAM opts out of", n, thp)
	}
	return ok("%d reserved", n)
}

// selected returns the bracketed word of a choice like "always [never]".
func selected(s string) string {
	_, rest, _ := strings.Cut(s, "[")
	word, _, _ := strings.Cut(rest, "]")
	return word
}

func checkKSM(s *System) Result {
	if s.read("sys/kernel/mm/ksm/run") == "1" {
		return warn("echo 0 > /sys/kernel/mm/ksm/run", "ksm is on: it costs CPU time and latency, and leaves guest RAM alone")
	}
	return ok("off")
}

func checkSwap(s *System) Result {
	n, known := s.meminfo("SwapTotal")
	if known && n > 0 {
		return warn("swapoff -a, and take swap out of /etc/fstab", "%d MiB of swap: a guest page that is swapped out costs milliseconds", n>>20)
	}
	return ok("none")
}

// Netdevs returns the network devices that a soft-RoCE device can be made on: ethernet, up, and without one yet.
func (s *System) Netdevs() []string {
	entries, err := fs.ReadDir(s.FS, "sys/class/net")
	if err != nil {
		return nil
	}
	taken := map[string]bool{}
	if links, err := s.links(); err == nil {
		for _, l := range links {
			taken[l.Netdev] = true
		}
	}
	var names []string
	for _, e := range entries {
		dir := path.Join("sys/class/net", e.Name())
		state := s.read(path.Join(dir, "operstate"))
		const ethernet = "1"
		if s.read(path.Join(dir, "type")) != ethernet || state != "up" && state != "unknown" || taken[e.Name()] {
			continue
		}
		names = append(names, e.Name())
	}
	return names
}

// RxeName returns a name for a soft-RoCE device that no device has.
func (s *System) RxeName() string {
	for i := 0; ; i++ {
		name := fmt.Sprintf("rxe%d", i)
		if !s.exists(path.Join("sys/class/infiniband", name)) {
			return name
		}
	}
}
