//go:build linux

package main

import (
	"slices"
	"strings"
	"testing"

	"ironspan/engine/litmus"
)

// trialsOnHost are batches for workers on these NUMA nodes, of which the memory knows nothing.
func trialsOnHost(t *testing.T, homes ...int) *trials {
	t.Helper()
	c := &crew{}
	for i := range homes {
		c.workers = append(c.workers, &worker{index: i, crew: c})
	}
	l, err := newTrials(topology{nodes: make([]node, 1)}, c, 7, 4)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.free)
	l.homes = homes
	return l
}

// A round that x86-TSO forbids ends the phase, and so does a value that nobody stored.
func TestLitmusRefusesWhatIsForbidden(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(l *trials, b *batch, writer, reader bank)
		want   string
	}{
		{"nothing", func(*trials, *batch, bank, bank) {}, ""},
		{"old data behind the flag", func(_ *trials, _ *batch, _, reader bank) { reader[recordWords+recRegs+1] = 0 }, "x86-TSO forbids"},
		{"a lost store", func(l *trials, b *batch, _, _ bank) {
			clear(l.vars[b.place.offset(int(litmus.X), 5):][:b.place.width])
		}, "instance 5: litmus: MP: "},
		{"a value from nowhere", func(_ *trials, _ *batch, _, reader bank) { reader[recordWords+recRegs] = 0x100 }, "0x100, which nobody stored"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := trialsOnHost(t, 0, 1)
			i := slices.IndexFunc(l.shapes, func(s *litmus.Shape) bool { return s.Name == "MP" })
			b := batch{shape: l.shapes[i], place: &places[0], cast: []int{0, 1}, block: 1}
			l.runAlone(&b)
			c.change(l, &b, l.recordsOf(&b, 0), l.recordsOf(&b, 1))
			err := l.clean(&b)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// Every shape at every place, one thread after the other: all instances are used, each by all threads, and cleaned.
func TestLitmusPlaces(t *testing.T) {
	l := trialsOnHost(t, 0, 1, 0, 1)
	if len(l.shapes) != len(litmus.Shapes) {
		t.Fatalf("%d shapes", len(l.shapes))
	}
	for _, s := range l.shapes {
		for p := range places {
			b := batch{shape: s, place: &places[p], cast: []int{3, 1, 0, 2}[:len(s.Threads)], block: 4}
			if !b.place.fits(s) {
				continue
			}
			l.runAlone(&b)
			before, err := l.outcomes(&b)
			if err != nil {
				t.Fatal(err)
			}
			for i, o := range before {
				if o != before[0] || o == (litmus.Outcome{}) {
					t.Fatalf("%v: %s: %s", s, b.describe(i), o.Describe(s))
				}
			}
			if err := l.clean(&b); err != nil {
				t.Error(err)
			}
			if slices.ContainsFunc(l.vars, func(b byte) bool { return b != 0 }) {
				t.Fatalf("%v: %s: not clean", s, b.place.name)
			}
		}
	}
	if _, _, _, interleaved := l.judge.Sum(); interleaved != 0 {
		t.Errorf("%d rounds were interleaved, of threads that ran one after the other", interleaved)
	}
}

// Variables of one instance or several share no byte, and none is where a storm writes.
func TestLitmusPlacesAreApart(t *testing.T) {
	for p := range places {
		place := &places[p]
		var used [arenaPages * pageSize]bool
		for page := range arenaPages {
			for i := range 8 {
				used[page*pageSize+stormOffset+i] = true
			}
		}
		for v := range place.at {
			for i := range place.instances {
				for b := range place.width {
					at := place.offset(v, i) + b
					if used[at] {
						t.Fatalf("%s: %v of instance %d is not alone", place.name, litmus.Var(v), i)
					}
					used[at] = true
				}
			}
		}
	}
}

// Threads of a shape are not all on one node if there are several.
func TestLitmusCastsOfSeveralNodes(t *testing.T) {
	for _, homes := range [][]int{{0, 1}, {0, 0, 1, 1}, {0, 0, 0, 1}} {
		l := trialsOnHost(t, homes...)
		for n := range 200 {
			b := l.plan(n)
			first := homes[b.cast[0]]
			if !slices.ContainsFunc(b.cast, func(w int) bool { return homes[w] != first }) {
				t.Errorf("workers on %v: batch %d of %v", homes, n, b.cast)
			}
		}
	}
}

// With more CPUs than threads, the others storm; the seed makes three workers play two threads sooner or later.
func TestLitmusStorms(t *testing.T) {
	d, _ := onHost(t)
	cpu := d.crew.workers[0].cpu
	three := newCrew([]int{cpu, cpu, cpu})
	t.Cleanup(three.close)
	l, err := newTrials(topology{nodes: make([]node, 1)}, three, 3, 8)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.free)
	if err := three.run(int64(l.batches), l.run, nil); err != nil {
		t.Error(err)
	}
	if _, rounds, _, _ := l.judge.Sum(); rounds < 8*16 {
		t.Errorf("%d rounds", rounds)
	}
}

// runAlone is a batch whose threads run one after the other, here.
func (l *trials) runAlone(b *batch) {
	for thread, w := range b.cast {
		l.draw(l.random(b.number, w+1), b, l.recordsOf(b, w))
		l.play(b, thread)
	}
}
