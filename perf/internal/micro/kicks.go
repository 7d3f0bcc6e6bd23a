package micro

import (
	"encoding/binary"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"ironspan/engine/mininode"
	"ironspan/kvmhost"
	"ironspan/kvmhost/apic"
	"ironspan/perf/internal/result"
)

// kicks are interrupts that a thread of the host posts to a vCPU, which runs in the guest or sleeps in a halt: from the
// post to the first instruction of the guest's handler.
func kicks(c Scale) []*Bench { return []*Bench{kick(c, false), kick(c, true)} }

func kick(c Scale, asleep bool) *Bench {
	const name = "kick"
	labels := result.Labels{"target": "running"}
	if asleep {
		labels["target"] = "halted"
	}
	return &Bench{
		Name:  result.Key(name, labels),
		Alone: true,
		Trial: func() *Trial {
			var ns []int64
			begin := make(chan struct{})
			return &Trial{
				Interrupts: true, Config: mininode.Config{Nodes: 1},
				VCPUs: []VCPU{{0, func(w *writer) {
					w.MovImm(count, uint64(c.Events))
					w.await(asleep)
				}}},
				Prepare: func(s *share) (func(), error) {
					k := &kicker{share: s, word: s.tableOf(0, 0)[:16], end: make(chan struct{}), done: make(chan struct{})}
					go func() {
						defer close(k.done)
						select {
						case <-begin:
							ns = k.run(c.Events)
						case <-k.end:
						}
					}()
					return k.stop, nil
				},
				Meet: func(_ *share, meeting int) {
					if meeting == 0 {
						close(begin)
					}
				},
				Collect: func(_ *share, o *Outcome) { o.Samples[0] = ns },
			}
		},
		Record: func(r *Round, o *Outcome) error {
			if len(o.Samples[0]) != c.Events {
				return few("kicks", len(o.Samples[0]), c.Events)
			}
			r.Latency(name, labels, o.Samples[0][c.Events/10:])
			return nil
		},
	}
}

// kicker posts interrupts, each when the one before has been taken.
type kicker struct {
	share     *share
	word      []byte // when the last was taken, and how many were
	end, done chan struct{}
}

func (k *kicker) stop() {
	close(k.end)
	<-k.done
}

// between is the time from one kick to the next, in which the vCPU comes to its halt.
const between = 200 * time.Microsecond

func (k *kicker) run(n int) (ns []int64) {
	runtime.LockOSThread() // and never unlocked, so that nobody else gets a thread like this
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	vm := k.share.nodes[0].VM
	m := apic.Message{Dest: mininode.APICID(0, 0), Vector: wakeVector, Source: apic.NoSource}
	for i := range uint64(n) {
		sleep(between)
		t0 := kvmhost.HostTSC()
		vm.Accept(m)
		for binary.LittleEndian.Uint64(k.word[8:]) <= i {
			select {
			case <-k.end:
				return ns
			default:
				sleep(between / 4)
			}
		}
		taken := binary.LittleEndian.Uint64(k.word)
		ns = append(ns, kvmhost.TSCToNs(max(taken, t0)-t0, vm.TSCKHz()))
	}
	return ns
}

// sleep is the thread's own, where the Go runtime's is as late as fastpath.PrepareRuntime lets it be.
func sleep(d time.Duration) {
	t := unix.NsecToTimespec(int64(d))
	_ = unix.Nanosleep(&t, nil) // a signal may end it before
}
