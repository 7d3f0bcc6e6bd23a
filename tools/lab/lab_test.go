package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"ironspan/tools/lab/internal/kernel"
	"ironspan/tools/lab/internal/lab"
	"ironspan/tools/lab/internal/qemu"
)

// labCommand builds the lab's program and returns how to run it with a state directory of the test's own. It skips
// where there can be no lab.
func labCommand(t *testing.T) (command func(args ...string) *exec.Cmd, state string) {
	t.Helper()
	if testing.Short() {
		t.Skip("lab tier: not with -short")
	}
	if _, reason := qemu.Usable(t.Context()); reason != "" {
		t.Skip(reason)
	}
	track, err := kernel.FindTrack(kernel.Default)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := track.Cached(); err != nil {
		t.Skip(err)
	}
	binary := filepath.Join(t.TempDir(), "lab")
	build := exec.Command("go", "build", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	// Not t.TempDir: its path may be too long for a socket.
	root, err := os.MkdirTemp("", "lab")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	state = filepath.Join(root, "r")
	return func(args ...string) *exec.Cmd {
		cmd := exec.Command(binary, args...)
		cmd.Env = append(os.Environ(), lab.EnvDir+"="+state, "IRONSPAN_LAB_NAME=test")
		return cmd
	}, state
}

// The lab itself, in its lab tier: two servers brought up, used, broken and taken down.
func TestLab(t *testing.T) {
	command, state := labCommand(t)
	run := func(t *testing.T, want int, args ...string) string {
		t.Helper()
		cmd := command(args...)
		var out, errOut bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errOut
		cmd.Run()
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Fatalf("lab %s: exit status %d, want %d\n%s%s", strings.Join(args, " "), got, want, &out, &errOut)
		}
		return out.String() + errOut.String()
	}
	contains := func(t *testing.T, out string, want ...string) {
		t.Helper()
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("%q is missing in %q", w, out)
			}
		}
	}

	written := t.TempDir()
	run(t, 0, "up", "--servers", "2", "--server-memory", "1G", "--write", written, "--boot-timeout", "10m")
	defer command("down").Run()

	t.Run("status", func(t *testing.T) {
		var st lab.Status
		if err := json.Unmarshal([]byte(run(t, 0, "status", "--json")), &st); err != nil {
			t.Fatal(err)
		}
		if st.State != "up" || len(st.Servers) != 2 {
			t.Fatalf("%+v", st)
		}
		for _, s := range st.Servers {
			if s.ActiveMTU != 4096 || s.Port != "4: ACTIVE" || !s.KVM {
				t.Errorf("%+v", s)
			}
		}
	})
	t.Run("exec", func(t *testing.T) {
		contains(t, run(t, 7, "exec", "1", "--", "sh", "-c", "hostname; pwd; ulimit -l; exit 7"), "lab1\n", "unlimited\n")
		contains(t, run(t, 0, "exec", "0", "--", "sh", "-c", "test -c /dev/kvm && test -c /dev/infiniband/uverbs0 && echo devices"), "devices")
		run(t, 0, "exec", "0", "--", "touch", filepath.Join(written, "seen"))
		if _, err := os.Stat(filepath.Join(written, "seen")); err != nil {
			t.Error(err)
		}
		run(t, 1, "exec", "0", "--", "touch", "/host/tmp/never")
		contains(t, run(t, 1, "exec", "5", "--", "true"), "servers 0 to 1")
		contains(t, run(t, 127, "exec", "0", "--", "no-such-command"), "no such command")
	})
	t.Run("a file changed here is seen there", func(t *testing.T) {
		file := filepath.Join(written, "changing")
		for _, text := range []string{"one", "two!", "three"} {
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			if got := run(t, 0, "exec", "1", "--", "cat", "/host"+file); got != text {
				t.Errorf("%q, want %q", got, text)
			}
		}
	})
	t.Run("interrupt", func(t *testing.T) {
		cmd := command("exec", "0", "--", "sleep", "600")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for !strings.Contains(run(t, 0, "exec", "0", "--", "sh", "-c", "ps ax || true"), "sleep 600") {
			time.Sleep(100 * time.Millisecond)
		}
		cmd.Process.Signal(syscall.SIGINT)
		cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 128+int(syscall.SIGINT) {
			t.Errorf("exit status %d", code)
		}
	})
	t.Run("wire", func(t *testing.T) {
		reach := "exec 3<>/dev/tcp/10.77.0.1/7 2>&1"
		contains(t, run(t, 1, "exec", "1", "--", "bash", "-c", reach), "refused")
		run(t, 0, "link", "0", "--down")
		run(t, 124, "exec", "1", "--", "timeout", "3", "bash", "-c", reach)
		run(t, 0, "link", "0")
		contains(t, run(t, 1, "exec", "1", "--", "bash", "-c", reach), "refused")
	})
	t.Run("go test", func(t *testing.T) {
		out := run(t, 0, "test", "--server", "1", "./internal/ether", "--", "-v", "-run", "TestLearning")
		contains(t, out, "--- PASS: TestLearning", "ok")
		run(t, 1, "test", "./no-such-package")
	})
	t.Run("power cut", func(t *testing.T) {
		run(t, 0, "kill", "1")
		contains(t, run(t, 1, "exec", "1", "--", "true"), "server 1 is dead")
		contains(t, run(t, 0, "status"), "degraded")
		run(t, 0, "exec", "0", "--", "true")
	})
	t.Run("crash of the supervisor", func(t *testing.T) {
		var st lab.Status
		if err := json.Unmarshal([]byte(run(t, 0, "status", "--json")), &st); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(st.Supervisor, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		contains(t, run(t, 0, "status"), "stale")
		run(t, 0, "down")
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			if syscall.Kill(st.Servers[0].PID, 0) != nil {
				break
			}
			if time.Now().After(end) {
				t.Fatal("a server outlived its supervisor")
			}
		}
		if _, err := os.Stat(state); !os.IsNotExist(err) {
			t.Errorf("state left: %v", err)
		}
	})
}
