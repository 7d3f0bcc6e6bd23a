package raw

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"ironspan/perf/internal/servers"
)

// Tool is one run of a program of perftest's.
type Tool struct {
	Program string
	Bytes   int
	Event   bool // it sleeps for completions; otherwise it polls
	Rounds  int
}

// Tools are the runs that Ironspan is compared with. Those that poll have few rounds, for the reason that Plans gives.
// The programs that write cannot but poll, ib_write_lat on the memory that is written; ib_send_lat does not come to an
// end on rxe if it sleeps.
func Tools() []Tool {
	return []Tool{
		{"ib_read_lat", page, true, 500},
		{"ib_read_lat", page, false, 200},
		{"ib_write_lat", page, false, 200},
		{"ib_write_lat", message, false, 200},
		{"ib_send_lat", page, false, 200},
		{"ib_read_bw", page, true, 2000},
		{"ib_read_bw", page, false, 1000},
		{"ib_write_bw", page, false, 1000},
	}
}

func (t Tool) bandwidth() bool { return strings.HasSuffix(t.Program, "_bw") }

// ToolReport is what a tool found: samples or a bandwidth.
type ToolReport struct {
	Tool
	Ns             []int64 // one way for writes and sends, as perftest has it: half of there and back
	BytesPerSecond float64
}

// toolPatience bounds a run.
const toolPatience = 40 * time.Second

// Perftest runs a tool: its server in server 1 of the lab, its client in server 0, which reports.
func Perftest(ctx context.Context, lab servers.Lab, t Tool) (*ToolReport, error) {
	ctx, cancel := context.WithTimeout(ctx, toolPatience)
	defer cancel()
	path, err := exec.LookPath(t.Program)
	if err != nil {
		return nil, fmt.Errorf("raw: %s is not installed: run tools/bootstrap.sh, or install package perftest", t.Program)
	}
	addr, err := lab.Addr(ctx, 1)
	if err != nil {
		return nil, err
	}
	words := t.words(path)
	target, err := lab.Start(ctx, 1, words...)
	if err != nil {
		return nil, err
	}
	defer target.End()
	out, err := client(ctx, lab, append(words, addr))
	if err != nil {
		// A server that failed by itself says more than its client.
		target.Interrupt()
		if _, end := target.End(); end != nil {
			err = errors.Join(err, end)
		}
		return nil, fmt.Errorf("raw: %w", err)
	}
	if _, err := target.End(); err != nil {
		return nil, fmt.Errorf("raw: %w", err)
	}
	r := &ToolReport{Tool: t}
	if t.bandwidth() {
		r.BytesPerSecond, err = parseBandwidth(out, t)
	} else {
		r.Ns, err = parseLatency(out, t)
	}
	if err != nil {
		return nil, fmt.Errorf("raw: %s: %w", t.Program, err)
	}
	return r, nil
}

func (t Tool) words(path string) []string {
	words := []string{path, "--size", strconv.Itoa(t.Bytes), "--iters", strconv.Itoa(t.Rounds), "--CPU-freq"}
	if !t.bandwidth() {
		words = append(words, "--report-unsorted")
	}
	if t.Event {
		words = append(words, "--events")
	}
	return words
}

// client tries again while its server does not listen yet, which perftest's does not tell.
func client(ctx context.Context, lab servers.Lab, words []string) ([]byte, error) {
	for deadline := time.Now().Add(10 * time.Second); ; {
		out, err := lab.Run(ctx, 0, words...)
		if err == nil || ctx.Err() != nil || time.Now().After(deadline) || !refused(err) {
			return out, err
		}
	}
}

func refused(err error) bool { return strings.Contains(err.Error(), "Couldn't connect to") }

// parseLatency reads the rounds' lines "number, microseconds" that follow "#, usec". perftest has one sample less than
// rounds where it measures between rounds.
func parseLatency(out []byte, t Tool) ([]int64, error) {
	s := bufio.NewScanner(bytes.NewReader(out))
	for s.Scan() && strings.TrimSpace(s.Text()) != "#, usec" {
	}
	var ns []int64
	for s.Scan() {
		number, usec, ok := strings.Cut(s.Text(), ",")
		if !ok {
			break
		}
		n, err := strconv.Atoi(strings.TrimSpace(number))
		if err != nil || n != len(ns) && n != len(ns)+1 {
			return nil, fmt.Errorf("sample %d is called %q", len(ns), number)
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(usec), 64)
		if err != nil || v < 0 || v > 1e9 {
			return nil, fmt.Errorf("sample %d is %q", len(ns), usec)
		}
		ns = append(ns, int64(v*1e3))
	}
	if err := s.Err(); err != nil {
		return nil, err
	}
	if len(ns) != t.Rounds && len(ns) != t.Rounds-1 {
		return nil, fmt.Errorf("%d samples of %d rounds in %q", len(ns), t.Rounds, tail(out))
	}
	return ns, nil
}

// parseBandwidth reads the table's one line. perftest's MB are MiB.
func parseBandwidth(out []byte, t Tool) (float64, error) {
	const heading = "#bytes #iterations BW peak[MB/sec] BW average[MB/sec] MsgRate[Mpps]"
	s := bufio.NewScanner(bytes.NewReader(out))
	for s.Scan() && strings.Join(strings.Fields(s.Text()), " ") != heading {
	}
	if !s.Scan() {
		return 0, fmt.Errorf("no table in %q", tail(out))
	}
	f := strings.Fields(s.Text())
	if len(f) != 5 || f[0] != strconv.Itoa(t.Bytes) {
		return 0, fmt.Errorf("no line of %d bytes: %q", t.Bytes, s.Text())
	}
	v, err := strconv.ParseFloat(f[3], 64)
	if err != nil || v <= 0 {
		return 0, fmt.Errorf("bandwidth %q", f[3])
	}
	return v * (1 << 20), nil
}

func tail(out []byte) string { return string(out[max(0, len(out)-200):]) }
