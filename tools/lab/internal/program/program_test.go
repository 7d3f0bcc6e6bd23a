package program

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestPlace(t *testing.T) {
	for file, want := range map[string]string{
		"usr/sbin/nbd-client":                        "nbd-client",
		"usr/bin/nbd-server":                         "",
		"usr/lib/x86_64-linux-gnu/libnl-3.so.200":    "lib/libnl-3.so.200",
		"lib/x86_64-linux-gnu/ld-linux-x86-64.so.2":  "lib/ld-linux-x86-64.so.2",
		"usr/lib/x86_64-linux-gnu/gconv/ISO646.so":   "",
		"lib/systemd/system/nbd@.service":            "",
		"usr/share/doc/nbd-client/changelog.gz":      "",
		"usr/lib/x86_64-linux-gnu/pkgconfig/nl-3.pc": "",
	} {
		if got := place(file, "nbd-client"); got != want {
			t.Errorf("%s: %q, want %q", file, got, want)
		}
	}
}

// A program in the cache is run by the loader and with the libraries that came with it.
func TestGet(t *testing.T) {
	cache := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", cache)
	dir := filepath.Join(cache, "ironspan", "program", "nbd-client", "3.24-1")
	if err := os.MkdirAll(filepath.Join(dir, libraries), 0o755); err != nil {
		t.Fatal(err)
	}
	file := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(file(loaderFile), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Get(t.Context(), "nbd-client", t.Logf); err == nil || !strings.Contains(err.Error(), "remove "+dir) {
		t.Errorf("without the program: %v", err)
	}
	if err := os.WriteFile(file("nbd-client"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	got, err := Get(t.Context(), "nbd-client", t.Logf)
	want := []string{file(loaderFile), "--library-path", file(libraries), "--argv0", "nbd-client", file("nbd-client")}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := Get(t.Context(), "sh", t.Logf); err == nil || !strings.Contains(err.Error(), "nbd-client") {
		t.Errorf("unknown: %v", err)
	}
}
