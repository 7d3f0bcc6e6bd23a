package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"ironspan/engine/control"
)

// A server of a running VM is switched off: the VM ends, says which node was lost and what with it, and leaves nothing
// behind. The guest has its CPUs on both servers by then, and memory of each is on the other; the rest of its boot takes
// minutes on a slow machine.
func TestLostServer(t *testing.T) {
	command, state := labCommand(t)
	dir := t.TempDir()
	ironspan, disk := filepath.Join(dir, "ironspan"), filepath.Join(dir, "initrd.cpio")
	for _, args := range [][]string{{"build", "-o", ironspan, "../ironspan"}, {"run", "../demo/mkinitrd", disk}} {
		if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
			t.Fatalf("go %s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	for _, server := range []int{1, 0} {
		t.Run(fmt.Sprint("server ", server), func(t *testing.T) {
			report := filepath.Join(t.TempDir(), "report.json")
			cmd := command("run", "--servers", "2", "--mem", "256M", "--ironspan", ironspan, "--initrd", disk, "--timeout", "300",
				"--report", report)
			out := &output{seen: make(chan bool), want: "Brought up 2 nodes"}
			cmd.Stdout, cmd.Stderr = out, out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() { done <- cmd.Wait() }()
			select {
			case <-out.seen:
			case err := <-done:
				t.Fatalf("%v\n%s", err, out)
			}
			began := time.Now()
			if msg, err := command("--name", fmt.Sprint("run-", cmd.Process.Pid), "kill", fmt.Sprint(server)).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, msg)
			}
			select {
			case <-done:
			case <-time.After(time.Minute):
				cmd.Process.Kill()
				t.Fatalf("the VM goes on\n%s", out)
			}
			t.Logf("ended after %v", time.Since(began).Round(100*time.Millisecond))
			if code := cmd.ProcessState.ExitCode(); code != int(exitNodeLost) {
				t.Errorf("exit status %d, want %d", code, exitNodeLost)
			}
			if want := fmt.Sprintf("node %d was lost", server); !strings.Contains(out.String(), want) {
				t.Errorf("no %q in\n%s", want, out)
			}
			if server == 1 { // with server 0, ironspan run is gone as well
				checkLosses(t, report, out.String())
			}
			if left, err := os.ReadDir(state); !os.IsNotExist(err) && len(left) > 0 {
				t.Errorf("state left: %v", left)
			}
		})
	}
}

// checkLosses checks what the report of a VM that lost node 1 of two says about its memory.
func checkLosses(t *testing.T, file, said string) {
	b, err := os.ReadFile(file)
	if err != nil {
		t.Error(err)
		return
	}
	var rep control.RunReport
	if err := json.Unmarshal(b, &rep); err != nil {
		t.Error(err)
		return
	}
	l := rep.Losses
	if l == nil || len(l.Nodes) != 1 || l.Nodes[0] != 1 || l.AtMost || len(rep.Nodes) != 1 {
		t.Errorf("losses %+v", l)
		return
	}
	if !strings.Contains(said, l.String()) {
		t.Errorf("no %q in\n%s", l, said)
	}
	t.Log(l)
	own := l.Memory[len(l.Memory)-1]
	home := rep.Plan.Nodes[1].RAM.Pages()
	if own.Node != 1 || own.Lost+own.Kept+own.Uncertain != home {
		t.Errorf("of node 1's %d pages: %+v", home, own)
	}
	// What node 0 has of them is what it has cached, but for what came between the two questions.
	const slots = 256
	if cached := rep.Nodes[0].Counters["cached_pages"]; own.Kept == 0 || own.Kept > cached+slots || cached > own.Kept+slots {
		t.Errorf("%d pages are kept, node 0 has cached %d", own.Kept, cached)
	}
}

// output collects what a program says and tells when it has said a certain thing.
type output struct {
	want string
	seen chan bool // closed then

	mu   sync.Mutex // guards below
	text bytes.Buffer
	told bool
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text.Write(p)
	if !o.told && strings.Contains(o.text.String(), o.want) {
		o.told = true
		close(o.seen)
	}
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}
