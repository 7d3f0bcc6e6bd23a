package cpulatency

import (
	"sync/atomic"
	"time"
)

// While there are wake-ups that somebody waits for, cores are to be quick at them; while there are none, the machine may
// save its power.
const (
	lookPeriod = 250 * time.Millisecond
	// busyWakes in a period, 100 a second, are worth it: a core that sleeps deeply wakes some 0.1 ms later, so who waits
	// would lose a hundredth of its time.
	busyWakes = 25
	// restPeriods without so many end it.
	restPeriods = 8
)

// policy decides whether idle cores are to sleep lightly.
type policy struct {
	last  uint64
	quiet int // periods since the last one that was busy
	held  bool
}

// look takes how many wake-ups there have been so far.
func (p *policy) look(wakes uint64) (hold bool) {
	if wakes-p.last >= busyWakes {
		p.quiet, p.held = 0, true
	} else if p.quiet++; p.quiet >= restPeriods {
		p.held = false
	}
	p.last = wakes
	return p.held
}

// KeepAwake has idle cores wake quickly while there are more than 100 wake-ups a second, of which wakes returns how many
// there have been so far, until done is closed. To held, if it is not nil, it adds the time, in nanoseconds.
func KeepAwake(done <-chan struct{}, wakes func() uint64, held *atomic.Int64) error {
	r, err := Open()
	if err != nil {
		return err
	}
	defer r.Close()
	var p policy
	tick := time.NewTicker(lookPeriod)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return nil
		case <-tick.C:
		}
		if err := r.Hold(p.look(wakes())); err != nil {
			return err
		}
		if r.held && held != nil {
			held.Add(int64(lookPeriod))
		}
	}
}
