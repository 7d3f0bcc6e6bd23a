package micro

import (
	"ironspan/engine/mininode"
	"ironspan/kvmhost/apic"
	"ironspan/kvmhost/minivm"
	"ironspan/perf/internal/result"
)

// events are what vCPUs leave their guest for that is not memory: interrupts to other nodes, accesses to their devices,
// and to local ones.
func events(c Scale) []*Bench {
	return []*Bench{
		ipi(c, true), ipi(c, false),
		exit(c, "forward/mmio/read", 2, func(w *writer) { w.MovImm(minivm.RBX, platformDevice) },
			func(w *writer) { w.Load32(minivm.RCX, minivm.RBX, 0) }),
		exit(c, "forward/mmio/write", 2, func(w *writer) { w.MovImm(minivm.RBX, platformDevice) },
			func(w *writer) { w.Store32(minivm.RBX, 0, minivm.RCX) }),
		exit(c, "forward/port/read", 2, func(*writer) {}, func(w *writer) { w.In8(platformPort) }),
		exit(c, "exit/port/write", 1, func(*writer) {}, func(w *writer) { w.Out8(freePort) }),
		exit(c, "exit/port/read", 1, func(*writer) {}, func(w *writer) { w.In8(freePort) }),
		exit(c, "exit/mmio/read", 1, func(w *writer) { w.MovImm(minivm.RBX, platformDevice) },
			func(w *writer) { w.Load32(minivm.RCX, minivm.RBX, 0) }),
		exit(c, "exit/lapic/read", 1, func(w *writer) { w.MovImm(minivm.RBX, apic.LAPICBase+0x20) },
			func(w *writer) { w.Load32(minivm.RCX, minivm.RBX, 0) }),
	}
}

const eventBatches = 3 // the first one not counted

// exit times one instruction that leaves the guest, of the last node's. With one node the device is its own.
func exit(c Scale, name string, nodes int, prepare, do func(*writer)) *Bench {
	return &Bench{
		Name:  name,
		Alone: nodes == 1,
		Trial: func() *Trial {
			return &Trial{
				Batches: eventBatches, Config: mininode.Config{Nodes: nodes, Lane: nodes > 1},
				VCPUs: []VCPU{{nodes - 1, func(w *writer) {
					again := w.label("exit")
					prepare(w)
					w.MovImm(left, uint64(c.Events)).Label(again)
					w.start()
					do(w)
					w.stop()
					w.Dec(left).Jcc(minivm.NotEqual, again)
				}}},
			}
		},
		Record: func(r *Round, o *Outcome) error {
			r.Latency(name, nil, warm(o.Samples[0], eventBatches))
			return nil
		},
	}
}

// ipi is an interrupt from one node's vCPU to another's: from the write of the command to the first instruction of the
// handler, as with a kick. The target sleeps in a halt, or runs in the guest. Its handler sends one back at once; the way
// is the same in both directions, and one clock measures: so a sample is half of the time there and back.
func ipi(c Scale, asleep bool) *Bench {
	const name = "ipi"
	labels := result.Labels{"target": "running"}
	if asleep {
		labels["target"] = "halted"
	}
	return &Bench{
		Name: result.Key(name, labels),
		Trial: func() *Trial {
			return &Trial{
				Batches: eventBatches, Interrupts: true, Echo: true, Config: mininode.Config{Nodes: 2},
				VCPUs: []VCPU{
					{0, func(w *writer) {
						w.exchange(c.Events, func() {
							w.start()
							send(w.Asm, mininode.APICID(1, 0))
							w.await(asleep)
							w.stopAtWake()
						})
					}},
					{1, func(w *writer) { w.exchange(c.Events, func() { w.await(asleep) }) }},
				},
			}
		},
		Record: func(r *Round, o *Outcome) error {
			var halves []int64
			for _, ns := range warm(o.Samples[0], eventBatches) {
				halves = append(halves, ns/2)
			}
			r.Latency(name, labels, halves)
			return nil
		},
	}
}

// exchange does something n times, each with one interrupt more to be expected. They are counted on from batch to batch.
func (w *writer) exchange(n int, do func()) {
	again := w.label("exchange")
	w.MovImm(left, uint64(n)).Mov(count, turn).Label(again).AddImm(count, 1)
	do()
	w.Dec(left).Jcc(minivm.NotEqual, again).Mov(turn, count)
}
