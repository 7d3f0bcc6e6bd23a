package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
)

// Image is a kernel in the cache.
type Image struct {
	Release string // uname -r
	Path    string // vmlinuz
	Modules string // lib/modules/<release>
}

// Track is a kernel the lab knows by name.
type Track struct {
	Name string
	// Suite of the distribution it comes from; %s is the machine's own release.
	Suite string
	// Prefix its version must have, if any.
	Prefix string
}

// Default is the track of `lab up`.
const Default = "6.12"

// Tracks in the order of their age.
var Tracks = []Track{
	{Name: "6.1", Suite: "bookworm", Prefix: "6.1."},
	{Name: "6.12", Suite: "bookworm-backports", Prefix: "6.12."},
	{Name: "newest", Suite: "trixie-backports"},
}

// FindTrack looks a track up by name.
func FindTrack(name string) (Track, error) {
	var names []string
	for _, t := range Tracks {
		if t.Name == name {
			return t, nil
		}
		names = append(names, t.Name)
	}
	return Track{}, fmt.Errorf("kernel: no kernel %q: choose one of %s", name, strings.Join(names, ", "))
}

// CacheDir is where downloads are kept: below $XDG_CACHE_HOME, or ~/.cache.
func CacheDir() (string, error) {
	d, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("kernel: no place for downloads: %w: set XDG_CACHE_HOME", err)
	}
	return filepath.Join(d, "ironspan"), nil
}

// Cached returns the newest kernel of a track that was fetched before. The error wraps fs.ErrNotExist if
// there is none.
func (t Track) Cached() (*Image, error) {
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(cache, "kernel", t.Name)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	var releases []string
	for _, e := range entries {
		if e.IsDir() && !strings.HasPrefix(e.Name(), ".") {
			releases = append(releases, e.Name())
		}
	}
	if len(releases) == 0 {
		return nil, fmt.Errorf("kernel: %s is not in the cache: `lab fetch --kernel %s`: %w", t.Name, t.Name, fs.ErrNotExist)
	}
	sort.Slice(releases, func(i, j int) bool { return older(releases[i], releases[j]) })
	return image(filepath.Join(dir, releases[len(releases)-1]))
}

func image(dir string) (*Image, error) {
	release := filepath.Base(dir)
	i := &Image{
		Release: release,
		Path:    filepath.Join(dir, "vmlinuz"),
		Modules: filepath.Join(dir, "modules"),
	}
	for _, p := range []string{i.Path, i.Modules} {
		if _, err := os.Stat(p); err != nil {
			return nil, fmt.Errorf("kernel: damaged cache: %w: remove %s", err, dir)
		}
	}
	return i, nil
}

// older compares releases number by number.
func older(a, b string) bool {
	for a != "" && b != "" {
		na, ra := leadingNumber(a)
		nb, rb := leadingNumber(b)
		switch {
		case na >= 0 && nb >= 0:
			if na != nb {
				return na < nb
			}
			a, b = ra, rb
		case a[0] != b[0]:
			return a[0] < b[0]
		default:
			a, b = a[1:], b[1:]
		}
	}
	return a == "" && b != ""
}

func leadingNumber(s string) (int, string) {
	i := 0
	for i < len(s) && s[i] >= '0' && s[i] <= '9' {
		i++
	}
	n, err := strconv.Atoi(s[:i])
	if err != nil {
		return -1, s
	}
	return n, s[i:]
}
