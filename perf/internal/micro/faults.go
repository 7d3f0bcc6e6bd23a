package micro

import (
	"fmt"
	"strconv"

	"ironspan/engine/coherence"
	"ironspan/engine/mininode"
	"ironspan/engine/wire"
	"ironspan/fastpath"
	"ironspan/kvmhost"
	"ironspan/kvmhost/minivm"
	"ironspan/perf/internal/result"
)

// fault is a benchmark of one kind of fault, which node 0 takes and times. What the phases do they do to the pages that
// are homed at node 1.
type fault struct {
	name   string
	labels result.Labels
	nodes  int
	phases func(pages func(a access, timed bool) func(*writer)) []phase
	only   bool // the timed faults are all that node 0 takes, so that their stages are known
	tune   func(*Trial)
}

func (f *fault) bench(c Scale) *Bench {
	name := result.Key(f.name, f.labels)
	labels := result.Labels{"nodes": strconv.Itoa(f.nodes)}
	for k, v := range f.labels {
		labels[k] = v
	}
	return &Bench{
		Name: name,
		Trial: func() *Trial {
			t := &Trial{Data: c.Pages, Batches: c.Batches + 1, Config: mininode.Config{Nodes: f.nodes}}
			t.VCPUs = inTurn(f.nodes, f.phases(func(a access, timed bool) func(*writer) {
				return func(w *writer) { w.touch(a, w.trial.data(1, 0), c.Pages, 1, timed) }
			})...)
			if f.tune != nil {
				f.tune(t)
			}
			return t
		},
		Record: func(r *Round, o *Outcome) error {
			ns := o.Samples[0]
			if want := c.Pages * (c.Batches + 1); len(ns) != want || o.Nodes[0].faults() < uint64(want) {
				return few("samples and faults", min(len(ns), int(o.Nodes[0].faults())), want)
			}
			rec := r.Latency(f.name, labels, warm(ns, c.Batches+1))
			if f.only {
				r.Stages(rec, o, 0)
			}
			return nil
		},
	}
}

// dirtyAtHome: the home's guest has written to the page, so that the home has to protect or unmap it first.
func dirtyAtHome(pages func(access, bool) func(*writer)) []phase {
	return []phase{{1, pages(write, false)}, {0, pages(read, true)}}
}

// cleanAtHome: the home's guest wrote the page, and another node read it since.
func cleanAtHome(pages func(access, bool) func(*writer)) []phase {
	return []phase{{1, pages(write, false)}, {2, pages(read, false)}, {0, pages(read, true)}}
}

// covering has grants cover other pages than those asked for, as in production.
func covering(t *Trial) { t.Config.CoverFrom = coherence.DefaultCoverFrom }

// faults are the single faults: one vCPU, one page at a time. Of those that read what is clean at its home most fetch
// it, having got the right along with a neighbour's; where grants cover nothing, each asks the home.
func faults(c Scale) []*Bench {
	list := []fault{
		{name: "fault/read/clean-at-home", nodes: 3, only: true, phases: cleanAtHome, tune: covering},
		{name: "fault/read/asked", nodes: 3, only: true, phases: cleanAtHome},
		{name: "fault/read/dirty-at-home", nodes: 2, only: true, phases: dirtyAtHome},
		{name: "fault/read/dirty-elsewhere", nodes: 3, only: true, phases: func(pages func(access, bool) func(*writer)) []phase {
			return []phase{{2, pages(write, false)}, {0, pages(read, true)}}
		}},
		{name: "fault/read/zero", nodes: 2, only: true, phases: func(pages func(access, bool) func(*writer)) []phase {
			return []phase{{1, pages(erase, false)}, {0, pages(read, true)}}
		}},
		{name: "fault/upgrade", nodes: 2, phases: func(pages func(access, bool) func(*writer)) []phase {
			return []phase{{1, pages(write, false)}, {0, pages(read, false)}, {0, pages(write, true)}}
		}},
	}
	for sharers := range 4 {
		list = append(list, fault{
			name: "fault/write", labels: result.Labels{"sharers": strconv.Itoa(sharers)}, nodes: 2 + sharers, only: true,
			phases: func(pages func(access, bool) func(*writer)) []phase {
				ps := []phase{{1, pages(write, false)}}
				for s := range sharers {
					ps = append(ps, phase{2 + s, pages(read, false)})
				}
				return append(ps, phase{0, pages(write, true)})
			},
		})
	}
	for _, migratory := range []bool{false, true} {
		list = append(list, fault{
			name: "fault/read-then-write", labels: result.Labels{"migratory": strconv.FormatBool(migratory)}, nodes: 2,
			phases: func(func(access, bool) func(*writer)) []phase {
				both := func(timed bool) func(*writer) {
					return func(w *writer) { w.readWrite(w.trial.data(1, 0), c.Pages, timed) }
				}
				return []phase{{1, both(false)}, {0, both(true)}}
			},
			tune: func(t *Trial) { t.Config.Migratory = migratory },
		})
	}
	for _, poll := range []fastpath.PollMode{fastpath.Busy, fastpath.Adaptive, fastpath.Event} {
		list = append(list, fault{
			name: "fault/poll", labels: result.Labels{"poll": poll.String()}, nodes: 2, only: true, phases: dirtyAtHome,
			tune: func(t *Trial) { t.Config.Poll = poll },
		})
	}
	var all []*Bench
	for i := range list {
		all = append(all, list[i].bench(c))
	}
	return append(all, snooped(c), firstTouch(c))
}

// readWrite reads each page and then writes to it: both are one sample.
func (w *writer) readWrite(addr uint64, n int, timed bool) {
	again := w.label("both")
	w.MovImm(at, addr).MovImm(left, uint64(n)).Label(again)
	if timed {
		w.start()
	}
	w.access(read)
	w.access(write)
	if timed {
		w.stop()
	}
	w.AddImm(at, wire.PageSize).Dec(left).Jcc(minivm.NotEqual, again)
}

// snooped is a fault on a page that KVM's shadow page tables have to forget.
func snooped(c Scale) *Bench {
	f := fault{
		name: "fault/snooped", nodes: 2, only: true, phases: dirtyAtHome, tune: func(t *Trial) { t.Snoop = true },
	}
	b := f.bench(c)
	b.Needs = func() error {
		support, err := kvmhost.Probe()
		if err == nil && !support.Snoop {
			err = fmt.Errorf("micro: this KVM has no system management mode, which snoopers live in")
		}
		return err
	}
	return b
}

// firstTouch is memory that no other node wants: it must not fault.
func firstTouch(c Scale) *Bench {
	const name = "local/first-touch"
	pages := c.Pages * (c.Batches + 1)
	return &Bench{
		Name: name,
		Trial: func() *Trial {
			return &Trial{
				Data: pages, Config: mininode.Config{Nodes: 2},
				VCPUs: inTurn(1, phase{0, func(w *writer) { w.touch(write, w.trial.data(0, 0), pages, 1, true) }}),
			}
		},
		Record: func(r *Round, o *Outcome) error {
			r.Latency(name, nil, o.Samples[0])
			r.Value(name+"/faults", result.Count, nil, float64(o.Nodes[0].faults()))
			if n := o.Nodes[0].faults(); n != 0 {
				return fmt.Errorf("micro: %d of %d first touches of local memory were faults", n, pages)
			}
			return nil
		},
	}
}
