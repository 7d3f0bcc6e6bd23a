package agent

import (
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"ironspan/tools/lab/internal/remote"
)

// connect gives a client's end to an agent in this process: commands run here.
func connect(t *testing.T) net.Conn {
	t.Helper()
	a, b := net.Pipe()
	go (&agent{}).serve(b)
	t.Cleanup(func() { a.Close() })
	return a
}

func shell(script string) *remote.Command {
	return &remote.Command{Args: []string{"sh", "-c", script}, Dir: "/"}
}

func TestRun(t *testing.T) {
	tests := []struct {
		name   string
		cmd    *remote.Command
		in     string
		code   int
		out    string
		errOut string
		fail   string
	}{
		{name: "status", cmd: shell("exit 7"), code: 7},
		{name: "streams", cmd: shell("echo out; echo err >&2"), out: "out\n", errOut: "err\n"},
		{name: "stdin", cmd: shell("cat"), in: "hello", out: "hello"},
		{name: "stdin not read", cmd: shell("exit 0"), in: strings.Repeat("x", 1<<20)},
		{name: "directory", cmd: &remote.Command{Args: []string{"pwd"}, Dir: "/usr"}, out: "/usr\n"},
		{name: "environment", cmd: &remote.Command{Args: []string{"sh", "-c", "echo $IRONSPAN_LAB $X"}, Dir: "/", Env: []string{"X=y"}}, out: "1 y\n"},
		{name: "killed", cmd: shell("kill -9 $$"), code: 128 + 9},
		{name: "not found", cmd: &remote.Command{Args: []string{"no-such-command"}, Dir: "/"}, code: 127, fail: "no such command"},
		{name: "no such file", cmd: &remote.Command{Args: []string{"./gone"}, Dir: "/usr"}, code: 127, fail: "/usr/gone does not exist"},
		{name: "no directory", cmd: &remote.Command{Args: []string{"pwd"}, Dir: "/no/such"}, code: 126, fail: "neither in the server nor on the host"},
		{name: "nothing", cmd: &remote.Command{Dir: "/"}, code: 127, fail: "no command"},
		{name: "left behind", cmd: shell("sleep 30 & echo $!"), code: 0, out: "*"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out, errOut bytes.Buffer
			stdio := remote.Stdio{Out: &out, Err: &errOut}
			if tt.in != "" {
				stdio.In = strings.NewReader(tt.in)
			}
			begin := time.Now()
			e, err := remote.Run(connect(t), tt.cmd, stdio)
			if err != nil {
				t.Fatal(err)
			}
			if e.Code != tt.code || !strings.Contains(e.Error, tt.fail) || (tt.fail == "") != (e.Error == "") {
				t.Errorf("exit %+v", e)
			}
			if tt.out == "*" {
				pid, err := strconv.Atoi(strings.TrimSpace(out.String()))
				if err != nil || syscall.Kill(pid, syscall.SIGKILL) != nil {
					t.Errorf("the daemon did not survive: %v", err)
				}
			} else if out.String() != tt.out {
				t.Errorf("stdout %q", out.String())
			}
			if errOut.String() != tt.errOut {
				t.Errorf("stderr %q", errOut.String())
			}
			if d := time.Since(begin); d > 20*time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
}

func TestLargeInput(t *testing.T) {
	want := bytes.Repeat([]byte("0123456789abcdef"), 200<<10/16*10)
	var out bytes.Buffer
	e, err := remote.Run(connect(t), shell("cat"), remote.Stdio{In: bytes.NewReader(want), Out: &out, Err: io.Discard})
	if err != nil || e.Code != 0 || !bytes.Equal(out.Bytes(), want) {
		t.Errorf("%+v, %v, %d of %d bytes", e, err, out.Len(), len(want))
	}
}

func TestSignal(t *testing.T) {
	signals := make(chan os.Signal, 1)
	r, w := io.Pipe()
	go func() {
		io.ReadFull(r, make([]byte, len("ready\n")))
		signals <- syscall.SIGINT
		io.Copy(io.Discard, r)
	}()

	e, err := remote.Run(connect(t), shell("trap 'exit 5' INT; echo ready; while :; do sleep 0.05; done"), remote.Stdio{Out: w, Err: io.Discard, Signals: signals})
	if err != nil || e.Code != 5 {
		t.Errorf("%+v, %v", e, err)
	}
}

// A caller that vanishes takes the command and its children along.
func TestDisconnect(t *testing.T) {
	pidFile := filepath.Join(t.TempDir(), "pid")
	c := connect(t)
	go remote.Run(c, shell("trap '' TERM INT; sleep 60 & echo $! > "+pidFile+".tmp; mv "+pidFile+".tmp "+pidFile+"; wait; wait"), remote.Stdio{Out: io.Discard, Err: io.Discard})
	var pid int
	for pid == 0 {
		b, _ := os.ReadFile(pidFile)
		pid, _ = strconv.Atoi(strings.TrimSpace(string(b)))
		time.Sleep(5 * time.Millisecond)
	}
	c.Close()
	for end := time.Now().Add(grace + 10*time.Second); ; time.Sleep(10 * time.Millisecond) {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
		if time.Now().After(end) {
			syscall.Kill(pid, syscall.SIGKILL)
			t.Fatal("a child outlived its caller")
		}
	}
}

func TestRefusesNoRequest(t *testing.T) {
	for _, first := range []struct {
		k remote.Kind
		p string
	}{{remote.KindStdin, "x"}, {remote.KindRequest, "{"}, {remote.KindRequest, "{}"}} {
		c := connect(t)
		s := remote.NewStream(c)
		s.Write(first.k, []byte(first.p))
		if _, _, err := s.Read(); err == nil {
			t.Errorf("%v %q was answered", first.k, first.p)
		}
	}
}

func TestStage(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("programs are staged below /run: needs root")
	}
	t.Cleanup(func() { os.RemoveAll(stageDir) })
	dir := t.TempDir()
	script := filepath.Join(dir, "script")
	a := &agent{}
	run := func(name string) string {
		c, d := net.Pipe()
		defer c.Close()
		go a.serve(d)
		var out bytes.Buffer
		e, err := remote.Run(c, &remote.Command{Args: []string{name}, Dir: dir, Stage: true}, remote.Stdio{Out: &out, Err: &out})
		if err != nil || e.Code != 0 {
			t.Fatalf("%+v, %v", e, err)
		}
		return out.String()
	}
	for _, text := range []string{"one", "three"} { // a rebuilt program is staged again
		if err := os.WriteFile(script, []byte("#!/bin/sh\necho "+text), 0o755); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if got := run("./script"); got != text+"\n" {
				t.Errorf("%q, want %q", got, text)
			}
		}
	}
	if n := len(a.programs.copies); n != 2 {
		t.Errorf("%d copies of two versions", n)
	}
	for i := range stageKeep + 1 {
		other := script + strconv.Itoa(i)
		if err := os.WriteFile(other, []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		run(other)
	}
	left, err := os.ReadDir(stageDir)
	if err != nil || len(left) != stageKeep {
		t.Errorf("%d copies left, %v", len(left), err)
	}
}
