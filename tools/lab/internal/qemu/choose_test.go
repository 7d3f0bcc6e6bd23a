package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestChoose(t *testing.T) {
	own := func(major, minor int) QEMU { return QEMU{Path: "own", Major: major, Minor: minor} }
	tests := []struct {
		accel  Accel
		own    QEMU
		offer  bool // it can be fetched
		want   string
		shadow bool
		said   string
	}{
		{TCG, own(7, 2), true, "own", true, ""},
		{TCG, own(8, 2), false, "own", true, ""},
		{TCG, own(9, 0), true, "own", true, ""},
		{TCG, own(9, 1), true, "fetched", true, ""},
		{TCG, own(10, 0), true, "fetched", true, ""},
		{TCG, own(7, 1), true, "fetched", true, ""},
		{TCG, QEMU{}, true, "fetched", true, ""},
		{TCG, own(10, 0), false, "own", false, "no shadow paging"},
		{TCG, QEMU{}, false, "", false, ""},
		{KVM, own(10, 0), true, "own", false, ""},
		{KVM, own(7, 2), true, "own", true, ""},
		{KVM, own(7, 1), true, "fetched", true, ""},
		{KVM, QEMU{}, true, "fetched", true, ""},
		{KVM, QEMU{}, false, "", false, ""},
	}
	for _, tt := range tests {
		name := fmt.Sprintf("%s, %v, fetched %v", tt.accel, tt.own, tt.offer)
		fetched := func() (QEMU, error) {
			if tt.offer {
				return QEMU{Path: "fetched", Major: 7, Minor: 2, Fetched: true}, nil
			}
			return QEMU{}, errors.New("no network")
		}
		var said strings.Builder
		got, err := choose(t.Context(), tt.accel, tt.own, fetched, func(format string, args ...any) { fmt.Fprintf(&said, format, args...) })
		if got.Path != tt.want || got.ShadowPaging() != tt.shadow {
			t.Errorf("%s: %v", name, got)
		}
		if tt.want == "" && (err == nil || !strings.Contains(err.Error(), "no network") || !strings.Contains(err.Error(), "install qemu")) || tt.want != "" && err != nil {
			t.Errorf("%s: error %v", name, err)
		}
		if !strings.Contains(said.String(), tt.said) || tt.said == "" && said.Len() > 0 {
			t.Errorf("%s: said %q", name, &said)
		}
	}
}

// An interrupted download is not one that failed.
func TestChooseInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	fetched := func() (QEMU, error) {
		cancel()
		return QEMU{}, errors.New("interrupted")
	}
	if q, err := choose(ctx, TCG, QEMU{Path: "own", Major: 10}, fetched, t.Logf); err == nil {
		t.Errorf("went on with %v", q)
	}
}

func TestPlace(t *testing.T) {
	for name, want := range map[string]string{
		"usr/bin/qemu-system-x86_64":                        "qemu-system-x86_64",
		"usr/bin/qemu-system-i386":                          "",
		"lib/x86_64-linux-gnu/ld-linux-x86-64.so.2":         "lib/ld-linux-x86-64.so.2",
		"usr/lib/x86_64-linux-gnu/libglib-2.0.so.0":         "lib/libglib-2.0.so.0",
		"usr/lib/x86_64-linux-gnu/gconv/ISO646.so":          "",
		"usr/lib/x86_64-linux-gnu/qemu/accel-tcg-x86_64.so": "lib/qemu/accel-tcg-x86_64.so",
		"usr/lib/x86_64-linux-gnu/qemu/ui-curses.so":        "",
		"usr/share/seabios/bios-256k.bin":                   "share/bios-256k.bin",
		"usr/share/qemu/skiboot.lid":                        "",
		"../lib/x86_64-linux-gnu/libc.so.6":                 "",
	} {
		if got := place(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	for name, want := range map[string]bool{"qemu-system-x86": true, "libc6": true, "zlib1g": true, "seabios": true, "passwd": false, "ipxe-qemu": false} {
		if needed(name) != want {
			t.Errorf("%s: needed is %v", name, !want)
		}
	}
}

// A fetched QEMU is started by its own loader and finds its parts beside itself.
func TestCached(t *testing.T) {
	cache := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", cache)
	if _, err := Cached(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("empty cache: %v", err)
	}
	dir := filepath.Join(cache, "ironspan", "qemu", "7.2-7")
	loader := filepath.Join(dir, loaderFile)
	if err := os.MkdirAll(filepath.Dir(loader), 0o755); err != nil {
		t.Fatal(err)
	}
	fake := "#!/bin/sh\nfor last; do :; done\n[ \"$last\" = --version ] && [ \"$2\" = " + filepath.Join(dir, "lib") +
		" ] && [ \"$QEMU_MODULE_DIR\" = " + filepath.Join(dir, "lib/qemu") + " ] && echo QEMU emulator version 7.2.22\n"
	if err := os.WriteFile(loader, []byte(fake), 0o755); err != nil {
		t.Fatal(err)
	}
	want := QEMU{Path: dir, Major: 7, Minor: 2, Fetched: true}
	if q, err := Cached(t.Context()); err != nil || q != want {
		t.Errorf("%+v, %v", q, err)
	}
	if err := os.WriteFile(loader, []byte("#!/bin/sh\necho no libc >&2\nexit 127\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Cached(t.Context()); err == nil || !strings.Contains(err.Error(), "no libc") || !strings.Contains(err.Error(), "lab fetch") {
		t.Errorf("damaged: %v", err)
	}
}
