package main

import (
	"fmt"
	"math"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// calibrateCmd runs inside a server and prints how many times slower than hardware it is.
type calibrateCmd struct{}

// What hardware takes, in nanoseconds: a current server CPU without mitigations.
const (
	nominalSyscall   = 80
	nominalPageFault = 450
	minDilate        = 10
	maxDilate        = 100
)

func (*calibrateCmd) Run() error {
	syscall := best(5, 20000, func(n int) error {
		for range n {
			unix.Getppid()
		}
		return nil
	})
	fault := best(5, 2000, func(n int) error {
		b, err := unix.Mmap(-1, 0, n*os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			return err
		}
		for i := range n {
			b[i*os.Getpagesize()] = 1
		}
		return unix.Munmap(b)
	})
	if syscall <= 0 || fault <= 0 {
		return fmt.Errorf("lab: calibration failed")
	}
	fmt.Fprintf(os.Stderr, "lab: calibration: system call %.0f ns, page fault %.0f ns\n", syscall, fault)
	fmt.Println(dilation(syscall, fault))
	return nil
}

// dilation is the geometric mean of both slow-downs, rounded, within what is sensible.
func dilation(syscallNs, faultNs float64) float64 {
	f := math.Sqrt(syscallNs / nominalSyscall * faultNs / nominalPageFault)
	return math.Round(min(max(f, minDilate), maxDilate))
}

// best returns the nanoseconds per operation of the fastest round: the others were disturbed.
func best(rounds, n int, f func(int) error) float64 {
	least := math.Inf(1)
	for range rounds {
		t := time.Now()
		if f(n) != nil {
			return 0
		}
		least = min(least, float64(time.Since(t).Nanoseconds())/float64(n))
	}
	return least
}
