package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"ironspan/engine"
	"ironspan/engine/control"
	"ironspan/engine/control/controltest"
)

func TestMain(m *testing.M) {
	// The command in scripts is the real one but for the machine, which does what the guest's command line says; unless
	// the script has a guest of its own, whose page tables stay as they are.
	newMachine = func(o engine.Options) control.Machine {
		if os.Getenv("IRONSPAN_TEST_GUEST") != "" {
			o.StaticTables = true
			return engine.New(o)
		}
		return &controltest.Machine{Listener: o.Listener}
	}
	testscript.Main(m, map[string]func(){"ironspan": main})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("XDG_CONFIG_HOME", filepath.Join(e.WorkDir, "config"))
			e.Setenv("TMPDIR", filepath.Join(e.WorkDir, "tmp"))
			if err := os.WriteFile(filepath.Join(e.WorkDir, "guest"), lossGuest(), 0o600); err != nil {
				return err
			}
			return os.MkdirAll(filepath.Join(e.WorkDir, "tmp"), 0o700)
		},
		Condition: func(cond string) (bool, error) {
			if cond != "guest" {
				return false, fmt.Errorf("no condition %q", cond)
			}
			return runsGuests(), nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status":     cmdStatus,
			"waitfor":    cmdWaitFor,
			"children":   cmdChildren,
			"killchild":  cmdKillChild,
			"mode":       cmdMode,
			"freeport":   cmdFreePort,
			"replace":    cmdReplace,
			"killparent": cmdKillParent,
			"losses":     cmdLosses,
			"scrape":     cmdScrape,
		},
	})
}

// cmdStatus runs a command and checks its exit status: status N COMMAND ARG...
func cmdStatus(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N COMMAND ARG...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if e, ok := err.(*exec.ExitError); ok {
		got = e.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("exit status %d, not %d", got, want)
	}
}

// cmdWaitFor waits until a file has a text: waitfor FILE TEXT
func cmdWaitFor(ts *testscript.TestScript, neg bool, args []string) {
	var last []byte
	for range 2000 {
		last, _ = os.ReadFile(ts.MkAbs(args[0]))
		if strings.Contains(string(last), args[1]) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	ts.Fatalf("%s lacks %q:\n%s", args[0], args[1], last)
}

// nodeProcesses returns the processes of run --local that belong to this script: those with its TMPDIR.
func nodeProcesses(ts *testscript.TestScript) []int {
	var pids []int
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		cmd, _ := os.ReadFile(d + "/cmdline")
		env, _ := os.ReadFile(d + "/environ")
		if strings.Contains(string(cmd), "\x00node\x00--inherit\x00") && strings.Contains(string(env), "\x00TMPDIR="+ts.Getenv("TMPDIR")+"\x00") {
			pid, _ := strconv.Atoi(filepath.Base(d))
			pids = append(pids, pid)
		}
	}
	return pids
}

// cmdChildren waits until there are N node processes: children N
func cmdChildren(ts *testscript.TestScript, neg bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	var got []int
	for range 1000 {
		if got = nodeProcesses(ts); len(got) == want {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	ts.Fatalf("node processes %v, want %d", got, want)
}

// cmdKillChild kills one of the node processes, the youngest if not the oldest, or stops it: killchild [stop] [oldest]
func cmdKillChild(ts *testscript.TestScript, neg bool, args []string) {
	pids := nodeProcesses(ts)
	if len(pids) == 0 {
		ts.Fatalf("no node process")
	}
	victim := slices.Max(pids)
	if slices.Contains(args, "oldest") {
		victim = slices.Min(pids)
	}
	sig := syscall.SIGKILL
	if slices.Contains(args, "stop") {
		sig = syscall.SIGSTOP
	}
	ts.Check(syscall.Kill(victim, sig))
}

// cmdKillParent kills the run that the node processes belong to.
func cmdKillParent(ts *testscript.TestScript, neg bool, args []string) {
	pids := nodeProcesses(ts)
	if len(pids) == 0 {
		ts.Fatalf("no node process")
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pids[0]))
	ts.Check(err)
	_, rest, _ := strings.Cut(string(b), ") ")
	var state string
	var ppid int
	_, err = fmt.Sscanf(rest, "%s %d", &state, &ppid)
	ts.Check(err)
	ts.Check(syscall.Kill(ppid, syscall.SIGKILL))
}

// cmdMode checks a file's mode: mode 0600 FILE...
func cmdMode(ts *testscript.TestScript, neg bool, args []string) {
	for _, f := range args[1:] {
		st, err := os.Stat(ts.MkAbs(f))
		ts.Check(err)
		if got := fmt.Sprintf("%04o", st.Mode().Perm()); got != args[0] {
			ts.Fatalf("%s has mode %s", f, got)
		}
	}
}

// cmdFreePort sets variables to unused ports of loopback: freeport NAME...
func cmdFreePort(ts *testscript.TestScript, neg bool, args []string) {
	for _, name := range args {
		fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
		ts.Check(err)
		ts.Check(syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1))
		ts.Check(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
		sa, err := syscall.Getsockname(fd)
		ts.Check(err)
		ts.Setenv(name, strconv.Itoa(sa.(*syscall.SockaddrInet4).Port))
		ts.Defer(func() { syscall.Close(fd) }) // held open: nobody else is given it meanwhile
	}
}

// cmdReplace expands variables in a file: replace FILE
func cmdReplace(ts *testscript.TestScript, neg bool, args []string) {
	for _, f := range args {
		path := ts.MkAbs(f)
		b, err := os.ReadFile(path)
		ts.Check(err)
		ts.Check(os.WriteFile(path, []byte(os.Expand(string(b), ts.Getenv)), 0o644))
	}
}

// cmdScrape asks a node for its metrics as Prometheus does: scrape PORT.
func cmdScrape(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: scrape PORT")
	}
	resp, err := http.Get("http://127.0.0.1:" + args[0] + "/metrics")
	ts.Check(err)
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		ts.Fatalf("the answer is %s", resp.Status)
	}
	_, err = io.Copy(ts.Stdout(), resp.Body)
	ts.Check(err)
}
