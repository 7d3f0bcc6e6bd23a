package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"ironspan/tools/demo/report"
)

// lab is the program that has the servers.
type lab struct {
	program string
	screen  *screen
	out     string
}

// job is one run of it: a guest, from servers that come up to servers that are gone.
type job struct {
	name    string
	servers int
	args    []string
}

// endTime is how long an interrupted lab may take to clean up.
const endTime = 90 * time.Second

// command prepares the lab's program. An interrupt of this process reaches it as the end of ctx, once: it is in
// a process group of its own, and ends with this process whatever happens.
func (l *lab) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, l.program, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = endTime
	return cmd
}

// kernel is the file of one of the lab's kernels, fetched if need be; a file stays what it is.
func (l *lab) kernel(ctx context.Context, name string) (string, error) {
	if strings.ContainsRune(name, filepath.Separator) {
		return name, nil
	}
	cmd := l.command(ctx, "kernel", name)
	cmd.Stderr = l.screen
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("lab kernel %s: %w", name, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// run does a job. What goes wrong is in the result.
func (l *lab) run(ctx context.Context, j job) *report.Run {
	r := &report.Run{Servers: j.servers}
	counted := filepath.Join(l.out, j.name+".json")
	if err := os.Remove(counted); err != nil && !errors.Is(err, os.ErrNotExist) {
		r.Err = err
		return r
	}
	log, err := os.Create(filepath.Join(l.out, j.name+".log"))
	if err != nil {
		r.Err = err
		return r
	}
	defer log.Close()

	w := &watch{guest: &r.Guest, screen: l.screen, log: log, began: time.Now()}
	args := append(append([]string{}, j.args...), "--report", counted)
	fmt.Fprintln(log, "lab", strings.Join(args, " "))
	r.Err = w.follow(l.command(ctx, args...))
	if _, err := os.Stat(counted); err == nil {
		span, err := report.ReadSpan(counted)
		if err != nil && r.Err == nil {
			r.Err = err
		}
		r.Span = span
	}
	return r
}

// watch follows the two streams of a run: the guest's console and the lab's own words.
type watch struct {
	screen *screen

	mu     sync.Mutex // guards below
	guest  *report.Guest
	log    io.Writer
	began  time.Time // when `ironspan run` began; until it says so, when the lab was started
	exact  bool      // it said so
	reason string    // why it failed, if it did: the error of `ironspan run`, else the lab's last word
	caused bool      // the former
}

func (w *watch) follow(cmd *exec.Cmd) error {
	console, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	words, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	var streams sync.WaitGroup
	streams.Go(func() { lines(console, w.console) })
	streams.Go(func() { lines(words, w.word) })
	streams.Wait()
	err = cmd.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil && w.reason != "" {
		return fmt.Errorf("%s (%w)", w.reason, err)
	}
	return err
}

// lines calls f for each line of a stream, also for a last one without an end, until it is closed. A line
// longer than any sane one is taken in pieces.
func lines(r io.Reader, f func(string)) {
	in := bufio.NewReaderSize(r, 64<<10)
	for {
		line, err := in.ReadSlice('\n')
		if len(line) > 0 {
			f(strings.TrimRight(string(line), "\r\n"))
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

// console takes a line of the guest's.
func (w *watch) console(line string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fmt.Fprintln(w.log, line)
	if shown := w.guest.Line(time.Since(w.began).Seconds(), line); shown != "" {
		w.screen.line("| " + shown)
	}
}

var (
	// A line of `ironspan run`: seconds since it began, and a node.
	spanWord = regexp.MustCompile(`^\[ *(\d+\.\d+)\] (node \d+: .*)$`)
	// A line of the lab's progress.
	labWord = regexp.MustCompile(`^\[ *\d+\.\d+ s\] (.*)$`)
)

// word takes a line of the lab's or of `ironspan run`.
func (w *watch) word(line string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fmt.Fprintln(w.log, "#", line)
	if match := spanWord.FindStringSubmatch(line); match != nil {
		if since, err := strconv.ParseFloat(match[1], 64); err == nil && !w.exact {
			w.began = time.Now().Add(-time.Duration(since * float64(time.Second)))
			w.exact = true
		}
		line = match[2]
	} else if match := labWord.FindStringSubmatch(line); match != nil {
		line = "lab: " + match[1]
	} else if cause, found := strings.CutPrefix(line, "ironspan: "); found {
		w.reason, w.caused = cause, true
	} else if line != "" && !w.caused {
		w.reason = line
	}
	w.screen.line(line)
}
