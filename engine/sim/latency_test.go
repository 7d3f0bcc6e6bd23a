package sim

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"ironspan/engine/coherence"
)

// TestSlowNodes: where all nodes are ten times slower, and messages nearly free, so is the run.
func TestSlowNodes(t *testing.T) {
	var took [2]time.Duration
	for i := range took {
		cfg := Random(3)
		cfg.Crash, cfg.Break, cfg.Litmus, cfg.Tenure = nil, nil, nil, coherence.Tenure{}
		cfg.Latency, cfg.Spread, cfg.Clogged = [2]time.Duration{1, 10}, Uniform, 0
		cfg.FaultLatency, cfg.Service = 5*time.Microsecond, 2*time.Microsecond
		cfg.Slow, cfg.SlowBy = float64(i), 10
		r, err := Run(cfg)
		if err != nil {
			t.Fatal(err)
		}
		took[i] = r.Time
	}
	if took[1] < 8*took[0] || took[1] > 12*took[0] {
		t.Errorf("%v, and slowly %v", took[0], took[1])
	}
}

// TestLatency: each distribution has its median and its tail where its description says, and none goes beyond the
// bound.
func TestLatency(t *testing.T) {
	const draws = 100_000
	for _, want := range []struct {
		spread             Spread
		p50, p90, p99, top time.Duration // in µs, roughly
	}{
		{Uniform, 52, 91, 99, 100},
		{LogNormal, 20, 56, 130, 800},
		{Bimodal, 53, 93, 450, 800},
	} {
		cfg := Config{Latency: [2]time.Duration{4 * time.Microsecond, 100 * time.Microsecond}, Spread: want.spread}
		c := cluster{cfg: cfg, rng: rand.New(rand.NewPCG(1, 2))}
		all := make([]int64, draws)
		for i := range all {
			all[i] = c.latency()
		}
		slices.Sort(all)
		for _, q := range []struct {
			share float64
			want  time.Duration
		}{{0.5, want.p50}, {0.9, want.p90}, {0.99, want.p99}} {
			got, near := all[int(q.share*draws)], int64(q.want*time.Microsecond)
			if got < near*8/10 || got > near*12/10 {
				t.Errorf("spread %d: p%g is %v, want about %dµs", want.spread, 100*q.share, time.Duration(got), q.want)
			}
		}
		if most := all[draws-1]; all[0] < 1 || most > int64(want.top*time.Microsecond) {
			t.Errorf("spread %d: from %d to %d ns", want.spread, all[0], most)
		}
	}
}
