//go:build linux

package main

import (
	"errors"
	"strconv"
	"strings"
)

// Params is what the kernel command line says under ironspan.demo=.
type Params struct {
	VCPUs []int // vcpus: CPUs expected, for each node where given as 1+1, else in all; empty: not checked
	Nodes int   // nodes: NUMA nodes expected; 0: not checked
	MemMB []int // mem: RAM expected on each node, MiB, as 512+512; empty: not checked

	Adds    int // adds: increments by each CPU of each counter
	Rounds  int // rounds: tokens around the ring, locks taken, clock readings
	IPIs    int // ipis: migrations, barriers and shootdowns by each CPU
	Litmus  int // litmus: batches of memory-model tests, of some 16 to 96 rounds each
	Percent int // pct: share of each node's free RAM that the pattern fills
	Step    int // step: bytes from one pattern word to the next; 8 fills pages to the last byte
	Verify  int // verify: every how many-th page the other node reads
	Rewrite int // rewrite: every how many-th of the pages read is rewritten there
}

func defaults() Params {
	return Params{Adds: 4000, Rounds: 64, IPIs: 16, Litmus: 8, Percent: 60, Step: 8, Verify: 1, Rewrite: 1}
}

// parseParams reads the ironspan.demo= word of a kernel command line. Without one, nothing is
// expected of the machine and the sizes are the default ones.
func parseParams(cmdline string) (Params, error) {
	p := defaults()
	for _, word := range strings.Fields(cmdline) {
		list, found := strings.CutPrefix(word, "ironspan.demo=")
		if !found || list == "" {
			continue
		}
		for _, pair := range strings.Split(list, ",") {
			key, value, _ := strings.Cut(pair, ":")
			if err := p.set(key, value); err != nil {
				return p, err
			}
		}
	}
	return p, nil
}

func (p *Params) set(key, value string) error {
	numbers, err := sums(value)
	if err != nil {
		return errors.New("ironspan.demo: " + key + ":" + value + " is not a positive number or several joined by +")
	}
	one := func(field *int) error {
		if len(numbers) != 1 {
			return errors.New("ironspan.demo: " + key + " takes one number, not " + value)
		}
		*field = numbers[0]
		return nil
	}
	switch key {
	case "vcpus":
		p.VCPUs = numbers
		return nil
	case "mem":
		p.MemMB = numbers
		return nil
	case "nodes":
		return one(&p.Nodes)
	case "adds":
		return one(&p.Adds)
	case "rounds":
		return one(&p.Rounds)
	case "ipis":
		return one(&p.IPIs)
	case "litmus":
		return one(&p.Litmus)
	case "verify":
		return one(&p.Verify)
	case "rewrite":
		return one(&p.Rewrite)
	case "pct":
		if numbers[0] > 90 {
			return errors.New("ironspan.demo: pct is at most 90: the kernel needs the rest")
		}
		return one(&p.Percent)
	case "step":
		if n := numbers[0]; n < 8 || n > pageSize || n&(n-1) != 0 {
			return errors.New("ironspan.demo: step is a power of two from 8 to 4096")
		}
		return one(&p.Step)
	}
	return errors.New("ironspan.demo: unknown key " + key)
}

// sums reads positive numbers joined by +.
func sums(value string) ([]int, error) {
	var list []int
	for _, word := range strings.Split(value, "+") {
		n, err := strconv.Atoi(word)
		if err != nil || n <= 0 {
			return nil, errors.New("not a positive number")
		}
		list = append(list, n)
	}
	return list, nil
}

func total(list []int) int {
	sum := 0
	for _, n := range list {
		sum += n
	}
	return sum
}
