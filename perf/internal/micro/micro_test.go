package micro

import (
	"testing"
	"time"

	"ironspan/engine/leaktest"
	"ironspan/engine/nodetest"
	"ironspan/perf/internal/result"
)

// tiny is a scale for tests: what can go wrong goes wrong in a few samples.
var tiny = Scale{
	Pages: 8, Batches: 1, Scan: 96, Random: 256, Cache: 32, Contend: 2e6, Handoff: 4, Events: 10,
	Local: 1 << 10, Steps: 1000, VCPUs: []int{1, 2}, Tenures: []time.Duration{0, 100 * time.Microsecond},
}

// TestAll runs each benchmark once and looks whether it measured.
func TestAll(t *testing.T) {
	nodetest.Need(t)
	leaktest.Check(t)
	run := result.New("test", "none")
	err := Measure(t.Context(), run, Local{}, Options{Scale: tiny, Rounds: 1, Seed: 1, Say: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range run.Missing {
		if m.Name != "fault/snooped" {
			t.Errorf("%s: %s", m.Name, m.Reason)
		}
	}
	for _, s := range run.Series {
		t.Logf("%-60s %-4s n %6d p50 %12.2f p99 %12.2f", s.Key(), s.Unit, s.Count, s.P50, s.P99)
	}
}
