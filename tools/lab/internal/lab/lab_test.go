package lab

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"ironspan/tools/lab/internal/remote"
)

func open(t *testing.T, name string) Dir {
	t.Helper()
	if os.Getenv(EnvDir) == "" {
		// Not t.TempDir: its path may be too long for a socket.
		root, err := os.MkdirTemp("", "lab")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(root) })
		t.Setenv(EnvDir, filepath.Join(root, "r"))
	}
	d, err := Open(name)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestOpenRefuses(t *testing.T) {
	for _, name := range []string{"", ".", "..", "a/b", "-x", strings.Repeat("x", 42), "a b"} {
		if _, err := Open(name); err == nil {
			t.Errorf("accepted the name %q", name)
		}
	}
	t.Setenv(EnvDir, "/"+strings.Repeat("long/", 30))
	if _, err := Open("x"); err == nil || !strings.Contains(err.Error(), EnvDir) {
		t.Errorf("a path too long for a socket: %v", err)
	}
}

func TestLock(t *testing.T) {
	d := open(t, "a")
	if up, err := d.Up(); up || err != nil {
		t.Fatalf("before: %v, %v", up, err)
	}
	f, err := d.lock()
	if err != nil || f == nil {
		t.Fatal(f, err)
	}
	if up, err := d.Up(); !up || err != nil {
		t.Errorf("while held: %v, %v", up, err)
	}
	if g, err := d.lock(); g != nil || err != nil {
		t.Errorf("taken twice: %v, %v", g, err)
	}
	if g, err := open(t, "b").lock(); g == nil || err != nil {
		t.Errorf("another lab's lock: %v, %v", g, err)
	} else {
		open(t, "b").unlock(g)
	}
	d.unlock(f)
	if up, err := d.Up(); up || err != nil {
		t.Errorf("after: %v, %v", up, err)
	}
	if _, err := os.Stat(d.root); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the last lab left its root: %v", err)
	}
}

// A supervisor that was killed leaves its directory, its record, and perhaps processes.
func TestStale(t *testing.T) {
	d := open(t, "stale")
	f, err := d.lock()
	if err != nil || f == nil {
		t.Fatal(f, err)
	}
	if err := os.MkdirAll(d.Share(), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	go func() { cmd.Wait(); close(gone) }()
	// The second has the number of a process that is somebody else's by now.
	b, err := json.Marshal(pidFile{Servers: []process{identify(cmd.Process.Pid), {PID: os.Getppid(), Start: "1"}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.pids(), b, 0o600); err != nil {
		t.Fatal(err)
	}
	f.Close() // as a crash would
	st, err := d.Status()
	if err != nil || st.State != "stale" {
		t.Errorf("%+v, %v", st, err)
	}
	was, err := d.Down()
	if !was || err != nil {
		t.Errorf("down: %v, %v", was, err)
	}
	<-gone
	if _, err := os.Stat(d.Path()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("state left: %v", err)
	}
	if was, err := d.Down(); was || err != nil {
		t.Errorf("again: %v, %v", was, err)
	}
	if _, err := d.Status(); !errors.Is(err, ErrNotUp) {
		t.Errorf("status: %v", err)
	}
}

func TestNotUp(t *testing.T) {
	d := open(t, "none")
	if _, err := d.Exec(0, nil, remote.Stdio{}); !errors.Is(err, ErrNotUp) {
		t.Errorf("exec: %v", err)
	}
	if err := d.Kill(0); !errors.Is(err, ErrNotUp) {
		t.Errorf("kill: %v", err)
	}
}

func TestParseStartTime(t *testing.T) {
	fields := func(state string) string {
		s := "42 (a) b (c)) " + state
		for i := 4; i < 30; i++ {
			s += fmt.Sprintf(" %d", i)
		}
		return s
	}
	tests := []struct{ in, want string }{
		{fields("S"), "22"},
		{fields("Z"), ""},
		{"42 (x) S 1 2", ""},
		{"", ""},
	}
	for _, tt := range tests {
		if got := parseStartTime(tt.in); got != tt.want {
			t.Errorf("%q: %q", tt.in, got)
		}
	}
	if !identify(os.Getpid()).alive() {
		t.Error("this process is not alive")
	}
}

func TestValidate(t *testing.T) {
	good := Config{Servers: 2, VCPUs: 1, MemoryMiB: 512}
	if err := good.validate(); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []Config{{Servers: 0, VCPUs: 1, MemoryMiB: 512}, {Servers: 65, VCPUs: 1, MemoryMiB: 512}, {Servers: 1, MemoryMiB: 512}, {Servers: 1, VCPUs: 1, MemoryMiB: 64}} {
		if bad.validate() == nil {
			t.Errorf("accepted %+v", bad)
		}
	}
}

func TestFollow(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"ready", `{"server":0,"text":"a"}` + "\n" + `{"server":-1,"ready":true}` + "\n", ""},
		{"failed", `{"server":-1,"error":"no luck"}` + "\n", "no luck"},
		{"died", `{"server":0,"text":"a"}` + "\n", "died while starting"},
		{"garbage", "x\n", "supervisor"},
	}
	for _, tt := range tests {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		w.WriteString(tt.in)
		w.Close()
		err = follow(r, func(int, string) {})
		r.Close()
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// The control socket answers nonsense with an error, and goes on.
func TestAnswer(t *testing.T) {
	s := &supervisor{dir: Dir{Name: "x", root: "/r"}, config: Config{Servers: 0}, stop: make(chan struct{})}
	for _, tt := range []struct{ in, want string }{
		{"{\n", "unexpected end"},
		{`{"op":"dance","server":0}` + "\n", "no server 0"},
		{`{"op":"exec","server":-1}` + "\n", "no server -1"},
		{`{"op":"status"}` + "\n", `"name":"x"`},
	} {
		a, b := net.Pipe()
		go s.answer(b)
		a.Write([]byte(tt.in))
		line, err := bufio.NewReader(a).ReadString('\n')
		if err != nil || !strings.Contains(line, tt.want) {
			t.Errorf("%q: %q, %v", tt.in, line, err)
		}
		a.Close()
	}
}

func TestStatic(t *testing.T) {
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Skip(err)
	}
	if err := static(sh); err == nil || !strings.Contains(err.Error(), "CGO_ENABLED=0") {
		t.Errorf("a dynamic binary: %v", err)
	}
}

func TestLimited(t *testing.T) {
	var b strings.Builder
	l := &limited{&b, 5}
	for _, s := range []string{"abc", "defg", "h"} {
		if n, err := l.Write([]byte(s)); n != len(s) || err != nil {
			t.Fatal(n, err)
		}
	}
	if b.String() != "abcde" {
		t.Errorf("%q", b.String())
	}
}
