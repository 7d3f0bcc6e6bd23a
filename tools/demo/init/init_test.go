//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestParseParams(t *testing.T) {
	with := func(change func(*Params)) Params {
		p := defaults()
		change(&p)
		return p
	}
	for _, test := range []struct {
		cmdline string
		want    Params
		wrong   string
	}{
		{cmdline: "console=ttyS0 quiet", want: defaults()},
		{cmdline: "a ironspan.demo=vcpus:1+1,nodes:2,mem:512+256 b", want: with(func(p *Params) {
			p.VCPUs, p.Nodes, p.MemMB = []int{1, 1}, 2, []int{512, 256}
		})},
		{cmdline: "ironspan.demo=vcpus:2 ironspan.demo=pct:5,step:512,verify:8,rewrite:2,adds:9,rounds:7,ipis:3,litmus:99", want: with(func(p *Params) {
			p.VCPUs, p.Percent, p.Step, p.Verify, p.Rewrite = []int{2}, 5, 512, 8, 2
			p.Adds, p.Rounds, p.IPIs, p.Litmus = 9, 7, 3, 99
		})},
		{cmdline: "ironspan.demo=", want: defaults()},
		{cmdline: "ironspan.demo=cpus:2", wrong: "unknown key cpus"},
		{cmdline: "ironspan.demo=nodes:1+1", wrong: "takes one number"},
		{cmdline: "ironspan.demo=nodes:0", wrong: "not a positive number"},
		{cmdline: "ironspan.demo=pct:99", wrong: "at most 90"},
		{cmdline: "ironspan.demo=step:12", wrong: "power of two"},
		{cmdline: "ironspan.demo=mem", wrong: "not a positive number"},
	} {
		got, err := parseParams(test.cmdline)
		if test.wrong != "" {
			if err == nil || !strings.Contains(err.Error(), test.wrong) {
				t.Errorf("%q: error %v, want one with %q", test.cmdline, err, test.wrong)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", test.cmdline, err)
		} else if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%q: (-want +got)\n%s", test.cmdline, diff)
		}
	}
}

func TestParseList(t *testing.T) {
	for text, want := range map[string][]int{"": nil, "0": {0}, "0-3,8": {0, 1, 2, 3, 8}, "5,7-7": {5, 7}} {
		if got, err := parseList(text); err != nil || !cmp.Equal(got, want) {
			t.Errorf("%q: %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"x", "3-1", "1-", "0-999999999", "1,,2"} {
		if got, err := parseList(text); err == nil {
			t.Errorf("%q: %v, want an error", text, got)
		}
	}
}

// machine writes a sysfs with two nodes below a folder of its own.
func machine(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range map[string]string{
		cpuDir + "/online":         "0-2\n",
		nodeDir + "/online":        "0-1\n",
		nodeDir + "/node0/cpulist": "0\n",
		nodeDir + "/node1/cpulist": "1-2\n",
		nodeDir + "/node0/meminfo": "Node 0 MemTotal:         476000 kB\nNode 0 MemFree:          440000 kB\n",
		nodeDir + "/node1/meminfo": "Node 1 MemTotal:         515000 kB\nNode 1 MemFree:          500000 kB\n",
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestTopologyIsReadFromSysfs(t *testing.T) {
	got, err := readTopology(machine(t))
	if err != nil {
		t.Fatal(err)
	}
	want := topology{cpus: []int{0, 1, 2}, nodes: []node{
		{id: 0, cpus: []int{0}, totalKB: 476000, freeKB: 440000},
		{id: 1, cpus: []int{1, 2}, totalKB: 515000, freeKB: 500000},
	}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(topology{}, node{})); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestTopologyCheck(t *testing.T) {
	machine, err := readTopology(machine(t))
	if err != nil {
		t.Fatal(err)
	}
	for params, wrong := range map[string]string{
		"vcpus:3,nodes:2":               "",
		"vcpus:1+2,nodes:2,mem:512+512": "",
		"vcpus:2":                       "runs 3 CPUs, expected 2",
		"vcpus:3,nodes:3":               "sees 2 NUMA nodes, expected 3",
		"vcpus:2+1,nodes:2":             "node 0 has CPUs 0, expected 2",
		"mem:512+256":                   "node 1 has 515000 kB",
		"mem:768+512":                   "node 0 has 476000 kB",
		"mem:1024":                      "sizes of 1 nodes",
	} {
		p, err := parseParams("ironspan.demo=" + params)
		if err != nil {
			t.Fatal(err)
		}
		err = machine.check(p)
		if wrong == "" && err != nil {
			t.Errorf("%s: %v", params, err)
		}
		if wrong != "" && (err == nil || !strings.Contains(err.Error(), wrong)) {
			t.Errorf("%s: error %v, want one with %q", params, err, wrong)
		}
	}
}

func TestRecordsAreJSON(t *testing.T) {
	var out bytes.Buffer
	c := &console{w: &out}
	c.event("phase").num("n", -3).seconds("s", 1_500_000_000).nums("list", []int64{1, 2}).str("text", "a\"b\\c\nd\x00é").yes("ok", true).print()
	line, found := strings.CutPrefix(out.String(), marker)
	if !found {
		t.Fatalf("no marker in %q", out.String())
	}
	var got map[string]any
	if err := json.Unmarshal([]byte(line), &got); err != nil {
		t.Fatalf("%v in %q", err, line)
	}
	delete(got, "uptime")
	want := map[string]any{"event": "phase", "n": -3.0, "s": 1.5, "list": []any{1.0, 2.0}, "text": "a\"b\\c d   ", "ok": true}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestInterruptsAreReadByRow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "interrupts")
	text := "           CPU0       CPU1\n  4:       1234          0   IO-APIC   4-edge      ttyS0\nLOC:        100         50   Local timer interrupts\nERR:          0\n"
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	rows, err := readInterrupts(path)
	if err != nil {
		t.Fatal(err)
	}
	if column(rows["LOC"], 1) != 50 || column(rows["4"], 0) != 1234 || column(rows["ERR"], 1) != 0 || column(rows["RES"], 0) != 0 {
		t.Errorf("read %v", rows)
	}
}

// onHost is a run with small sizes on the CPUs this test may use; one CPU is used twice if alone.
func onHost(t *testing.T) (*demo, *bytes.Buffer) {
	t.Helper()
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		t.Fatal(err)
	}
	var cpus []int
	for cpu := 0; cpu < 1024 && len(cpus) < 2; cpu++ {
		if set.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	if len(cpus) == 1 {
		cpus = append(cpus, cpus[0])
	}
	crew := newCrew(cpus)
	t.Cleanup(crew.close)
	out := &bytes.Buffer{}
	params := defaults()
	params.Adds, params.Rounds, params.IPIs, params.Litmus = 500, 16, 4, 32
	return &demo{out: &console{w: out}, params: params, crew: crew, name: t.Name()}, out
}

// The phases that need nothing of the machine pass on any coherent one: the host.
func TestPhasesPassOnTheHost(t *testing.T) {
	d, out := onHost(t)
	for name, phase := range map[string]func() error{"atomics": d.atomics, "messages": d.messages, "clock": d.clock, "litmus": d.litmus} {
		if err := phase(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := strings.Count(out.String(), `"event":"phase"`); n != 4 {
		t.Errorf("%d phase records in\n%s", n, out)
	}
}

func TestPatternFindsAnyChangedWord(t *testing.T) {
	d, _ := onHost(t)
	const pages = 64
	for _, step := range []int{8, 512} {
		d.params.Step, d.params.Verify, d.params.Rewrite = step, 2, 2
		b, err := newBank(0, false, pages*pageSize)
		if err != nil {
			t.Fatal(err)
		}
		p := &pattern{params: d.params, seed: 7}
		p.split(b, 0, []int{0, 1}, []int{0, 1}, false)
		if visited, rewritten := p.counts(); visited != pages/2 || rewritten != pages/4 {
			t.Errorf("%d pages visited, %d rewritten", visited, rewritten)
		}
		for i, task := range []func(*worker) error{p.write, p.visit, p.verify} {
			if err := d.crew.run(p.most(2), task, nil); err != nil {
				t.Fatalf("step %d: %v", i, err)
			}
		}
		b[(pages-1)*pageWords+step/8] ^= 1 << 40
		err = d.crew.run(p.most(2), p.verify, nil)
		if err == nil || !strings.Contains(err.Error(), "holds 0x") {
			t.Errorf("a changed word was not found: %v", err)
		}
		b.free()
	}
}

// A page that is stale as a whole, which a broken protocol would show, differs in its first word.
func TestPatternTellsGenerationsAndPagesApart(t *testing.T) {
	p := &pattern{params: defaults(), seed: 7}
	parts := []part{{node: 0, home: 0}, {node: 1, home: 1}}
	seen := map[uint64]bool{}
	for i := range parts {
		for page := range 1000 {
			for generation := 1; generation <= 2; generation++ {
				key := p.key(&parts[i], page, generation)
				if seen[key] || key == 0 {
					t.Fatalf("key of part %d page %d generation %d is not its own", i, page, generation)
				}
				seen[key] = true
			}
		}
	}
}

func TestRingRefusesAMessageWithoutItsData(t *testing.T) {
	area, err := newSheet(4)
	if err != nil {
		t.Fatal(err)
	}
	defer area.free()
	r := &ring{sheet: area, rounds: 4}
	r.post(1, 1)
	if err := r.check(1, 1); err != nil {
		t.Fatal(err)
	}
	area.at(2, 0).Store(2) // the flag of the second message without its data
	if err := r.check(1, 2); err == nil || !strings.Contains(err.Error(), "before its data") {
		t.Errorf("error %v", err)
	}
	area.at(2, 0).Store(3)
	if err := r.check(1, 2); err == nil || !strings.Contains(err.Error(), "message 3 came where 2 was due") {
		t.Errorf("error %v", err)
	}
}

// The first failure ends the waits of the others, and is the one reported.
func TestCrewReportsTheFailureAndStops(t *testing.T) {
	d, _ := onHost(t)
	area, err := newSheet(1)
	if err != nil {
		t.Fatal(err)
	}
	defer area.free()
	err = d.crew.run(1, func(w *worker) error {
		if w.index == 1 {
			_, err := parseList("x")
			return err
		}
		return w.await(area.at(0, 0), 1) // never comes
	}, nil)
	if err == nil || !strings.Contains(err.Error(), "bad list") {
		t.Errorf("error %v", err)
	}
}

func TestCurrentCPUFollowsPinning(t *testing.T) {
	d, _ := onHost(t)
	m := &migrations{rounds: 2}
	if err := d.crew.run(2, m.run, nil); err != nil {
		t.Error(err)
	}
}
