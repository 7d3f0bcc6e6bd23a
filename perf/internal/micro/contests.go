package micro

import (
	"strconv"
	"time"

	"ironspan/engine/coherence"
	"ironspan/engine/mininode"
	"ironspan/fastpath"
	"ironspan/kvmhost/minivm"
	"ironspan/perf/internal/result"
)

// contests are pages that two nodes write to by turns, or at once.
func contests(c Scale) []*Bench {
	all := []*Bench{handoff(c, false), handoff(c, true)}
	for _, base := range c.Tenures {
		all = append(all, contest(c, base))
	}
	return all
}

// handoff is one page that two writers hand to each other: a sample is a turn, from one's write to the other's being seen
// and answered, halved.
func handoff(c Scale, migratory bool) *Bench {
	const name, batches = "contest/handoff", 3
	labels := result.Labels{"migratory": strconv.FormatBool(migratory)}
	return &Bench{
		Name: result.Key(name, labels),
		Trial: func() *Trial {
			return &Trial{
				Data: 1, Batches: batches, Config: mininode.Config{Nodes: 2, Migratory: migratory},
				VCPUs: []VCPU{{0, func(w *writer) { w.pingPong(c.Handoff, true) }}, {1, func(w *writer) { w.pingPong(c.Handoff, false) }}},
			}
		},
		Record: func(r *Round, o *Outcome) error {
			var halves []int64
			for _, ns := range warm(o.Samples[0], batches) {
				halves = append(halves, ns/2)
			}
			r.Latency(name, labels, halves)
			return nil
		},
	}
}

// pingPong counts in a word: the one who leads writes odd numbers, the other answers with even ones.
func (w *writer) pingPong(n int, leads bool) {
	again, wait := w.label("turn"), w.label("wait")
	next := func() { w.AddImm(turn, 1).Store(at, 0, turn) }
	w.MovImm(at, w.trial.data(1, 0)).MovImm(left, uint64(n)).Label(again)
	if leads {
		w.start()
		next()
	}
	w.AddImm(turn, 1).Label(wait).Pause().Load(minivm.RCX, at, 0).Cmp(minivm.RCX, turn).Jcc(minivm.Below, wait)
	if leads {
		w.stop()
	} else {
		next()
	}
	w.Dec(left).Jcc(minivm.NotEqual, again)
}

// contestPages is what either of two writers needs for one step: as many pages of each node.
const contestPages = 2

// contest is two writers that need the same pages, two of each home, for each step: steps for each second, by tenure.
func contest(c Scale, base time.Duration) *Bench {
	const name = "contest/tenure"
	labels := result.Labels{"tenure": strconv.FormatInt(int64(base), 10)}
	return &Bench{
		Name: result.Key(name, labels),
		Trial: func() *Trial {
			body := func(w *writer) { w.contend(c.Contend) }
			return &Trial{
				Data: contestPages, Counts: true, VCPUs: []VCPU{{0, body}, {1, body}},
				Config: mininode.Config{Nodes: 2, Tenure: coherence.Tenure{
					Base: base, Max: base, Window: max(4*base, time.Millisecond),
				}},
			}
		},
		Record: func(r *Round, o *Outcome) error {
			if len(o.Samples[0]) != 1 || len(o.Samples[1]) != 1 {
				return few("counts", len(o.Samples[0])+len(o.Samples[1]), 2)
			}
			a, b := float64(o.Samples[0][0]), float64(o.Samples[1][0])
			r.Value(name, result.Rate, labels, (a+b)/c.Contend.Seconds())
			r.Value(name+"/slower", result.Rate, labels, min(a, b)/c.Contend.Seconds())
			r.Value(name+"/fairness", result.Share, labels, min(a, b)/max(a, b, 1))
			moves := uint64(0)
			for i := range o.Nodes {
				moves += o.Nodes[i].agent(func(s *fastpath.Snapshot) uint64 { return s.Agent.Moves })
			}
			r.Value(name+"/moves-per-step", result.Count, labels, float64(moves)/max(a+b, 1))
			return nil
		},
	}
}

// contend writes to all pages, over and over, for a while, and keeps how often it did.
func (w *writer) contend(d time.Duration) {
	again := w.label("step")
	w.now()
	w.MovImm(began, ticks(d)).Add(began, minivm.RAX).MovImm(count, 0).Label(again)
	for page := range contestPages {
		for node := range 2 {
			w.MovImm(at, w.trial.data(node, page))
			w.access(write)
		}
	}
	w.AddImm(count, 1)
	w.now()
	w.Cmp(minivm.RAX, began).Jcc(minivm.Below, again)
	w.keep(count)
}
