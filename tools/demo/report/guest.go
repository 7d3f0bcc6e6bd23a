// Package report turns what a demonstration's guest said on its console and what its nodes counted into
// a table for people and a file for programs.
package report

import (
	"encoding/json"
	"fmt"
	"strings"
)

// Marker starts the lines that the guest's init writes for programs; a JSON object follows.
const Marker = "IRONSPAN-DEMO "

// Guest is what a guest said of itself.
type Guest struct {
	Kernel      string  `json:"kernel,omitempty"`
	VCPUs       int     `json:"vcpus"`
	NUMANodes   int     `json:"numa_nodes"`
	Nodes       []Node  `json:"nodes,omitempty"`
	Phases      []Phase `json:"phases,omitempty"`
	Litmus      []Tally `json:"litmus,omitempty"`       // by shape
	BootSeconds float64 `json:"boot_seconds"`           // of the host's clock, to the first line of init
	DoneSeconds float64 `json:"done_seconds,omitempty"` // likewise, to its last
	Passed      bool    `json:"passed"`                 // init said that all checks passed
	Failure     string  `json:"failure,omitempty"`      // what it said otherwise, or the kernel's panic

	started bool // init ran
	done    bool // init came to its end
}

// Node is a NUMA node as the guest's kernel sees it.
type Node struct {
	ID      int   `json:"id"`
	CPUs    []int `json:"cpus"`
	TotalKB int64 `json:"total_kb"`
}

// Phase is one part of the guest's workload.
type Phase struct {
	Name         string             `json:"name"`
	GuestSeconds float64            `json:"guest_seconds"` // of the guest's clock, which may be dilated
	HostSeconds  float64            `json:"host_seconds"`
	Counts       map[string]float64 `json:"counts,omitempty"`
}

// Tally is how the rounds of a program of package litmus ended.
type Tally struct {
	Shape       string `json:"shape"`
	Rounds      int    `json:"rounds"`
	Interleaved int    `json:"interleaved"` // of the rounds: they ended as no order of whole threads does
	Outcomes    int    `json:"outcomes"`    // different ones
	Allowed     int    `json:"allowed"`     // by x86-TSO
}

// Started reports whether the guest's init was reached.
func (g *Guest) Started() bool { return g.started }

// Verdict says what speaks against the guest's run, or nothing.
func (g *Guest) Verdict() error {
	switch {
	case g.Failure != "":
		return fmt.Errorf("the guest failed: %s", g.Failure)
	case !g.started:
		return fmt.Errorf("the guest never reached its init")
	case !g.done:
		return fmt.Errorf("the guest ended before its checks did")
	case !g.Passed:
		return fmt.Errorf("the guest's checks did not pass")
	}
	return nil
}

// event is one line of init's, with all that any kind of event has.
type event struct {
	Event   string  `json:"event"`
	Name    string  `json:"name"`
	Phase   string  `json:"phase"`
	Step    string  `json:"step"`
	What    string  `json:"what"`
	Kernel  string  `json:"kernel"`
	Seconds float64 `json:"seconds"`
	Percent int     `json:"percent"`
	ID      int     `json:"id"`
	TotalKB int64   `json:"total_kb"`
	Brought int     `json:"brought_up"`
	Tally
	OK    bool            `json:"ok"`
	CPUs  json.RawMessage `json:"cpus"`  // a list for a node, a number for the machine
	Nodes json.RawMessage `json:"nodes"` // a number
}

// Line takes a line of the console that came seconds after the run began, and returns what to show of it;
// nothing for a line that only programs care for.
func (g *Guest) Line(seconds float64, line string) string {
	line = strings.TrimRight(line, "\r\n")
	before, text, found := strings.Cut(line, Marker)
	if !found {
		if _, panicked, found := strings.Cut(line, "Kernel panic"); found && g.Failure == "" {
			g.Failure = "Kernel panic" + panicked
		}
		return line
	}
	// The kernel may print in the middle of init's line: what stands before the mark, or after the
	// object, is its.
	decoder := json.NewDecoder(strings.NewReader(text))
	var raw json.RawMessage
	var e event
	if err := decoder.Decode(&raw); err != nil || json.Unmarshal(raw, &e) != nil {
		return line
	}
	return strings.TrimSpace(before + g.take(seconds, &e, raw))
}

// take notes an event and returns what to show of it.
func (g *Guest) take(seconds float64, e *event, raw json.RawMessage) string {
	switch e.Event {
	case "init":
		g.started, g.BootSeconds = true, seconds
		return "demo: init reached"
	case "online":
		return fmt.Sprintf("demo: %d more CPUs brought up", e.Brought)
	case "node":
		n := Node{ID: e.ID, TotalKB: e.TotalKB}
		_ = json.Unmarshal(e.CPUs, &n.CPUs) // absent: a node without CPUs
		g.Nodes = append(g.Nodes, n)
		return fmt.Sprintf("demo: node %d has CPUs %v and %d MiB", n.ID, n.CPUs, n.TotalKB>>10)
	case "topology":
		g.Kernel = e.Kernel
		_ = json.Unmarshal(e.CPUs, &g.VCPUs)
		_ = json.Unmarshal(e.Nodes, &g.NUMANodes)
	case "progress":
		return fmt.Sprintf("demo: %s, %s: %d %%", e.Phase, e.Step, e.Percent)
	case "phase":
		g.Phases = append(g.Phases, Phase{
			Name: e.Name, GuestSeconds: e.Seconds, HostSeconds: seconds - g.lastPhase(), Counts: counts(raw),
		})
	case "memory":
		return fmt.Sprintf("demo: memory, %s: done", e.Step)
	case "litmus":
		g.Litmus = append(g.Litmus, e.Tally)
		return fmt.Sprintf("demo: litmus, %s: %d rounds, %d interleaved, %d of %d outcomes",
			e.Shape, e.Rounds, e.Interleaved, e.Outcomes, e.Allowed)
	case "fail":
		g.Failure = e.Phase + ": " + e.What
	case "done":
		g.done, g.Passed, g.DoneSeconds = true, e.OK, seconds
	}
	return ""
}

// lastPhase is when the phase before ended: all of them so far, and the boot.
func (g *Guest) lastPhase() float64 {
	sum := g.BootSeconds
	for _, p := range g.Phases {
		sum += p.HostSeconds
	}
	return sum
}

// counts are the numbers of a phase's record.
func counts(raw json.RawMessage) map[string]float64 {
	var all map[string]any
	if json.Unmarshal(raw, &all) != nil {
		return nil
	}
	numbers := map[string]float64{}
	for key, value := range all {
		if n, ok := value.(float64); ok && key != "uptime" && key != "seconds" {
			numbers[key] = n
		}
	}
	return numbers
}
