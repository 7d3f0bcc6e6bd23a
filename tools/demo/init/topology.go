//go:build linux

package main

import (
	"errors"
	"os"
	"strconv"
	"strings"
)

// node is one NUMA node as the kernel shows it.
type node struct {
	id      int
	cpus    []int
	totalKB int64
	freeKB  int64
}

// topology is what the kernel found.
type topology struct {
	cpus  []int // online, ascending
	nodes []node
}

const (
	cpuDir  = "/sys/devices/system/cpu"
	nodeDir = "/sys/devices/system/node"
)

// readTopology reads sysfs below root, which is empty outside tests.
func readTopology(root string) (topology, error) {
	var t topology
	var err error
	if t.cpus, err = readList(root + cpuDir + "/online"); err != nil {
		return t, err
	}
	ids, err := readList(root + nodeDir + "/online")
	if errors.Is(err, os.ErrNotExist) { // a kernel without NUMA
		total, free, err := readMeminfo(root + "/proc/meminfo")
		if err != nil {
			return t, err
		}
		t.nodes = []node{{cpus: t.cpus, totalKB: total, freeKB: free}}
		return t, nil
	}
	if err != nil {
		return t, err
	}
	for _, id := range ids {
		dir := root + nodeDir + "/node" + strconv.Itoa(id)
		n := node{id: id}
		if n.cpus, err = readList(dir + "/cpulist"); err != nil {
			return t, err
		}
		if n.totalKB, n.freeKB, err = readMeminfo(dir + "/meminfo"); err != nil {
			return t, err
		}
		t.nodes = append(t.nodes, n)
	}
	return t, nil
}

// check compares the machine with what the command line promised.
func (t topology) check(p Params) error {
	if want := total(p.VCPUs); want > 0 && len(t.cpus) != want {
		return errors.New("the kernel runs " + strconv.Itoa(len(t.cpus)) + " CPUs, expected " + strconv.Itoa(want))
	}
	if p.Nodes > 0 && len(t.nodes) != p.Nodes {
		return errors.New("the kernel sees " + strconv.Itoa(len(t.nodes)) + " NUMA nodes, expected " + strconv.Itoa(p.Nodes))
	}
	if p.Nodes > 0 && len(p.VCPUs) == p.Nodes {
		first := 0
		for i, n := range t.nodes {
			if len(n.cpus) != p.VCPUs[i] || n.cpus[0] != first || n.cpus[len(n.cpus)-1] != first+p.VCPUs[i]-1 {
				return errors.New("node " + strconv.Itoa(i) + " has CPUs " + joined(n.cpus) + ", expected " +
					strconv.Itoa(p.VCPUs[i]) + " from CPU " + strconv.Itoa(first))
			}
			first += p.VCPUs[i]
		}
	}
	if len(p.MemMB) > 0 {
		if len(p.MemMB) != len(t.nodes) {
			return errors.New("sizes of " + strconv.Itoa(len(p.MemMB)) + " nodes expected, the kernel sees " + strconv.Itoa(len(t.nodes)))
		}
		for i, n := range t.nodes {
			// The kernel keeps its image and the page descriptors out of MemTotal.
			most := int64(p.MemMB[i]) << 10
			least := most - most/32 - 64<<10
			if n.totalKB > most || n.totalKB < least {
				return errors.New("node " + strconv.Itoa(i) + " has " + strconv.FormatInt(n.totalKB, 10) + " kB, expected " +
					strconv.FormatInt(least, 10) + " to " + strconv.FormatInt(most, 10))
			}
		}
	}
	return nil
}

// nodeOf is the index of the node a CPU belongs to.
func (t topology) nodeOf(cpu int) int {
	for i, n := range t.nodes {
		for _, c := range n.cpus {
			if c == cpu {
				return i
			}
		}
	}
	return 0
}

// readList reads a kernel list of numbers such as 0-3,8.
func readList(path string) ([]int, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	list, err := parseList(strings.TrimSpace(string(data)))
	if err != nil {
		return nil, errors.New(path + ": " + err.Error())
	}
	return list, nil
}

func parseList(text string) ([]int, error) {
	if text == "" {
		return nil, nil
	}
	var list []int
	for _, span := range strings.Split(text, ",") {
		low, high, isRange := strings.Cut(span, "-")
		if !isRange {
			high = low
		}
		first, err := strconv.Atoi(low)
		if err != nil {
			return nil, errors.New("bad list " + text)
		}
		last, err := strconv.Atoi(high)
		if err != nil || last < first || last-first > 4096 {
			return nil, errors.New("bad list " + text)
		}
		for n := first; n <= last; n++ {
			list = append(list, n)
		}
	}
	return list, nil
}

// readMeminfo reads MemTotal and MemFree in kB from the machine's or a node's meminfo.
func readMeminfo(path string) (totalKB, freeKB int64, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, 0, err
	}
	for _, line := range strings.Split(string(data), "\n") {
		fields := strings.Fields(line)
		for i := 0; i+1 < len(fields); i++ {
			switch fields[i] {
			case "MemTotal:":
				totalKB, err = strconv.ParseInt(fields[i+1], 10, 64)
			case "MemFree:":
				freeKB, err = strconv.ParseInt(fields[i+1], 10, 64)
			}
			if err != nil {
				return 0, 0, errors.New(path + ": bad line " + line)
			}
		}
	}
	if totalKB == 0 {
		return 0, 0, errors.New(path + ": no MemTotal")
	}
	return totalKB, freeKB, nil
}

func joined(list []int) string {
	text := ""
	for i, n := range list {
		if i > 0 {
			text += ","
		}
		text += strconv.Itoa(n)
	}
	return text
}
