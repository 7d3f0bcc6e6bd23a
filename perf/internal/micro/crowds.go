package micro

import (
	"strconv"

	"ironspan/engine/mininode"
	"ironspan/perf/internal/result"
)

// stripe is the pages of a stripe: a shard has every so many-th.
const stripe = 512

// crowds are k vCPUs of node 0 that fault at once, each on the pages of a shard of its own.
func crowds(c Scale) []*Bench {
	const name = "fault/concurrent"
	var all []*Bench
	for _, k := range c.VCPUs {
		labels := result.Labels{"vcpus": strconv.Itoa(k), "shards": strconv.Itoa(k)}
		all = append(all, &Bench{
			Name: result.Key(name, labels),
			Trial: func() *Trial {
				t := &Trial{Data: maxVCPUs * stripe, Batches: c.Batches + 1, Config: mininode.Config{Nodes: 2, Shards: k}}
				t.Config.Pages = dataPage + maxVCPUs*stripe
				for i := range k {
					t.VCPUs = append(t.VCPUs, VCPU{0, func(w *writer) {
						w.meet()
						w.touch(read, w.trial.data(1, i*stripe), min(c.Pages, stripe), 1, true)
					}})
				}
				t.VCPUs = append(t.VCPUs, VCPU{1, func(w *writer) {
					for i := range k {
						w.touch(write, w.trial.data(1, i*stripe), min(c.Pages, stripe), 1, false)
					}
					w.meet()
				}})
				return t
			},
			Record: func(r *Round, o *Outcome) error {
				var ns []int64
				rate := 0.0
				for _, of := range o.Samples[:k] {
					of = warm(of, c.Batches+1)
					ns = append(ns, of...)
					rate += 1e9 / mean(of)
				}
				for i := range o.Nodes[0].Shards {
					if o.Nodes[0].Shards[i].Faults == 0 {
						return few("shards with faults", i, k)
					}
				}
				r.Latency(name, labels, ns)
				r.Value(name+"/rate", result.Rate, labels, rate)
				return nil
			},
		})
	}
	return all
}
