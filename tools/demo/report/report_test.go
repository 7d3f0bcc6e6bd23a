package report

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ironspan/engine/control"
	"ironspan/engine/wire"
)

var update = flag.Bool("update", false, "rewrite testdata/table.txt")

// recorded is the guest of a recorded console, whose lines came a tenth of a second apart.
func recorded(t *testing.T) (Guest, []string) {
	t.Helper()
	f, err := os.Open("testdata/console.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var g Guest
	var shown []string
	at := 60.0
	for in := bufio.NewScanner(f); in.Scan(); at += 0.1 {
		if text := g.Line(at, in.Text()+"\r"); text != "" {
			shown = append(shown, text)
		}
	}
	return g, shown
}

func TestGuestOfARecordedConsole(t *testing.T) {
	g, shown := recorded(t)
	if err := g.Verdict(); err != nil {
		t.Error(err)
	}
	if g.VCPUs != 2 || g.NUMANodes != 2 || g.Kernel != "6.12.95+deb12-amd64" || !g.Passed {
		t.Errorf("guest %+v", g)
	}
	want := []Node{{ID: 0, CPUs: []int{0}, TotalKB: 218356}, {ID: 1, CPUs: []int{1}, TotalKB: 255408}}
	if diff := cmp.Diff(want, g.Nodes); diff != "" {
		t.Errorf("nodes (-want +got)\n%s", diff)
	}
	var names []string
	for _, p := range g.Phases {
		names = append(names, p.Name)
		if p.HostSeconds <= 0 || p.GuestSeconds <= 0 {
			t.Errorf("phase %+v", p)
		}
	}
	if diff := cmp.Diff([]string{"atomics", "messages", "clock", "interrupts", "litmus", "memory"}, names); diff != "" {
		t.Errorf("phases (-want +got)\n%s", diff)
	}
	if g.Phases[5].Counts["pages"] != 21504 {
		t.Errorf("memory counts %v", g.Phases[5].Counts)
	}
	if g.BootSeconds <= 60 || g.DoneSeconds <= g.BootSeconds {
		t.Errorf("boot %v, done %v", g.BootSeconds, g.DoneSeconds)
	}
	for _, line := range shown {
		if strings.Contains(line, Marker) {
			t.Errorf("shown raw: %s", line)
		}
	}
}

func TestGuestThatDoesNotPass(t *testing.T) {
	const started = Marker + `{"event":"init","uptime":1}`
	for name, test := range map[string]struct {
		lines []string
		want  string
	}{
		"nothing":     {nil, "never reached its init"},
		"only kernel": {[]string{"[    1.0] Booting"}, "never reached its init"},
		"cut off":     {[]string{started}, "ended before its checks"},
		"failed": {[]string{started, Marker + `{"event":"fail","uptime":2,"phase":"memory","what":"page 3 of node 1"}`,
			Marker + `{"event":"done","uptime":2,"ok":false}`}, "memory: page 3 of node 1"},
		"not ok": {[]string{started, Marker + `{"event":"done","uptime":2,"ok":false}`}, "did not pass"},
		"panic":  {[]string{started, "[    5.3] Kernel panic - not syncing: Attempted to kill init!"}, "Kernel panic - not syncing"},
	} {
		var g Guest
		for _, line := range test.lines {
			g.Line(1, line)
		}
		if err := g.Verdict(); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: verdict %v, want one with %q", name, err, test.want)
		}
	}
}

func TestLinesMixedWithTheKernels(t *testing.T) {
	var g Guest
	if got := g.Line(3, "[    2.5] random: crng "+Marker+`{"event":"init","uptime":1}[    2.6] done`); !strings.HasPrefix(got, "[    2.5] random: crng") {
		t.Errorf("shown %q", got)
	}
	if !g.Started() || g.BootSeconds != 3 {
		t.Errorf("guest %+v", g)
	}
	torn := Marker + `{"event":"done","upt`
	if got := g.Line(4, torn); got != torn || g.Passed {
		t.Errorf("shown %q, guest %+v", got, g)
	}
}

func FuzzLine(f *testing.F) {
	f.Add("plain")
	f.Add(Marker + `{"event":"node","cpus":[1],"nodes":2,"id":-1}`)
	f.Add(Marker + `{"event":"topology","cpus":"x"}`)
	f.Fuzz(func(t *testing.T, line string) {
		var g Guest
		shown := g.Line(1, line)
		if !strings.Contains(line, Marker) && shown != strings.TrimRight(line, "\r\n") {
			t.Errorf("%q shown as %q", line, shown)
		}
	})
}

// sample is a demonstration with a figure of every kind.
func sample(t *testing.T) *Demo {
	span, _ := recorded(t)
	single := span
	single.NUMANodes, single.BootSeconds, single.DoneSeconds = 1, 11.2, 44
	latency := func(count, p50, p99, most uint64) control.Latency {
		return control.Latency{Count: count, P50NS: p50, P99NS: p99, P999NS: most, MaxNS: most}
	}
	nodes := []control.Report{{
		Node: 0, Name: "server0", Seconds: 70,
		Faults: map[string]control.Latency{
			"read": latency(12345, 812_000, 4_100_000, 31_000_000), "write": latency(4321, 1_020_000, 9_990_000, 1_500_000_000),
			"upgrade": latency(77, 999_900, 999_999, 1_000_000), "stale": latency(5, 900, 12_000, 12_345), "zero": {},
		},
		Verbs:    map[string]control.Ops{"send": {Ops: 50000, Bytes: 3_200_000}, "write": {Ops: 17000, Bytes: 69_632_000}, "read": {}},
		HotPages: []control.HotPage{{Page: 0x1a2b, GPA: 0x1a2b000, Moves: 321, TenureNS: 8_000_000}, {Page: 2, GPA: 0x2000, Moves: 5}},
	}, {
		Node: 1, Name: "server1", Seconds: 70,
		Faults:   map[string]control.Latency{"read": latency(23456, 799_000, 3_900_000, 31_000_000)},
		Verbs:    map[string]control.Ops{"send": {Ops: 51000, Bytes: 3_264_000}, "write": {Ops: 900, Bytes: 3_686_400}},
		HotPages: []control.HotPage{{Page: 0x20000, GPA: 0x20000000, Moves: 400, TenureNS: 16_000_000}},
	}}
	began := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	return &Demo{
		Began: began, Ended: began.Add(150 * time.Second),
		Single: &Run{Servers: 1, Guest: single, Span: &control.RunReport{OK: true}},
		Span:   &Run{Servers: 2, Guest: span, Span: &control.RunReport{OK: true, Nodes: nodes}},
	}
}

func TestTable(t *testing.T) {
	var out bytes.Buffer
	if err := sample(t).Table(&out); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile("testdata/table.txt", out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/table.txt")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), out.String()); diff != "" {
		t.Errorf("(-want +got; go test -update rewrites)\n%s", diff)
	}
}

func TestFileHasWhatProgramsLookFor(t *testing.T) {
	file := filepath.Join(t.TempDir(), "report.json")
	if err := sample(t).Write(file); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		OK                      bool
		BootSeconds             float64 `json:"boot_seconds"`
		SingleServerBootSeconds float64 `json:"single_server_boot_seconds"`
		Guest                   struct {
			VCPUs     int `json:"vcpus"`
			NUMANodes int `json:"numa_nodes"`
		}
		Nodes []struct {
			Node   int
			Faults map[string]struct {
				P99 uint64 `json:"p99_ns"`
			}
			Verbs map[string]struct{ Bytes uint64 }
		}
	}
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	if !got.OK || got.Guest.VCPUs != 2 || got.Guest.NUMANodes != 2 || got.BootSeconds <= 60 || got.SingleServerBootSeconds != 11.2 ||
		len(got.Nodes) != 2 || got.Nodes[1].Faults["read"].P99 != 3_900_000 || got.Nodes[0].Verbs["write"].Bytes != 69_632_000 {
		t.Errorf("file %s", data)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(file), ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestFailures(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*Demo)
		want   string // nothing: the demonstration is fine
	}{
		"fine":            {func(*Demo) {}, ""},
		"without single":  {func(d *Demo) { d.Single = nil }, ""},
		"no span":         {func(d *Demo) { d.Span = nil }, "did not take place"},
		"lab failed":      {func(d *Demo) { d.Span.Err = errors.New("node 1 was lost (exit status 4)") }, "across 2 servers: node 1 was lost"},
		"guest says more": {func(d *Demo) { d.Span.Err, d.Span.Guest.Failure = errors.New("exit status 3"), "memory: x" }, "the guest failed: memory: x"},
		"single failed":   {func(d *Demo) { d.Single.Guest.Passed = false }, "on one server: the guest's checks"},
		"no report":       {func(d *Demo) { d.Span.Span = nil }, "left no report"},
		"guest reset":     {func(d *Demo) { d.Span.Span.OK, d.Span.Span.Outcome.Kind = false, control.GuestReset }, "guest-reset"},
		"node missing":    {func(d *Demo) { d.Span.Span.Nodes = d.Span.Span.Nodes[:1] }, "1 of 2 nodes reported"},
		"no RDMA":         {func(d *Demo) { d.Span.Span.Nodes[1].Verbs = nil }, "node 1 wrote no page"},
	} {
		d := sample(t)
		test.change(d)
		list := d.Failures()
		if test.want == "" {
			if len(list) > 0 || !d.File().OK {
				t.Errorf("%s: %v", name, list)
			}
			continue
		}
		if len(list) != 1 || !strings.Contains(list[0], test.want) {
			t.Errorf("%s: %q, want one with %q", name, list, test.want)
		}
		if f := d.File(); f.OK {
			t.Errorf("%s: the file says ok", name)
		}
		var out bytes.Buffer
		if err := d.Table(&out); err != nil || !strings.Contains(out.String(), "FAILED") {
			t.Errorf("%s: table %v\n%s", name, err, out.String())
		}
	}
}

func TestReadSpanSortsNodes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "span.json")
	data, err := json.Marshal(control.RunReport{OK: true, Nodes: []control.Report{{Node: 2}, {Node: 0}, {Node: 1}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
	r, err := ReadSpan(file)
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range r.Nodes {
		if n.Node != wire.NodeID(i) {
			t.Errorf("node %d at place %d", n.Node, i)
		}
	}
}

func TestDuration(t *testing.T) {
	for ns, want := range map[uint64]string{
		0: "0 ns", 999: "999 ns", 1000: "1.00 us", 9_994: "9.99 us", 12_345: "12.3 us", 812_000: "812 us",
		999_900: "1.00 ms", 31_000_000: "31.0 ms", 1_500_000_000: "1.50 s", 600_000_000_000: "600 s",
	} {
		if got := duration(ns); got != want {
			t.Errorf("%d ns: %q, want %q", ns, got, want)
		}
	}
}
