package peers

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ironspan/perf/internal/result"
)

func TestParseTold(t *testing.T) {
	for _, tt := range []struct {
		told string
		want []uint32
		err  string
	}{
		{"", nil, ""},
		{"AAAAAAAB\nAAABAAAA\nPPPPPPPP\n", []uint32{1, 1 << 16, 1<<32 - 1}, ""},
		{"AAB\nAAAAAAAC\n", []uint32{2}, ""}, // it came in the middle of a line
		{"\nAAAAAAAC\n", []uint32{2}, ""},
		{"AAAAAAAB\nAAAA", []uint32{1}, ""}, // and is in the middle of one
		{"AAAAAAAB\nAAAA\nAAAAAAAB\n", nil, "told"},
		{"AAAAAAAQ\n", nil, "told"},
		{"AAAAAAAB\n!", nil, "wrong page"},
	} {
		got, err := parseTold([]byte(tt.told))
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%q: %v", tt.told, err)
			}
		} else if err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%q: %v, %v", tt.told, got, err)
		}
	}
}

func TestLongest(t *testing.T) {
	for n, want := range map[int][]int64{0: {}, 2: {7, 9}, 5: {1, 3, 7, 9}} {
		if got := longest([]int64{7, 1, 9, 3}, n); !slices.Equal(got, want) {
			t.Errorf("%d longest: %v, want %v", n, got, want)
		}
	}
}

func TestListening(t *testing.T) {
	const sockets = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0200A00A:2A39 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1 0 100 0 0 10 0
   1: 0200A00A:115C 0100A00A:C001 01 00000000:00000000 00:00000000 00000000     0        0 12 1 0 100 0 0 10 0
`
	for port, want := range map[int]bool{nbdPort: true, 4444: false, 80: false} {
		if listening(sockets, port) != want {
			t.Errorf("port %d: listening is %v", port, !want)
		}
	}
}

// Steps are undone last first, all of them, and the first error counts.
func TestUndo(t *testing.T) {
	var did []int
	u := &undo{}
	for i := range 3 {
		u.add(func() error {
			did = append(did, i)
			return errors.New(string(rune('a' + i)))
		})
	}
	if err := u.all(nil); err == nil || err.Error() != "c" || !slices.Equal(did, []int{2, 1, 0}) {
		t.Errorf("%v, %v", err, did)
	}
	if cause := errors.New("cause"); u.all(cause) != cause {
		t.Error("the cause is lost")
	}
}

// The program that goes over more than its memory sees what it wrote. Here it has enough: nothing is swapped in.
func TestTouch(t *testing.T) {
	r, err := touch(t.Context(), 64*pageSize, 200, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.ReadAll) != 200 || len(r.WriteAll) != 200 || len(r.ReadFault)+len(r.WriteFault) != 0 {
		t.Errorf("%d reads, %d writes, %d and %d faults", len(r.ReadAll), len(r.WriteAll), len(r.ReadFault), len(r.WriteFault))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := touch(ctx, 64*pageSize, 200, time.Minute); !errors.Is(err, context.Canceled) {
		t.Errorf("when it is to stop: %v", err)
	}
	for _, bad := range []struct {
		set      int64
		accesses int
	}{{pageSize - 1, 1}, {pageSize, 0}, {pageSize, maxSamples + 1}} {
		if _, err := touch(t.Context(), bad.set, bad.accesses, time.Second); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
}

// fakeMonitor answers each command by the next of some lines.
func fakeMonitor(t *testing.T, lines ...string) *qmp {
	here, there := net.Pipe()
	t.Cleanup(func() { here.Close() })
	go func() {
		defer there.Close()
		d := json.NewDecoder(there)
		for _, l := range lines {
			var command map[string]any
			if err := d.Decode(&command); err != nil {
				return
			}
			if _, err := io.WriteString(there, l); err != nil {
				return
			}
		}
	}()
	return newQMP(here)
}

func TestMonitor(t *testing.T) {
	m := fakeMonitor(t,
		`{"timestamp": {}, "event": "STOP"}`+"\n"+`{"return": {"status": "active", "ram": {"postcopy-requests": 7}}}`+"\n",
		`{"error": {"class": "GenericError", "desc": "no such thing"}}`+"\n",
		`{"return": {}}`+"\n",
		"nonsense\n",
	)
	var s migrationStatus
	if err := m.do("query-migrate", nil, &s); err != nil || s.Status != "active" || s.RAM.Requests != 7 {
		t.Errorf("%+v, %v", s, err)
	}
	if err := m.do("migrate", map[string]string{"uri": "x"}, nil); err == nil || !strings.Contains(err.Error(), "no such thing") {
		t.Errorf("an error: %v", err)
	}
	if err := m.do("quit", nil, nil); err != nil {
		t.Error(err)
	}
	if err := m.do("quit", nil, nil); err == nil {
		t.Error("nonsense was taken")
	}
}

// The guest that migrates works in an emulated machine, too: it comes up, and finds its pages as it left them.
func TestGuest(t *testing.T) {
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("no QEMU is installed")
	}
	dir := t.TempDir()
	file, debug := filepath.Join(dir, "rom"), filepath.Join(dir, "debug")
	if err := os.WriteFile(file, rom(), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := startChild(exec.Command(qemu, guestArgs(file, debug, "tcg")...))
	if err != nil {
		t.Fatal(err)
	}
	defer c.stop()
	m := &machine{debug: debug, qemu: c}
	if err := m.awaitGuest(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Now and then an access is slow because the host is: a line of that is enough.
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		told, err := os.ReadFile(debug)
		if err != nil {
			t.Fatal(err)
		}
		_, told, _ = bytes.Cut(told, []byte("R"))
		slow, err := parseTold(told)
		if err != nil {
			t.Fatal(err)
		}
		if len(slow) > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Skip("no access was slow for a minute")
		}
	}
}

// The better way of several counts: the shorter time, the higher bandwidth.
func TestPick(t *testing.T) {
	run := result.New("lab", "test")
	for wait, ns := range map[string]int64{"poll": 900, "event": 700} {
		record(run, "raw/read", result.Labels{"size": "4096", "wait": wait}, []int64{ns})
		run.Record("raw/read/bandwidth", result.Bandwidth, result.Labels{"size": "4096", "wait": wait}).Value(float64(ns))
	}
	for _, tt := range []struct{ name, size, want string }{
		{"raw/read", "4096", "raw/read{size=4096,wait=event}"},
		{"raw/read/bandwidth", "4096", "raw/read/bandwidth{size=4096,wait=poll}"},
		{"raw/read", "64", "raw/read{size=64}"},
		{"raw/write", "64", "raw/write{size=64}"},
	} {
		if got := pick(run, tt.name, result.Labels{"size": tt.size}); got != tt.want {
			t.Errorf("%s of %s: %s, want %s", tt.name, tt.size, got, tt.want)
		}
	}
	Judge(run)
	if len(run.Ratios) != 8 {
		t.Errorf("%d ratios", len(run.Ratios))
	}
	for _, r := range run.Ratios {
		if r.Verdict != result.NotMeasured || r.Reason == "" {
			t.Errorf("%s: %s, %q", r.Name, r.Verdict, r.Reason)
		}
	}
}
