package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ironspan/perf/internal/result"
)

// file writes a result with one series, whose rounds are the values.
func file(t *testing.T, values ...float64) string {
	t.Helper()
	r := result.New("host", "0123abc")
	rec := r.Record("fault/read", result.Latency, nil)
	for _, v := range values {
		rec.Value(v)
	}
	name := filepath.Join(t.TempDir(), "host.json")
	if err := r.Write(name); err != nil {
		t.Fatal(err)
	}
	return name
}

func run(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, err strings.Builder
	status = realMain(context.Background(), args, &out, &err)
	return status, out.String(), err.String()
}

func TestCommands(t *testing.T) {
	fast, slow := file(t, 10, 11, 12, 11, 10, 11), file(t, 20, 21, 22, 21, 20, 21)
	broken := filepath.Join(t.TempDir(), "broken.json")
	if err := os.WriteFile(broken, []byte(`{"schema": 1, "ser`), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		args   []string
		status int
		out    string // in both outputs together
	}{
		{"no regression", []string{"compare", fast, fast}, exitOK, "regressions: 0"},
		{"improvement", []string{"compare", slow, fast}, exitOK, "improvements: 1"},
		{"regression", []string{"compare", fast, slow}, exitFailed, "+90.9 %"},
		{"as JSON", []string{"compare", "--json", fast, slow}, exitFailed, `"outcome": "regression"`},
		{"stricter", []string{"compare", "--alpha", "0.001", fast, slow}, exitOK, "too few rounds"},
		{"pools", []string{"compare", strings.Repeat(fast+",", 3) + fast, strings.Repeat(slow+",", 3) + slow}, exitFailed, "regressions: 1"},
		{"pools too small", []string{"compare", fast + "," + fast, slow + "," + slow}, exitOK, "too few rounds"},
		{"no probability", []string{"compare", "--alpha", "2", fast, slow}, exitUsage, "alpha"},
		{"broken file", []string{"compare", fast, broken}, exitUsage, "cut off"},
		{"no file", []string{"show", broken + ".absent"}, exitUsage, "no such file"},
		{"no command", []string{"sing"}, exitUsage, "perf --help"},
		{"help", []string{"--help"}, exitOK, "compare"},
		{"table", []string{"show", fast}, exitOK, "11 ns"},
	} {
		t.Run(test.name, func(t *testing.T) {
			status, stdout, stderr := run(t, test.args...)
			if status != test.status || !strings.Contains(stdout+stderr, test.out) {
				t.Errorf("status %d, want %d and %q\n%s%s", status, test.status, test.out, stdout, stderr)
			}
		})
	}
}

func TestCompareJSON(t *testing.T) {
	_, stdout, _ := run(t, "compare", "--json", file(t, 10, 11, 12, 11, 10, 11), file(t, 20, 21, 22, 21, 20, 21))
	var report struct {
		Changes []struct {
			Series  string
			Outcome string
			P       float64
		}
	}
	if err := json.Unmarshal([]byte(stdout), &report); err != nil {
		t.Fatal(err)
	}
	if len(report.Changes) != 1 || report.Changes[0].Series != "fault/read" || report.Changes[0].P > 0.01 {
		t.Errorf("%+v", report)
	}
}

func TestPlotWritesBesideTheResult(t *testing.T) {
	r := result.New("host", "x")
	rec := r.Record("fault/read", result.Latency, nil)
	rec.Add(2000)
	rec.End()
	name := filepath.Join(t.TempDir(), "host.json")
	if err := r.Write(name); err != nil {
		t.Fatal(err)
	}
	want := filepath.Join(filepath.Dir(name), "host-plots", "cdf-fault.svg")
	if status, stdout, stderr := run(t, "plot", name); status != exitOK || !strings.Contains(stdout, want+"\n") {
		t.Errorf("status %d: %s%s", status, stdout, stderr)
	}
	if _, err := os.Stat(want); err != nil {
		t.Error(err)
	}
}
