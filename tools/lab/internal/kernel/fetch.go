package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"ironspan/tools/lab/internal/apt"
)

const (
	imagePrefix = "linux-image-"
	flavour     = "-amd64"
)

// Fetch gets the newest kernel of the track's suite into the cache, if it is not there yet.
func (t Track) Fetch(ctx context.Context, progress func(string, ...any)) (*Image, error) {
	cache, err := apt.CacheDir()
	if err != nil {
		return nil, err
	}
	a, err := apt.Open(ctx, t.Suite, progress)
	if err != nil {
		return nil, err
	}
	defer a.Close()
	if err := a.Update(ctx); err != nil {
		return nil, err
	}
	names, err := a.Names(ctx, imagePrefix+t.Prefix)
	if err != nil {
		return nil, err
	}
	release := newest(names, t.Prefix)
	if release == "" {
		return nil, fmt.Errorf("kernel: %s has no %s%s…%s", t.Suite, imagePrefix, t.Prefix, flavour)
	}
	dir := filepath.Join(cache, "kernel", t.Name, release)
	if i, err := image(dir); err == nil {
		progress("kernel %s is in the cache", release)
		return i, nil
	}
	packages, err := closure(ctx, a, imagePrefix+release, release)
	if err != nil {
		return nil, err
	}
	err = a.Unpack(ctx, packages, dir, func(name string) string { return place(name, release) }, func(dir string) error {
		if _, err := image(dir); err != nil {
			return fmt.Errorf("kernel: %s: the packages hold no vmlinuz or no modules: %w", release, err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return image(dir)
}

// Get returns the cached kernel of a track, fetching one if there is none.
func (t Track) Get(ctx context.Context, progress func(string, ...any)) (*Image, error) {
	i, err := t.Cached()
	if errors.Is(err, os.ErrNotExist) {
		return t.Fetch(ctx, progress)
	}
	return i, err
}

// newest picks the release of the newest plain image among package names.
func newest(names []string, prefix string) string {
	var releases []string
	for _, n := range names {
		r, ok := strings.CutPrefix(n, imagePrefix)
		if !ok || !strings.HasPrefix(r, prefix) || !strings.HasSuffix(r, flavour) || r[0] < '0' || r[0] > '9' {
			continue
		}
		// linux-image-6.1.0-1-cloud-amd64 and its like are not what we want.
		if strings.ContainsFunc(strings.TrimSuffix(r, flavour), func(c rune) bool { return c == '_' }) ||
			strings.Contains(r, "-cloud") || strings.Contains(r, "-rt") {
			continue
		}
		releases = append(releases, r)
	}
	sort.Slice(releases, func(i, j int) bool { return apt.Older(releases[i], releases[j]) })
	if len(releases) == 0 {
		return ""
	}
	return releases[len(releases)-1]
}

// closure finds the packages a release is spread over: one up to 6.x, several from 7.x on.
func closure(ctx context.Context, a *apt.Archive, name, release string) ([]*apt.Package, error) {
	var out []*apt.Package
	seen := map[string]bool{}
	var visit func(string) error
	visit = func(name string) error {
		if seen[name] {
			return nil
		}
		seen[name] = true
		p, err := a.Show(ctx, name)
		if err != nil {
			return err
		}
		out = append(out, p)
		for _, d := range p.Depends {
			if strings.HasPrefix(d, "linux-") && strings.HasSuffix(d, "-"+release) {
				if err := visit(d); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return out, visit(name)
}

// place says where a file of a package goes in the cache; "" is nowhere.
func place(name, release string) string {
	name = strings.TrimPrefix(name, "usr/")
	if name == "boot/vmlinuz-"+release {
		return "vmlinuz"
	}
	rest, ok := strings.CutPrefix(name, "lib/modules/"+release+"/")
	switch {
	case !ok:
		return ""
	case rest == "vmlinuz":
		return "vmlinuz"
	case strings.HasPrefix(rest, "kernel/drivers/gpu/"), strings.HasPrefix(rest, "kernel/sound/"),
		strings.HasPrefix(rest, "kernel/drivers/media/"), strings.HasPrefix(rest, "kernel/drivers/staging/"):
		return ""
	}
	return "modules/" + rest
}
