package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"strings"

	"ironspan/tools/lab/internal/apt"
)

// suite is the release whose QEMU is fetched: Debian 12's, the last one that emulates SVM with shadow paging.
const (
	suite       = "bookworm"
	packageName = "qemu-system-x86"
)

// What a fetched QEMU is made of, below its folder.
const (
	libraries  = "lib"
	plugins    = "lib/qemu"
	firmware   = "share"
	loaderFile = "lib/ld-linux-x86-64.so.2"
)

func home() (string, error) {
	cache, err := apt.CacheDir()
	return filepath.Join(cache, "qemu"), err
}

// Cached returns the newest QEMU that was fetched before. The error wraps fs.ErrNotExist if there is none.
func Cached(ctx context.Context) (QEMU, error) {
	dir, err := home()
	if err != nil {
		return QEMU{}, err
	}
	newest, err := apt.Newest(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return QEMU{}, fmt.Errorf("qemu: none is in the cache: `lab fetch`: %w", err)
	}
	if err != nil {
		return QEMU{}, err
	}
	return at(ctx, newest)
}

// at looks at a fetched QEMU, and runs it: all its libraries are there, and they may be executed where they are.
func at(ctx context.Context, dir string) (QEMU, error) {
	q, err := QEMU{Path: dir, Fetched: true}.probe(ctx)
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("%w: `lab fetch` mends a damaged one; where the cache may not hold programs, set XDG_CACHE_HOME to another place", err)
	}
	return q, err
}

// Fetch gets the suite's newest QEMU and its libraries into the cache, if it is not there yet. Nothing is installed.
func Fetch(ctx context.Context, progress func(string, ...any)) (QEMU, error) {
	dir, err := home()
	if err != nil {
		return QEMU{}, err
	}
	a, err := apt.Open(ctx, suite, progress)
	if err != nil {
		return QEMU{}, err
	}
	defer a.Close()
	if err := a.Update(ctx); err != nil {
		return QEMU{}, err
	}
	all, err := a.Closure(ctx, packageName)
	if err != nil {
		return QEMU{}, err
	}
	// Without the epoch: its colon would divide the loader's list of folders.
	version := all[0].Version[strings.IndexByte(all[0].Version, ':')+1:]
	dir = filepath.Join(dir, version)
	if q, err := at(ctx, dir); err == nil {
		progress("QEMU %s is in the cache", version)
		return q, nil
	}
	var packages []*apt.Package
	for _, p := range all {
		if needed(p.Name) {
			packages = append(packages, p)
		}
	}
	var q QEMU
	err = a.Unpack(ctx, packages, dir, place, func(dir string) (err error) {
		q, err = at(ctx, dir)
		return err
	})
	q.Path = dir
	return q, err
}

// get returns the cached QEMU, fetching one if there is none.
func get(ctx context.Context, progress func(string, ...any)) (QEMU, error) {
	q, err := Cached(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return Fetch(ctx, progress)
	}
	return q, err
}

// needed tells QEMU, its firmware and libraries from what only an installed system wants: users, translations, boot
// ROMs of network cards.
func needed(name string) bool {
	for _, prefix := range []string{"qemu-system-", "seabios", "lib", "zlib"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// place says where a file of a package goes in the cache; "" is nowhere.
func place(name string) string {
	dir, base := path.Split(strings.TrimPrefix(name, "usr/"))
	switch dir {
	case "bin/":
		if base == program {
			return base
		}
	case "lib/x86_64-linux-gnu/":
		if strings.Contains(base, ".so") {
			return path.Join(libraries, base)
		}
	case "lib/x86_64-linux-gnu/qemu/":
		if strings.HasPrefix(base, "accel-") {
			return path.Join(plugins, base)
		}
	case "share/qemu/", "share/seabios/":
		switch base {
		case "bios-256k.bin", "kvmvapic.bin", "linuxboot_dma.bin":
			return path.Join(firmware, base)
		}
	}
	return ""
}
