package litmus

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Judge holds rounds against the model, and counts how they ended. The zero value is ready. One goroutine at a time may
// use it.
type Judge struct {
	allowed map[question]map[Outcome]bool
	tallies []*Tally
}

// question is what the model is asked.
type question struct {
	shape *Shape
	split Split
}

// Tally is how the rounds of a shape ended, with all variables whole or with some of them split.
type Tally struct {
	Shape       *Shape
	Split       bool
	Rounds      int
	Interleaved int // rounds that ended as no order of whole threads does: these were in each other's way
	counts      map[Outcome]int
	allowed     map[Outcome]bool // by the model, for all ways of splitting that there were
	serial      map[Outcome]bool
}

// Round takes the final state of a round. The error says that x86-TSO forbids it.
func (j *Judge) Round(s *Shape, split Split, o Outcome) error {
	for v := s.Vars(); v < MaxVars; v++ {
		split[v] = false
	}
	t := j.tally(s, split != Split{})
	q := question{s, split}
	allowed := j.allowed[q]
	if allowed == nil {
		if j.allowed == nil {
			j.allowed = map[question]map[Outcome]bool{}
		}
		allowed = Outcomes(s, split)
		j.allowed[q] = allowed
		for o := range allowed {
			t.allowed[o] = true
		}
	}
	t.Rounds++
	t.counts[o]++
	if !t.serial[o] {
		t.Interleaved++
	}
	if !allowed[o] {
		return fmt.Errorf("litmus: %v ended with %s, which x86-TSO forbids", s, o.Describe(s))
	}
	return nil
}

func (j *Judge) tally(s *Shape, split bool) *Tally {
	for _, t := range j.tallies {
		if t.Shape == s && t.Split == split {
			return t
		}
	}
	t := &Tally{Shape: s, Split: split, counts: map[Outcome]int{}, allowed: map[Outcome]bool{}, serial: serial(s)}
	j.tallies = append(j.tallies, t)
	return t
}

// Tallies are ordered by name.
func (j *Judge) Tallies() []*Tally {
	return slices.SortedFunc(slices.Values(j.tallies), func(a, b *Tally) int { return cmp.Compare(a.Name(), b.Name()) })
}

// Sum is how many shapes there were, rounds of them, different outcomes, and rounds that ended as no order of whole
// threads does.
func (j *Judge) Sum() (shapes, rounds, outcomes, interleaved int) {
	seen := map[*Shape]bool{}
	for _, t := range j.tallies {
		seen[t.Shape] = true
		rounds += t.Rounds
		outcomes += len(t.counts)
		interleaved += t.Interleaved
	}
	return len(seen), rounds, outcomes, interleaved
}

// Name is that of the shape, and whether it was split.
func (t *Tally) Name() string {
	if t.Split {
		return t.Shape.Name + " split"
	}
	return t.Shape.Name
}

// Outcomes is how many different ones there were.
func (t *Tally) Outcomes() int { return len(t.counts) }

// Allowed is how many the model allows.
func (t *Tally) Allowed() int { return len(t.allowed) }

// Histogram lists the commonest outcomes.
func (t *Tally) Histogram() string {
	const most = 6
	var seen []Outcome
	for o := range t.counts {
		seen = append(seen, o)
	}
	slices.SortFunc(seen, func(a, b Outcome) int {
		return cmp.Or(t.counts[b]-t.counts[a], strings.Compare(a.Describe(t.Shape), b.Describe(t.Shape)))
	})
	var parts []string
	for _, o := range seen[:min(most, len(seen))] {
		parts = append(parts, fmt.Sprintf("%d x %s", t.counts[o], o.Describe(t.Shape)))
	}
	if len(seen) > most {
		parts = append(parts, "...")
	}
	return strings.Join(parts, "; ")
}

// serial is what becomes of a shape whose threads run one after the other, in any order.
func serial(s *Shape) map[Outcome]bool {
	ends := map[Outcome]bool{}
	var run func(m state, left []int)
	run = func(m state, left []int) {
		if len(left) == 0 {
			ends[m.Outcome] = true
		}
		for i, t := range left {
			next := m
			for _, in := range s.Threads[t] {
				next = next.step(t, in, both)
				for next.threads[t].n > 0 {
					next = next.drain(t)
				}
			}
			run(next, slices.Delete(slices.Clone(left), i, i+1))
		}
	}
	threads := []int{0, 1, 2, 3}
	run(state{}, threads[:len(s.Threads)])
	return ends
}
