// Command testinit is the init of the guests that kvmhost's tests boot. It checks processors, timers and
// inter-processor interrupts, says what it found on the console, and powers the guest off.
//
// Its last line is "testinit: ok", or "testinit: failed: " with the reason.
package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	start := time.Now()
	fmt.Printf("testinit: up at %s s of the kernel's clock\n", uptime())
	if err := check(); err != nil {
		fmt.Printf("testinit: failed: %v\n", err)
	} else {
		fmt.Printf("testinit: ok after %v\n", time.Since(start).Round(time.Millisecond))
	}
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Printf("testinit: power off: %v\n", err)
	}
	select {}
}

func check() error {
	for _, m := range []struct{ kind, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	fmt.Printf("testinit: up at %s s, %d cpus, clocksource %s, nodes %s\n", uptime(), runtime.NumCPU(),
		read("/sys/devices/system/clocksource/clocksource0/current_clocksource"), read("/sys/devices/system/node/online"))
	if err := sleepy(); err != nil {
		return err
	}
	if err := pingPong(); err != nil {
		return err
	}
	for line := range strings.Lines(read("/proc/interrupts")) {
		if !strings.HasSuffix(strings.TrimSpace(line), " 0") {
			fmt.Print("testinit: ", line)
		}
	}
	fmt.Println()
	return nil
}

// sleepy checks that timers neither stop nor ring early.
func sleepy() error {
	for range 5 {
		start := time.Now()
		time.Sleep(10 * time.Millisecond)
		if d := time.Since(start); d < 10*time.Millisecond || d > 5*time.Second {
			return fmt.Errorf("a sleep of 10 ms took %v", d)
		}
	}
	return nil
}

// pingPong has a thread on each processor wake the next one, through a pipe: every step is an interrupt to
// another processor. All count in one word.
func pingPong() error {
	const rounds = 50
	n := runtime.NumCPU()
	type pipe struct{ r, w *os.File }
	pipes := make([]pipe, n)
	for i := range pipes {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		pipes[i] = pipe{r, w}
	}
	var count atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, n)
	start := time.Now()
	for i := range n {
		wg.Go(func() {
			runtime.LockOSThread()
			var set unix.CPUSet
			set.Set(i)
			if errs[i] = unix.SchedSetaffinity(0, &set); errs[i] != nil {
				return
			}
			b := make([]byte, 1)
			for range rounds {
				if _, errs[i] = pipes[i].r.Read(b); errs[i] != nil {
					return
				}
				count.Add(1)
				if _, errs[i] = pipes[(i+1)%n].w.Write(b); errs[i] != nil {
					return
				}
			}
		})
	}
	if _, err := pipes[0].w.Write([]byte{1}); err != nil {
		return err
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if got := count.Load(); got != int64(n*rounds) {
		return fmt.Errorf("threads counted to %d, not %d", got, n*rounds)
	}
	fmt.Printf("testinit: %v for a step from cpu to cpu\n", time.Since(start)/time.Duration(n*rounds))
	return nil
}

func uptime() string {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return "?"
	}
	return fmt.Sprintf("%.3f", float64(ts.Nano())/1e9)
}

func read(name string) string {
	b, err := os.ReadFile(name)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(b))
}
