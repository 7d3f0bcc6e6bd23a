package fastpath

import "ironspan/engine/wire"

// split maps the pages around page one by one if they are mapped as one, as those of a home range are until one of them
// is wanted elsewhere: this node has all of them in M. It comes before page's right goes, so that the agent never hears
// of the others.
func (s *Shard) split(page wire.PFN) {
	if !s.ram.Whole(page) {
		return
	}
	start := s.clock()
	s.check("split the mapping around", page, s.ram.Split(s.u, page))
	s.metrics.Stage[StageSplit].Record(s.clock() - start)
}
