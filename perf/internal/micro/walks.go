package micro

import (
	"math/bits"
	"strconv"

	"ironspan/engine/mininode"
	"ironspan/engine/wire"
	"ironspan/kvmhost/minivm"
	"ironspan/perf/internal/result"
)

// walks go over local memory that no other node wants, at random, each step dependent on the one before: as a node has
// it, and as plain KVM has it on the same backing.
func walks(c Scale) []*Bench { return []*Bench{walk(c, true), walk(c, false)} }

// walkSize is the bytes of memory to walk over: a power of two.
func (c Scale) walkSize() uint64 { return uint64(1) << (bits.Len(uint(c.Local)) - 1) * wire.PageSize }

func walk(c Scale, plain bool) *Bench {
	const name, batches = "local/walk", 2
	size := c.walkSize()
	labels := result.Labels{"size": strconv.FormatUint(size, 10), "memory": "home"}
	if plain {
		labels["memory"] = "plain"
	}
	return &Bench{
		Name:  result.Key(name, labels),
		Alone: true,
		Trial: func() *Trial {
			return &Trial{
				Data: int(size / wire.PageSize), Batches: batches, Config: mininode.Config{Nodes: 1, Plain: plain},
				VCPUs: []VCPU{{0, func(w *writer) {
					w.touch(write, w.trial.data(0, 0), int(size/wire.PageSize), 1, false)
					w.start()
					w.stroll(w.trial.data(0, 0), size, c.Steps)
					w.stop()
				}}},
			}
		},
		Record: func(r *Round, o *Outcome) error {
			r.Value(name, result.Latency, labels, mean(warm(o.Samples[0], batches))/float64(c.Steps))
			return nil
		},
	}
}

// stroll reads n words at random in size bytes, a power of two, one for each cache line: a congruential generator that
// comes by each before it repeats itself. What is read is added, and taken away again, to make a step wait for the one
// before.
func (w *writer) stroll(addr, size uint64, n int) {
	const line, multiplier, increment = 64, 6364136223846793005, 1442695040888963407
	const mask, place = minivm.RBX, minivm.RCX
	again := w.label("stroll")
	w.MovImm(table, multiplier).MovImm(at, 0).MovImm(turn, increment*line&(1<<63-1))
	w.MovImm(mask, size-1).MovImm(left, uint64(n)).MovImm(value, addr).Label(again)
	w.Imul(at, table).Add(at, turn).And(at, mask)
	w.Mov(place, at).Add(place, value).Load(place, place, 0)
	w.Add(at, place).Sub(at, place)
	w.Dec(left).Jcc(minivm.NotEqual, again)
}
