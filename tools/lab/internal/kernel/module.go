// Package kernel gets distribution kernels for the lab's servers and packs their initramfs.
package kernel

import (
	"bufio"
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/ulikunitz/xz"
)

// wanted are the modules a lab server needs, if its kernel has them as modules; their dependencies come
// along. Order matters only where a module asks for another at run time (rxe for its checksum).
var wanted = []string{
	"virtio_pci", "virtio_console", "virtio_net", "9pnet_virtio", "9p", "overlay",
	"crc32_generic", "kvm-amd", "kvm-intel", "ib_uverbs", "rdma_rxe", "dummy",
}

// optional modules are absent from some kernels, because they are built in or were dropped.
var optional = map[string]bool{"virtio_pci": true, "virtio_console": true, "crc32_generic": true, "dummy": true}

// Module is one kernel module, decompressed.
type Module struct {
	Name string
	Data []byte
}

// Tree is the modules of one kernel: lib/modules/<release>.
type Tree struct {
	dir     string
	files   map[string]string // normalised name -> path
	builtin map[string]bool
}

// ModuleName is a module's name as the kernel has it, which takes - and _ for the same.
func ModuleName(name string) string { return strings.ReplaceAll(name, "-", "_") }

func moduleName(path string) (string, bool) {
	base := filepath.Base(path)
	i := strings.Index(base, ".ko")
	if i < 0 {
		return "", false
	}
	switch base[i:] {
	case ".ko", ".ko.xz":
		return ModuleName(base[:i]), true
	}
	return "", false
}

// OpenTree indexes a module tree.
func OpenTree(dir string) (*Tree, error) {
	t := &Tree{dir: dir, files: map[string]string{}, builtin: map[string]bool{}}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name, ok := moduleName(path); ok && d.Type().IsRegular() {
			t.files[name] = path
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("kernel: modules: %w", err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("kernel: modules: %w", err)
	}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		if name, ok := moduleName(s.Text()); ok {
			t.builtin[name] = true
		}
	}
	return t, nil
}

// Closure returns names and all they depend on, dependencies first.
func (t *Tree) Closure(names []string, optional map[string]bool) ([]Module, error) {
	var out []Module
	seen := map[string]bool{}
	var visit func(name, by string) error
	visit = func(name, by string) error {
		key := ModuleName(name)
		if seen[key] || t.builtin[key] {
			return nil
		}
		seen[key] = true
		path, ok := t.files[key]
		if !ok {
			if optional[name] {
				return nil
			}
			return fmt.Errorf("kernel: %s has no module %s (asked for by %s)", filepath.Base(t.dir), name, by)
		}
		data, err := readModule(path)
		if err != nil {
			return fmt.Errorf("kernel: module %s: %w", path, err)
		}
		deps, err := depends(data)
		if err != nil {
			return fmt.Errorf("kernel: module %s: %w", path, err)
		}
		for _, d := range deps {
			if err := visit(d, name); err != nil {
				return err
			}
		}
		out = append(out, Module{Name: key, Data: unsigned(data)})
		return nil
	}
	for _, n := range names {
		if err := visit(n, "the lab"); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func readModule(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil || !strings.HasSuffix(path, ".xz") {
		return b, err
	}
	r, err := xz.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// unsigned cuts off the signature that is appended to a distribution's modules. Checking one costs an
// emulated server up to a second per module; its kernel loads them without, merely tainted.
func unsigned(module []byte) []byte {
	const magic = "~Module signature appended~\n"
	const trailer = 12 // struct module_signature; its last four bytes are the signature's length
	body, ok := bytes.CutSuffix(module, []byte(magic))
	if !ok || len(body) < trailer {
		return module
	}
	n := trailer + int64(binary.BigEndian.Uint32(body[len(body)-4:]))
	if n > int64(len(body)) {
		return module
	}
	return body[:int64(len(body))-n]
}

// depends reads what a module says of itself: a package carries no modules.dep, depmod makes that at
// installation.
func depends(module []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, err
	}
	sec := f.Section(".modinfo")
	if sec == nil {
		return nil, errors.New("no .modinfo section")
	}
	info, err := sec.Data()
	if err != nil {
		return nil, err
	}
	for entry := range bytes.SplitSeq(info, []byte{0}) {
		v, ok := bytes.CutPrefix(entry, []byte("depends="))
		if !ok || len(v) == 0 {
			continue
		}
		return strings.Split(string(v), ","), nil
	}
	return nil, nil
}

// LabModules are the modules of a lab server, in load order.
func LabModules(dir string) ([]Module, error) {
	t, err := OpenTree(dir)
	if err != nil {
		return nil, err
	}
	return t.Closure(wanted, optional)
}
