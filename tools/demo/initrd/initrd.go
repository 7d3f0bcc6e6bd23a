// Package initrd makes the demonstration guest's initial RAM disk: an archive with one program, the
// guest's init, and the folders it mounts on.
package initrd

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/cavaliergopher/cpio"
)

// initPackage is the guest's init; it is built from the module the caller runs in.
const initPackage = "ironspan/tools/demo/init"

// Build compiles the guest's init, statically, and writes the RAM disk to file. It runs the go command
// found in PATH and shows what that prints on log.
func Build(ctx context.Context, file string, log io.Writer) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("initrd: %w", err)
	}
	dir, err := os.MkdirTemp(filepath.Dir(file), ".initrd-")
	if err != nil {
		return fmt.Errorf("initrd: %w", err)
	}
	defer os.RemoveAll(dir)

	binary := filepath.Join(dir, "init")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, initPackage)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("initrd: go build %s: %w", initPackage, err)
	}
	program, err := os.ReadFile(binary)
	if err != nil {
		return fmt.Errorf("initrd: %w", err)
	}
	archive, err := Archive(program)
	if err != nil {
		return err
	}
	// In one step: a demonstration that runs at the same time must not see half of it.
	whole := filepath.Join(dir, "initrd.cpio")
	if err := os.WriteFile(whole, archive, 0o644); err != nil {
		return fmt.Errorf("initrd: %w", err)
	}
	if err := os.Rename(whole, file); err != nil {
		return fmt.Errorf("initrd: %w", err)
	}
	return nil
}

// Archive is the RAM disk of an init program, in the "newc" form the kernel unpacks. It is not
// compressed: a slow guest reads two megabytes sooner than it unpacks one. The console's device node
// comes with every kernel's own built-in archive.
func Archive(program []byte) ([]byte, error) {
	var out bytes.Buffer
	w := cpio.NewWriter(&out)
	for _, dir := range []string{"dev", "proc", "sys"} {
		if err := w.WriteHeader(&cpio.Header{Name: dir, Mode: cpio.TypeDir | 0o755, Links: 2}); err != nil {
			return nil, fmt.Errorf("initrd: %s: %w", dir, err)
		}
	}
	if err := w.WriteHeader(&cpio.Header{Name: "init", Mode: cpio.TypeReg | 0o755, Links: 1, Size: int64(len(program))}); err != nil {
		return nil, fmt.Errorf("initrd: init: %w", err)
	}
	if _, err := w.Write(program); err != nil {
		return nil, fmt.Errorf("initrd: init: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("initrd: %w", err)
	}
	return out.Bytes(), nil
}
