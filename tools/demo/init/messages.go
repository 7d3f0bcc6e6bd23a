//go:build linux

package main

import (
	"errors"
	"strconv"
)

func (d *demo) messages() error {
	n := d.crew.size()
	pages := 2*n + 8
	area, err := newSheet(pages)
	if err != nil {
		return err
	}
	defer area.free()

	rounds := d.params.Rounds
	forth, back := &ring{sheet: area, rounds: rounds}, &ring{sheet: area, rounds: rounds, backward: true}
	if err := d.together("forward", int64(rounds), forth.pass); err != nil {
		return err
	}
	if err := d.together("backward", int64(rounds), back.pass); err != nil {
		return err
	}
	hops := int64(2 * rounds * n)

	p := &publication{sheet: area, page: 2 * n, want: uint64(rounds)}
	if err := d.together("publish", int64(rounds), p.run); err != nil {
		return err
	}

	l := &ticketLock{sheet: area, page: 2*n + 2, rounds: rounds}
	if err := d.together("lock", int64(rounds), l.run); err != nil {
		return err
	}
	if err := l.verify(n); err != nil {
		return err
	}

	b := &storeBuffer{sheet: area, page: 2*n + 5, rounds: rounds}
	if err := d.together("store buffer", int64(rounds), b.run); err != nil {
		return err
	}
	d.done(d.phase().num("hops", hops).num("published", int64(p.published)).
		num("locks", int64(rounds*n)).num("store_buffers", int64(rounds)))
	return nil
}

// mix spreads a number over all 64 bits (the finalizer of splitmix64): what memory should hold is
// derived from where it is, when it was written and by whom.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// ring hands a token with data from CPU to CPU. Each CPU has a mailbox of two pages: the flag with the
// sequence number, and the data, which must be there when the flag is.
type ring struct {
	sheet    sheet
	rounds   int
	backward bool
}

const letterWords = 16

func (r *ring) base() uint64 {
	if r.backward {
		return uint64(r.rounds) // the flags stand there from the way forward
	}
	return 0
}

func (r *ring) pass(w *worker) error {
	next := w.crew.next(w, r.backward).index
	for n := range r.rounds {
		seq := r.base() + uint64(n) + 1
		if w.index == 0 { // starts the round, and receives at its end
			r.post(next, seq)
		}
		if err := w.await(r.sheet.at(2*w.index, 0), seq); err != nil {
			return err
		}
		if err := r.check(w.index, seq); err != nil {
			return err
		}
		if w.index != 0 {
			r.post(next, seq)
		}
		if n%8 == 7 {
			w.progress(int64(n + 1))
		}
	}
	w.progress(int64(r.rounds))
	return nil
}

func (r *ring) post(to int, seq uint64) {
	for i := range letterWords {
		r.sheet.at(2*to+1, i*(pageWords/letterWords)).Store(mix(seq<<16 | uint64(to)<<8 | uint64(i)))
	}
	r.sheet.at(2*to, 0).Store(seq)
}

func (r *ring) check(at int, seq uint64) error {
	if got := r.sheet.at(2*at, 0).Load(); got != seq {
		return errors.New("message " + utoa(got) + " came where " + utoa(seq) + " was due")
	}
	for i := range letterWords {
		want := mix(seq<<16 | uint64(at)<<8 | uint64(i))
		if got := r.sheet.at(2*at+1, i*(pageWords/letterWords)).Load(); got != want {
			return errors.New("message " + utoa(seq) + " arrived before its data: word " + strconv.Itoa(i) + " is " +
				hex(got) + ", expected " + hex(want))
		}
	}
	return nil
}

// publication: CPU 0 writes data, then a flag, over and over without waiting; the others must never
// see a flag without its data, nor a flag going back.
type publication struct {
	sheet sheet
	page  int    // the flag; the data is on the page after it
	want  uint64 // values each reader shall have seen

	published uint64 // by CPU 0
}

func (p *publication) run(w *worker) error {
	flag, data := p.sheet.at(p.page, 0), p.sheet.at(p.page+1, 0)
	const end = 1 << 62
	if w.index == 0 {
		const most = 1 << 24 // a bound, should readers starve
		n := uint64(1)
		for ; n < most; n++ {
			data.Store(n)
			flag.Store(n)
			if n%64 == 0 && p.seen(w.crew) {
				break
			}
		}
		p.published = n
		data.Store(n | end)
		flag.Store(n | end)
		w.progress(w.limit)
		return nil
	}
	last, seen := uint64(0), uint64(0)
	for last&end == 0 {
		f := flag.Load()
		v := data.Load()
		if v < f {
			return errors.New("flag " + utoa(f) + " was seen before its data, which still was " + utoa(v))
		}
		if f < last {
			return errors.New("flag went back from " + utoa(last) + " to " + utoa(f))
		}
		if f != last {
			if seen++; seen <= p.want {
				w.progress(int64(seen))
			}
			last = f
		}
	}
	w.progress(int64(p.want))
	return nil
}

// seen: every reader has seen enough values.
func (p *publication) seen(c *crew) bool {
	for _, w := range c.workers[1:] {
		if uint64(w.reached.Load()) < p.want {
			return false
		}
	}
	return true
}

// ticketLock: all CPUs take turns in a critical section that counts on two pages without atomics.
type ticketLock struct {
	sheet  sheet
	page   int // the lock; the two counts are on the pages after it
	rounds int
}

func (l *ticketLock) run(w *worker) error {
	take, serve := l.sheet.at(l.page, 0), l.sheet.at(l.page, 1)
	a, b := l.sheet.at(l.page+1, 0), l.sheet.at(l.page+2, 0)
	for n := range l.rounds {
		mine := take.Add(1) - 1
		if err := w.await(serve, mine); err != nil {
			return err
		}
		x, y := a.Load(), b.Load()
		if x != y || x != mine {
			return errors.New("two CPUs were inside one lock: counts " + utoa(x) + " and " + utoa(y) + " at turn " + utoa(mine))
		}
		a.Store(x + 1)
		b.Store(y + 1)
		serve.Store(mine + 1)
		if n%8 == 7 {
			w.progress(int64(n + 1))
		}
	}
	w.progress(int64(l.rounds))
	return nil
}

func (l *ticketLock) verify(cpus int) error {
	want := uint64(l.rounds * cpus)
	if a, b := l.sheet.at(l.page+1, 0).Load(), l.sheet.at(l.page+2, 0).Load(); a != want || b != want {
		return errors.New("counts under a lock are " + utoa(a) + " and " + utoa(b) + ", expected " + utoa(want))
	}
	return nil
}

// storeBuffer: in each round the first and the last CPU write one word each and read the other's.
// Both reading the old value would mean that a locked store was not seen in time (Intel SDM 3A, 9.2.3.9).
type storeBuffer struct {
	sheet  sheet
	page   int // the two words are on this page and the next, the results and the barrier on the third
	rounds int
}

func (b *storeBuffer) run(w *worker) error {
	last := w.crew.size() - 1
	if last == 0 || (w.index != 0 && w.index != last) {
		w.progress(int64(b.rounds))
		return nil
	}
	side := 0
	if w.index == last {
		side = 1
	}
	own, other := b.sheet.at(b.page+side, 0), b.sheet.at(b.page+1-side, 0)
	barrier, results := b.sheet.at(b.page+2, 0), [2]int{8, 16}
	for n := range b.rounds {
		round := uint64(n) + 1
		barrier.Add(1)
		if err := w.await(barrier, 4*round-2); err != nil {
			return err
		}
		own.Swap(round) // not Store, which the race detector turns into a plain one: ordered before the load
		got := other.Load()
		b.sheet.at(b.page+2, results[side]).Store(got)
		barrier.Add(1)
		if err := w.await(barrier, 4*round); err != nil {
			return err
		}
		if side == 0 { // the other side waits at the next round's barrier: its result stands still
			theirs := b.sheet.at(b.page+2, results[1]).Load()
			if got < round && theirs < round {
				return errors.New("both CPUs missed the other's locked store in round " + utoa(round))
			}
		}
		if n%8 == 7 {
			w.progress(int64(n + 1))
		}
	}
	w.progress(int64(b.rounds))
	return nil
}

func hex(n uint64) string { return "0x" + strconv.FormatUint(n, 16) }
