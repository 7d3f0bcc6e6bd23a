package lint

import (
	"path"
	"strings"
	"testing"
)

// room is a folder, with all below it that is not a room itself, and what it may import.
type room struct {
	ours    []string // rooms, each without those below it; a /... at the end takes them in
	outside []string // module paths; * for any
	tests   []string // rooms that its tests may import besides
}

// rooms is the architecture: imports point one way.
var rooms = map[string]room{
	"engine/wire":      {},
	"engine/coherence": {ours: []string{"engine/wire"}},
	"engine/sim": {
		ours:    []string{"engine/coherence", "engine/litmus", "engine/wire"},
		outside: []string{"github.com/anishathalye/porcupine"},
	},
	"engine/spec":    {ours: []string{"engine/wire"}, outside: []string{"github.com/goccy/go-yaml"}},
	"engine/cluster": {ours: []string{"engine/spec", "engine/wire"}},
	"engine/control": {ours: []string{"engine/cluster", "engine/spec", "engine/wire"}, tests: []string{"engine/control/controltest"}},
	"engine/control/controltest": { // a fake machine, for the tests of others
		ours: []string{"engine/cluster", "engine/control", "engine/spec", "engine/wire"},
	},
	"engine/lane": {
		ours:    []string{"engine/wire", "fastpath/epoll", "fastpath/fabric", "kvmhost/..."},
		outside: []string{"golang.org/x/sys"},
		tests:   []string{"engine/leaktest"},
	},
	"engine/leaktest": {outside: []string{"go.uber.org/goleak"}}, // for the tests of others
	"engine/mininode": { // nodes for mini-guests
		ours:    []string{"engine/coherence", "engine/lane", "engine/wire", "fastpath/...", "kvmhost/..."},
		outside: []string{"golang.org/x/sys"},
	},
	"engine/nodetest": { // the same, for the tests of others
		ours: []string{"engine/coherence", "engine/mininode", "engine/wire", "fastpath/...", "kvmhost/..."},
	},
	"engine/litmus":     {tests: []string{"engine/coherence", "engine/litmus/x86", "engine/nodetest", "engine/wire", "kvmhost/..."}},
	"engine/litmus/x86": {ours: []string{"engine/litmus", "kvmhost/minivm"}},
	"engine": {
		ours:    []string{"engine/...", "fastpath/...", "kvmhost/...", "verbs"},
		outside: []string{"golang.org/x/sys"},
	},

	"verbs": {outside: []string{
		"github.com/Mellanox/rdmamap", "github.com/jsimonetti/rtnetlink", "github.com/mdlayher/netlink", "golang.org/x/sys",
	}},

	"kvmhost": {
		ours:    []string{"kvmhost/..."},
		outside: []string{"github.com/bobuhiro11/gokvm", "golang.org/x/sys"},
	},
	"kvmhost/internal/initrd": {outside: []string{"github.com/cavaliergopher/cpio"}}, // of its tests' guests

	"fastpath/cpulatency": {},
	"fastpath/epoll":      {outside: []string{"golang.org/x/sys"}},
	"fastpath/uffd":       {outside: []string{"golang.org/x/sys"}},
	"fastpath/ram": {
		ours:    []string{"engine/wire", "fastpath/fabric", "fastpath/uffd"},
		outside: []string{"golang.org/x/sys"},
	},
	"fastpath/fabric":      {ours: []string{"engine/wire"}},
	"fastpath/fabric/shm":  {ours: []string{"engine/wire", "fastpath/fabric"}, outside: []string{"golang.org/x/sys"}, tests: []string{"fastpath/epoll", "fastpath/ram"}},
	"fastpath/fabric/rdma": {ours: []string{"engine/wire", "fastpath/fabric", "verbs"}, outside: []string{"golang.org/x/sys"}, tests: []string{"fastpath/epoll", "fastpath/ram"}},
	"fastpath": {
		ours:    []string{"engine/coherence", "engine/wire", "fastpath/...", "verbs"},
		outside: []string{"github.com/HdrHistogram/hdrhistogram-go", "golang.org/x/sys"},
		tests:   []string{"kvmhost/..."}, // mini-guests that fault
	},

	"perf": {ours: []string{"engine/...", "fastpath/...", "kvmhost/...", "verbs"}, outside: []string{"*"}},

	// Tools stand on everything, nothing stands on a tool, and a tool not on another.
	"tools/ironspan": {ours: []string{"engine/...", "fastpath/...", "kvmhost/...", "verbs", "tools/ironspan/..."}, outside: []string{"*"}},
	"tools/lab":      {ours: []string{"engine/...", "fastpath/...", "kvmhost/...", "verbs", "tools/lab/..."}, outside: []string{"*"}},
	"tools/demo":     {ours: []string{"engine/...", "kvmhost/minivm", "tools/demo/..."}, outside: []string{"*"}},
	"tools/soak":     {ours: []string{"engine/sim"}, outside: []string{"*"}},
	"tools/lint":     {},
}

// roomOf is the innermost room a folder lies in.
func roomOf(dir string) (string, bool) {
	for ; dir != "."; dir = path.Dir(dir) {
		if _, found := rooms[dir]; found {
			return dir, true
		}
	}
	return "", false
}

// within: one of the patterns takes in the folder. A pattern without /... means the folder itself, and what
// lies below it without being a room of its own.
func within(dir string, patterns []string) bool {
	for _, pattern := range patterns {
		base, all := strings.CutSuffix(pattern, "/...")
		if dir == base || (all && strings.HasPrefix(dir, base+"/")) {
			return true
		}
		if inner, found := roomOf(dir); !all && found && inner == base {
			return true
		}
	}
	return false
}

// moduleOf: one of the module paths takes in the import.
func moduleOf(imported string, modules []string) bool {
	for _, m := range modules {
		if m == "*" || imported == m || strings.HasPrefix(imported, m+"/") {
			return true
		}
	}
	return false
}

// standard: the import is of Go's standard library (or cgo's pseudo package).
func standard(imported string) bool {
	first, _, _ := strings.Cut(imported, "/")
	return !strings.Contains(first, ".") && first != module
}

func TestImportsFollowTheArrows(t *testing.T) {
	for _, s := range project(t).sources(t) {
		name, found := roomOf(s.dir)
		if !found {
			t.Errorf("%s: the folder is no room of the architecture: add it to the table in tools/lint, or move it", s.file)
			continue
		}
		for _, imported := range s.imports {
			if complaint := judge(s, name, imported); complaint != "" {
				t.Errorf("%s: %s", s.file, complaint)
			}
		}
	}
}

// judge says what is wrong with an import, or nothing.
func judge(s source, name, imported string) string {
	r := rooms[name]
	if standard(imported) {
		return ""
	}
	dir, ours := strings.CutPrefix(imported, module+"/")
	if !ours {
		if s.test() || moduleOf(imported, r.outside) {
			return ""
		}
		return name + " may not import " + imported + " (outside tests)"
	}
	if own, found := roomOf(dir); found && own == name {
		return ""
	}
	if within(dir, r.ours) || (s.test() && within(dir, r.tests)) {
		return ""
	}
	return name + " may not import " + dir
}

// The table is worth what its judgement is worth.
func TestJudge(t *testing.T) {
	for _, test := range []struct {
		file, imported string
		wrong          bool
	}{
		{"engine/wire/wire.go", "encoding/binary", false},
		{"engine/wire/wire.go", "golang.org/x/sys/unix", true},
		{"engine/wire/wire_test.go", "pgregory.net/rapid", false},
		{"engine/coherence/agent.go", "ironspan/engine/wire", false},
		{"engine/coherence/agent.go", "ironspan/engine", true},
		{"engine/coherence/agent_test.go", "ironspan/engine/sim", true},
		{"kvmhost/vm.go", "ironspan/kvmhost/apic", false},
		{"kvmhost/vm.go", "ironspan/fastpath/uffd", true},
		{"kvmhost/apic/lapic.go", "ironspan/verbs", true},
		{"verbs/qp.go", "ironspan/engine/wire", true},
		{"fastpath/shard.go", "ironspan/kvmhost", true},
		{"fastpath/shard_test.go", "ironspan/kvmhost/minivm", false},
		{"fastpath/fabric/rdma/lane.go", "ironspan/verbs", false},
		{"fastpath/fabric/shm/lane.go", "ironspan/verbs", true},
		{"engine/node.go", "ironspan/fastpath/fabric/rdma", false},
		{"engine/node.go", "ironspan/tools/lab", true},
		{"tools/demo/report/report.go", "ironspan/engine/control", false},
		{"tools/demo/main.go", "ironspan/tools/lab", true},
		{"tools/lab/internal/agent/agent.go", "ironspan/tools/lab/internal/remote", false},
	} {
		s := source{file: test.file, dir: path.Dir(test.file)}
		name, found := roomOf(s.dir)
		if !found {
			t.Errorf("%s lies in no room", test.file)
			continue
		}
		if complaint := judge(s, name, test.imported); (complaint != "") != test.wrong {
			t.Errorf("%s importing %s: judged %q", test.file, test.imported, complaint)
		}
	}
}

func TestCgoLivesInVerbsAlone(t *testing.T) {
	for _, s := range project(t).sources(t) {
		for _, imported := range s.imports {
			if imported == "C" && s.dir != "verbs" {
				t.Errorf("%s: cgo is for package verbs alone", s.file)
			}
		}
	}
}

func TestUnsafeStandsInTheFileName(t *testing.T) {
	for _, s := range project(t).sources(t) {
		for _, imported := range s.imports {
			if imported == "unsafe" && !strings.HasSuffix(s.file, "_unsafe.go") && !strings.HasSuffix(s.file, "_unsafe_test.go") {
				t.Errorf("%s: imports unsafe, which only files named *_unsafe.go and *_unsafe_test.go do", s.file)
			}
		}
	}
}

func TestPackagesAreDocumented(t *testing.T) {
	docs, names := map[string]string{}, map[string]string{}
	for _, s := range project(t).sources(t) {
		if s.test() {
			continue
		}
		names[s.dir] = s.pkg
		if s.doc == "" {
			continue
		}
		if docs[s.dir] != "" {
			t.Errorf("%s: a second package comment", s.file)
		}
		docs[s.dir] = s.doc
	}
	for dir, name := range names {
		want := "Package " + name + " "
		if name == "main" {
			want = "Command " + path.Base(dir) + " "
		}
		if !strings.HasPrefix(docs[dir], want) {
			t.Errorf("%s: the package comment should begin with %q, not %.30q", dir, want, docs[dir])
		}
	}
}
