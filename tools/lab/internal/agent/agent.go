// Package agent is the init of a lab server: it loads the modules its initramfs brought along, shows the
// host's files as its own root, brings up the wire and rxe on it, and runs commands for the host.
package agent

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/yamux"
	"golang.org/x/sys/unix"

	"ironspan/tools/lab/internal/remote"
)

const (
	// Path is where the kernel finds this program in the initramfs.
	Path = "/init"
	// ModuleDir holds the modules, in the order of their names.
	ModuleDir = "/modules"
	// HostView is where a server shows all of the host's files, uncached.
	HostView = "/host"
)

// IsInit says whether this process is the init of a lab server, or its child.
func IsInit() bool {
	return len(os.Args) > 0 && os.Args[0] == Path && (os.Getpid() == 1 || os.Getppid() == 1)
}

// Main never returns.
func Main() {
	if os.Getpid() == 1 {
		reap()
	}
	fmt.Printf("lab: agent: %v\n", (&agent{}).main())
	os.Exit(1)
}

// reap starts the agent and then only collects the orphans of the commands. The agent's end is the
// server's.
func reap() {
	fmt.Println("lab: init")
	if err := mountKernelFS("/"); err != nil {
		fmt.Printf("lab: init: %v\n", err)
	}
	cmd := &exec.Cmd{Path: Path, Args: []string{Path}, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	if err := cmd.Start(); err != nil {
		fmt.Printf("lab: init: %v\n", err)
		off()
	}
	for {
		pid, err := syscall.Wait4(-1, nil, 0, nil)
		if pid == cmd.Process.Pid || (err != nil && err != syscall.EINTR) {
			fmt.Println("lab: the agent ended; powering off")
			off()
		}
	}
}

func off() {
	unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART) // with QEMU's -no-reboot the fastest way out
	for {
		time.Sleep(time.Hour)
	}
}

type agent struct {
	mu sync.Mutex // guards config
	// config is written once by setup.
	config *remote.Setup

	programs stage
}

// main serves until something breaks, and says what.
func (a *agent) main() error {
	if err := loadModules(); err != nil {
		return err
	}
	port, err := openPort()
	if err != nil {
		return err
	}
	session, err := yamux.Server(port, remote.Config())
	if err != nil {
		return err
	}
	fmt.Println("lab: agent ready")
	for {
		s, err := session.Accept()
		if err != nil {
			return fmt.Errorf("the host went away: %w", err)
		}
		go a.serve(s)
	}
}

// needs names the CPU flag without which a module is not even tried.
var needs = map[string]string{"kvm_amd": "svm", "kvm_intel": "vmx"}

// parameters of modules. With eptad a guest's page-table walk is a write to its page tables, so that servers
// which share them would take them from each other all the time.
var parameters = map[string]string{"kvm_intel": "eptad=0"}

// loadModules loads the initramfs's modules in the order of their names. What is really missed shows in
// setup.
func loadModules() error {
	cpu, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return err
	}
	names, err := filepath.Glob(filepath.Join(ModuleDir, "*"))
	if err != nil {
		return err
	}
	sort.Strings(names)
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	for _, name := range names {
		_, module, _ := strings.Cut(filepath.Base(name), "-")
		if flag := needs[module]; flag != "" && !strings.Contains(string(cpu), " "+flag+" ") {
			continue
		}
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		if err := unix.FinitModule(int(f.Fd()), moduleParameters(module, string(cmdline)), 0); err != nil && err != unix.EEXIST {
			fmt.Printf("lab: module %s: %v\n", filepath.Base(name), err)
		}
		f.Close()
		os.Remove(name) // its memory is the server's
	}
	return nil
}

// moduleParameters are those of parameters and then, as modprobe has it, those that the kernel's command line gives as
// MODULE.NAME=VALUE.
func moduleParameters(module, cmdline string) string {
	given := strings.Fields(parameters[module])
	for _, word := range strings.Fields(cmdline) {
		if owner, parameter, found := strings.Cut(word, "."); found && strings.ReplaceAll(owner, "-", "_") == module {
			given = append(given, parameter)
		}
	}
	return strings.Join(given, " ")
}

// openPort finds the virtio-serial port by its name.
func openPort() (*os.File, error) {
	deadline := time.Now().Add(30 * time.Second)
	for {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, n := range names {
			b, err := os.ReadFile(n)
			if err == nil && strings.TrimSpace(string(b)) == remote.PortName {
				dev := filepath.Base(filepath.Dir(n))
				return os.OpenFile("/dev/"+dev, os.O_RDWR, 0)
			}
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("no virtio-serial port named %s", remote.PortName)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (a *agent) environment() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp", "IRONSPAN_LAB=1"}
	if c := a.config; c != nil {
		env = append(env,
			fmt.Sprintf("IRONSPAN_LAB_SERVER=%d", c.Server),
			fmt.Sprintf("IRONSPAN_LAB_SERVERS=%d", c.Servers),
			"IRONSPAN_LAB_PEERS="+strings.Join(c.Peers, ","))
	}
	return env
}
