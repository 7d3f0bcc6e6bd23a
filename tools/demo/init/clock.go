//go:build linux

package main

import (
	"errors"
	"os"
	"strings"
	"time"
)

// start is the zero of all readings below; they come from the vDSO, so from the CPU's own TSC.
var start = time.Now()

func monotonic() int64 { return int64(time.Since(start)) }

func (d *demo) clock() error {
	n := d.crew.size()
	area, err := newSheet(3 * n)
	if err != nil {
		return err
	}
	defer area.free()
	rounds := d.params.Rounds
	r := &readings{sheet: area, rounds: rounds}
	if err := d.together("read", int64(rounds), r.pass); err != nil {
		return err
	}

	const naps, nap = 4, int64(5e6)
	z := &sleepers{sheet: area, naps: naps, nap: nap}
	if err := d.together("sleep", naps, z.run); err != nil {
		return err
	}
	late := int64(0)
	for i := range n {
		late = max(late, int64(area.at(3*i+2, 0).Load()))
	}
	source, _ := os.ReadFile("/sys/devices/system/clocksource/clocksource0/current_clocksource")
	d.done(d.phase().str("source", strings.TrimSpace(string(source))).num("readings", int64(rounds*n)).
		num("sleeps", int64(naps*n)).num("latest_us", late/1e3))
	return nil
}

// readings hands the time around the ring: no CPU may read less than the CPU before it did.
type readings struct {
	sheet  sheet
	rounds int
}

func (r *readings) pass(w *worker) error {
	next := w.crew.next(w, false).index
	for n := range r.rounds {
		seq := uint64(n) + 1
		if w.index == 0 {
			r.post(next, seq)
		}
		if err := w.await(r.sheet.at(3*w.index, 0), seq); err != nil {
			return err
		}
		then := int64(r.sheet.at(3*w.index, 1).Load())
		if now := monotonic(); now < then {
			return errors.New("time went back by " + utoa(uint64(then-now)) + " ns from the CPU before")
		}
		if w.index != 0 {
			r.post(next, seq)
		}
		if n%8 == 7 {
			w.progress(int64(n + 1))
		}
	}
	w.progress(int64(r.rounds))
	return nil
}

func (r *readings) post(to int, seq uint64) {
	r.sheet.at(3*to, 1).Store(uint64(monotonic()))
	r.sheet.at(3*to, 0).Store(seq)
}

// sleepers sleep on every CPU: a timer may be late, never early.
type sleepers struct {
	sheet sheet // page 3*index+2: how late the worst was, ns
	naps  int
	nap   int64
}

func (z *sleepers) run(w *worker) error {
	worst := int64(0)
	for n := range z.naps {
		before := monotonic()
		sleep(z.nap)
		slept := monotonic() - before
		if slept < z.nap {
			return errors.New("a sleep of " + utoa(uint64(z.nap)) + " ns took " + utoa(uint64(slept)))
		}
		worst = max(worst, slept-z.nap)
		w.progress(int64(n + 1))
	}
	z.sheet.at(3*w.index+2, 0).Store(uint64(worst))
	return nil
}
