// Package program gets single programs of the distribution with all their libraries, to be run in lab servers as they
// lie in the cache: nothing is installed on this machine, no service starts, and no root is needed.
package program

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"

	"ironspan/tools/lab/internal/apt"
	"ironspan/tools/lab/internal/qemu"
)

const (
	libraries  = "lib"
	loaderFile = "lib/ld-linux-x86-64.so.2"
)

// source is where a program is to be had. What these need of a kernel, all of the lab's have.
type source struct{ suite, packageName string }

// sources are the programs the lab knows.
var sources = map[string]source{
	"nbd-server": {"bookworm", "nbd-server"},
	"nbd-client": {"bookworm", "nbd-client"},
	qemuProgram:  {"trixie", "qemu-system-x86"},
}

const (
	qemuProgram = "qemu-system-x86_64"
	qemuMajor   = 10 // 7.2, the servers' own, lets the rate limit of a post-copy migration hold back what is asked for
)

// Names are the programs that can be had.
func Names() []string {
	var names []string
	for n := range sources {
		names = append(names, n)
	}
	sort.Strings(names)
	return names
}

// Get returns the words that run a program in any server, fetching it if it is not in the cache. This machine's own QEMU
// is as good, if it is new enough.
func Get(ctx context.Context, name string, progress func(string, ...any)) ([]string, error) {
	from, ok := sources[name]
	if !ok {
		return nil, fmt.Errorf("program: no program %q: choose one of %s", name, strings.Join(Names(), ", "))
	}
	if name == qemuProgram {
		if own, err := qemu.Installed(ctx); err == nil && own.Major >= qemuMajor {
			return []string{own.Path}, nil
		}
	}
	cache, err := apt.CacheDir()
	if err != nil {
		return nil, err
	}
	home := filepath.Join(cache, "program", name)
	dir, err := apt.Newest(home)
	if errors.Is(err, fs.ErrNotExist) {
		dir, err = fetch(ctx, home, name, from, progress)
	}
	if err != nil {
		return nil, err
	}
	if err := complete(dir, name); err != nil {
		return nil, fmt.Errorf("%w: damaged cache: remove %s", err, dir)
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	return []string{in(loaderFile), "--library-path", in(libraries), "--argv0", name, in(name)}, nil
}

func complete(dir, name string) error {
	for _, f := range []string{name, loaderFile} {
		if _, err := os.Stat(filepath.Join(dir, f)); err != nil {
			return fmt.Errorf("program: %s: %w", name, err)
		}
	}
	return nil
}

func fetch(ctx context.Context, home, name string, from source, progress func(string, ...any)) (string, error) {
	a, err := apt.Open(ctx, from.suite, progress)
	if err != nil {
		return "", err
	}
	defer a.Close()
	if err := a.Update(ctx); err != nil {
		return "", err
	}
	all, err := a.Closure(ctx, from.packageName)
	if err != nil {
		return "", err
	}
	var needed []*apt.Package
	for _, p := range all {
		if p.Name == from.packageName || strings.HasPrefix(p.Name, "lib") || strings.HasPrefix(p.Name, "zlib") {
			needed = append(needed, p)
		}
	}
	// Without the epoch: its colon would divide the loader's list of folders.
	dir := filepath.Join(home, all[0].Version[strings.IndexByte(all[0].Version, ':')+1:])
	return dir, a.Unpack(ctx, needed, dir, func(file string) string { return place(file, name) },
		func(dir string) error { return complete(dir, name) })
}

// place says where a file of a package goes in the cache; "" is nowhere.
func place(file, name string) string {
	dir, base := path.Split(strings.TrimPrefix(file, "usr/"))
	switch dir {
	case "bin/", "sbin/":
		if base == name {
			return base
		}
	case "lib/x86_64-linux-gnu/":
		if strings.Contains(base, ".so") {
			return path.Join(libraries, base)
		}
	}
	return ""
}
