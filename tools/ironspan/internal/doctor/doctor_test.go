package doctor

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/fstest"
)

// healthy is a server with nothing to complain about.
func healthy() *System {
	return &System{
		FS: fstest.MapFS{
			"proc/meminfo": file("MemTotal: 16384000 kB\nMemAvailable: 8192000 kB\nSwapTotal: 0 kB\nHugePages_Total: 0\nHugePages_Free: 0\nHugepagesize: 2048 kB\n"),
			"proc/cpuinfo": file("processor : 0\nflags\t\t: fpu vmx constant_tsc nonstop_tsc\n"),
			"sys/devices/system/clocksource/clocksource0/current_clocksource": file("tsc\n"),
			"sys/module/kvm_intel/parameters/eptad":                           file("N\n"),
			"sys/kernel/mm/ksm/run":                                           file("0\n"),
			"sys/class/net/lo/type":                                           file("772\n"),
			"sys/class/net/lo/operstate":                                      file("unknown\n"),
			"sys/class/net/eth0/type":                                         file("1\n"),
			"sys/class/net/eth0/operstate":                                    file("up\n"),
			"sys/class/net/eth1/type":                                         file("1\n"),
			"sys/class/net/eth1/operstate":                                    file("down\n"),
		},
		Release: "6.12.95+deb12-amd64", CPUs: 8, Memlock: ^uint64(0),
		KVM:  func() (string, error) { return "up to 1024 vcpus", nil },
		Uffd: func() (bool, error) { return true, nil },
		RDMA: func() ([]Link, error) {
			return []Link{{Device: "rxe0", Netdev: "eth0", State: "up", Up: true, NetMTU: 9000, PathMTU: 4096,
				Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24")}}}, nil
		},
	}
}

func file(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }

func (s *System) set(name, text string) { s.FS.(fstest.MapFS)[name] = file(text) }

func TestHealthy(t *testing.T) {
	for _, r := range Examine(healthy()) {
		if r.Status != OK || r.Detail == "" || r.Mend != "" || r.ID == "" || r.Title == "" {
			t.Errorf("%+v", r)
		}
	}
	if w := Worst(Examine(healthy())); w != OK {
		t.Errorf("worst is %s", w)
	}
}

func TestChecks(t *testing.T) {
	none := errors.New("no device")
	tests := []struct {
		name, id string
		ill      func(*System)
		status   Status
		says     string // in detail or mend
	}{
		{"old kernel", "kernel", func(s *System) { s.Release = "5.10.0-9-amd64" }, Broken, "5.19"},
		{"untested kernel", "kernel", func(s *System) { s.Release = "6.0.0" }, Warning, "tested from 6.1"},
		{"next major", "kernel", func(s *System) { s.Release = "7.3.4" }, OK, "7.3.4"},
		{"odd kernel", "kernel", func(s *System) { s.Release = "mine" }, Warning, "understood"},
		{"no kvm", "kvm", func(s *System) { s.KVM = func() (string, error) { return "", errors.New("no /dev/kvm") } }, Broken, "no /dev/kvm"},
		{"emulated kvm", "kvm", func(s *System) { s.set("proc/cpuinfo", "flags : hypervisor constant_tsc nonstop_tsc") }, Warning, "emulated"},
		{"nested kvm", "kvm", func(s *System) { s.set("proc/cpuinfo", "flags : svm hypervisor") }, OK, "nested"},
		{"no uffd", "userfaultfd", func(s *System) { s.Uffd = func() (bool, error) { return false, errors.New("denied") } }, Broken, "denied"},
		{"old uffd", "userfaultfd", func(s *System) { s.Uffd = func() (bool, error) { return false, nil } }, OK, "6.4"},
		{"no rdma", "rdma", func(s *System) {
			s.RDMA = func() ([]Link, error) { return nil, none }
			s.RDMALack = func(err error) bool { return err == none }
		}, Warning, "doctor --fix"},
		{"rdma fails", "rdma", func(s *System) { s.RDMA = func() ([]Link, error) { return nil, errors.New("odd") } }, Warning, "odd"},
		{"rdma down", "rdma", func(s *System) {
			s.RDMA = func() ([]Link, error) { return []Link{{Device: "rxe0", Netdev: "eth1", State: "down"}}, nil }
		}, Warning, "ip link set eth1 up"},
		{"rdma without address", "rdma", func(s *System) {
			s.RDMA = func() ([]Link, error) { return []Link{{Device: "rxe0", Netdev: "eth1", Up: true}}, nil }
		}, Warning, "ip addr add"},
		{"small mtu", "rdma-mtu", func(s *System) {
			s.RDMA = func() ([]Link, error) {
				return []Link{{Device: "rxe0", Netdev: "eth0", Up: true, NetMTU: 1500, PathMTU: 1024}}, nil
			}
		}, Warning, "a page takes 4"},
		{"memlock", "memlock", func(s *System) { s.Memlock = 8 << 20 }, Warning, "8 MiB"},
		{"memlock with capability", "memlock", func(s *System) { s.Memlock, s.IPCLock = 8<<20, true }, OK, "no limit"},
		{"memlock beyond ram", "memlock", func(s *System) { s.Memlock = 64 << 30 }, OK, "limit"},
		{"eptad", "page-walk", func(s *System) { s.set("sys/module/kvm_intel/parameters/eptad", "Y") }, Warning, "eptad=0"},
		{"npt", "page-walk", func(s *System) {
			delete(s.FS.(fstest.MapFS), "sys/module/kvm_intel/parameters/eptad")
			s.set("sys/module/kvm_amd/parameters/npt", "Y")
		}, Warning, "npt=0"},
		{"no npt", "page-walk", func(s *System) {
			delete(s.FS.(fstest.MapFS), "sys/module/kvm_intel/parameters/eptad")
			s.set("sys/module/kvm_amd/parameters/npt", "N")
		}, OK, "reads"},
		{"tsc varies", "tsc", func(s *System) { s.set("proc/cpuinfo", "flags : vmx") }, Warning, "invtsc"},
		{"other clock", "tsc", func(s *System) {
			s.set("sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet\n")
		}, Warning, "hpet"},
		{"deep sleep", "wake-up", func(s *System) {
			s.set("sys/devices/system/cpu/cpuidle/current_driver", "intel_idle\n")
		}, Warning, "/dev/cpu_dma_latency"},
		{"light sleep", "wake-up", func(s *System) {
			s.set("sys/devices/system/cpu/cpuidle/current_driver", "intel_idle\n")
			s.set("dev/cpu_dma_latency", "")
		}, OK, "intel_idle"},
		{"one cpu", "cpus", func(s *System) { s.CPUs = 1 }, Warning, "1 CPU"},
		{"no memory", "memory", func(s *System) { s.set("proc/meminfo", "MemAvailable: 1000 kB") }, Broken, "not enough"},
		{"little memory", "memory", func(s *System) { s.set("proc/meminfo", "MemAvailable: 600000 kB") }, Warning, "585 MiB"},
		{"no proc", "memory", func(s *System) { delete(s.FS.(fstest.MapFS), "proc/meminfo") }, Warning, "/proc"},
		{"hoarded hugepages", "hugepages", func(s *System) {
			s.set("proc/meminfo", "MemTotal: 4096000 kB\nHugePages_Free: 1500\nHugepagesize: 2048 kB")
		}, Warning, "3000 MiB"},
		{"ksm", "ksm", func(s *System) { s.set("sys/kernel/mm/ksm/run", "1\n") }, Warning, "ksm/run"},
		{"swap", "swap", func(s *System) { s.set("proc/meminfo", "SwapTotal: 1048576 kB") }, Warning, "1024 MiB"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := healthy()
			tt.ill(s)
			for _, r := range Examine(s) {
				if r.ID != tt.id {
					continue
				}
				if r.Status != tt.status || !strings.Contains(r.Detail+" "+r.Mend, tt.says) {
					t.Errorf("got %+v, want %s and %q", r, tt.status, tt.says)
				}
				if (r.Status == OK) != (r.Mend == "") {
					t.Errorf("a mend goes with what is not ok: %+v", r)
				}
			}
		})
	}
}

func TestWorst(t *testing.T) {
	for _, tt := range []struct {
		in   []Status
		want Status
	}{
		{nil, OK}, {[]Status{OK, Warning}, Warning}, {[]Status{Broken, Warning, OK}, Broken}, {[]Status{Warning, Broken}, Broken},
	} {
		var rs []Result
		for _, s := range tt.in {
			rs = append(rs, Result{Status: s})
		}
		if got := Worst(rs); got != tt.want {
			t.Errorf("%v: %s", tt.in, got)
		}
	}
}

func TestNetdevs(t *testing.T) {
	s := healthy()
	s.RDMA = func() ([]Link, error) { return nil, nil }
	if got := s.Netdevs(); len(got) != 1 || got[0] != "eth0" {
		t.Errorf("netdevs %v: eth0 alone is ethernet and up", got)
	}
	if got := healthy().Netdevs(); len(got) != 0 {
		t.Errorf("netdevs %v: eth0 has a device already", got)
	}
	s.set("sys/class/infiniband/rxe0/node_guid", "x")
	if got := s.RxeName(); got != "rxe1" {
		t.Errorf("name %s", got)
	}
}
