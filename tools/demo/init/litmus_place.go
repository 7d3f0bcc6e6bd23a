//go:build linux

package main

import (
	"ironspan/engine/litmus"
	"ironspan/engine/litmus/x86"
)

// place is where a shape's variables lie in the arena.
type place struct {
	name      string
	at        [litmus.MaxVars]int // of the first instance
	each      int                 // instances side by side, 64 bytes apart, before the next one is
	group     int                 // so many pages on
	instances int
	width     int // bytes of an access: 8 or 4
	split     litmus.Split
}

func (p *place) offset(v, i int) int { return p.at[v] + 64*(i%p.each) + pageSize*p.group*(i/p.each) }

func (p *place) fits(s *litmus.Shape) bool {
	var at [litmus.MaxVars]uint64
	for v := range at {
		at[v] = uint64(p.at[v])
	}
	return x86.Fits(s, p.width, at)
}

// pages are those with variables, in order.
func (p *place) pages() []int {
	var used [arenaPages]bool
	for v := range p.at {
		for i := range p.instances {
			first := p.offset(v, i)
			used[first/pageSize], used[(first+p.width-1)/pageSize] = true, true
		}
	}
	var all []int
	for page, is := range used {
		if is {
			all = append(all, page)
		}
	}
	return all
}

const (
	arenaPages  = 49
	stormOffset = 3584 // in each page, where no variable is
	straddle    = pageSize - 4
)

// With two nodes, pages 0, 1, 4, 5, 8 and so on are of the first, the others of the second.
var (
	splitAll = litmus.Split{true, true, true}
	places   = []place{
		{"one line", spots(1, 64, 1, 72, 1, 80), 32, 2, 96, 8, litmus.Split{}},
		{"one page", spots(1, 64, 1, 64+1024, 1, 64+2048), 16, 2, 96, 8, litmus.Split{}},
		{"pages of one home", spots(0, 64, 1, 64, 4, 64), 32, 8, 96, 8, litmus.Split{}},
		{"pages of another home", spots(2, 64, 3, 64, 6, 64), 32, 8, 96, 8, litmus.Split{}},
		{"pages of two homes", spots(1, 64, 2, 64, 5, 64), 32, 8, 96, 8, litmus.Split{}},
		// Inside an aligned quadword, which is atomic on any x86.
		{"4 bytes at odd words", spots(1, 66, 2, 66, 5, 66), 32, 8, 96, 4, litmus.Split{}},
		// Inside a line, but across quadwords: atomic on Intel's processors, not promised on AMD's.
		{"across quadwords", spots(1, 68, 2, 68, 5, 68), 32, 8, 96, 8, splitAll},
		{"across lines", spots(1, 64+60, 2, 64+60, 5, 64+60), 32, 8, 96, 8, splitAll},
		// Of neighbouring pages, every other pair is of two homes.
		{"x across pages", spots(0, straddle, 1, 1024, 0, 2048), 1, 1, 48, 8, litmus.Split{litmus.X: true}},
		{"across pages", spots(0, straddle, 1, straddle, 2, straddle), 1, 3, 16, 8, splitAll},
	}
)

// spots are three variables, each by page and offset.
func spots(xPage, x, yPage, y, zPage, z int) [litmus.MaxVars]int {
	return [...]int{xPage*pageSize + x, yPage*pageSize + y, zPage*pageSize + z}
}
