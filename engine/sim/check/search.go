package check

import (
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"time"

	"ironspan/engine/coherence"
)

// Result is what a search went through.
type Result struct {
	States      int
	Transitions int
	Depth       int // transitions to the state that is farthest away
	Drain       int // designated transitions, at most, until everybody is served
	Time        time.Duration
	Stats       []*coherence.Stats // of each node, summed up over all transitions
}

// Violation is a state, or a transition, that must not be, with the shortest way to it.
type Violation struct {
	Err   error
	Steps int      // transitions to it
	Trace []string // what happens in them
}

func (v *Violation) Error() string { return v.Err.Error() }

func (v *Violation) Unwrap() error { return v.Err }

// ErrStates is the error of a search that is cut off by Config.States.
var ErrStates = errors.New("check: more states than the search was to go through")

var (
	errDeadlock = errors.New("deadlock: somebody waits, and nothing is left to happen")
	errStarved  = errors.New("starvation: a fair schedule comes back here without serving everybody")
)

// search is a breadth-first search. States are numbered in the order in which they are found.
type search struct {
	cfg   *Config
	world *world
	fold  folder
	seeds [2]maphash.Seed
	known map[[2]uint64]uint32

	// By state: where it was found from, by which of the events there, and where its designated event leads;
	// its own number if everybody is served.
	parent, drain []uint32
	by            []uint8

	frontier, next frontier
	result         Result
}

// frontier is the states of one depth, in their encoding.
type frontier struct {
	first uint32 // number of the first
	bytes []byte
	ends  []int
}

// Run goes through all states of a cluster. The error is a *Violation if one of them must not be.
func Run(cfg Config) (*Result, error) {
	began := time.Now()
	s, err := newSearch(&cfg)
	if err != nil {
		return nil, err
	}
	err = s.run()
	s.result.States = len(s.parent)
	for _, a := range s.world.agents {
		s.result.Stats = append(s.result.Stats, a.Stats())
	}
	s.result.Time = time.Since(began)
	return &s.result, err
}

func newSearch(cfg *Config) (*search, error) {
	if cfg.States == 0 {
		cfg.States = 1 << 26
	}
	w, err := newWorld(cfg)
	if err != nil {
		return nil, err
	}
	s := &search{
		cfg: cfg, world: w, fold: folder{renamings: cfg.renamings()},
		seeds: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}, known: map[[2]uint64]uint32{},
	}
	s.visit(0, 0)
	return s, nil
}

// visit returns the number of the state that the world is in, and adds it if it is new.
func (s *search) visit(from uint32, by int) uint32 {
	b, _ := s.fold.fold(s.world)
	hash := [2]uint64{maphash.Bytes(s.seeds[0], b), maphash.Bytes(s.seeds[1], b)}
	if id, ok := s.known[hash]; ok {
		return id
	}
	id := uint32(len(s.parent))
	s.known[hash] = id
	s.parent = append(s.parent, from)
	s.by = append(s.by, uint8(by))
	s.drain = append(s.drain, id)
	s.next.bytes = append(s.next.bytes, b...)
	s.next.ends = append(s.next.ends, len(s.next.bytes))
	s.world.checkLosses()
	return id
}

func (s *search) run() error {
	for len(s.next.ends) > 0 {
		s.frontier, s.next = s.next, s.frontier
		s.next = frontier{first: uint32(len(s.parent)), bytes: s.next.bytes[:0], ends: s.next.ends[:0]}
		begin := 0
		for i, end := range s.frontier.ends {
			if err := s.expand(s.frontier.first+uint32(i), s.frontier.bytes[begin:end]); err != nil {
				return err
			}
			begin = end
		}
		if len(s.parent) > s.cfg.States {
			return ErrStates
		}
		if len(s.next.ends) > 0 {
			s.result.Depth++
		}
	}
	return s.followDrains()
}

// expand goes from a state to all that can follow it.
func (s *search) expand(id uint32, b []byte) error {
	w := s.world
	w.unfold(b)
	var space [64]event
	events := w.events(space[:0])
	if len(events) == 0 || !events[0].onlyDrains() {
		if !w.served() {
			return s.violation(id, -1, errDeadlock)
		}
	}
	for k, e := range events {
		if k > 0 {
			w.unfold(b)
		}
		w.apply(e)
		if w.err != nil {
			return s.violation(id, k, w.err)
		}
		s.result.Transitions++
		to := s.visit(id, k)
		if w.err != nil {
			return s.violation(id, k, w.err)
		}
		if k == 0 && e.onlyDrains() {
			if to == id {
				return s.violation(id, k, errStarved)
			}
			s.drain[id] = to
		}
	}
	return nil
}

// followDrains follows the designated transitions from every state.
func (s *search) followDrains() error {
	const unknown, open = -1, -2
	length := make([]int32, len(s.drain)) // until everybody is served
	for i := range length {
		length[i] = unknown
	}
	var path []uint32
	for i := range s.drain {
		id := uint32(i)
		for path = path[:0]; length[id] == unknown && s.drain[id] != id; id = s.drain[id] {
			length[id] = open
			path = append(path, id)
		}
		if length[id] == open {
			return s.violation(id, -1, errStarved)
		}
		if s.drain[id] == id {
			length[id] = 0
		}
		for n := range path {
			length[path[len(path)-1-n]] = length[id] + int32(n) + 1
		}
		s.result.Drain = max(s.result.Drain, int(length[i]))
	}
	return nil
}

// violation retraces the way to a state, and an event there if it is not -1.
func (s *search) violation(id uint32, event int, err error) error {
	var way []int
	if event >= 0 {
		way = append(way, event)
	}
	for ; id != 0; id = s.parent[id] {
		way = append(way, int(s.by[id]))
	}
	slices.Reverse(way)
	return &Violation{Err: err, Steps: len(way), Trace: s.retrace(way)}
}

// retrace goes a way again and tells what happens. The events are counted in the states as they are stored,
// where nodes and pages have other names in each: so a second world goes along that is never renamed, and what
// happens is what happens there.
func (s *search) retrace(way []int) (trace []string) {
	cfg := *s.cfg
	cfg.table = nil
	stored, plain := s.world, must(newWorld(&cfg))
	plain.trace = func(format string, args ...any) { trace = append(trace, fmt.Sprintf(format, args...)) }
	for _, k := range way {
		b, r := s.fold.fold(plain)
		stored.unfold(b)
		plain.apply(r.back(stored.events(nil)[k]))
	}
	return trace
}

func must(w *world, err error) *world {
	if err != nil {
		panic(err) // the same Config was good before
	}
	return w
}
