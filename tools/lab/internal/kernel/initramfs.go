package kernel

import (
	"bufio"
	"fmt"
	"os"
	"path"

	"github.com/cavaliergopher/cpio"
)

// WriteInitramfs packs agent as /init and modules, to be loaded in the order given, into a newc archive.
func WriteInitramfs(file, agentBinary, agentPath, moduleDir string, modules []Module) (err error) {
	init, err := os.ReadFile(agentBinary)
	if err != nil {
		return fmt.Errorf("kernel: initramfs: %w", err)
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("kernel: initramfs: %w", err)
	}
	defer func() {
		if cerr := f.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("kernel: initramfs: %w", cerr)
		}
	}()
	buf := bufio.NewWriterSize(f, 1<<20)
	w := cpio.NewWriter(buf)
	add := func(name string, mode cpio.FileMode, data []byte) {
		if err != nil {
			return
		}
		h := &cpio.Header{Name: name, Mode: mode, Size: int64(len(data)), Links: 1}
		if err = w.WriteHeader(h); err == nil {
			_, err = w.Write(data)
		}
	}
	for _, d := range []string{"dev", "proc", "sys", path.Base(moduleDir)} {
		add(d, cpio.TypeDir|0o755, nil)
	}
	add(path.Base(agentPath), cpio.TypeReg|0o755, init)
	for i, m := range modules {
		add(fmt.Sprintf("%s/%03d-%s", path.Base(moduleDir), i, m.Name), cpio.TypeReg|0o644, m.Data)
	}
	if err == nil {
		err = w.Close()
	}
	if err == nil {
		err = buf.Flush()
	}
	if err != nil {
		return fmt.Errorf("kernel: initramfs: %w", err)
	}
	return nil
}
