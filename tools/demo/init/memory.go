//go:build linux

package main

import (
	"errors"
	"strconv"
)

// The memory phase: most of each node's free RAM is filled by a CPU of that node, read and partly
// rewritten by a CPU of the next node, and read again by the first.

// part is a run of pages of one node with the two CPUs that work on it.
type part struct {
	words   bank
	node    int
	home    int // worker on the node itself
	visitor int // worker on the next node, or another on the same, or the same
}

func (d *demo) memory() error {
	t, err := readTopology("") // free memory as of now
	if err != nil {
		return err
	}
	p := &pattern{params: d.params, seed: mix(uint64(uptime()))}
	pages, mbytes := int64(0), make([]int64, 0, len(t.nodes))
	for i, n := range t.nodes {
		const huge = 2 << 20
		size := int(n.freeKB) << 10 / 100 * d.params.Percent / huge * huge
		if size == 0 {
			return errors.New("node " + strconv.Itoa(i) + " has too little free memory")
		}
		b, err := newBank(n.id, len(t.nodes) > 1, size)
		if err != nil {
			return err
		}
		defer b.free()
		p.split(b, i, d.workersOn(t, i), d.workersOn(t, (i+1)%len(t.nodes)), len(t.nodes) > 1)
		pages += int64(size / pageSize)
		mbytes = append(mbytes, int64(size>>20))
	}

	steps := []struct {
		name string
		task func(*worker) error
	}{
		{"write", p.write}, {"visit", p.visit}, {"return", p.verify},
	}
	for _, step := range steps {
		before := monotonic()
		if err := d.together(step.name, p.most(d.crew.size()), step.task); err != nil {
			return err
		}
		d.out.event("memory").str("step", step.name).seconds("seconds", monotonic()-before).print()
	}
	visited, rewritten := p.counts()
	d.done(d.phase().nums("mbytes", mbytes).num("pages", pages).num("visited", visited).num("rewritten", rewritten).
		num("words_per_page", int64(pageSize/d.params.Step)))
	return nil
}

// workersOn lists the workers on a node; a node without CPUs is served by worker 0.
func (d *demo) workersOn(t topology, node int) []int {
	var list []int
	for _, w := range d.crew.workers {
		if t.nodeOf(w.cpu) == node {
			list = append(list, w.index)
		}
	}
	if list == nil {
		list = []int{0}
	}
	return list
}

type pattern struct {
	params Params
	seed   uint64
	parts  []part
}

// split divides a node's bank among its CPUs, and pairs each with a CPU of the next node. With one
// node only, the visitor is its next CPU.
func (p *pattern) split(b bank, node int, home, next []int, others bool) {
	pages := len(b) / pageWords
	each := pages / len(home)
	for j, h := range home {
		first, last := j*each, (j+1)*each
		if j == len(home)-1 {
			last = pages
		}
		visitor := next[j%len(next)]
		if !others {
			visitor = home[(j+1)%len(home)]
		}
		p.parts = append(p.parts, part{words: b[first*pageWords : last*pageWords], node: node, home: h, visitor: visitor})
	}
}

// most is the largest number of pages any worker handles in one step: the scale of its progress.
func (p *pattern) most(workers int) int64 {
	home, visitor := make([]int64, workers), make([]int64, workers)
	most := int64(1)
	for _, part := range p.parts {
		n := int64(len(part.words) / pageWords)
		home[part.home] += n
		visitor[part.visitor] += n
		most = max(most, home[part.home], visitor[part.visitor])
	}
	return most
}

func (p *pattern) counts() (visited, rewritten int64) {
	for _, part := range p.parts {
		for page := range len(part.words) / pageWords {
			if p.visits(page) {
				visited++
			}
			if p.rewrites(page) {
				rewritten++
			}
		}
	}
	return visited, rewritten
}

func (p *pattern) visits(page int) bool   { return page%p.params.Verify == 0 }
func (p *pattern) rewrites(page int) bool { return page%(p.params.Verify*p.params.Rewrite) == 0 }

// key is what the words of a page derive from: where it is and in which generation it was written.
func (p *pattern) key(part *part, page, generation int) uint64 {
	return mix(p.seed ^ uint64(part.node)<<56 ^ uint64(part.home)<<48 ^ uint64(generation)<<40 ^ uint64(page))
}

func (p *pattern) write(w *worker) error {
	return p.each(w, false, func(part *part, page int) error {
		p.fill(part, page, p.key(part, page, 1))
		return nil
	})
}

func (p *pattern) visit(w *worker) error {
	return p.each(w, true, func(part *part, page int) error {
		if !p.visits(page) {
			return nil
		}
		if err := p.compare(part, page, p.key(part, page, 1)); err != nil {
			return err
		}
		if p.rewrites(page) {
			p.fill(part, page, p.key(part, page, 2))
		}
		return nil
	})
}

func (p *pattern) verify(w *worker) error {
	return p.each(w, false, func(part *part, page int) error {
		generation := 1
		if p.rewrites(page) {
			generation = 2
		}
		return p.compare(part, page, p.key(part, page, generation))
	})
}

// each calls f for every page of the parts the worker is home to, or visits.
func (p *pattern) each(w *worker, visitor bool, f func(part *part, page int) error) error {
	done := int64(0)
	for i := range p.parts {
		part := &p.parts[i]
		if (visitor && part.visitor != w.index) || (!visitor && part.home != w.index) {
			continue
		}
		for page := range len(part.words) / pageWords {
			if err := f(part, page); err != nil {
				return err
			}
			if done++; done%64 == 0 {
				w.progress(done)
				if w.crew.stop.Load() {
					return errStopped
				}
			}
		}
	}
	w.progress(w.limit)
	return nil
}

// fill writes the words of a page: an odd stride from the key makes every one of them differ.
func (p *pattern) fill(part *part, page int, key uint64) {
	words, step := part.words[page*pageWords:(page+1)*pageWords], p.params.Step/8
	for i := 0; i < pageWords; i += step {
		words[i] = key
		key += stride
	}
}

func (p *pattern) compare(part *part, page int, key uint64) error {
	words, step := part.words[page*pageWords:(page+1)*pageWords], p.params.Step/8
	for i := 0; i < pageWords; i += step {
		if words[i] != key {
			return errors.New("page " + strconv.Itoa(page) + " of node " + strconv.Itoa(part.node) + " holds " + hex(words[i]) +
				" at byte " + strconv.Itoa(i*8) + ", expected " + hex(key))
		}
		key += stride
	}
	return nil
}

const stride = 0x9e3779b97f4a7c15
