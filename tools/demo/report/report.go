package report

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	"ironspan/engine/control"
	"ironspan/engine/wire"
)

// Run is one boot of the demonstration's guest.
type Run struct {
	Servers int
	Guest   Guest
	Span    *control.RunReport // what `ironspan run` wrote; nil if it came to none
	Err     error              // of the lab: the guest did not power off by itself
}

// Demo is a whole demonstration: the guest on one server, for comparison, and across several.
type Demo struct {
	Began  time.Time
	Ended  time.Time
	Single *Run // nil if left out
	Span   *Run
}

// File is the form of report.json.
type File struct {
	OK                      bool             `json:"ok"`
	Failures                []string         `json:"failures,omitempty"`
	Began                   time.Time        `json:"began"`
	Seconds                 float64          `json:"seconds"`
	Servers                 int              `json:"servers"`
	BootSeconds             float64          `json:"boot_seconds"`
	SingleServerBootSeconds float64          `json:"single_server_boot_seconds"`
	Guest                   Guest            `json:"guest"`
	SingleServerGuest       *Guest           `json:"single_server_guest,omitempty"`
	Nodes                   []control.Report `json:"nodes"`
}

// Failures lists what speaks against the demonstration. It is empty if all went as it should.
func (d *Demo) Failures() []string {
	var list []string
	add := func(what string, err error) {
		if err != nil {
			list = append(list, what+": "+err.Error())
		}
	}
	if d.Single != nil {
		add("on one server", d.Single.verdict())
	}
	if d.Span == nil {
		return append(list, "the run across servers did not take place")
	}
	err := d.Span.verdict()
	if err == nil && d.Span.Servers > 1 {
		err = moved(d.Span.Span.Nodes, d.Span.Servers)
	}
	add("across "+Servers(d.Span.Servers), err)
	return list
}

// verdict says what is wrong with a run, or nothing. What the guest said explains more than how it ended.
func (r *Run) verdict() error {
	if r.Guest.Failure != "" || (r.Err == nil && r.Guest.Verdict() != nil) {
		return r.Guest.Verdict()
	}
	if r.Err != nil {
		return r.Err
	}
	if r.Span == nil {
		return errors.New("the run left no report")
	}
	if !r.Span.OK {
		return errors.New(r.Span.Outcome.String())
	}
	return nil
}

// moved checks that the guest's memory really went over the fabric, from every node.
func moved(nodes []control.Report, servers int) error {
	if len(nodes) != servers {
		return fmt.Errorf("%d of %d nodes reported", len(nodes), servers)
	}
	for _, n := range nodes {
		if n.Verbs["write"].Bytes == 0 || n.Verbs["send"].Ops == 0 {
			return fmt.Errorf("node %d wrote no page to another", n.Node)
		}
	}
	return nil
}

// File is the demonstration in the form of report.json.
func (d *Demo) File() File {
	failures := d.Failures()
	f := File{
		OK: len(failures) == 0, Failures: failures,
		Began: d.Began, Seconds: d.Ended.Sub(d.Began).Seconds(), Nodes: []control.Report{},
	}
	if d.Single != nil {
		f.SingleServerGuest = &d.Single.Guest
		f.SingleServerBootSeconds = d.Single.Guest.BootSeconds
	}
	if d.Span != nil {
		f.Servers, f.Guest, f.BootSeconds = d.Span.Servers, d.Span.Guest, d.Span.Guest.BootSeconds
		if d.Span.Span != nil && d.Span.Span.Nodes != nil {
			f.Nodes = d.Span.Span.Nodes
		}
	}
	return f
}

// Write writes report.json, in one step.
func (d *Demo) Write(file string) error {
	data, err := json.MarshalIndent(d.File(), "", "  ")
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	part := filepath.Join(filepath.Dir(file), "."+filepath.Base(file)+".part")
	if err := os.WriteFile(part, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	if err := os.Rename(part, file); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}

// ReadSpan reads what `ironspan run --report` wrote.
func ReadSpan(file string) (*control.RunReport, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("report: %w", err)
	}
	var r control.RunReport
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("report: %s: %w", file, err)
	}
	slices.SortFunc(r.Nodes, func(a, b control.Report) int { return int(a.Node) - int(b.Node) })
	return &r, nil
}

// hotShown is the number of hot pages in the table.
const hotShown = 8

// Table writes the demonstration for people.
func (d *Demo) Table(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', tabwriter.AlignRight)
	row := func(cells ...string) {
		for _, cell := range cells {
			fmt.Fprint(w, cell, "\t")
		}
		fmt.Fprintln(w)
	}
	d.runs(row)
	if d.Span != nil && d.Span.Span != nil {
		nodeTables(d.Span.Span.Nodes, row)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out)
	failures := d.Failures()
	for _, failure := range failures {
		fmt.Fprintln(out, "FAILED", failure)
	}
	if len(failures) == 0 {
		fmt.Fprintf(out, "ok: one guest on %s, with %s and %s; %s\n", Servers(d.Span.Servers),
			plural(d.Span.Guest.VCPUs, "vCPU"), plural(d.Span.Guest.NUMANodes, "NUMA node"), d.Span.Guest.Kernel)
	}
	return nil
}

// runs compares the guest's runs, a column each.
func (d *Demo) runs(row func(...string)) {
	var all []*Run
	for _, r := range []*Run{d.Single, d.Span} {
		if r != nil {
			all = append(all, r)
		}
	}
	line := func(name string, cell func(*Run) string) {
		cells := []string{name}
		for _, r := range all {
			cells = append(cells, cell(r))
		}
		row(cells...)
	}
	line("servers", func(r *Run) string { return fmt.Sprint(r.Servers) })
	line("vCPUs of the guest", func(r *Run) string { return known(r.Guest.VCPUs) })
	line("its NUMA nodes", func(r *Run) string { return known(r.Guest.NUMANodes) })
	line("boot, to its init", func(r *Run) string {
		if !r.Guest.Started() {
			return "-"
		}
		return seconds(r.Guest.BootSeconds)
	})
	for _, name := range phaseNames(all) {
		line(name, func(r *Run) string {
			for _, p := range r.Guest.Phases {
				if p.Name == name {
					return seconds(p.HostSeconds)
				}
			}
			return "-"
		})
	}
	line("to power-off", func(r *Run) string {
		if r.Guest.DoneSeconds == 0 {
			return "-"
		}
		return seconds(r.Guest.DoneSeconds)
	})
	count := func(name, phase, of string, unit float64) {
		line(name, func(r *Run) string {
			for _, p := range r.Guest.Phases {
				if n, found := p.Counts[of]; found && p.Name == phase {
					return fmt.Sprintf("%.0f", n/unit)
				}
			}
			return "-"
		})
	}
	count("litmus rounds", "litmus", "rounds", 1)
	count("their outcomes", "litmus", "outcomes", 1)
	count("interleaved rounds", "litmus", "interleaved", 1)
	count("RAM checked, MiB", "memory", "pages", 256)
}

func phaseNames(runs []*Run) []string {
	var names []string
	for _, r := range runs {
		for _, p := range r.Guest.Phases {
			if !slices.Contains(names, p.Name) {
				names = append(names, p.Name)
			}
		}
	}
	return names
}

// nodeTables shows what the nodes counted: faults, verbs, hot pages. A table without rows is left out.
func nodeTables(nodes []control.Report, row func(...string)) {
	table := func(head []string, rows [][]string) {
		if len(rows) == 0 {
			return
		}
		row()
		row(head...)
		for _, cells := range rows {
			row(cells...)
		}
	}
	var faults, verbs, hottest [][]string
	for _, n := range nodes {
		for _, kind := range faultKinds(n.Faults) {
			l := n.Faults[kind]
			faults = append(faults, []string{faultNames[kind], fmt.Sprint(n.Node), fmt.Sprint(l.Count),
				duration(l.P50NS), duration(l.P99NS), duration(l.MaxNS)})
		}
		for _, verb := range slices.Sorted(maps.Keys(n.Verbs)) {
			if o := n.Verbs[verb]; o.Ops > 0 {
				verbs = append(verbs, []string{verb, fmt.Sprint(n.Node), fmt.Sprint(o.Ops), size(o.Bytes)})
			}
		}
	}
	for _, p := range hotPages(nodes) {
		hottest = append(hottest, []string{fmt.Sprintf("%#x", uint64(p.GPA)), fmt.Sprint(p.home), fmt.Sprint(p.Moves), duration(p.TenureNS)})
	}
	table([]string{"faults of the guest", "node", "count", "p50", "p99", "longest"}, faults)
	table([]string{"RDMA", "node", "operations", "bytes"}, verbs)
	table([]string{"hot pages, by address", "home", "moves", "tenure"}, hottest)
}

// hotPage is a hot page with its home.
type hotPage struct {
	control.HotPage
	home wire.NodeID
}

// hotPages are the hottest pages of all nodes.
func hotPages(nodes []control.Report) []hotPage {
	var pages []hotPage
	for _, n := range nodes {
		for _, p := range n.HotPages {
			pages = append(pages, hotPage{p, n.Node})
		}
	}
	slices.SortStableFunc(pages, func(a, b hotPage) int { return cmp.Compare(b.Moves, a.Moves) })
	return pages[:min(hotShown, len(pages))]
}

// faultNames tells the kinds of faults apart for people: where the page, or the right to write it, came from.
var faultNames = map[string]string{
	"read": "remote read", "write": "remote write", "upgrade": "remote upgrade", "zero": "remote, all zero",
	"fetch": "evicted before",
	"local": "home", "stale": "already served",
}

// faultOrder is the order they are shown in.
var faultOrder = []string{"read", "write", "upgrade", "zero", "fetch", "local", "stale"}

// faultKinds lists the kinds that occurred.
func faultKinds(faults map[string]control.Latency) []string {
	var kinds []string
	for _, kind := range faultOrder {
		if faults[kind].Count > 0 {
			kinds = append(kinds, kind)
		}
	}
	return kinds
}

// Servers is a number of servers in words.
func Servers(n int) string { return plural(n, "server") }

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// known is a number that the guest never got to tell if it is 0.
func known(n int) string {
	if n == 0 {
		return "-"
	}
	return fmt.Sprint(n)
}

func seconds(s float64) string { return fmt.Sprintf("%.1f s", s) }

// duration shows nanoseconds with the digits that mean something.
func duration(ns uint64) string {
	value, unit := float64(ns), "ns"
	for _, next := range []string{"us", "ms", "s"} {
		if value < 999.5 {
			break
		}
		value, unit = value/1000, next
	}
	switch {
	case unit == "ns" || value >= 99.95:
		return fmt.Sprintf("%.0f %s", value, unit)
	case value >= 9.995:
		return fmt.Sprintf("%.1f %s", value, unit)
	}
	return fmt.Sprintf("%.2f %s", value, unit)
}

func size(bytes uint64) string {
	switch {
	case bytes < 1<<10:
		return fmt.Sprintf("%d B", bytes)
	case bytes < 1<<20:
		return fmt.Sprintf("%.1f KiB", float64(bytes)/(1<<10))
	case bytes < 1<<30:
		return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20))
	}
	return fmt.Sprintf("%.2f GiB", float64(bytes)/(1<<30))
}
