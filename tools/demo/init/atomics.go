//go:build linux

package main

import (
	"errors"
	"strconv"
	"sync/atomic"
)

// counters is the atomics phase: every CPU increments the same words, four together on one page and
// four on a page each, alternating by atomic add and by compare-and-swap.
type counters struct {
	sheet    sheet
	adds     int
	switches []sheet // by worker, page 0: how often another CPU came in between two own increments
}

const (
	counterWords = 4
	counterPages = 1 + counterWords
)

func (s *counters) word(i int) *atomic.Uint64 {
	if i < counterWords {
		return s.sheet.at(0, i*8)
	}
	return s.sheet.at(1+i-counterWords, 0)
}

func (d *demo) atomics() error {
	sheet, err := newSheet(counterPages)
	if err != nil {
		return err
	}
	defer sheet.free()
	s := &counters{sheet: sheet, adds: d.params.Adds}
	for range d.crew.workers {
		own, err := newSheet(1)
		if err != nil {
			return err
		}
		defer own.free()
		s.switches = append(s.switches, own)
	}

	const words = 2 * counterWords
	if err := d.together("count", int64(s.adds), s.count); err != nil {
		return err
	}
	want := uint64(s.adds * d.crew.size())
	switches := int64(0)
	for i := range words {
		if got := s.word(i).Load(); got != want {
			return errors.New("counter " + strconv.Itoa(i) + " is " + utoa(got) + " after " + utoa(want) + " increments")
		}
	}
	for _, own := range s.switches {
		switches += int64(own.at(0, 0).Load())
	}
	d.done(d.phase().num("counters", words).num("increments", int64(want)*words).num("switches", switches))
	return nil
}

func (s *counters) count(w *worker) error {
	const words = 2 * counterWords
	var last [words]uint64
	switches := uint64(0)
	for n := range s.adds {
		for i := range words {
			word := s.word(i)
			var now uint64
			if n%2 == 0 {
				now = word.Add(1)
			} else {
				for {
					old := word.Load()
					if word.CompareAndSwap(old, old+1) {
						now = old + 1
						break
					}
				}
			}
			if now <= last[i] {
				return errors.New("counter " + strconv.Itoa(i) + " went from " + utoa(last[i]) + " to " + utoa(now))
			}
			if now != last[i]+1 {
				switches++
			}
			last[i] = now
		}
		if n%256 == 255 {
			w.progress(int64(n + 1))
		}
	}
	s.switches[w.index].at(0, 0).Store(switches)
	w.progress(int64(s.adds))
	return nil
}

func utoa(n uint64) string { return strconv.FormatUint(n, 10) }
