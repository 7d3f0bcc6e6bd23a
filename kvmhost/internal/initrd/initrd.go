// Package initrd packs a program as the only one of an initramfs.
package initrd

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/cavaliergopher/cpio"
)

// Build compiles a Go main package into a static program and returns an initramfs with it as /init.
func Build(pkg string) ([]byte, error) {
	dir, err := os.MkdirTemp("", "initrd")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "init")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initrd: build %s: %w\n%s", pkg, err, out)
	}
	b, err := os.ReadFile(program)
	if err != nil {
		return nil, err
	}
	return Pack(b)
}

// Pack returns an initramfs with program as /init, and the directories that it mounts on.
func Pack(program []byte) ([]byte, error) {
	var out bytes.Buffer
	w := cpio.NewWriter(&out)
	for _, dir := range []string{"dev", "proc", "sys"} {
		if err := w.WriteHeader(&cpio.Header{Name: dir, Mode: cpio.TypeDir | 0o755, Links: 2}); err != nil {
			return nil, fmt.Errorf("initrd: %w", err)
		}
	}
	if err := w.WriteHeader(&cpio.Header{Name: "init", Mode: cpio.TypeReg | 0o755, Size: int64(len(program)), Links: 1}); err != nil {
		return nil, fmt.Errorf("initrd: %w", err)
	}
	if _, err := w.Write(program); err != nil {
		return nil, fmt.Errorf("initrd: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("initrd: %w", err)
	}
	return out.Bytes(), nil
}
