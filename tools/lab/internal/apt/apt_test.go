package apt

import (
	"archive/tar"
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSources(t *testing.T) {
	tests := []struct {
		name, file, text string
		want             []Source
	}{
		{"line", "a.list", "deb http://mirror.example/debian bookworm main contrib\n", []Source{
			{URIs: []string{"http://mirror.example/debian"}, Suites: []string{"bookworm"}, Components: []string{"main", "contrib"}, Fields: map[string]string{}},
		}},
		{"line with options", "a.list", "deb [arch=amd64,i386 signed-by=/k.gpg trusted=yes] http://m/d bookworm main # why\n", []Source{
			{URIs: []string{"http://m/d"}, Suites: []string{"bookworm"}, Components: []string{"main"},
				Fields: map[string]string{"Architectures": "amd64 i386", "Signed-By": "/k.gpg", "Trusted": "yes"}},
		}},
		{"not ours", "a.list", "deb-src http://m/d bookworm main\n# deb http://m/d bookworm main\ndebris\ndeb [broken http://m/d x main\ndeb http://m/d\n\n", nil},
		{"stanza", "a.sources", "# comment\nTypes: deb deb-src\nURIs: http://m/d\nSuites: bookworm bookworm-updates\nComponents: main\nSigned-By: /k.gpg\n\nTypes: deb\nURIs: http://s/d\nSuites: bookworm-security\nComponents: main\n", []Source{
			{URIs: []string{"http://m/d"}, Suites: []string{"bookworm", "bookworm-updates"}, Components: []string{"main"}, Fields: map[string]string{"Signed-By": "/k.gpg"}},
			{URIs: []string{"http://s/d"}, Suites: []string{"bookworm-security"}, Components: []string{"main"}, Fields: map[string]string{}},
		}},
		{"inline key", "a.sources", "Types: deb\nURIs: http://m/d\nSuites: s\nComponents: main\nSigned-By:\n -----BEGIN-----\n .\n abc\n", []Source{
			{URIs: []string{"http://m/d"}, Suites: []string{"s"}, Components: []string{"main"}, Fields: map[string]string{"Signed-By": "\n -----BEGIN-----\n .\n abc"}},
		}},
		{"disabled", "a.sources", "Types: deb\nURIs: http://m/d\nSuites: s\nComponents: main\nEnabled: no\n", nil},
		{"sources only", "a.sources", "Types: deb-src\nURIs: http://m/d\nSuites: s\nComponents: main\n", nil},
		{"spelling", "a.sources", "types: deb\nuris: http://m/d\nsuites: s\ncomponents: main\nsigned-by: /k\n", []Source{
			{URIs: []string{"http://m/d"}, Suites: []string{"s"}, Components: []string{"main"}, Fields: map[string]string{"Signed-By": "/k"}},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			etc := t.TempDir()
			dir := filepath.Join(etc, "sources.list.d")
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(dir, tt.file)
			if err := os.WriteFile(file, []byte(tt.text), 0o644); err != nil {
				t.Fatal(err)
			}
			for i := range tt.want {
				tt.want[i].File = file
			}
			got, err := Sources(etc)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestSourcesOrder(t *testing.T) {
	etc := t.TempDir()
	os.Mkdir(filepath.Join(etc, "sources.list.d"), 0o755)
	os.WriteFile(filepath.Join(etc, "sources.list"), []byte("deb http://one/ a main\n"), 0o644)
	os.WriteFile(filepath.Join(etc, "sources.list.d", "z.list"), []byte("deb http://three/ a main\n"), 0o644)
	os.WriteFile(filepath.Join(etc, "sources.list.d", "b.sources"), []byte("Types: deb\nURIs: http://two/\nSuites: a\nComponents: main\n"), 0o644)
	os.WriteFile(filepath.Join(etc, "sources.list.d", "c.list.disabled"), []byte("deb http://never/ a main\n"), 0o644)
	got, err := Sources(etc)
	if err != nil {
		t.Fatal(err)
	}
	var uris []string
	for _, s := range got {
		uris = append(uris, s.URIs...)
	}
	if d := cmp.Diff([]string{"http://one/", "http://two/", "http://three/"}, uris); d != "" {
		t.Error(d)
	}
}

func TestMirror(t *testing.T) {
	src := func(uri, suites, components string) Source {
		return Source{URIs: []string{uri}, Suites: strings.Fields(suites), Components: strings.Fields(components)}
	}
	tests := []struct {
		name    string
		sources []Source
		want    string
	}{
		{"exact", []Source{src("http://s", "bookworm-security", "main"), src("http://u", "bookworm-updates", "main"), src("http://m", "bookworm", "main")}, "http://m"},
		{"pocket", []Source{src("http://s", "bookworm-security", "main"), src("http://u", "bookworm-backports", "main")}, "http://u"},
		{"by alias", []Source{src("http://m", "stable", "main")}, "http://m"},
		{"old security", []Source{src("http://s", "bookworm/updates", "main")}, ""},
		{"foreign", []Source{src("http://x", "nodistro", "main"), src("http://y", "bookworm", "contrib")}, ""},
		{"disc", []Source{src("cdrom:[Debian]/", "bookworm", "main")}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Mirror(tt.sources, "bookworm")
			if tt.want == "" {
				if err == nil {
					t.Fatalf("found %v", got)
				}
				return
			}
			if err != nil || got.URIs[0] != tt.want {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
}

// What is rendered must be read back as the same source with the other suite.
func TestRender(t *testing.T) {
	m := Source{URIs: []string{"http://m/d"}, Fields: map[string]string{"Signed-By": "/k.gpg", "Architectures": "amd64", "Check-Valid-Until": "no"}}
	got := parseStanzas(render(m, "x-backports"))
	want := []Source{{
		URIs: m.URIs, Suites: []string{"x-backports"}, Components: []string{"main"},
		Fields: map[string]string{"Signed-By": "/k.gpg", "Check-Valid-Until": "no", "Targets": "Packages"},
	}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestParsePackage(t *testing.T) {
	p, err := parsePackage("Package: linux-image-7\nVersion: 7.3.4-1~bpo13+1\nDepends: kmod, linux-base (>= 4.3~) | x, linux-modules-7 (= 7.3.4-1)\nSize: 1048577\n")
	if err != nil {
		t.Fatal(err)
	}
	want := &Package{Name: "linux-image-7", Version: "7.3.4-1~bpo13+1", Depends: []string{"kmod", "linux-base", "linux-modules-7"}, Size: 1048577}
	if d := cmp.Diff(want, p); d != "" {
		t.Error(d)
	}
	if _, err := parsePackage("N: nothing"); err == nil {
		t.Error("accepted nothing")
	}
}

func TestParseURIs(t *testing.T) {
	text := "Reading...\n'http://m/libx_1-2_amd64.deb' libx_1-2_amd64.deb 10448 SHA256:00\n" +
		"'http://m/p/qemu.deb' qemu_1%3a7.2+dfsg-7+deb12u18+b3_amd64.deb 9281168 \n"
	got, err := parseURIs(text, "qemu")
	if err != nil {
		t.Fatal(err)
	}
	want := []*Package{
		{Name: "qemu", Version: "1:7.2+dfsg-7+deb12u18+b3", Size: 9281168},
		{Name: "libx", Version: "1-2", Size: 10448},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for _, bad := range []string{"", "'u' libx_1_amd64.deb 5 H\n", "'u' qemu.deb 5 H\n", "'u' qemu_1_all.deb many H\n", "'u' qemu_%zz_all.deb 5 H\n"} {
		if got, err := parseURIs(bad, "qemu"); err == nil {
			t.Errorf("%q: %v", bad, got)
		}
	}
}

func TestExtract(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []tar.Header{
		{Name: "./usr/lib/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "./usr/lib/x.so.1.0", Typeflag: tar.TypeReg, Mode: 0o600},
		{Name: "./usr/lib/x.so.1", Typeflag: tar.TypeSymlink, Linkname: "x.so.1.0"},
		{Name: "./lib/x.so", Typeflag: tar.TypeSymlink, Linkname: "/usr/lib/x.so.1.0"},
		{Name: "./usr/lib/out", Typeflag: tar.TypeSymlink, Linkname: "../../../../etc"},
		{Name: "./usr/lib/back", Typeflag: tar.TypeSymlink, Linkname: "../bin/tool"},
		{Name: "./usr/bin/tool", Typeflag: tar.TypeReg, Mode: 0o755},
		{Name: "./usr/share/doc/x", Typeflag: tar.TypeReg, Mode: 0o644},
		{Name: "./../../evil", Typeflag: tar.TypeReg, Mode: 0o644},
		{Name: "./usr/lib/../../../evil", Typeflag: tar.TypeReg, Mode: 0o644},
	} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	place := func(name string) string {
		for _, prefix := range []string{"usr/lib/", "lib/", "usr/bin/"} {
			if rest, ok := strings.CutPrefix(name, prefix); ok {
				return path.Join(path.Base(prefix), rest)
			}
		}
		return ""
	}
	dir := t.TempDir()
	if err := extract(&b, filepath.Join(dir, "out"), place); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(dir, p)
			i, _ := d.Info()
			got[rel] = i.Mode().Perm().String()
			if to, err := os.Readlink(p); err == nil {
				got[rel] = to
			}
		}
		return err
	})
	want := map[string]string{
		"out/lib/x.so.1.0": "-rw-r--r--", "out/lib/x.so.1": "x.so.1.0", "out/lib/x.so": "x.so.1.0",
		"out/lib/back": "../bin/tool", "out/bin/tool": "-rwxr-xr-x",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestOlder(t *testing.T) {
	in := []string{"6.12.100+deb12-amd64", "6.12.95+deb12-amd64", "6.12.9+deb12-amd64", "6.1.0-50-amd64", "7.3.4+deb13-amd64", "6.1.0-6-amd64"}
	sort.Slice(in, func(i, j int) bool { return Older(in[i], in[j]) })
	want := []string{"6.1.0-6-amd64", "6.1.0-50-amd64", "6.12.9+deb12-amd64", "6.12.95+deb12-amd64", "6.12.100+deb12-amd64", "7.3.4+deb13-amd64"}
	if d := cmp.Diff(want, in); d != "" {
		t.Error(d)
	}
	if Older("6.1", "6.1") || !Older("6.1", "6.1.2") {
		t.Error("prefixes")
	}
}

func TestNewest(t *testing.T) {
	dir := t.TempDir()
	if _, err := Newest(filepath.Join(dir, "gone")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
	if _, err := Newest(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("empty: %v", err)
	}
	for _, name := range []string{"7.2-7+deb12u9", "7.2-7+deb12u18", ".7.2-7+deb12u19"} {
		os.Mkdir(filepath.Join(dir, name), 0o755)
	}
	os.WriteFile(filepath.Join(dir, "8"), nil, 0o644)
	if got, err := Newest(dir); err != nil || got != filepath.Join(dir, "7.2-7+deb12u18") {
		t.Errorf("%s, %v", got, err)
	}
}

func TestCodename(t *testing.T) {
	f := filepath.Join(t.TempDir(), "os-release")
	os.WriteFile(f, []byte("ID=debian\nVERSION_CODENAME=\"bookworm\"\n"), 0o644)
	if c, err := Codename(f); err != nil || c != "bookworm" {
		t.Errorf("%q, %v", c, err)
	}
	os.WriteFile(f, []byte("ID=debian\n"), 0o644)
	if _, err := Codename(f); err == nil {
		t.Error("no error for a system without a codename")
	}
}

func FuzzSources(f *testing.F) {
	f.Add("deb [a=b] http://m/d s main\n")
	f.Add("Types: deb\nURIs: u\nSuites: s\nSigned-By:\n a\n .\n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, s := range append(parseLines(text), parseStanzas(text)...) {
			if len(s.URIs) == 0 || len(s.Suites) == 0 {
				t.Errorf("incomplete source %+v", s)
			}
		}
	})
}
