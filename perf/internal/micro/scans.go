package micro

import (
	"math/rand/v2"
	"strconv"

	"ironspan/engine/mininode"
	"ironspan/engine/wire"
	"ironspan/fastpath"
	"ironspan/perf/internal/result"
)

// prefetch is how many pages a node asks for ahead of faults at most, as in production.
const prefetch = 64

// scans go over pages that are clean at their home, in sequence and in strides, as in production and with nothing but
// faults; and at random over four times as many as the node may cache.
func scans(c Scale) []*Bench {
	var all []*Bench
	for _, ahead := range []int{0, prefetch} {
		all = append(all, scan(c, "scan/sequential", 1, ahead), scan(c, "scan/strided", 3, ahead))
	}
	return append(all, random(c, read), random(c, write))
}

// scan reads a word of each page. A sample is a whole scan.
func scan(c Scale, name string, stride, ahead int) *Bench {
	const batches = 3 // the first one not counted
	pages := c.Scan / stride
	labels := result.Labels{"prefetch": strconv.Itoa(ahead)}
	if stride > 1 {
		labels["stride"] = strconv.Itoa(stride)
	}
	return &Bench{
		Name: result.Key(name, labels),
		Trial: func() *Trial {
			over := func(a access, timed bool) func(*writer) {
				return func(w *writer) {
					if timed {
						w.start()
					}
					w.touch(a, w.trial.data(1, 0), pages, stride, false)
					if timed {
						w.stop()
					}
				}
			}
			t := &Trial{
				Data: c.Scan, Batches: batches, Config: mininode.Config{Nodes: 3, Prefetch: ahead},
				VCPUs: inTurn(3, phase{1, over(write, false)}, phase{2, over(read, false)}, phase{0, over(read, true)}),
			}
			if ahead > 0 {
				covering(t)
			}
			return t
		},
		Record: func(r *Round, o *Outcome) error {
			seconds := mean(warm(o.Samples[0], batches)) / 1e9
			r.Value(name, result.Bandwidth, labels, float64(pages*wire.PageSize)/seconds)
			n := &o.Nodes[0]
			r.Value(name+"/faults-per-page", result.Count, labels, float64(n.faults())/float64(pages*batches))
			if ahead > 0 {
				// Each page is touched once, so what came beyond that was asked for in vain.
				came := n.agent(func(s *fastpath.Snapshot) uint64 {
					return s.Agent.GrantsShared + s.Agent.GrantsModified + s.Agent.Fetches
				})
				wasted := float64(came) - float64(pages*batches)
				r.Value(name+"/wasted", result.Count, labels, max(wasted, 0)/float64(max(came, 1)))
			}
			return nil
		},
	}
}

// random accesses pages of the other node's at random, of four times as many as it may cache. A sample is one access,
// three of four of which fault.
func random(c Scale, a access) *Bench {
	const over, seed = 4, 20
	name, what := "random/read", "clean"
	if a == write {
		name, what = "random/write", "dirty"
	}
	labels := result.Labels{"cache": strconv.Itoa(c.Cache * wire.PageSize), "evicts": what}
	return &Bench{
		Name: name,
		Trial: func() *Trial {
			t := &Trial{
				Data: over * c.Cache, Cache: c.Cache, Config: mininode.Config{Nodes: 2},
				VCPUs: inTurn(2,
					phase{1, func(w *writer) { w.touch(write, w.trial.data(1, 0), over*c.Cache, 1, false) }},
					phase{0, func(w *writer) {
						w.walk(a, c.Random, false)
						w.walk(a, c.Random, true)
					}}),
			}
			covering(t)
			t.Prepare = func(s *share) (func(), error) {
				rng := rand.New(rand.NewPCG(seed, uint64(a)))
				addrs := make([]uint64, c.Random)
				for i := range addrs {
					addrs[i] = t.data(1, rng.IntN(over*c.Cache))
				}
				s.setTable(0, 0, addrs)
				return func() {}, nil
			}
			return t
		},
		Record: func(r *Round, o *Outcome) error {
			ns := o.Samples[0]
			evicted := o.Nodes[0].agent(func(s *fastpath.Snapshot) uint64 { return s.Agent.EvictionsClean + s.Agent.EvictionsDirty })
			if evicted == 0 {
				return few("evictions", 0, c.Random/2)
			}
			r.Latency(name, labels, ns)
			r.Value(name+"/rate", result.Rate, labels, 1e9/mean(ns))
			return nil
		},
	}
}
