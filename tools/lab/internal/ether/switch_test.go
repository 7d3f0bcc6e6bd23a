package ether

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// network is a running switch and the servers' ends of its ports.
type network struct {
	*Switch
	ends []*os.File
	done chan struct{}
}

func start(t *testing.T, n int) *network {
	t.Helper()
	w := &network{done: make(chan struct{})}
	var ports []*os.File
	for range n {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.SetNonblock(fds[1], true)
		ports = append(ports, os.NewFile(uintptr(fds[0]), "port"))
		w.ends = append(w.ends, os.NewFile(uintptr(fds[1]), "end"))
	}
	w.Switch = New(ports)
	go func() { w.Run(); close(w.done) }()
	t.Cleanup(func() {
		w.Close()
		select {
		case <-w.done:
		case <-time.After(10 * time.Second):
			t.Error("the switch does not end")
		}
		for _, e := range w.ends {
			e.Close()
		}
	})
	return w
}

const broadcast = 0xff

// frame makes a frame from and to addresses that differ in their last byte.
func frame(to, from byte, payload string) []byte {
	dst := []byte{2, 0, 0, 0, 0, to}
	if to == broadcast {
		dst = bytes.Repeat([]byte{broadcast}, 6)
	}
	body := append(append(dst, 2, 0, 0, 0, 0, from, 8, 0), payload...)
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
}

func (w *network) send(t *testing.T, port int, f []byte) {
	t.Helper()
	if _, err := w.ends[port].Write(f); err != nil {
		t.Fatal(err)
	}
}

func (w *network) expect(t *testing.T, port int, want []byte) {
	t.Helper()
	w.ends[port].SetReadDeadline(time.Now().Add(10 * time.Second))
	got := make([]byte, len(want))
	if _, err := io.ReadFull(w.ends[port], got); err != nil {
		t.Fatalf("port %d: %v", port, err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("port %d: got %q, want %q", port, got, want)
	}
}

func (w *network) silent(t *testing.T, port int) {
	t.Helper()
	w.ends[port].SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := w.ends[port].Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("port %d: %d bytes, %v", port, n, err)
	}
}

func TestLearning(t *testing.T) {
	w := start(t, 3)
	unknown := frame(1, 0, "who")
	w.send(t, 0, unknown)
	w.expect(t, 1, unknown)
	w.expect(t, 2, unknown)
	answer := frame(0, 1, "me")
	w.send(t, 1, answer)
	w.expect(t, 0, answer)
	direct := frame(1, 0, "you")
	w.send(t, 0, direct)
	w.expect(t, 1, direct)
	all := frame(broadcast, 2, "all")
	w.send(t, 2, all)
	w.expect(t, 0, all)
	w.expect(t, 1, all)
	w.silent(t, 2) // neither the learnt frames nor its own broadcast
}

func TestSplitAndJoined(t *testing.T) {
	w := start(t, 2)
	a, b := frame(1, 0, "first"), frame(1, 0, string(make([]byte, 9000)))
	both := append(append([]byte(nil), a...), b...)
	for _, c := range both[:40] {
		w.send(t, 0, []byte{c})
	}
	w.send(t, 0, both[40:])
	w.expect(t, 1, both)
}

func TestFaults(t *testing.T) {
	w := start(t, 2)
	p, err := w.Port(0)
	if err != nil {
		t.Fatal(err)
	}
	p.SetDown(true)
	w.send(t, 0, frame(1, 0, "lost"))
	w.send(t, 1, frame(0, 1, "lost"))
	q, err := w.Port(1)
	if err != nil {
		t.Fatal(err)
	}
	for p.Stats().Dropped != 2 { // one from each side
		if q.Stats().In > 1 {
			t.Fatalf("%+v, %+v", p.Stats(), q.Stats())
		}
		time.Sleep(time.Millisecond)
	}
	w.silent(t, 1)
	w.silent(t, 0)
	p.SetDown(false)
	w.send(t, 0, frame(1, 0, "a")) // the second this server sends
	w.expect(t, 1, frame(1, 0, "a"))
	p.SetLoss(2)
	for _, s := range []string{"b", "c", "d"} { // third, fourth, fifth
		w.send(t, 0, frame(1, 0, s))
	}
	w.expect(t, 1, frame(1, 0, "b"))
	w.expect(t, 1, frame(1, 0, "d"))
	if s := p.Stats(); s.In != 5 || s.Dropped != 3 {
		t.Errorf("%+v", s)
	}
	if _, err := w.Port(2); err == nil {
		t.Error("port 2 of two")
	}
}

// A server that does not read must not hold up the others, and gets in order what was queued for it.
func TestSlowReceiver(t *testing.T) {
	w := start(t, 3)
	for _, from := range []int{1, 2} { // one after the other: nothing orders the frames of two ports
		hello := frame(broadcast, byte(from), "")
		w.send(t, from, hello)
		w.expect(t, 0, hello)
		w.expect(t, 3-from, hello)
	}
	const n = 200
	big := func(i int) []byte { return frame(1, 0, string(bytes.Repeat([]byte{byte(i)}, 8000))) }
	for i := range n {
		w.send(t, 0, big(i))
	}
	w.send(t, 0, frame(2, 0, "overtakes"))
	w.expect(t, 2, frame(2, 0, "overtakes"))
	for i := range n {
		w.expect(t, 1, big(i))
	}
	p, _ := w.Port(1)
	if p.Stats().Queued == 0 {
		t.Error("nothing was queued: the test shows nothing")
	}
}

func TestEndOfServer(t *testing.T) {
	w := start(t, 3)
	w.ends[1].Close()
	w.send(t, 0, frame(broadcast, 0, "still here"))
	w.expect(t, 2, frame(broadcast, 0, "still here"))
	w.send(t, 2, []byte{0xff, 0xff, 0xff, 0xff}) // out of step: this port ends
	w.ends[2].SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := w.ends[2].Read(make([]byte, 1)); err == nil {
		t.Error("a malformed stream was not cut off")
	}
}

func FuzzNext(f *testing.F) {
	f.Add(frame(1, 2, "x"))
	f.Add([]byte{0, 0, 0, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bufio.NewReaderSize(bytes.NewReader(b), bufferSize)
		for {
			got, err := next(r)
			if err != nil {
				return
			}
			if len(got) < lengthSize+minFrame || len(got) > lengthSize+MaxFrame {
				t.Fatalf("frame of %d bytes", len(got))
			}
			r.Discard(len(got))
		}
	})
}
