package wire

import (
	"bytes"
	"errors"
	"testing"

	"pgregory.net/rapid"
)

func anyMessage(t *rapid.T) Message {
	kinds := rapid.OneOf(rapid.Uint8Range(uint8(CoherenceFirst), uint8(CoherenceLast)),
		rapid.Uint8Range(uint8(MachineFirst), uint8(MachineLast)))
	m := Message{
		Kind:      Kind(kinds.Draw(t, "kind")),
		From:      NodeID(rapid.Uint8Range(0, MaxNodes-1).Draw(t, "from")),
		Flags:     Flags(rapid.Uint8Range(0, uint8(flagMask)).Draw(t, "flags")),
		Requester: NodeID(rapid.Uint8Range(0, MaxNodes-1).Draw(t, "requester")),
		Mode:      Mode(rapid.Uint8Range(0, uint8(Modified)).Draw(t, "mode")),
		Acks:      rapid.Uint8Range(0, MaxNodes).Draw(t, "acks"),
		Epoch:     Epoch(rapid.Uint32().Draw(t, "epoch")),
		Txn:       rapid.Uint32().Draw(t, "txn"),
		Slot:      rapid.Uint32().Draw(t, "slot"),
		Spent:     rapid.Uint32().Draw(t, "spent"),
		Page:      PFN(rapid.Uint64().Draw(t, "page")),
	}
	for i := range m.Args {
		m.Args[i] = rapid.Uint64().Draw(t, "arg")
	}
	return m
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := anyMessage(t)
		var b [Size]byte
		want.Encode(b[:])
		var got Message
		if err := got.Decode(b[:]); err != nil {
			t.Fatal(err)
		}
		if got != want {
			t.Fatalf("got %+v, want %+v", got, want)
		}
	})
}

func TestDecodeRefuses(t *testing.T) {
	good := Message{Kind: GetS}
	tests := []struct {
		name string
		mend func(b []byte) []byte
		want error
	}{
		{"short", func(b []byte) []byte { return b[:Size-1] }, ErrShort},
		{"empty", func([]byte) []byte { return nil }, ErrShort},
		{"version", func(b []byte) []byte { b[0]++; return b }, ErrVersion},
		{"no kind", func(b []byte) []byte { b[1] = 0; return b }, ErrKind},
		{"kind between the lanes", func(b []byte) []byte { b[1] = byte(coherenceEnd); return b }, ErrKind},
		{"kind past the last", func(b []byte) []byte { b[1] = byte(machineEnd); return b }, ErrKind},
		{"sender", func(b []byte) []byte { b[2] = MaxNodes; return b }, ErrField},
		{"flags", func(b []byte) []byte { b[3] = byte(flagEnd); return b }, ErrField},
		{"requester", func(b []byte) []byte { b[8] = MaxNodes; return b }, ErrField},
		{"mode", func(b []byte) []byte { b[9] = byte(Modified) + 1; return b }, ErrField},
		{"acks", func(b []byte) []byte { b[10] = MaxNodes + 1; return b }, ErrField},
		{"reserved byte", func(b []byte) []byte { b[11] = 1; return b }, ErrField},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := make([]byte, Size)
			good.Encode(b)
			var m Message
			if err := m.Decode(tt.mend(b)); !errors.Is(err, tt.want) {
				t.Fatalf("got %v, want %v", err, tt.want)
			}
		})
	}
}

func TestNoAllocations(t *testing.T) {
	m := Message{Kind: Grant, Page: 7}
	b := make([]byte, Size)
	bad := make([]byte, Size)
	n := testing.AllocsPerRun(100, func() {
		m.Encode(b)
		_ = m.Decode(b)
		_ = m.Decode(bad)
	})
	if n != 0 {
		t.Fatalf("%v allocations, want 0", n)
	}
}

func TestKindNames(t *testing.T) {
	for k := CoherenceFirst; k <= MachineLast; k++ {
		if k > CoherenceLast && k < MachineFirst {
			continue
		}
		if kindNames[k] == "" {
			t.Errorf("kind %d has no name", k)
		}
	}
	if got := Kind(0).String(); got != "Kind(0)" {
		t.Errorf("got %q", got)
	}
}

// FuzzDecode holds that whatever arrives is either refused or encodes back to the same bytes.
func FuzzDecode(f *testing.F) {
	for _, m := range []Message{
		{Kind: GetM, Page: 3, Txn: 9, Slot: 1}, {Kind: WriteBack, From: 1, Flags: FlagHome, Page: 5, Txn: 2},
	} {
		b := make([]byte, Size)
		m.Encode(b)
		f.Add(b)
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, in []byte) {
		var m Message
		if m.Decode(in) != nil {
			return
		}
		var out [Size]byte
		m.Encode(out[:])
		if !bytes.Equal(out[:], in[:Size]) {
			t.Fatalf("%x decodes to %+v, which encodes to %x", in[:Size], m, out)
		}
	})
}
