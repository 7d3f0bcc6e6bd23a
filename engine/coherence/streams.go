package coherence

import "ironspan/engine/wire"

const (
	// streamsMax is how many sequences of faults are followed at the same time: a few for each vCPU of a server.
	streamsMax = 16

	// streamGap is how many pages a sequence may skip, because they are here already.
	streamGap = 4

	// streamStart is the first window. It doubles as long as the sequence goes on.
	streamStart = 2
)

// streams are the sequences of faults that a node's vCPUs are in: a copy, a scan, the clearing of a buffer. Each fault
// that continues one asks for the pages ahead of it too, twice as many each time, so that the faults that follow find
// their page here or on its way.
type streams struct {
	next int // entry to be replaced next
	set  [streamsMax]stream
}

// stream is one sequence. Pages by index.
type stream struct {
	expect uint32 // the first page behind those that were asked for
	window uint32 // how many were; 0: a single fault, no sequence yet
	write  bool   // by writes to pages that were held for reading or not at all
}

// advance finds the sequence that a fault on page i continues and returns how many pages to ask for ahead of it.
func (s *streams) advance(i uint32, write bool, most uint32) (ahead uint32) {
	for k := range s.set {
		t := &s.set[k]
		if t.expect == 0 || t.write != write || i-t.expect > streamGap {
			continue
		}
		t.window = min(max(2*t.window, streamStart), most)
		t.expect = i + t.window + 1
		return t.window
	}
	s.set[s.next] = stream{expect: i + 1, write: write}
	s.next = (s.next + 1) % streamsMax
	return 0
}

// askAhead asks for the pages that the fault on page i, which has just been asked for, lets expect. Half of the slots
// are left to faults.
func (a *Agent) askAhead(now int64, i uint32, need wire.Mode) {
	ahead := a.streams.advance(i, need == wire.Modified, a.prefetch)
	for j := i + 1; ahead > 0 && int(j) < len(a.pages) && a.spare(j); j, ahead = j+1, ahead-1 {
		p := &a.pages[j]
		if p.mode >= need || p.slot != 0 || p.is(queuedAny) {
			continue
		}
		a.stats.Prefetches++
		a.ask(now, j, a.pageAt(j), need)
	}
}

// foresee raises a read of page i to a write if it is one step of a sequence whose last page was written after it had
// been read.
func (a *Agent) foresee(i uint32, need wire.Mode) wire.Mode {
	if i == 0 || a.pages[i-1].mode != wire.Modified {
		return need
	}
	for k := range a.streams.set {
		if t := &a.streams.set[k]; t.expect == i && !t.write && t.window > 0 {
			return wire.Modified
		}
	}
	return need
}
