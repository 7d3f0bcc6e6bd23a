package micro

import (
	"fmt"
	"math"
	"time"

	"ironspan/fastpath"
	"ironspan/perf/internal/result"
)

// Bench is a benchmark: what one round of it does, and what becomes of the outcome.
type Bench struct {
	Name string // parts with slashes between; unique
	// Trial makes a round. It depends on nothing but the scale that the catalogue was made for.
	Trial func() *Trial
	// Record takes what a round measured into the run.
	Record func(r *Round, o *Outcome) error
	// Needs says why a machine cannot run it; nil: each can.
	Needs func() error
	// Alone: all nodes are in one process, whatever the runner, and its series do not name its fabric.
	Alone bool
}

// Scale says how long benchmarks go on.
type Scale struct {
	Pages   int           // of a batch
	Batches int           // of a trial, the first one not counted
	Scan    int           // pages of a scan
	Random  int           // accesses of a random walk, in a batch
	Cache   int           // pages that node 0 may cache in a random walk; it goes over four times as many
	Contend time.Duration // of a contest between writers
	Handoff int           // turns of a page between two writers
	Events  int           // interrupts, exits
	Local   int           // pages of local memory to walk over
	Steps   int           // of the walk
	VCPUs   []int         // that fault at once, each with a shard of its own
	Tenures []time.Duration
}

var tenures = []time.Duration{
	0, 50 * time.Microsecond, 100 * time.Microsecond, 200 * time.Microsecond, 500 * time.Microsecond,
	time.Millisecond, 2 * time.Millisecond, 5 * time.Millisecond,
}

// The scales: of the host, where a fault takes some 100 us, and of the lab, where it takes milliseconds; and of a quick
// look at either.
var (
	Host = Scale{
		Pages: 128, Batches: 8, Scan: 1024, Random: 4096, Cache: 1024, Contend: 100 * time.Millisecond, Handoff: 200, Events: 500,
		Local: 1 << 18, Steps: 200_000, VCPUs: []int{1, 2, 4, 8}, Tenures: tenures,
	}
	HostQuick = Scale{
		Pages: 64, Batches: 2, Scan: 512, Random: 1024, Cache: 256, Contend: 20 * time.Millisecond, Handoff: 50, Events: 200,
		Local: 1 << 14, Steps: 50_000, VCPUs: []int{1, 2, 8}, Tenures: []time.Duration{0, 200 * time.Microsecond, 2 * time.Millisecond},
	}
	Lab = Scale{
		Pages: 32, Batches: 3, Scan: 512, Random: 256, Cache: 64, Contend: 2 * time.Second, Handoff: 20, Events: 50,
		Local: 1 << 18, Steps: 200_000, VCPUs: []int{1, 2, 4}, Tenures: []time.Duration{0, time.Millisecond, 4 * time.Millisecond, 16 * time.Millisecond},
	}
	LabQuick = Scale{
		Pages: 16, Batches: 1, Scan: 64, Random: 64, Cache: 32, Contend: 300 * time.Millisecond, Handoff: 10, Events: 20,
		Local: 1 << 11, Steps: 5_000, VCPUs: []int{1, 2}, Tenures: []time.Duration{0, 4 * time.Millisecond},
	}
)

// Catalogue lists all benchmarks.
func Catalogue(c Scale) []*Bench {
	var all []*Bench
	for _, part := range []func(Scale) []*Bench{faults, crowds, scans, contests, events, kicks, floors, walks, runtimes} {
		all = append(all, part(c)...)
	}
	return all
}

// Round takes the outcome of one round of a benchmark into a run.
type Round struct {
	run    *result.Run
	fabric string             // of the benchmark that has its turn; "" for those that need none
	stages map[string]*stages // by key of a series
	order  map[string]int     // of the benchmarks, by key of a series
	turn   int                // of the benchmark in the catalogue
}

func (r *Round) labels(l result.Labels) result.Labels {
	all := result.Labels{}
	if r.fabric != "" {
		all["fabric"] = r.fabric
	}
	for k, v := range l {
		all[k] = v
	}
	return all
}

// Latency takes samples in nanoseconds.
func (r *Round) Latency(name string, l result.Labels, ns []int64) *result.Recorder {
	rec := r.record(name, result.Latency, l)
	rec.Begin()
	for _, v := range ns {
		rec.Add(v)
	}
	rec.End()
	return rec
}

// Value takes a figure that is one number for the round.
func (r *Round) Value(name string, m result.Measure, l result.Labels, v float64) {
	r.record(name, m, l).Value(v)
}

func (r *Round) record(name string, m result.Measure, l result.Labels) *result.Recorder {
	rec := r.run.Record(name, m, r.labels(l))
	r.order[rec.Key()] = r.turn
	return rec
}

// warm leaves out the samples of the first batch.
func warm(ns []int64, batches int) []int64 { return ns[len(ns)/max(batches, 1):] }

// mean of samples.
func mean(ns []int64) float64 {
	sum := 0.0
	for _, v := range ns {
		sum += float64(v)
	}
	return sum / float64(max(len(ns), 1))
}

// stages of a latency series, over all of its rounds.
type stages struct {
	parts [fastpath.Stages]*result.Histogram
}

// Stages splits the latency of the series by what the requester's and the other nodes' shards noted. It makes sense only
// where the requester takes no other faults than those that are timed. What the other nodes did for whom is known where
// there is only one other.
func (r *Round) Stages(rec *result.Recorder, o *Outcome, requester int) {
	st := r.stages[rec.Key()]
	if st == nil {
		st = &stages{}
		for g := range st.parts {
			st.parts[g] = result.NewHistogram()
		}
		r.stages[rec.Key()] = st
	}
	for node := range o.Nodes {
		for i := range o.Nodes[node].Shards {
			for g := range fastpath.Stages {
				if own := g <= fastpath.StageInstall; own != (node == requester) || !own && len(o.Nodes) > 2 {
					continue
				}
				for _, b := range o.Nodes[node].Shards[i].Stages[g.String()].Buckets {
					st.parts[g].AddN(int64(min(b.Top, math.MaxInt64)), int64(min(b.Count, math.MaxInt64)))
				}
			}
		}
	}
	rec.Stages(st.list(rec.Series())...)
}

// list puts the stages in order. What the guest noticed and no shard did is the delivery of the fault and the resumption
// of the vCPU; what the other nodes took and did not spend on revoking and sending is the home's and the holder's.
func (st *stages) list(s *result.Series) []result.Stage {
	of := func(g fastpath.Stage) result.Stage { return result.StageOf(g.String(), st.parts[g]) }
	queue, remote, flight, install := of(fastpath.StageQueue), of(fastpath.StageRemote), of(fastpath.StageFlight), of(fastpath.StageInstall)
	if remote.Count == 0 {
		return nil
	}
	whole := result.Stage{Name: "delivery and resume", Count: s.Count, MeanNs: meanOf(s), P50Ns: s.P50, P99Ns: s.P99}
	delivery := less(whole, queue, remote, flight, install)
	out := []result.Stage{delivery, queue, flight}
	var inner []result.Stage
	for _, g := range []fastpath.Stage{fastpath.StageRevoke, fastpath.StageForget, fastpath.StageSend} {
		if part := of(g); part.Count > 0 {
			inner = append(inner, part)
		}
	}
	home := less(result.Stage{Name: "home and holder", Count: remote.Count, MeanNs: remote.MeanNs, P50Ns: remote.P50Ns, P99Ns: remote.P99Ns}, inner...)
	return append(append(append(out, home), inner...), install)
}

// meanOf is the mean of a series' samples.
func meanOf(s *result.Series) float64 {
	sum, n := 0.0, int64(0)
	for _, round := range s.Rounds {
		sum += round.Mean * float64(round.Count)
		n += round.Count
	}
	return sum / float64(max(n, 1))
}

// less is a stage without its parts. Quantiles cannot be subtracted, so that of the rest is an estimate.
func less(whole result.Stage, parts ...result.Stage) result.Stage {
	for _, p := range parts {
		share := float64(p.Count) / float64(max(whole.Count, 1))
		whole.MeanNs -= p.MeanNs * min(share, 1)
		whole.P50Ns -= p.P50Ns
		whole.P99Ns -= p.P99Ns
	}
	whole.MeanNs, whole.P50Ns, whole.P99Ns = max(whole.MeanNs, 0), max(whole.P50Ns, 0), max(whole.P99Ns, 0)
	return whole
}

// phase is what one node does while the others wait.
type phase struct {
	node int
	do   func(*writer)
}

// inTurn is a vCPU for each node, and phases that are done one after the other.
func inTurn(nodes int, phases ...phase) []VCPU {
	var out []VCPU
	for node := range nodes {
		out = append(out, VCPU{Node: node, Body: func(w *writer) {
			for i, p := range phases {
				if i > 0 {
					w.meet()
				}
				if p.node == node {
					p.do(w)
				}
			}
		}})
	}
	return out
}

// few says that there is not as much as there must be.
func few(what string, got, want int) error {
	return fmt.Errorf("micro: %s: %d, want %d", what, got, want)
}
