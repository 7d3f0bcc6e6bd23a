package verbs

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mdlayher/netlink"
	"github.com/mdlayher/netlink/nlenc"
)

// The bytes are what rdma(8) sends for `rdma link add rxe0 type rxe netdev eth0` (little endian).
func TestNewLinkEncoding(t *testing.T) {
	got, err := encodeNewLink("rxe0", "rxe", "eth0")
	want := []byte{
		9, 0, 2, 0, 'r', 'x', 'e', '0', 0, 0, 0, 0,
		8, 0, 65, 0, 'r', 'x', 'e', 0,
		9, 0, 51, 0, 'e', 't', 'h', '0', 0, 0, 0, 0,
	}
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("got  %v, %v\nwant %v", got, err, want)
	}
	if got, want := encodeIndex(3), []byte{8, 0, 1, 0, 3, 0, 0, 0}; !bytes.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestDecodeLink(t *testing.T) {
	b, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: attrDevIndex, Data: nlenc.Uint32Bytes(4)}, {Type: attrDevName, Data: nlenc.Bytes("rxe0")},
		{Type: attrPortIndex, Data: nlenc.Uint32Bytes(1)}, {Type: attrPortState, Data: []byte{4}},
		{Type: attrDevProtocol, Data: nlenc.Bytes("roce")}, {Type: attrNdevIndex, Data: nlenc.Uint32Bytes(2)},
		{Type: attrNdevName, Data: nlenc.Bytes("eth0")}, {Type: attrCharName, Data: nlenc.Bytes("uverbs0")},
		{Type: attrDriverID, Data: nlenc.Uint32Bytes(driverRxe)}, {Type: 200, Data: []byte{1}},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := RdmaLink{Index: 4, Device: "rxe0", Port: 1, State: PortActive, Protocol: "roce", Netdev: "eth0", NetIndex: 2, CharDev: "uverbs0", Rxe: true}
	if got, err := decodeLink(b, RdmaLink{}); err != nil || got != want {
		t.Errorf("got  %+v, %v\nwant %+v", got, err, want)
	}
	short, _ := netlink.MarshalAttributes([]netlink.Attribute{{Type: attrDevIndex, Data: []byte{1, 2}}})
	if _, err := decodeLink(short, RdmaLink{}); err == nil {
		t.Error("an attribute that is too short was taken")
	}
}

func FuzzDecodeLink(f *testing.F) {
	f.Add(encodeIndex(3))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := decodeLink(b, RdmaLink{}); err != nil && err.Error() == "" {
			t.Error("an error without a text")
		}
	})
}

func TestRxeNamesAreChecked(t *testing.T) {
	for _, name := range []string{"", "a b", "a/b", "rxe%d", "ä", strings.Repeat("x", 64)} {
		if err := CreateRxe(name, "eth0"); !errors.Is(err, ErrInvalid) {
			t.Errorf("create %q: got %v", name, err)
		}
		if err := DeleteRxe(name); !errors.Is(err, ErrInvalid) {
			t.Errorf("delete %q: got %v", name, err)
		}
	}
	for _, netdev := range []string{"", "a-name-too-long-for-one"} {
		if err := CreateRxe("rxe9", netdev); !errors.Is(err, ErrInvalid) {
			t.Errorf("netdev %q: got %v", netdev, err)
		}
	}
}

func TestHolders(t *testing.T) {
	proc := t.TempDir()
	link := func(pid, fd, to string) {
		dir := filepath.Join(proc, pid, "fd")
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(proc, pid, "comm"), []byte("node"+pid+"\n"), 0o644),
			os.Symlink(to, filepath.Join(dir, fd))); err != nil {
			t.Fatal(err)
		}
	}
	link("12", "3", "/dev/infiniband/uverbs0")
	link("12", "4", "anon_inode:[infinibandevent]")
	link("12", "5", "/dev/infiniband/uverbs0")
	link("34", "7", "/dev/infiniband/uverbs1")
	link("56", "7", "/dev/infiniband/uverbs0")
	for dev, want := range map[string]string{
		"uverbs0": "process 12 (node12), process 56 (node56)", "uverbs1": "process 34 (node34)", "uverbs2": "", "": "",
	} {
		if got := holders(proc, dev); got != want {
			t.Errorf("%s: got %q, want %q", dev, got, want)
		}
	}
}
