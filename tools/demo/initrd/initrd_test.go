package initrd

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/cavaliergopher/cpio"
)

func TestArchiveHoldsInitAndMountPoints(t *testing.T) {
	archive, err := Archive([]byte("program"))
	if err != nil {
		t.Fatal(err)
	}
	files := unpack(t, archive)
	if string(files["init"]) != "program" {
		t.Errorf("init holds %q", files["init"])
	}
	for _, dir := range []string{"dev", "proc", "sys"} {
		if _, found := files[dir]; !found {
			t.Errorf("no folder %s", dir)
		}
	}
}

func TestBuildMakesAStaticProgram(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("no go command in PATH")
	}
	file := filepath.Join(t.TempDir(), "sub", "initrd.cpio")
	var log bytes.Buffer
	if err := Build(context.Background(), file, &log); err != nil {
		t.Fatalf("%v\n%s", err, log.Bytes())
	}
	archive, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	program, err := elf.NewFile(bytes.NewReader(unpack(t, archive)["init"]))
	if err != nil {
		t.Fatal(err)
	}
	for _, segment := range program.Progs {
		if segment.Type == elf.PT_INTERP {
			t.Error("init wants a dynamic loader: the guest has none")
		}
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(file), ".initrd-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func unpack(t *testing.T, archive []byte) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	r := cpio.NewReader(bytes.NewReader(archive))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = data
	}
}
