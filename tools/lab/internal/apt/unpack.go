package apt

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
)

// Unpack downloads packages and puts those of their files into dir for which place has a name there; "" is nowhere.
// The folder appears complete or not at all: check is shown it before, under another name.
func (a *Archive) Unpack(ctx context.Context, packages []*Package, dir string, place func(name string) string, check func(dir string) error) error {
	debs, err := a.download(ctx, packages)
	if err != nil {
		return err
	}
	defer func() {
		for _, deb := range debs {
			os.Remove(deb)
		}
	}()
	tmp := filepath.Join(filepath.Dir(dir), "."+filepath.Base(dir))
	if err := os.RemoveAll(tmp); err != nil {
		return fmt.Errorf("apt: %w", err)
	}
	defer os.RemoveAll(tmp)
	a.progress("unpacking %s", packages[0].Name)
	for _, deb := range debs {
		if err := unpack(ctx, deb, tmp, place); err != nil {
			return err
		}
	}
	if err := check(tmp); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("apt: %w", err)
	}
	if err := os.Rename(tmp, dir); err != nil {
		return fmt.Errorf("apt: %w", err)
	}
	return nil
}

func unpack(ctx context.Context, deb, dir string, place func(string) string) error {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("apt: unpack: %w", err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("apt: unpack: %w", err)
	}
	err = extract(out, dir, place)
	if err != nil {
		cmd.Process.Kill()
	}
	if werr := cmd.Wait(); err == nil && werr != nil {
		err = werr
	}
	if ctx.Err() != nil {
		return errInterrupted
	}
	if err != nil {
		return fmt.Errorf("apt: unpack %s: %w", filepath.Base(deb), err)
	}
	return nil
}

// extract takes regular files, and symbolic links to what has a place as well.
func extract(r io.Reader, dir string, place func(string) string) error {
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
		name := path.Clean(h.Name)
		target := place(name)
		if target == "" || h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeSymlink {
			continue
		}
		file := filepath.Join(dir, target)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if h.Typeflag == tar.TypeSymlink {
			to := path.Join(path.Dir(name), h.Linkname)
			if path.IsAbs(h.Linkname) {
				to = path.Clean(h.Linkname[1:])
			}
			if to = place(to); to == "" {
				continue
			}
			if to, err = filepath.Rel(filepath.Dir(target), to); err != nil {
				return err
			}
			if err := os.Symlink(to, file); err != nil {
				return err
			}
			continue
		}
		if err := write(file, t, h.FileInfo().Mode().Perm()&0o111|0o644); err != nil {
			return err
		}
	}
}

func write(file string, r io.Reader, mode os.FileMode) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}
