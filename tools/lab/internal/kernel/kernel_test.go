package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cavaliergopher/cpio"
	"github.com/google/go-cmp/cmp"
	"github.com/ulikunitz/xz"
)

// object makes a relocatable ELF file whose only content is a .modinfo section.
func object(modinfo string) []byte {
	const header, section = 64, 64
	names := "\x00.modinfo\x00.shstrtab\x00"
	var b bytes.Buffer
	b.WriteString("\x7fELF\x02\x01\x01")
	b.Write(make([]byte, 9))
	le := func(v any) { binary.Write(&b, binary.LittleEndian, v) }
	le(uint16(1))  // relocatable
	le(uint16(62)) // x86-64
	le(uint32(1))
	le(uint64(0))
	le(uint64(0))
	le(uint64(header + len(modinfo) + len(names))) // section headers
	le(uint32(0))
	le([]uint16{header, 0, 0, section, 3, 2})
	b.WriteString(modinfo + names)
	b.Write(make([]byte, section))
	sh := func(name, kind uint32, off, size int) {
		le([]uint32{name, kind})
		le([]uint64{0, 0, uint64(off), uint64(size)})
		le([]uint32{0, 0})
		le([]uint64{1, 0})
	}
	sh(1, 1, header, len(modinfo))
	sh(10, 3, header+len(modinfo), len(names))
	return b.Bytes()
}

func module(depends string) []byte {
	return object("license=GPL\x00depends=" + depends + "\x00name=x\x00")
}

func tree(t *testing.T, files map[string][]byte) *Tree {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(name, ".xz") {
			var b bytes.Buffer
			w, err := xz.NewWriter(&b)
			if err != nil {
				t.Fatal(err)
			}
			w.Write(data)
			w.Close()
			data = b.Bytes()
		}
		if err := os.WriteFile(p, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tr, err := OpenTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func TestClosure(t *testing.T) {
	tr := tree(t, map[string][]byte{
		"kernel/a/rdma-rxe.ko.xz": module("ib_core,udp-tunnel"),
		"kernel/b/ib_core.ko":     module("crc"),
		"kernel/b/udp_tunnel.ko":  module("ib_core"),
		"kernel/b/crc.ko":         module(""),
		"kernel/b/loop1.ko":       module("loop2"),
		"kernel/b/loop2.ko":       module("loop1"),
		"kernel/b/broken.ko":      []byte("no ELF"),
		"modules.builtin":         []byte("kernel/drivers/virtio/virtio_pci.ko\n"),
	})
	tests := []struct {
		names    []string
		optional map[string]bool
		want     string
		err      string
	}{
		{names: []string{"rdma_rxe", "crc"}, want: "crc ib_core udp_tunnel rdma_rxe"},
		{names: []string{"virtio_pci", "crc"}, want: "crc"},
		{names: []string{"gone", "crc"}, optional: map[string]bool{"gone": true}, want: "crc"},
		{names: []string{"loop1"}, want: "loop2 loop1"},
		{names: []string{"gone"}, err: "has no module gone"},
		{names: []string{"broken"}, err: "broken.ko"},
	}
	for _, tt := range tests {
		mods, err := tr.Closure(tt.names, tt.optional)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%v: error %v, want %q", tt.names, err, tt.err)
			}
			continue
		}
		var got []string
		for _, m := range mods {
			got = append(got, m.Name)
		}
		if g := strings.Join(got, " "); err != nil || g != tt.want {
			t.Errorf("%v: %s, %v; want %s", tt.names, g, err, tt.want)
		}
	}
}

func TestUnsigned(t *testing.T) {
	const magic = "~Module signature appended~\n"
	signed := func(n uint32, sig string) string {
		return "module" + sig + "\x00\x01\x02\x00\x00\x00\x00\x00" + string(binary.BigEndian.AppendUint32(nil, n)) + magic
	}
	tests := []struct{ name, in, want string }{
		{"signed", signed(3, "sig"), "module"},
		{"plain", "module", "module"},
		{"length too large", signed(1<<31, "sig"), signed(1<<31, "sig")},
		{"magic alone", magic, magic},
	}
	for _, tt := range tests {
		if got := string(unsigned([]byte(tt.in))); got != tt.want {
			t.Errorf("%s: %q", tt.name, got)
		}
	}
}

func TestNewest(t *testing.T) {
	names := []string{
		"linux-image-6.12.95+deb12-amd64", "linux-image-6.12.100+deb12-amd64", "linux-image-6.12.101+deb12-rt-amd64",
		"linux-image-6.12.101+deb12-cloud-amd64", "linux-image-6.12.101+deb12-amd64-unsigned", "linux-image-6.12.101+deb12-amd64-dbg",
		"linux-image-amd64", "linux-image-6.13.1+deb12-amd64",
	}
	if got := newest(names, "6.12."); got != "6.12.100+deb12-amd64" {
		t.Errorf("6.12: %q", got)
	}
	if got := newest(names, ""); got != "6.13.1+deb12-amd64" {
		t.Errorf("any: %q", got)
	}
	if got := newest([]string{"linux-image-amd64"}, ""); got != "" {
		t.Errorf("none: %q", got)
	}
}

func TestPlace(t *testing.T) {
	const release = "7.1-amd64"
	for name, want := range map[string]string{
		"boot/vmlinuz-7.1-amd64":                   "vmlinuz",
		"usr/lib/modules/7.1-amd64/vmlinuz":        "vmlinuz",
		"usr/lib/modules/7.1-amd64/kernel/a.ko.xz": "modules/kernel/a.ko.xz",
		"lib/modules/7.1-amd64/modules.builtin":    "modules/modules.builtin",
		"lib/modules/7.1-amd64/kernel/sound/s.ko":  "",
		"lib/modules/7.2-amd64/kernel/a.ko":        "",
		"usr/share/doc/x":                          "",
		"../lib/modules/7.1-amd64/modules.builtin": "",
	} {
		if got := place(name, release); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

func TestInitramfs(t *testing.T) {
	dir := t.TempDir()
	agent := filepath.Join(dir, "agent")
	os.WriteFile(agent, []byte("binary"), 0o755)
	out := filepath.Join(dir, "initramfs")
	if err := WriteInitramfs(out, agent, "/init", "/modules", []Module{{"one", []byte("1")}, {"two", []byte("22")}}); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := map[string]string{}
	for r := cpio.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, _ := io.ReadAll(r)
		got[h.Name] = string(data)
	}
	want := map[string]string{"dev": "", "proc": "", "sys": "", "modules": "", "init": "binary", "modules/000-one": "1", "modules/001-two": "22"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestCached(t *testing.T) {
	cache := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", cache)
	track, err := FindTrack("6.12")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := track.Cached(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("empty cache: %v", err)
	}
	for _, r := range []string{"6.12.9-amd64", "6.12.10-amd64", ".6.12.11-amd64"} {
		d := filepath.Join(cache, "ironspan", "kernel", "6.12", r)
		os.MkdirAll(filepath.Join(d, "modules"), 0o755)
		os.WriteFile(filepath.Join(d, "vmlinuz"), nil, 0o644)
	}
	i, err := track.Cached()
	if err != nil || i.Release != "6.12.10-amd64" {
		t.Errorf("%+v, %v", i, err)
	}
	if _, err := FindTrack("5.10"); err == nil || !strings.Contains(err.Error(), "6.1, 6.12, newest") {
		t.Errorf("unknown track: %v", err)
	}
}
