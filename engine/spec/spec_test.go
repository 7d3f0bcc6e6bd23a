package spec

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const minimal = "kernel: vmlinuz\nnodes:\n  - addr: a:7440\n"

func TestParseFull(t *testing.T) {
	s, err := Parse("span.yaml", []byte(`# a comment
name: demo
kernel: /boot/vmlinuz
initrd: initrd.img
append: "console=ttyS0 quiet"
nodes:
  - addr: server-a:7440
    vcpus: 2
    memory: 1G
    cpus: [2, 3, 4]
    cache: 1G
  - {addr: "10.0.0.2:7441", name: server-b, vcpus: 0, memory: 512MiB, device: rxe0, gid: 3}
  - addr: "[fe80::1%eth0]:7440"
fabric: shm
shards: 2
cache: 256MiB
poll: adaptive
dilate: 2.5
tenure: {base: 1ms, max: 20ms}
console: serial
timeouts:
  connect: 3s
  prepare: 1m
  heartbeat: 250ms
  lost: 2s
  stop: 4s
`))
	if err != nil {
		t.Fatal(err)
	}
	a, b, c := s.Nodes[0], s.Nodes[1], s.Nodes[2]
	if a.Name != "server-a" || a.VCPUs != 2 || a.Memory != 1<<30 || len(a.CPUs) != 3 || a.Device != "auto" || a.GID != GIDAuto {
		t.Errorf("node 0: %+v", a)
	}
	if b.Name != "server-b" || b.VCPUs != 0 || b.Memory != 512<<20 || b.Device != "rxe0" || b.GID != 3 {
		t.Errorf("node 1: %+v", b)
	}
	if c.Name != "fe80::1" || c.VCPUs != 1 || c.Memory != DefaultMemory {
		t.Errorf("node 2: %+v", c)
	}
	if s.Name != "demo" || s.Append != "console=ttyS0 quiet" || s.Fabric != FabricSHM || s.Shards != 2 || s.Cache != 256<<20 || a.Cache != 1<<30 || b.Cache != 0 || s.Poll != PollAdaptive ||
		s.Dilate != 2.5 || s.Tenure.Max.Std() != 20*time.Millisecond || s.Timeouts.Heartbeat.Std() != 250*time.Millisecond {
		t.Errorf("%+v", s)
	}
	if err := s.CheckCluster(); err != nil {
		t.Error(err)
	}
}

func TestParseDefaults(t *testing.T) {
	s, err := Parse("dir/tiny.yaml", []byte(minimal))
	if err != nil {
		t.Fatal(err)
	}
	if s.Name != "tiny" || s.Fabric != FabricVerbs || s.Shards != 0 || s.Cache != 0 || s.Poll != PollAuto || s.Dilate != 1 ||
		s.Tenure.Base.Std() != 2*time.Millisecond || s.Timeouts.Lost.Std() != 10*time.Second || s.Console != "serial" {
		t.Errorf("%+v", s)
	}
}

// TestErrors checks, for every kind of mistake, where the error points and what it says.
func TestErrors(t *testing.T) {
	with := func(line string) string { return minimal + line + "\n" }
	node := func(line string) string { return minimal + "    " + line + "\n" }
	tests := []struct {
		name, text string
		line, col  int
		says       []string
	}{
		{"empty", "", 1, 1, []string{"empty"}},
		{"only comment", "# nothing\n", 1, 1, []string{"empty"}},
		{"a list", "- a\n", 1, 1, []string{"a list"}},
		{"a word", "hello\n", 1, 1, []string{"single value"}},
		{"no kernel", "name: x\n", 1, 1, []string{"no kernel"}},
		{"unknown key", with("kernl: x"), 4, 1, []string{`"kernl"`, "is kernel meant?", "allowed: name, kernel"}},
		{"unknown key in node", node("memroy: 1G"), 4, 5, []string{`"memroy" in node 0`, "is memory meant?", "addr, name, vcpus"}},
		{"key twice", with("kernel: again"), 4, 1, []string{"twice", "line 1"}},
		{"key twice in node", node("addr: b:1"), 4, 5, []string{"addr is given twice"}},
		{"tab indent", "kernel: a\nnodes:\n\t- addr: a:1\n", 3, 1, nil},
		{"unclosed", "kernel: [a\n", 1, 9, nil},
		{"two documents", minimal + "---\nkernel: b\n", 5, 1, []string{"second document"}},
		{"memory odd", node("memory: 513K"), 4, 13, []string{"multiple of 2MiB"}},
		{"memory not a size", node("memory: lots"), 4, 13, []string{"lots", "512MiB or 1G"}},
		{"memory zero", node("memory: 0"), 4, 13, []string{"memory is 0"}},
		{"memory negative", node("memory: -1G"), 4, 13, []string{"no size"}},
		{"memory huge", node("memory: 99999999999T"), 4, 13, []string{"no size"}},
		{"memory a list", node("memory: [1G]"), 4, 13, []string{"a list"}},
		{"boot memory", node("memory: 32M"), 3, 5, []string{"at least 64MiB"}},
		{"boot vcpus", node("vcpus: 0"), 3, 5, []string{"first node has no vCPU"}},
		{"vcpus", node("vcpus: 255"), 4, 12, []string{"from 0 to 254"}},
		{"vcpus float", node("vcpus: 1.5"), 4, 12, []string{`"1.5"`}},
		{"vcpus nothing", node("vcpus:"), 4, 0, []string{"nothing"}},
		{"vcpus in total", "kernel: k\nnodes:\n- {addr: 'a:1', vcpus: 200}\n- {addr: 'b:1', vcpus: 55}\n", 4, 0, []string{"255 vCPUs", "at most 254"}},
		{"addr without port", "kernel: k\nnodes:\n  - addr: a\n", 3, 11, []string{"host:port"}},
		{"addr bad port", "kernel: k\nnodes:\n  - addr: a:0\n", 3, 11, []string{"port from 1"}},
		{"addr without host", "kernel: k\nnodes:\n  - addr: ':7440'\n", 3, 11, []string{"no host"}},
		{"gid", node("gid: 256"), 4, 10, []string{"auto, or a number"}},
		{"device", node("device: ../x"), 4, 13, []string{"rxe0"}},
		{"cpus too few", node("vcpus: 2\n    cpus: [1]"), 5, 11, []string{"1 cpus for 2 vCPUs"}},
		{"cpus twice", node("cpus: [1, 1]"), 4, 15, []string{"twice"}},
		{"cpus no list", node("cpus: 3"), 4, 11, []string{"single value"}},
		{"nodes a mapping", "kernel: k\nnodes:\n  a: b\n", 3, 3, []string{"a mapping"}},
		{"nodes empty", "kernel: k\nnodes: []\n", 2, 8, []string{"empty"}},
		{"node a word", "kernel: k\nnodes:\n  - a\n", 3, 5, []string{"node 0 is a single value"}},
		{"fabric", with("fabric: tcp"), 4, 9, []string{"verbs, shm"}},
		{"poll", with("poll: never"), 4, 7, []string{"auto, busy, adaptive, event"}},
		{"shards", with("shards: 0"), 4, 9, []string{"auto, or a number from 1 to 64"}},
		{"cache no size", with("cache: plenty"), 4, 8, []string{`"plenty"`, "256MiB", "no bound"}},
		{"cache negative", with("cache: -1M"), 4, 8, []string{"256MiB"}},
		{"cache a list", with("cache: [1G]"), 4, 8, []string{"a list"}},
		{"cache too small", with("cache: 1MiB"), 4, 8, []string{"1MiB for 1 shards", "at least 4MiB"}},
		{"cache too small for its shards", with("cache: 8MiB\nshards: 4"), 4, 8, []string{"8MiB for 4 shards", "at least 16MiB"}},
		{"cache of a node too small", node("cache: 1MiB"), 4, 12, []string{"at least 4MiB"}},
		{"cache huge", with("cache: 17T"), 4, 8, []string{"16TiB"}},
		{"dilate", with("dilate: 0.5"), 4, 9, []string{"from 1"}},
		{"dilate nan", with("dilate: .nan"), 4, 9, []string{"from 1"}},
		{"tenure", with("tenure: {base: 5ms, max: 1ms}"), 4, 0, []string{"base up to max"}},
		{"tenure unit", with("tenure: {base: 5}"), 4, 16, []string{"a duration"}},
		{"timeouts", with("timeouts: {heartbeat: 1s, lost: 2s}"), 4, 0, []string{"three heartbeats"}},
		{"append", with(`append: "a\nb"`), 4, 9, []string{"one line"}},
		{"name", with("name: a b"), 4, 7, []string{"letters"}},
		{"console", with("console: vga"), 4, 10, []string{"serial"}},
		{"anchor", "kernel: &k x\n", 1, 0, []string{"anchor"}},
		{"alias", "name: &k x\nkernel: *k\n", 1, 0, []string{"anchor"}},
		{"tag", "kernel: !!binary aGVsbG8=\n", 1, 0, []string{"anchor, alias or tag"}},
		{"merge", "kernel: a\n<<: {name: b}\n", 2, 0, nil},
		{"nul", "kernel: a\x00b\n", 1, 10, []string{"UTF-8"}},
		{"latin1", "kernel: a\nname: \xff\n", 2, 7, []string{"UTF-8"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse("span.yaml", []byte(tt.text))
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("no Error: %v", err)
			}
			if e.Line != tt.line || tt.col > 0 && e.Col != tt.col {
				t.Errorf("points at %d:%d, not %d:%d:\n%v", e.Line, e.Col, tt.line, tt.col, err)
			}
			for _, want := range tt.says {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("lacks %q:\n%v", want, err)
				}
			}
		})
	}
}

func TestErrorForm(t *testing.T) {
	_, err := Parse("span.yaml", []byte("kernel: k\nnodes:\n  - addr: a:7440\n    memory: 513KiB\n"))
	want := `span.yaml:4:13: memory is 513KiB
    4 |     memory: 513KiB
      |             ^
    allowed: a multiple of 2MiB, like 512MiB or 1G`
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}

func TestManyNodes(t *testing.T) {
	text := "kernel: k\nnodes:\n" + strings.Repeat("  - {vcpus: 1, memory: 64M}\n", 65)
	if _, err := Parse("s", []byte(text)); err == nil || !strings.Contains(err.Error(), "at most 64") {
		t.Error(err)
	}
}

func TestLocal(t *testing.T) {
	s, err := Parse("s.yaml", []byte("kernel: k\n"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.CheckCluster(); err == nil || !strings.Contains(err.Error(), "--local") {
		t.Errorf("a spec without nodes: %v", err)
	}
	if err := s.Local(3); err != nil {
		t.Fatal(err)
	}
	if len(s.Nodes) != 3 || s.Fabric != FabricSHM || s.Nodes[2].Name != "node2" || s.Nodes[2].Memory != DefaultMemory {
		t.Errorf("%+v", s.Nodes)
	}
	s, err = Parse("s.yaml", []byte("kernel: k\nnodes: [{vcpus: 2, memory: 1G}, {memory: 64M}]\n"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.CheckCluster(); err == nil || !strings.Contains(err.Error(), "node without addr") {
		t.Errorf("nodes without addr: %v", err)
	}
	if err := s.Local(3); err == nil || !strings.Contains(err.Error(), "lists 2 nodes") {
		t.Errorf("another number: %v", err)
	}
	if err := s.Local(2); err != nil || s.Nodes[0].VCPUs != 2 {
		t.Errorf("%v %+v", err, s.Nodes)
	}
	if err := s.Local(65); err == nil {
		t.Error("65 nodes")
	}
}

func TestSameAddr(t *testing.T) {
	s, err := Parse("s.yaml", []byte("kernel: k\nnodes:\n  - addr: a:1\n  - addr: a:1\n"))
	if err != nil {
		t.Fatal(err)
	}
	err = s.CheckCluster()
	var e *Error
	if !errors.As(err, &e) || e.Line != 4 {
		t.Errorf("%v", err)
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "vm.yaml")
	if err := os.WriteFile(path, []byte("kernel: sub/vmlinuz\ninitrd: /abs/initrd\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	s, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if s.Kernel != filepath.Join(dir, "sub/vmlinuz") || s.Initrd != "/abs/initrd" || s.Name != "vm" {
		t.Errorf("%+v", s)
	}
	if _, err := Load("/dev/zero"); err == nil {
		t.Error("an endless file was read")
	}
	if _, err := Load(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestCheckImages(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "vm.yaml")
	os.WriteFile(filepath.Join(dir, "k"), []byte("x"), 0o600)
	os.WriteFile(filepath.Join(dir, "empty"), nil, 0o600)
	for text, line := range map[string]int{"kernel: k": 0, "kernel: none": 1, "kernel: .": 1, "kernel: k\ninitrd: none": 2, "kernel: k\ninitrd: empty": 2} {
		os.WriteFile(path, []byte(text), 0o600)
		s, err := Load(path)
		if err != nil {
			t.Fatal(err)
		}
		err = s.CheckImages()
		var e *Error
		if line == 0 && err != nil || line > 0 && (!errors.As(err, &e) || e.Line != line) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestSizes(t *testing.T) {
	for s, want := range map[string]uint64{"512M": 512 << 20, "512MiB": 512 << 20, "1G": 1 << 30, "2 GiB": 2 << 30, "4096": 4096, "3T": 3 << 40, "8K": 8192} {
		if got, err := ParseSize(s); err != nil || got != want {
			t.Errorf("%s: %d %v", s, got, err)
		}
	}
	for _, s := range []string{"", "M", "1MB", "1.5G", "-1", "0x10", "99999999T", "1 G B"} {
		if got, err := ParseSize(s); err == nil {
			t.Errorf("%q is %d", s, got)
		}
	}
	for n, want := range map[uint64]string{512 << 20: "512MiB", 1 << 30: "1GiB", 1500: "1500 bytes", 0: "0 bytes", 3 << 40: "3TiB"} {
		if got := FormatSize(n); got != want {
			t.Errorf("%d: %s", n, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(minimal))
	f.Add([]byte("kernel: k\nnodes: [{addr: 'a:1', cpus: [1,2]}]\ntenure: {base: 1ms}\n"))
	f.Add([]byte("? a\n: b\n"))
	f.Add([]byte("a: &x {b: *x}\n"))
	f.Add([]byte("kernel: |\n  x\n  y\n"))
	f.Add([]byte("\t"))
	f.Add([]byte("- - - -"))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := Parse("f.yaml", text)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("%T: %v", err, err)
			}
			if e.Line < 1 || e.Col < 1 {
				t.Fatalf("error without a place: %v", err)
			}
			_ = err.Error()
			return
		}
		if len(s.Nodes) == 0 {
			return
		}
		for i := range s.Nodes {
			if s.Nodes[i].Addr == "" {
				s.Nodes[i].Addr = "127.0.0.1:1"
				s.Nodes[i].Name = "n"
			}
		}
		p, err := s.Derive(nil)
		if err != nil {
			t.Fatalf("a good spec gives no plan: %v", err)
		}
		if err := p.Check(); err != nil {
			t.Fatalf("a derived plan does not hold: %v", err)
		}
	})
}
