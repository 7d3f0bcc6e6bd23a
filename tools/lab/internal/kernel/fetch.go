package kernel

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"ironspan/tools/lab/internal/apt"
)

const (
	imagePrefix = "linux-image-"
	flavour     = "-amd64"
)

// Fetch gets the newest kernel of the track's suite into the cache, if it is not there yet.
func (t Track) Fetch(ctx context.Context, progress func(string, ...any)) (*Image, error) {
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	home := filepath.Join(cache, "kernel", t.Name)
	if err := os.MkdirAll(home, 0o755); err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	lock, err := os.OpenFile(home+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	defer lock.Close()
	if err := wait(ctx, lock, progress); err != nil {
		return nil, err
	}
	a, err := apt.Open(filepath.Join(cache, "apt", t.Suite), t.Suite)
	if err != nil {
		return nil, err
	}
	a.Progress = progress
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
	dir := filepath.Join(home, release)
	if i, err := image(dir); err == nil {
		progress("kernel %s is in the cache", release)
		return i, nil
	}
	packages, err := closure(ctx, a, imagePrefix+release, release)
	if err != nil {
		return nil, err
	}
	tmp := filepath.Join(home, "."+release)
	if err := os.RemoveAll(tmp); err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	defer os.RemoveAll(tmp)
	for _, p := range packages {
		deb, err := a.Download(ctx, p)
		if err != nil {
			return nil, err
		}
		progress("unpacking %s", p.Name)
		err = unpack(ctx, deb, tmp, release)
		os.Remove(deb)
		if err != nil {
			return nil, err
		}
	}
	if _, err := image(tmp); err != nil {
		return nil, fmt.Errorf("kernel: %s: the packages hold no vmlinuz or no modules: %w", release, err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	if err := os.Rename(tmp, dir); err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
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

// wait takes the lock that keeps two fetches of one track apart.
func wait(ctx context.Context, f *os.File, progress func(string, ...any)) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return nil
	}
	progress("another process is fetching this kernel; waiting")
	got := make(chan error, 1)
	go func() { got <- unix.Flock(int(f.Fd()), unix.LOCK_EX) }()
	select {
	case err := <-got:
		return err
	case <-ctx.Done():
		return errors.New("kernel: interrupted")
	}
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
	sort.Slice(releases, func(i, j int) bool { return older(releases[i], releases[j]) })
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

// unpack takes kernel and modules out of a package.
func unpack(ctx context.Context, deb, dir, release string) (err error) {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("kernel: unpack: %w", err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("kernel: unpack: %w", err)
	}
	err = extract(out, dir, release)
	if err != nil {
		cmd.Process.Kill()
	}
	if werr := cmd.Wait(); err == nil && werr != nil {
		err = werr
	}
	if ctx.Err() != nil {
		return errors.New("kernel: interrupted")
	}
	if err != nil {
		return fmt.Errorf("kernel: unpack %s: %w", filepath.Base(deb), err)
	}
	return nil
}

func extract(r io.Reader, dir, release string) error {
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			_, err = io.Copy(io.Discard, r)
			return err
		}
		if err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		target := place(path.Clean(h.Name), release)
		if target == "" {
			continue
		}
		target = filepath.Join(dir, target)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		f, err := os.OpenFile(target, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, t)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return err
		}
	}
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
