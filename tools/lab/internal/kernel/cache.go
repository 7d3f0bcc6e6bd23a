package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"ironspan/tools/lab/internal/apt"
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

// Cached returns the newest kernel of a track that was fetched before. The error wraps fs.ErrNotExist if
// there is none.
func (t Track) Cached() (*Image, error) {
	cache, err := apt.CacheDir()
	if err != nil {
		return nil, err
	}
	dir, err := apt.Newest(filepath.Join(cache, "kernel", t.Name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("kernel: %s is not in the cache: `lab fetch --kernel %s`: %w", t.Name, t.Name, err)
	}
	if err != nil {
		return nil, err
	}
	return image(dir)
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
