package micro

import (
	"fmt"
	"runtime"
	"strconv"

	"ironspan/perf/internal/result"
)

// runtimes are about Go: what a fault allocates, and what a garbage collection does to faults.
func runtimes(c Scale) []*Bench {
	return []*Bench{allocations(c), collected(c, false), collected(c, true)}
}

// remoteRead is a read fault dirty at home, of trials that differ in what the process does meanwhile.
func remoteRead() fault {
	return fault{nodes: 2, only: true, phases: dirtyAtHome}
}

// allocations counts the objects that the whole process allocates while its nodes serve faults.
func allocations(c Scale) *Bench {
	f := remoteRead()
	f.name = "fault/allocations"
	b := f.bench(c)
	trial := b.Trial
	b.Alone = true
	b.Trial = func() *Trial {
		t := trial()
		var before, after runtime.MemStats
		allocated, timed := uint64(0), 0
		// The meetings of a batch: before its timed phase, and at its end. The first of all is before the first batch.
		t.Meet = func(_ *share, meeting int) {
			switch {
			case meeting > 1 && meeting%2 == 1:
				runtime.ReadMemStats(&before)
			case meeting > 2:
				runtime.ReadMemStats(&after)
				allocated += after.Mallocs - before.Mallocs
				timed++
			}
		}
		t.Collect = func(_ *share, o *Outcome) { o.Values = []float64{float64(allocated), float64(timed * c.Pages)} }
		return t
	}
	b.Record = func(r *Round, o *Outcome) error {
		if len(o.Values) != 2 || o.Values[1] != float64(c.Batches*c.Pages) {
			return fmt.Errorf("micro: objects allocated, and faults: %v, want %d faults", o.Values, c.Batches*c.Pages)
		}
		r.Value(f.name, result.Count, result.Labels{"fabric": "shm"}, o.Values[0]/o.Values[1])
		return nil
	}
	return b
}

// collected is the fault with a collection of garbage always under way, or none.
func collected(c Scale, forced bool) *Bench {
	f := remoteRead()
	f.name, f.labels = "fault/garbage", result.Labels{"fabric": "shm", "forced": strconv.FormatBool(forced)}
	f.tune = func(t *Trial) {
		if !forced {
			return
		}
		t.Prepare = func(*share) (func(), error) {
			end, done := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(done)
				for {
					select {
					case <-end:
						return
					default:
						runtime.GC()
					}
				}
			}()
			return func() { close(end); <-done }, nil
		}
	}
	b := f.bench(c)
	b.Alone = true
	return b
}
