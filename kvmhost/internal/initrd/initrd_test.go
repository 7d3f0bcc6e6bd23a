package initrd

import (
	"bytes"
	"io"
	"testing"

	"github.com/cavaliergopher/cpio"
)

func TestPack(t *testing.T) {
	b, err := Pack([]byte("program"))
	if err != nil {
		t.Fatal(err)
	}
	r := cpio.NewReader(bytes.NewReader(b))
	names := map[string]string{}
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		names[h.Name] = string(data)
	}
	if len(names) != 4 || names["init"] != "program" {
		t.Errorf("packed %v", names)
	}
}
