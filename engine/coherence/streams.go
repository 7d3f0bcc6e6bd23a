package coherence

import "ironspan/engine/wire"

const (
	// streamsMax is how many sequences of faults are followed at the same time: a few for each vCPU of a server.
	streamsMax = 16

	// streamGap is how many steps a sequence may skip, because their pages are here already.
	streamGap = 1

	// streamStart is the first window. It doubles as long as the sequence goes on.
	streamStart = 2

	// strideMax is the longest step of a sequence, in pages, forward or backward.
	strideMax = 64
)

// streams are the sequences of faults that a node's vCPUs are in: a copy, a scan, the walk along a column. Each fault
// that continues one asks for the pages ahead of it too, twice as many each time, so that the faults that follow find
// their page here or on its way. A sequence of neighbours shows at its second fault, one with another stride at its
// third. vCPUs are told apart by where they are, not by who they are: what one of them began another may go on with.
//
// A window doubles only when the guest has come to the end of the one before it. So what a walk has asked for in vain is
// its last window at most, which is no longer than twice the walk.
type streams struct {
	next int // entry to be replaced next
	set  [streamsMax]stream
}

// stream is one sequence, or a fault that may be part of one. Pages by index.
type stream struct {
	last   uint32 // the page that it has come to, or the last that was asked for ahead; + 1, 0: no such stream
	stride int32  // pages of a step, or what a step would be if this fault belonged with another; 0: not known
	window uint32 // steps asked for ahead at the last fault; 0: no sequence yet
	write  bool   // by writes to pages that were held for reading or not at all
}

// continued says whether a fault on page i goes on with the sequence.
func (t *stream) continued(i uint32, write bool) bool {
	if t.last == 0 || t.write != write {
		return false
	}
	d := int32(i + 1 - t.last)
	if t.window == 0 {
		return d == 1 || d != 0 && d == t.stride
	}
	return d%t.stride == 0 && uint32(d/t.stride-1) <= streamGap
}

// advance finds the sequence that a fault on page i continues and returns how many steps ahead to ask for, and their
// stride.
func (s *streams) advance(i uint32, write bool, most uint32) (ahead uint32, stride int32) {
	near := int32(0)
	for n := range s.set {
		t := &s.set[(s.next+n)%streamsMax] // the oldest first
		if t.continued(i, write) {
			if t.window == 0 {
				t.stride = int32(i + 1 - t.last)
			}
			t.window = min(max(2*t.window, streamStart), most)
			t.last = i + 1 + t.window*uint32(t.stride)
			return t.window, t.stride
		}
		if d := int32(i + 1 - t.last); t.last != 0 && t.write == write && -strideMax <= d && d <= strideMax {
			near = d // from the latest that is near
		}
	}
	s.set[s.next] = stream{last: i + 1, stride: near, write: write}
	s.next = (s.next + 1) % streamsMax
	return 0, 0
}

// askAhead asks for the pages that the fault on page i, which has just been asked for, lets expect. Half of the slots
// are left to faults.
func (a *Agent) askAhead(now int64, i uint32, need wire.Mode) {
	ahead, stride := a.streams.advance(i, need == wire.Modified, a.prefetch)
	for j := int64(i) + int64(stride); ahead > 0 && 0 <= j && j < int64(len(a.pages)) && a.spare(uint32(j)); ahead-- {
		p := &a.pages[j]
		if p.mapped() < need && p.slot == 0 && !p.is(queuedAny) {
			a.stats.Prefetches++
			a.ask(now, uint32(j), a.pageAt(uint32(j)), need)
		}
		j += int64(stride)
	}
}

// foresee raises a read of page i to a write if it is one step of a sequence whose last page was written after it had
// been read.
func (a *Agent) foresee(i uint32, need wire.Mode) wire.Mode {
	for k := range a.streams.set {
		t := &a.streams.set[k]
		if t.window == 0 || t.write || i+1-t.last != uint32(t.stride) {
			continue
		}
		if before := int64(i) - int64(t.stride); 0 <= before && before < int64(len(a.pages)) && a.pages[before].mode == wire.Modified {
			return wire.Modified
		}
	}
	return need
}
