package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// fake writes a lab made of shell, and returns a lab that runs it.
func fake(t *testing.T, script string) (*lab, *bytes.Buffer) {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "lab")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	var shown bytes.Buffer
	s := newScreen(&shown)
	t.Cleanup(s.close)
	return &lab{program: program, screen: s, out: dir}, &shown
}

const spoken = `
echo "[   5.0 s] 2 servers up; starting the VM" >&2
echo "[   0.250] node 0: accepted" >&2
sleep 0.05
echo "[    0.1] Linux version 6.12"
echo 'IRONSPAN-DEMO {"event":"init","uptime":1.5}'
echo 'IRONSPAN-DEMO {"event":"topology","uptime":1.5,"kernel":"6.12","cpus":2,"nodes":2}'
echo 'IRONSPAN-DEMO {"event":"done","uptime":9.5,"ok":true}'
`

// findReport leaves in $report the file that --report names.
const findReport = `
while [ $# -gt 0 ]; do [ "$1" = --report ] && report=$2; shift; done
`

func TestRunFollowsTheLab(t *testing.T) {
	l, shown := fake(t, spoken+findReport+`echo '{"ok":true,"nodes":[{"node":1},{"node":0}]}' >"$report"`)
	r := l.run(context.Background(), job{name: "span", servers: 2, args: []string{"run", "--servers", "2"}})
	if r.Err != nil {
		t.Fatal(r.Err)
	}
	if err := r.Guest.Verdict(); err != nil || r.Guest.VCPUs != 2 {
		t.Errorf("guest %+v: %v", r.Guest, err)
	}
	if r.Span == nil || !r.Span.OK || len(r.Span.Nodes) != 2 {
		t.Errorf("report %+v", r.Span)
	}
	// The clock began a quarter of a second before the first word of ironspan run.
	if b := r.Guest.BootSeconds; b < 0.25 || b > 30 {
		t.Errorf("boot took %v s", b)
	}
	for _, want := range []string{"s] lab: 2 servers up", "s] node 0: accepted", "s] | [    0.1] Linux version", "demo: init reached"} {
		if !strings.Contains(shown.String(), want) {
			t.Errorf("no %q in\n%s", want, shown)
		}
	}
	log, err := os.ReadFile(filepath.Join(l.out, "span.log"))
	if err != nil || !strings.Contains(string(log), `IRONSPAN-DEMO {"event":"done"`) {
		t.Errorf("log %v\n%s", err, log)
	}
}

func TestRunTellsWhyTheLabFailed(t *testing.T) {
	l, _ := fake(t, spoken+"echo 'ironspan: node 1 was lost: its process ended' >&2; echo 'lab: ironspan run ended' >&2; exit 4")
	r := l.run(context.Background(), job{name: "span", servers: 2})
	if r.Err == nil || r.Err.Error() != "node 1 was lost: its process ended (exit status 4)" {
		t.Errorf("error %v", r.Err)
	}
	if r.Span != nil {
		t.Errorf("report %+v", r.Span)
	}
}

// A report of the run before must not pass for this one's.
func TestRunForgetsAnOldReport(t *testing.T) {
	l, _ := fake(t, spoken)
	if err := os.WriteFile(filepath.Join(l.out, "span.json"), []byte(`{"ok":true}`), 0o644); err != nil {
		t.Fatal(err)
	}
	if r := l.run(context.Background(), job{name: "span", servers: 2}); r.Err != nil || r.Span != nil {
		t.Errorf("error %v, report %+v", r.Err, r.Span)
	}
}

// An interrupt reaches the lab, which is waited for.
func TestRunIsInterrupted(t *testing.T) {
	l, _ := fake(t, `trap 'echo "cleaned up" >&2; exit 130' INT
echo "started" >&2
while :; do sleep 0.05; done
`)
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(300*time.Millisecond, cancel)
	r := l.run(ctx, job{name: "span", servers: 2})
	if r.Err == nil {
		t.Fatal("no error")
	}
	log, err := os.ReadFile(filepath.Join(l.out, "span.log"))
	if err != nil || !strings.Contains(string(log), "cleaned up") {
		t.Errorf("log %v\n%s", err, log)
	}
}

func TestKernelByNameOrFile(t *testing.T) {
	l, _ := fake(t, `echo "[   1.0 s] fetching" >&2; echo "/boot/$1-$2"`)
	if got, err := l.kernel(context.Background(), "newest"); err != nil || got != "/boot/kernel-newest" {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := l.kernel(context.Background(), "./bzImage"); err != nil || got != "./bzImage" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestJobs(t *testing.T) {
	c := &cli{Servers: 2, Vcpus: []int{1, 2}, Mem: []string{"512M", "1G"}, Fabric: "verbs", Append: "loglevel=5", Workload: "step:512", Spec: []string{"cache: 96MiB"},
		Timeout: time.Minute}
	s, err := c.shape()
	if err != nil {
		t.Fatal(err)
	}
	want := "run --servers 2 --vcpus 1,2 --mem 512M,1024M --fabric verbs --kernel k --initrd d " +
		"--append loglevel=5 ironspan.demo=vcpus:1+2,nodes:2,mem:512+1024,step:512 --timeout 60 --spec cache: 96MiB"
	if got := strings.Join(c.job("span", s, "k", "d").args, " "); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	want = "run --servers 1 --vcpus 3 --mem 1536M --fabric verbs --kernel k --initrd d " +
		"--append loglevel=5 ironspan.demo=vcpus:3,nodes:1,mem:1536,step:512 --timeout 60 --spec cache: 96MiB"
	if got := strings.Join(c.job("single", s.onOne(), "k", "d").args, " "); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	for _, wrong := range []*cli{
		{Servers: 0}, {Servers: 2, Vcpus: []int{1, 1, 1}}, {Servers: 2, Mem: []string{"x"}}, {Servers: 2, Mem: []string{"-1M"}},
	} {
		if _, err := wrong.shape(); err == nil {
			t.Errorf("%+v was accepted", wrong)
		}
	}
}
