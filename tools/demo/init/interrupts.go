//go:build linux

package main

import (
	"errors"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Of /proc/interrupts: local timer, and the three kinds of interrupt one CPU sends another.
const (
	timerRow      = "LOC"
	rescheduleRow = "RES"
	callRow       = "CAL"
	shootdownRow  = "TLB"
)

func (d *demo) interrupts() error {
	before, err := readInterrupts("/proc/interrupts")
	if err != nil {
		return err
	}
	m := &migrations{rounds: d.params.IPIs}
	if err := d.together("migrate", int64(m.rounds), m.run); err != nil {
		return err
	}

	area, err := newSheet(4)
	if err != nil {
		return err
	}
	defer area.free()
	barriers := int64(0)
	n := d.crew.size()
	if n > 1 {
		b := &barrierCalls{sheet: area, rounds: d.params.IPIs}
		for turn := range n {
			b.turn = turn
			area.at(0, 0).Store(0)
			if err := d.together("membarrier", int64(b.rounds), b.run); err != nil {
				return err
			}
			barriers += int64(b.calls)
		}
	}
	s := &shootdowns{sheet: area, rounds: d.params.IPIs}
	if err := d.together("shootdown", int64(s.rounds), s.run); err != nil {
		return err
	}

	after, err := readInterrupts("/proc/interrupts")
	if err != nil {
		return err
	}
	sent := make([]int64, n) // arrived on each CPU, of the kinds CPUs send
	sums := map[string]int64{}
	for _, row := range []string{rescheduleRow, callRow, shootdownRow} {
		for i := range sent {
			delta := column(after[row], i) - column(before[row], i)
			sent[i] += delta
			sums[row] += delta
		}
	}
	if n > 1 {
		for i, count := range sent {
			if count <= 0 {
				return errors.New("no interrupt from another CPU arrived on CPU " + strconv.Itoa(d.crew.workers[i].cpu))
			}
		}
	}
	d.done(d.phase().num("migrations", int64(m.rounds*n*n)).num("barriers", barriers).num("shootdowns", int64(s.rounds)).
		nums("arrived", sent).num("reschedule", sums[rescheduleRow]).num("call", sums[callRow]).num("tlb", sums[shootdownRow]))
	return nil
}

// migrations: each thread asks to run on every CPU in turn and looks where it is.
type migrations struct{ rounds int }

func (m *migrations) run(w *worker) error {
	for n := range m.rounds {
		for _, to := range w.crew.workers {
			if err := pin(to.cpu); err != nil {
				return err
			}
			if at, err := currentCPU(); err != nil || at != to.cpu {
				return errors.New("moved to CPU " + strconv.Itoa(to.cpu) + ", runs on " + strconv.Itoa(at))
			}
		}
		w.progress(int64(n + 1))
	}
	return pin(w.cpu)
}

// barrierCalls: one CPU makes all others, which are busy, pass a memory barrier: the kernel
// interrupts each of them and waits for its answer.
type barrierCalls struct {
	sheet  sheet // page 0: 1 when the caller is done
	rounds int
	turn   int // whose turn it is to call
	calls  int // made in this turn: none where the kernel has no such call
}

func (b *barrierCalls) run(w *worker) error {
	over := b.sheet.at(0, 0)
	if w.index != b.turn {
		err := w.await(over, 1)
		w.progress(w.limit)
		return err
	}
	defer over.Store(1)
	b.calls = 0
	const expedited, register = 1 << 3, 1 << 4
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, register, 0, 0); errno != 0 {
		return nil
	}
	for n := range b.rounds {
		if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, expedited, 0, 0); errno != 0 {
			return errors.New("membarrier: " + errno.Error())
		}
		b.calls++
		w.progress(int64(n + 1))
	}
	return nil
}

// shootdowns: CPU 0 gives a page back to the kernel and writes a new value to what then stands at the
// same address; the others read it all the while. A CPU that kept the old translation would still
// read the old value after the flag says that the new one is there.
type shootdowns struct {
	sheet  sheet // page 1: the page, page 2: the flag
	rounds int
}

func (s *shootdowns) run(w *worker) error {
	const end = 1 << 62
	value, flag := s.sheet.at(1, 0), s.sheet.at(2, 0)
	if w.index == 0 {
		defer func() { flag.Store(end) }()
		for n := range s.rounds {
			if err := s.sheet.drop(1); err != nil {
				return errors.New("madvise: " + err.Error())
			}
			value.Store(uint64(n) + 1)
			flag.Store(uint64(n) + 1)
			w.progress(int64(n + 1))
			sleep(1e5) // the others read
		}
		return nil
	}
	for {
		f := flag.Load()
		if f == end {
			w.progress(w.limit)
			return nil
		}
		if v := value.Load(); v != 0 && v < f {
			return errors.New("a freed page is still mapped: it reads " + utoa(v) + " after " + utoa(f) + " was written")
		}
	}
}

// readInterrupts reads the rows of the table, by their labels: a number for each CPU.
func readInterrupts(path string) (map[string][]int64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	rows := map[string][]int64{}
	for _, line := range strings.Split(string(data), "\n") {
		label, rest, found := strings.Cut(strings.TrimSpace(line), ":")
		if !found {
			continue
		}
		var row []int64
		for _, field := range strings.Fields(rest) {
			n, err := strconv.ParseInt(field, 10, 64)
			if err != nil {
				break
			}
			row = append(row, n)
		}
		rows[label] = row
	}
	return rows, nil
}

func column(row []int64, i int) int64 {
	if i >= len(row) {
		return 0
	}
	return row[i]
}
