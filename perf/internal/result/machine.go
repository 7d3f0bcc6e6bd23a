package result

import (
	"bufio"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ThisMachine describes the machine that the program runs on: cpu, cores, memory, kernel, platform (maker and model,
// which name the hypervisor of a virtual machine), hypervisor (yes, where the processor says that it is a virtual one),
// kvm (its vendor module and paging: nested or shadow), rdma (devices), go. What cannot be found out is left out.
func ThisMachine() map[string]string {
	m := map[string]string{"cores": strconv.Itoa(runtime.NumCPU()), "go": runtime.Version()}
	set := func(key, value string) {
		if value != "" {
			m[key] = value
		}
	}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		set("kernel", unix.ByteSliceToString(uts.Release[:]))
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		set("memory", strconv.FormatUint(info.Totalram*uint64(info.Unit)>>20, 10)+" MiB")
	}
	model, flags := processor()
	set("cpu", model)
	if strings.Contains(" "+flags+" ", " hypervisor ") {
		m["hypervisor"] = "yes"
	}
	set("platform", strings.TrimSpace(line("/sys/class/dmi/id/sys_vendor")+" "+line("/sys/class/dmi/id/product_name")))
	set("kvm", paging())
	set("rdma", devices())
	return m
}

// processor is the first one's model, and its flags.
func processor() (model, flags string) {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return "", ""
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() && (model == "" || flags == "") {
		name, value, _ := strings.Cut(lines.Text(), ":")
		switch strings.TrimSpace(name) {
		case "model name":
			model = strings.TrimSpace(value)
		case "flags":
			flags = strings.TrimSpace(value)
		}
	}
	return model, flags
}

// paging says how KVM translates a guest's addresses, as far as a module tells.
func paging() string {
	for _, vendor := range []struct{ module, parameter string }{{"kvm_amd", "npt"}, {"kvm_intel", "ept"}} {
		switch line("/sys/module/" + vendor.module + "/parameters/" + vendor.parameter) {
		case "Y", "1":
			return vendor.module + ", nested paging"
		case "N", "0":
			return vendor.module + ", shadow paging"
		}
	}
	if _, err := os.Stat("/dev/kvm"); err == nil {
		return "of another kind than kvm_amd and kvm_intel"
	}
	return ""
}

// devices are the RDMA devices with the rate of their first port.
func devices() string {
	ports, _ := filepath.Glob("/sys/class/infiniband/*/ports/1") // the pattern is good
	for i, port := range ports {
		device := filepath.Base(filepath.Dir(filepath.Dir(port)))
		ports[i] = strings.TrimSpace(device + " " + line(filepath.Join(port, "rate")))
	}
	return strings.Join(ports, "; ")
}

// line is what a file of one line says; nothing if it cannot be read.
func line(file string) string {
	data, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}
