//go:build linux

package main

import (
	"errors"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// crew is one worker thread for each CPU, pinned to it. Phases are handed to all of them at once.
type crew struct {
	workers []*worker
	stop    atomic.Bool // a worker failed: the others give up their waits
}

// worker is the thread of one CPU. The fields other threads read while a phase runs are each on a
// page of their own.
type worker struct {
	index int // 0..len(crew)-1
	cpu   int
	crew  *crew
	tasks chan func(*worker) error
	limit int64 // of progress, for the percentage
	err   error // written by the worker before finished is set

	_        [pageSize]byte
	finished atomic.Bool // written by the worker, read by run
	_        [pageSize]byte
	reached  atomic.Int64 // progress: likewise
	_        [pageSize]byte
}

var errStopped = errors.New("given up, for another CPU failed")

func newCrew(cpus []int) *crew {
	c := &crew{}
	for i, cpu := range cpus {
		w := &worker{index: i, cpu: cpu, crew: c, tasks: make(chan func(*worker) error)}
		c.workers = append(c.workers, w)
		go w.loop()
	}
	return c
}

func (c *crew) size() int { return len(c.workers) }

// next is the worker after w on the ring, or before it.
func (c *crew) next(w *worker, backward bool) *worker {
	n := len(c.workers)
	if backward {
		return c.workers[(w.index+n-1)%n]
	}
	return c.workers[(w.index+1)%n]
}

// run lets every worker do task and returns the first real error. Meanwhile it calls tick every few
// milliseconds of guest time, from the calling thread.
func (c *crew) run(limit int64, task func(*worker) error, tick func(done, limit int64)) error {
	c.stop.Store(false)
	for _, w := range c.workers {
		w.err, w.limit = nil, limit
		w.finished.Store(false)
		w.reached.Store(0)
		w.tasks <- task
	}
	const pause = 10e6
	for _, w := range c.workers {
		for !w.finished.Load() {
			sleep(pause)
			if tick != nil {
				sum := int64(0)
				for _, w := range c.workers {
					sum += w.reached.Load()
				}
				tick(sum, limit*int64(len(c.workers)))
			}
		}
	}
	var first error
	for _, w := range c.workers {
		if w.err != nil && (first == nil || first == errStopped) {
			first = w.err
		}
	}
	return first
}

func (c *crew) close() {
	for _, w := range c.workers {
		close(w.tasks)
	}
}

func (w *worker) loop() {
	runtime.LockOSThread()
	pinned := pin(w.cpu)
	for task := range w.tasks {
		w.err = pinned
		if w.err == nil {
			w.err = task(w)
		}
		if w.err != nil {
			if w.err != errStopped {
				w.err = errors.New("CPU " + strconv.Itoa(w.cpu) + ": " + w.err.Error())
			}
			w.crew.stop.Store(true)
		}
		w.finished.Store(true)
	}
}

// progress tells how far the worker is. It costs a write to a page another CPU reads now and then,
// so callers call it every so many steps.
func (w *worker) progress(done int64) { w.reached.Store(done) }

// await spins until the word is at least want. It gives up when another worker failed, which it looks
// at rarely: the word that says so is shared by all.
func (w *worker) await(word *atomic.Uint64, want uint64) error {
	for spins := uint(1); word.Load() < want; spins++ {
		if spins%4096 == 0 {
			if w.crew.stop.Load() {
				return errStopped
			}
			if w.crew.crowded() {
				runtime.Gosched()
				sleep(1e5)
			}
		}
	}
	return nil
}

// crowded: two workers share a CPU, as in tests on a small host; then spinning must give way.
func (c *crew) crowded() bool { return len(c.workers) > 1 && c.workers[0].cpu == c.workers[1].cpu }

// pin ties the calling thread to one CPU.
func pin(cpu int) error {
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return errors.New("pinning to CPU " + strconv.Itoa(cpu) + ": " + err.Error())
	}
	return nil
}

// pinAll ties every thread of this process to one CPU: the runtime's own threads shall not wander
// between the nodes. Threads made later by a pinned thread inherit its place.
func pinAll(cpu int) error {
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	var set unix.CPUSet
	set.Set(cpu)
	for _, entry := range entries {
		tid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if err := unix.SchedSetaffinity(tid, &set); err != nil && err != unix.ESRCH {
			return errors.New("pinning thread " + entry.Name() + ": " + err.Error())
		}
	}
	return nil
}

// sleep waits in the kernel, without the runtime's timers.
func sleep(ns int64) {
	ts := unix.NsecToTimespec(ns)
	for unix.Nanosleep(&ts, &ts) == unix.EINTR {
	}
}
