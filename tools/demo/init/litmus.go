//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"

	"ironspan/engine/litmus"
	"ironspan/engine/litmus/x86"
)

// The litmus phase: threads on different CPUs, and on different nodes if there are several, run the shapes of package
// litmus as machine code, and each round is held against x86-TSO. CPUs that a shape has no thread for touch its pages
// meanwhile.
//
// To meet costs several page moves, so threads meet for a batch of rounds, one for each of many instances of the
// variables. Whoever has a page could do all the rounds that are there before the other gets it, and nothing would be in
// anybody's way. So in most batches each round begins by the clock, which all CPUs share, and instructions wait for as
// long as pages take to move. How long that is, the workers find out first.

// trials is the phase's state.
type trials struct {
	seed    uint64
	batches int
	homes   []int // node of each worker
	shapes  []*litmus.Shape
	code    program
	entries map[entry]int // offsets of the code
	storm   int           // likewise
	now     int           // likewise
	pace    uint64        // cycles that a page takes from one worker to the next
	clocks  []bank        // a word of each worker's for its clock
	records []bank        // of each worker: for two batches by turns, as one is judged while the next is drawn; or its storm's
	vars    arena
	barrier sheet // arrivals at meetings; when the first rounds of the batch begin; whose turn it is

	mu    sync.Mutex // guards judge, which goes from janitor to janitor
	judge litmus.Judge
}

func (d *demo) litmus() error {
	if d.crew.size() == 1 {
		d.out.say("litmus left out: one CPU shares memory with nobody")
		return nil
	}
	t, err := readTopology("")
	if err != nil {
		return err
	}
	l, err := newTrials(t, d.crew, mix(uint64(uptime())), d.params.Litmus)
	if err != nil {
		return err
	}
	defer l.free()
	if err := d.together("pace", paceRounds, l.measure); err != nil {
		return err
	}
	if err := d.together("batches", int64(l.batches), l.run); err != nil {
		return err
	}
	for _, is := range l.judge.Tallies() {
		d.out.event("litmus").str("shape", is.Name()).num("rounds", int64(is.Rounds)).num("outcomes", int64(is.Outcomes())).
			num("allowed", int64(is.Allowed())).num("interleaved", int64(is.Interleaved)).print()
	}
	shapes, rounds, outcomes, interleaved := l.judge.Sum()
	d.done(d.phase().num("batches", int64(l.batches)).num("rounds", int64(rounds)).num("shapes", int64(shapes)).
		num("outcomes", int64(outcomes)).num("interleaved", int64(interleaved)).
		num("pace_cycles", int64(l.pace)))
	return nil
}

func newTrials(t topology, c *crew, seed uint64, batches int) (*trials, error) {
	l := &trials{seed: seed, batches: batches, entries: map[entry]int{}}
	var err error
	defer func() {
		if err != nil {
			l.free()
		}
	}()
	ids := make([]int, len(t.nodes))
	for i, n := range t.nodes {
		ids[i] = n.id
	}
	for _, w := range c.workers {
		home := t.nodeOf(w.cpu)
		l.homes = append(l.homes, home)
		var own bank
		if own, err = newBank(ids[home], len(ids) > 1, 8*(2*batchWords+1)); err != nil {
			return nil, err
		}
		l.records = append(l.records, own)
		l.clocks = append(l.clocks, own[2*batchWords:])
	}
	if l.vars, err = newArena(arenaPages, ids); err != nil {
		return nil, err
	}
	if l.barrier, err = newSheet(1); err != nil {
		return nil, err
	}
	for i := range litmus.Shapes {
		if s := &litmus.Shapes[i]; len(s.Threads) <= c.size() {
			l.shapes = append(l.shapes, s)
		}
	}
	if l.code, err = newProgram(l.assemble()); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *trials) free() {
	for _, own := range l.records {
		own.free()
	}
	if l.vars != nil {
		l.vars.free()
	}
	if l.barrier.words != nil {
		l.barrier.free()
	}
	if l.code != nil {
		l.code.free()
	}
}

// batch is what all workers do together, as each of them knows it from the seed.
type batch struct {
	number int
	shape  *litmus.Shape
	place  *place
	cast   []int  // the worker of each thread
	slot   uint64 // cycles from one round to the next, or 0
	block  int    // threads go through blocks of so many instances in one order, and through each block in orders of their own
}

func (l *trials) plan(number int) batch {
	rng := l.random(number, 0)
	b := batch{number: number, shape: l.shapes[rng.IntN(len(l.shapes))], place: &places[rng.IntN(len(places))]}
	for !b.place.fits(b.shape) {
		b.place = &places[rng.IntN(len(places))]
	}
	b.block = 1
	if rng.IntN(4) != 0 {
		b.slot = slotPaces * l.pace
	} else {
		b.block = [...]int{1, 4, maxInstances}[rng.IntN(3)]
	}
	for b.cast == nil || l.close(b.cast) {
		b.cast = rng.Perm(len(l.homes))[:len(b.shape.Threads)]
	}
	return b
}

// random is what all know of a batch, who being 0, or one of them alone.
func (l *trials) random(number, who int) *rand.Rand {
	return rand.New(rand.NewPCG(l.seed, uint64(number)<<16|uint64(who)))
}

// close says that all of the cast are on one node, though others are on another.
func (l *trials) close(cast []int) bool {
	home := l.homes[cast[0]]
	elsewhere := func(w int) bool { return l.homes[w] != home }
	return !slices.ContainsFunc(cast, elsewhere) && slices.ContainsFunc(l.homes, func(h int) bool { return h != home })
}

func (l *trials) run(w *worker) error {
	crew, start := w.crew.size(), uint64(0)
	for number := range l.batches {
		b := l.plan(number)
		thread := slices.Index(b.cast, w.index)
		rng := l.random(number, w.index+1)
		if thread >= 0 {
			l.draw(rng, &b, l.recordsOf(&b, w.index))
		} else {
			l.drawStorm(rng, &b, l.recordsOf(&b, w.index))
		}
		var err error
		if start, err = l.gather(w, uint64((2*number+1)*crew), start); err != nil {
			return err
		}
		if thread >= 0 {
			head := l.recordsOf(&b, w.index)
			head[headStart], head[headSlot] = start, b.slot
			l.play(&b, thread)
		} else {
			l.rage(w, &b, uint64((2*number+1)*crew+len(b.cast)))
		}
		if err := l.meet(w, uint64((2*number+2)*crew)); err != nil {
			return err
		}
		if w.index == number%crew {
			if err := l.clean(&b); err != nil {
				return err
			}
		}
		w.progress(int64(number + 1))
	}
	return nil
}

// Words of the barrier's page.
const (
	arrivedWord = 0
	startWord   = 8
	turnWord    = 16
)

// meet waits until so many arrivals have been counted.
func (l *trials) meet(w *worker, arrivals uint64) error {
	word := l.barrier.at(0, arrivedWord)
	word.Add(1)
	return w.await(word, arrivals)
}

// gather is like meet, and all leave with the same time, a little later than now and later than the last such. Who comes
// last sets it.
func (l *trials) gather(w *worker, arrivals, last uint64) (uint64, error) {
	start := l.barrier.at(0, startWord)
	if l.barrier.at(0, arrivedWord).Add(1) == arrivals {
		start.Store(max(l.clock(w)+leadPaces*l.pace, last+1))
	} else if err := w.await(start, last+1); err != nil {
		return 0, err
	}
	return start.Load(), nil
}

// clock is the time stamp counter.
func (l *trials) clock(w *worker) uint64 {
	words := l.clocks[w.index]
	l.code.call(l.now, words, 1)
	return words[0]
}

// Times in a batch, by how long a page takes.
const (
	paceRounds = 16
	leadPaces  = 2
	slotPaces  = 4
)

// measure has a word go round and finds out how long it takes from worker to worker.
func (l *trials) measure(w *worker) error {
	word, crew := l.barrier.at(0, turnWord), uint64(w.crew.size())
	least, before := ^uint64(0), uint64(0)
	for round := range uint64(paceRounds) {
		if err := w.await(word, round*crew+uint64(w.index)); err != nil {
			return err
		}
		word.Add(1)
		now := l.clock(w)
		if round > 0 {
			least = min(least, (now-before)/crew)
		}
		before = now
		w.progress(int64(round + 1))
	}
	if w.index == 0 {
		l.pace = min(max(least, 1000), 1<<28) // three of them are to fit in 32 bits
	}
	return nil
}

// recordsOf are a worker's head and records of a batch.
func (l *trials) recordsOf(b *batch, worker int) bank {
	return l.records[worker][batchWords*(b.number%2):][:batchWords]
}

// play is a thread's part of the batch.
func (l *trials) play(b *batch, thread int) {
	l.code.call(l.entries[entry{b.shape, thread, b.place.width}], l.recordsOf(b, b.cast[thread]), b.place.instances)
}

// rage goes on until all threads of the batch have arrived. Until then, no other storm has.
func (l *trials) rage(w *worker, b *batch, arrivals uint64) {
	for l.barrier.at(0, 0).Load() < arrivals && !w.crew.stop.Load() {
		l.code.call(l.storm, l.recordsOf(b, w.index), gusts)
		if w.crew.crowded() {
			sleep(1e5)
		}
	}
}

// draw writes a thread's records: an order of the instances, and when to do what. In one round of four nobody waits but
// for a moment at the start, for what store buffers do.
func (l *trials) draw(rng *rand.Rand, b *batch, records bank) {
	order := make([]int, b.place.instances)
	for i := range order {
		order[i] = i
	}
	for block := range slices.Chunk(order, b.block) {
		rng.Shuffle(len(block), func(i, j int) { block[i], block[j] = block[j], block[i] })
	}
	for n, i := range order {
		r := records[recordWords*(1+n):][:recordWords]
		for v := range litmus.MaxVars {
			r[recAddrs+v] = l.vars.addr(b.place.offset(v, i))
		}
		var times [litmus.MaxInstrs]uint64
		if rng.IntN(4) == 0 {
			times[0] = rng.Uint64N(256)
		} else {
			after := uint64(0)
			for k := range times {
				after += rng.Uint64N(l.pace>>(12*rng.IntN(2)) + 1)
				times[k] = after
			}
		}
		r[recTimes] = times[0] | times[1]<<32
		r[recInstance] = times[2] | uint64(i)<<32
	}
}

func (l *trials) drawStorm(rng *rand.Rand, b *batch, table bank) {
	pages := b.place.pages()
	for n := range gusts {
		g := table[gustWords*n:][:gustWords]
		g[gustAddr] = l.vars.addr(pages[rng.IntN(len(pages))]*pageSize + stormOffset)
		g[gustDelay] = 1 + rng.Uint64N(2<<rng.IntN(18)) | rng.Uint64N(2)<<32
	}
}

// clean judges a batch, and puts zeros where it was.
func (l *trials) clean(b *batch) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	outcomes, err := l.outcomes(b)
	if err != nil {
		return err
	}
	for i, o := range outcomes {
		if err := l.judge.Round(b.shape, b.place.split, o); err != nil {
			return errors.New(b.describe(i) + ": " + err.Error())
		}
	}
	for _, page := range b.place.pages() {
		clear(l.vars[page*pageSize : (page+1)*pageSize])
	}
	return nil
}

func (b *batch) describe(instance int) string {
	return "batch " + strconv.Itoa(b.number) + ", " + b.place.name + ", instance " + strconv.Itoa(instance)
}

// outcomes puts together what the threads saw and what memory holds, for each instance.
func (l *trials) outcomes(b *batch) ([]litmus.Outcome, error) {
	all := make([]litmus.Outcome, b.place.instances)
	var err error
	value := func(i int, word uint64) litmus.Value {
		v, ok := x86.Decode(word, b.place.width)
		if !ok && err == nil {
			err = errors.New(b.describe(i) + ": " + b.shape.String() + ": " + hex(word) + ", which nobody stored")
		}
		return v
	}
	for thread, code := range b.shape.Threads {
		records := l.recordsOf(b, b.cast[thread])
		for n := range all {
			r := records[recordWords*(1+n):][:recordWords]
			i := int(r[recInstance] >> 32)
			for k, in := range code {
				if in.Op.Reads() {
					all[i].Regs[thread][k] = value(i, r[recRegs+k])
				}
			}
		}
	}
	for i := range all {
		for v := range b.shape.Vars() {
			var word [8]byte
			copy(word[:], l.vars[b.place.offset(v, i):][:b.place.width])
			all[i].Mem[v] = value(i, binary.LittleEndian.Uint64(word[:]))
		}
	}
	return all, err
}
