package cluster

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"testing"
	"unicode"

	"ironspan/engine/spec"
)

func TestFrameRoundTrip(t *testing.T) {
	var b bytes.Buffer
	for i, payload := range [][]byte{nil, []byte("x"), bytes.Repeat([]byte("ab"), 5000)} {
		typ := frameHello + frameType(i)
		if err := writeFrame(&b, typ, payload); err != nil {
			t.Fatal(err)
		}
		got, p, err := readFrame(&b, maxFrame)
		if err != nil || got != typ || !bytes.Equal(p, payload) {
			t.Errorf("%d %d bytes %v", got, len(p), err)
		}
	}
}

func TestFrameEnds(t *testing.T) {
	var b bytes.Buffer
	writeFrame(&b, framePing, []byte("abc"))
	whole := b.Bytes()
	for n := range whole {
		_, _, err := readFrame(bytes.NewReader(whole[:n]), 10)
		want := io.ErrUnexpectedEOF
		if n == 0 {
			want = io.EOF
		}
		if !errors.Is(err, want) {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
	if _, _, err := readFrame(bytes.NewReader(whole), 2); !errors.Is(err, errGarbled) {
		t.Errorf("beyond the limit: %v", err)
	}
}

func FuzzFrame(f *testing.F) {
	var b bytes.Buffer
	writeFrame(&b, frameHello, encodeJSON(hello{VM: spec.NewVMID()}))
	f.Add(b.Bytes())
	f.Add([]byte("IM\x04\x00\x00\x00\x00\x03\x01xy"))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		for {
			typ, p, err := readFrame(r, maxHandshake)
			if err != nil {
				return
			}
			if len(p) > maxHandshake || typ < frameHello || typ > frameGoodbye {
				t.Fatalf("frame %d with %d bytes", typ, len(p))
			}
		}
	})
}

func FuzzHandshake(f *testing.F) {
	f.Add(encodeJSON(hello{Version: 1, VM: spec.NewVMID(), Nodes: 2, From: 1}))
	f.Add(encodeJSON(refusal{Garbled, "x"}))
	f.Add(encodeJSON(goodbye{"k", "r"}))
	f.Add(encodeExchange("tag", []byte("offer")))
	f.Add([]byte(`{"from":256}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		if h, err := decodeHello(in); err == nil {
			if again, err := decodeHello(encodeJSON(h)); err != nil || again != h {
				t.Fatalf("%+v is %+v: %v", h, again, err)
			}
		}
		if r, err := decodeRefusal(in); err == nil {
			printableText(t, r.Reason, maxReason)
			printableText(t, string(r.Code), 32)
		}
		if g, err := decodeGoodbye(in); err == nil {
			printableText(t, g.Reason, maxReason)
			printableText(t, g.Kind, 32)
		}
		if tag, offer, err := decodeExchange(in); err == nil && !bytes.Equal(encodeExchange(tag, offer), in) {
			t.Fatalf("%q %q", tag, offer)
		}
		id := new(Identity)
		if json.Unmarshal(in, id) == nil && len(in) > 0 && in[0] == '{' {
			t.Fatal("an identity out of nothing")
		}
	})
}

func printableText(t *testing.T, s string, max int) {
	t.Helper()
	n := 0
	for _, r := range s {
		n++
		if !unicode.IsPrint(r) {
			t.Fatalf("%q reaches a terminal", s)
		}
	}
	if n > max {
		t.Fatalf("%d characters", n)
	}
}
