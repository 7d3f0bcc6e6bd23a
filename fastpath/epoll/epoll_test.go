package epoll

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func event(t *testing.T) int {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func signal(t *testing.T, fd int) {
	t.Helper()
	if _, err := unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		t.Fatal(err)
	}
}

// A level lasts until it is read, an edge is told once, and again when more comes.
func TestLevelAndEdge(t *testing.T) {
	s, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	level, edge := event(t), event(t)
	if err := s.Add(level, false); err != nil {
		t.Fatal(err)
	}
	if err := s.Add(edge, true); err != nil {
		t.Fatal(err)
	}
	expect := func(what string, fds ...int) {
		t.Helper()
		got := map[int]bool{}
		for _, e := range s.Wait(0) {
			got[int(e.Fd)] = true
		}
		ok := len(got) == len(fds)
		for _, fd := range fds {
			ok = ok && got[fd]
		}
		if !ok {
			t.Errorf("%s: %v can be read, want %v", what, got, fds)
		}
	}
	expect("nothing")
	signal(t, level)
	signal(t, edge)
	expect("both", level, edge)
	expect("the edge is past", level)
	signal(t, edge)
	expect("another edge, unread", level, edge)
	if _, err := unix.Read(level, make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	expect("the level is read")
}

func TestWait(t *testing.T) {
	s, err := New()
	if err != nil {
		t.Fatal(err)
	}
	fd := event(t)
	if err := s.Add(fd, true); err != nil {
		t.Fatal(err)
	}
	const span = 3 * time.Millisecond / 2
	for began := time.Now(); time.Since(began) < span; {
		if ready := s.Wait(max(0, span-time.Since(began))); len(ready) > 0 {
			t.Fatalf("%v can be read", ready)
		}
	}
	go func() {
		time.Sleep(time.Millisecond)
		unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}()
	for len(s.Wait(Forever)) == 0 {
	}
	if n := testing.AllocsPerRun(100, func() { s.Wait(0) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if err := s.Add(fd, true); err == nil {
		t.Error("added twice")
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Add(fd, true); err == nil {
		t.Error("added to a closed set")
	}
	if err := (&Set{fd: int(os.Stdin.Fd())}).Add(fd, true); err == nil {
		t.Error("added to what is no set")
	}
}
