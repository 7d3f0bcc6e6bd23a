package servers

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// fakeLab stands in for bin/lab: a server's programs are this machine's, and its words are written down.
const fakeLab = `#!/bin/sh
echo "$*" >>"$0.log"
shift 2
case $1 in
exec) shift 3; exec "$@" ;;
status) echo '{"servers": [{"addr": "10.77.0.1", "state": "up"}, {"addr": "10.77.0.2", "state": "dead"}]}' ;;
modprobe) echo "kernel: 7.3 has no module $3" >&2; exit 1 ;;
program) printf '%s\n' loader --argv0 "$2" ;;
esac
`

func newFake(t *testing.T, self string) (Lab, func() string) {
	t.Helper()
	dir := t.TempDir()
	l := Lab{Command: filepath.Join(dir, "lab"), Name: "fake", Self: filepath.Join(dir, "self")}
	for file, text := range map[string]string{l.Command: fakeLab, l.Self: "#!/bin/sh\n" + self} {
		if err := os.WriteFile(file, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return l, func() string {
		b, err := os.ReadFile(l.Command + ".log")
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
}

func TestRun(t *testing.T) {
	l, said := newFake(t, "")
	out, err := l.Run(t.Context(), 1, "echo", "a b")
	if err != nil || string(out) != "a b\n" {
		t.Errorf("%q, %v", out, err)
	}
	if want := "--name fake exec 1 -- echo a b\n"; said() != want {
		t.Errorf("%q, want %q", said(), want)
	}
	_, err = l.Run(t.Context(), 0, "sh", "-c", "echo why >&2; exit 3")
	if err == nil || !strings.Contains(err.Error(), "server 0: sh: exit status 3: why") {
		t.Errorf("a failure: %v", err)
	}
}

func TestLab(t *testing.T) {
	l, _ := newFake(t, "")
	if addr, err := l.Addr(t.Context(), 0); err != nil || addr != "10.77.0.1" {
		t.Errorf("%q, %v", addr, err)
	}
	for server, want := range map[int]string{1: "is dead", 2: "--servers 3"} {
		if _, err := l.Addr(t.Context(), server); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("server %d: %v", server, err)
		}
	}
	if err := l.Modprobe(t.Context(), 0, "nvmet-rdma", "a=b"); err == nil || !strings.Contains(err.Error(), "7.3 has no module nvmet-rdma") {
		t.Errorf("a module that is not there: %v", err)
	}
	if words, err := l.Program(t.Context(), "nbd-client"); err != nil || strings.Join(words, " ") != "loader --argv0 nbd-client" {
		t.Errorf("%q, %v", words, err)
	}
}

func TestServe(t *testing.T) {
	l, said := newFake(t, `echo ready; cat >/dev/null; echo '{"n": 7}'`)
	p, err := l.Serve(t.Context(), 1, "some-part", "word")
	if err != nil {
		t.Fatal(err)
	}
	var a struct{ N int }
	if err := p.Answer(&a); err != nil || a.N != 7 {
		t.Errorf("%+v, %v", a, err)
	}
	if _, err := p.End(); err != nil {
		t.Errorf("a second end: %v", err)
	}
	if want := "exec 1 -- " + l.Self + " inside some-part word\n"; !strings.Contains(said(), want) {
		t.Errorf("%q lacks %q", said(), want)
	}
}

func TestServeFails(t *testing.T) {
	for self, want := range map[string]string{
		"echo no module >&2; exit 1": "exit status 1: no module",
		"echo steady; cat":           `"steady\n"`,
	} {
		l, _ := newFake(t, self)
		if _, err := l.Serve(t.Context(), 0, "part"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", self, err, want)
		}
	}
}

const steady = `trap 'echo undone >>"$0.log"; exit 1' INT; echo begun >>"$0.log"; while :; do sleep 0.01; done`

func (l Lab) log(t *testing.T) string {
	b, err := os.ReadFile(l.Self + ".log")
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(b)
}

// The end of the context is an interrupt, so that the part can undo what it did.
func TestInterrupted(t *testing.T) {
	for name, start := range map[string]func(context.Context, Lab) error{
		"asked":              func(ctx context.Context, l Lab) error { return l.Ask(ctx, nil, 0, "part") },
		"not ready to serve": func(ctx context.Context, l Lab) error { _, err := l.Serve(ctx, 0, "part"); return err },
	} {
		l, _ := newFake(t, steady)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- start(ctx, l) }()
		for l.log(t) == "" {
			time.Sleep(time.Millisecond)
		}
		cancel()
		if err := <-ended; err == nil {
			t.Errorf("%s: it ended well", name)
		}
		if got := l.log(t); got != "begun\nundone\n" {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// Who serves outlives the context: others may need it for what they have to undo.
func TestServeOutlivesContext(t *testing.T) {
	l, _ := newFake(t, `echo ready; cat >/dev/null; echo '"done"'`)
	ctx, cancel := context.WithCancel(t.Context())
	p, err := l.Serve(ctx, 0, "part")
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	var a string
	if err := p.Answer(&a); err != nil || a != "done" {
		t.Errorf("%q, %v", a, err)
	}
}

// A process that works step by step does one for each call, says what it says, and has its answer at the end.
func TestStep(t *testing.T) {
	l, _ := newFake(t, `echo hello >&2; echo ready; n=0; while read -r _; do n=$((n+1)); echo ready; done; echo "{\"steps\": $n}"`)
	var progress strings.Builder
	p, err := l.ServeLoud(t.Context(), &progress, 1, "count")
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := p.Step(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	var answer struct{ Steps int }
	if err := p.Answer(&answer); err != nil || answer.Steps != 3 || progress.String() != "hello\n" {
		t.Errorf("%+v, %v, progress %q", answer, err, &progress)
	}
	if err := p.Step(t.Context()); err == nil {
		t.Error("a step after the end")
	}

	l, _ = newFake(t, `echo ready; read -r _; echo "no more" >&2; exit 3`)
	if p, err = l.Serve(t.Context(), 1, "fail"); err != nil {
		t.Fatal(err)
	}
	if err := p.Step(t.Context()); err == nil || !strings.Contains(err.Error(), "exit status 3: no more") {
		t.Errorf("a step that fails: %v", err)
	}
}
