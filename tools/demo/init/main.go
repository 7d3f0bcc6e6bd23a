//go:build linux

package main

import (
	"errors"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// demo is the state of the one run.
type demo struct {
	out    *console
	params Params
	crew   *crew

	name    string // of the phase
	step    string // within it
	began   int64  // monotonic, ns
	printed int64  // when the step's progress was printed last
	percent int64  // what it said then
}

func main() {
	out := &console{w: os.Stdout}
	// Before anything else: the host measures the boot time at this line.
	out.event("init").print()

	runtime.LockOSThread()
	debug.SetGCPercent(-1)
	d := &demo{out: out}
	err := d.run(os.Getpid() == 1)
	if err != nil {
		out.say("FAIL in", d.name+":", err.Error())
		out.event("fail").str("phase", d.name).str("what", err.Error()).print()
	} else {
		out.say("all checks passed, powering off")
	}
	out.event("done").yes("ok", err == nil).print()
	powerOff()
}

// powerOff ends the machine: the file systems first, then the console's last bytes. Not as process 1,
// it ends this process alone.
func powerOff() {
	unix.Sync()
	_ = unix.IoctlSetInt(1, unix.TCSBRK, 1) // waits until the console has sent everything
	if os.Getpid() != 1 {
		return
	}
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	for { // process 1 must not return
		sleep(1e9)
	}
}

// run is the whole course. Not as process 1, on a machine that is there for more than this, it takes
// its parameters from the arguments.
func (d *demo) run(guest bool) error {
	d.name = "setup"
	cmdline := strings.Join(os.Args[1:], " ")
	if guest {
		if err := mountAll(); err != nil {
			return err
		}
		data, err := os.ReadFile("/proc/cmdline")
		if err != nil {
			return err
		}
		cmdline = string(data)
	} else if cmdline == "" {
		return errors.New("this is a virtual machine's init; elsewhere give parameters, such as ironspan.demo=pct:1")
	}
	var err error
	if d.params, err = parseParams(cmdline); err != nil {
		return err
	}

	d.name = "online"
	if guest {
		if err := d.switchOn("/sys"); err != nil {
			return err
		}
	}

	d.name = "topology"
	t, err := readTopology("")
	if err != nil {
		return err
	}
	d.describe(t)
	if err := t.check(d.params); err != nil {
		return err
	}

	if err := pinAll(t.cpus[0]); err != nil {
		return err
	}
	runtime.GOMAXPROCS(len(t.cpus) + 1) // every worker spins; this thread needs one too
	d.crew = newCrew(t.cpus)
	began := monotonic()
	ticks, err := readInterrupts("/proc/interrupts")
	if err != nil {
		return err
	}
	for _, phase := range []struct {
		name string
		run  func() error
	}{
		{"atomics", d.atomics}, {"messages", d.messages}, {"clock", d.clock}, {"interrupts", d.interrupts},
		{"litmus", d.litmus}, {"memory", d.memory},
	} {
		d.name, d.began = phase.name, monotonic()
		if err := phase.run(); err != nil {
			return err
		}
	}

	d.name = "timers"
	after, err := readInterrupts("/proc/interrupts")
	if err != nil {
		return err
	}
	timers := make([]int64, len(t.cpus))
	for i := range timers {
		timers[i] = column(after[timerRow], i) - column(ticks[timerRow], i)
		if timers[i] <= 0 {
			return errors.New("CPU " + strconv.Itoa(t.cpus[i]) + " had no timer interrupt")
		}
	}
	d.out.event("summary").num("cpus", int64(len(t.cpus))).num("nodes", int64(len(t.nodes))).
		seconds("seconds", monotonic()-began).nums("timers", timers).print()
	return nil
}

// describe prints what the kernel found.
func (d *demo) describe(t topology) {
	var uts unix.Utsname
	_ = unix.Uname(&uts)
	release := unix.ByteSliceToString(uts.Release[:])
	d.out.say("Linux", release, "with", strconv.Itoa(len(t.cpus)), "CPUs on", strconv.Itoa(len(t.nodes)), "nodes")
	for _, n := range t.nodes {
		cpus := make([]int64, len(n.cpus))
		for i, cpu := range n.cpus {
			cpus[i] = int64(cpu)
		}
		d.out.event("node").num("id", int64(n.id)).nums("cpus", cpus).num("total_kb", n.totalKB).num("free_kb", n.freeKB).print()
	}
	d.out.event("topology").str("kernel", release).num("cpus", int64(len(t.cpus))).num("nodes", int64(len(t.nodes))).print()
}

// phase starts the record that closes a phase.
func (d *demo) phase() *record {
	return d.out.event("phase").str("name", d.name).seconds("seconds", monotonic()-d.began)
}

func (d *demo) done(r *record) {
	r.print()
	d.out.say(d.name, "ok,", strconv.FormatFloat(float64(monotonic()-d.began)/1e9, 'f', 2, 64)+" s")
}

// together lets the whole crew do one step of the phase.
func (d *demo) together(step string, limit int64, task func(*worker) error) error {
	d.step, d.percent, d.printed = step, 0, monotonic()
	if err := d.crew.run(limit, task, d.tick); err != nil {
		return errors.New(step + ": " + err.Error())
	}
	return nil
}

// tick prints progress: on every tenth of a step, at most every 20 ms of guest time, and every two
// seconds anyway. (Two seconds of a guest whose clock is dilated are minutes.)
func (d *demo) tick(done, limit int64) {
	percent := 100 * done / max(limit, 1)
	since := monotonic() - d.printed
	if percent >= 100 || since < 20e6 || (percent/10 == d.percent/10 && since < 2e9) {
		return
	}
	d.percent, d.printed = percent, d.printed+since
	d.out.event("progress").str("phase", d.name).str("step", d.step).num("percent", percent).print()
}

func mountAll() error {
	for _, m := range []struct{ kind, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil && err != unix.EBUSY {
			return errors.New("mount " + m.at + ": " + err.Error())
		}
	}
	return nil
}
