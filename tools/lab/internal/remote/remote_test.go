package remote

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
)

type pipe struct {
	io.Reader
	io.Writer
}

func (pipe) Close() error { return nil }

func TestFrames(t *testing.T) {
	var b bytes.Buffer
	s := NewStream(pipe{&b, &b})
	for _, p := range []string{"", "x", strings.Repeat("y", MaxPayload)} {
		if err := s.Write(KindStdout, []byte(p)); err != nil {
			t.Fatal(err)
		}
		k, got, err := s.Read()
		if err != nil || k != KindStdout || string(got) != p {
			t.Fatalf("%v, %d bytes, %v", k, len(got), err)
		}
	}
	if err := s.Write(KindStdout, make([]byte, MaxPayload+1)); err == nil {
		t.Error("wrote a frame that is too large")
	}
	if _, _, err := s.Read(); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
}

func TestReadRefuses(t *testing.T) {
	tests := []struct {
		name string
		in   []byte
		want error
	}{
		{"kind 0", []byte{0, 0, 0, 0, 0}, ErrFrame},
		{"unknown kind", []byte{byte(KindExit) + 1, 0, 0, 0, 0}, ErrFrame},
		{"too long", []byte{byte(KindStdin), 0xff, 0, 0, 0}, ErrFrame},
		{"short header", []byte{byte(KindStdin), 0}, io.ErrUnexpectedEOF},
		{"short payload", []byte{byte(KindStdin), 0, 0, 0, 2, 'x'}, io.ErrUnexpectedEOF},
		{"no payload", []byte{byte(KindStdin), 0, 0, 0, 2}, io.ErrUnexpectedEOF},
	}
	for _, tt := range tests {
		if _, _, err := NewStream(pipe{bytes.NewReader(tt.in), io.Discard}).Read(); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// A process that does not read its input must not be sent more than the window.
func TestStdinWindow(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	go Run(a, &Command{Args: []string{"x"}}, Stdio{In: endless{}, Out: io.Discard, Err: io.Discard})
	s := NewStream(b)
	if k, _, err := s.Read(); k != KindRequest || err != nil {
		t.Fatal(k, err)
	}
	got := 0
	take := func(limit int) {
		for got+chunk <= limit {
			k, p, err := s.Read()
			if k != KindStdin || err != nil {
				t.Fatal(k, err)
			}
			got += len(p)
		}
	}
	take(StdinWindow)
	if got != StdinWindow {
		t.Fatalf("%d bytes under way, the window is %d", got, StdinWindow)
	}
	if err := s.Write(KindCredit, []byte{0, 0, 0x80, 0}); err != nil { // one chunk
		t.Fatal(err)
	}
	take(StdinWindow + chunk)
	if got != StdinWindow+chunk {
		t.Fatalf("%d bytes after credit for one chunk", got)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func TestRunEnds(t *testing.T) {
	tests := []struct {
		name string
		k    Kind
		p    string
		want string
	}{
		{"exit", KindExit, `{"code":3}`, ""},
		{"garbage", KindExit, `{`, "unexpected end"},
		{"wrong direction", KindStdin, ``, "malformed"},
		{"bad credit", KindCredit, `1`, "malformed"},
	}
	for _, tt := range tests {
		a, b := net.Pipe()
		go func() {
			s := NewStream(b)
			s.Read()
			s.Write(tt.k, []byte(tt.p))
			b.Close()
		}()
		e, err := Run(a, &Command{}, Stdio{Out: io.Discard, Err: io.Discard})
		if tt.want == "" {
			if err != nil || e.Code != 3 {
				t.Errorf("%s: %v, %v", tt.name, e, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte{byte(KindStdout), 0, 0, 0, 1, 'x'})
	f.Fuzz(func(t *testing.T, in []byte) {
		s := NewStream(pipe{bytes.NewReader(in), io.Discard})
		for {
			k, p, err := s.Read()
			if err != nil {
				return
			}
			if k < KindRequest || k > KindExit || len(p) > len(in) {
				t.Fatalf("kind %d, %d bytes of %d", k, len(p), len(in))
			}
		}
	})
}
