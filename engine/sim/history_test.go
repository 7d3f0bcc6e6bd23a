package sim

import (
	"testing"
)

// TestHistories has nobody but porcupine judge.
func TestHistories(t *testing.T) {
	judged := 0
	for seed := uint64(1); judged < 200_000; seed++ {
		cfg := Random(seed)
		if cfg.Nodes*cfg.VCPUs > 12 || cfg.Litmus != nil {
			continue
		}
		cfg.History, cfg.blind = true, true
		r, err := Run(cfg)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if r.Histories.Unknown > 0 {
			t.Errorf("seed %d: no verdict on %d pages", seed, r.Histories.Unknown)
		}
		judged += r.Histories.Accesses
	}
}

// TestJudge holds the model against what vCPUs may see of a page, and may not.
func TestJudge(t *testing.T) {
	type done struct {
		vcpu, called, done int
		in                 access
		found              uint64
	}
	read, exchange, write := access{reads: true}, access{reads: true, writes: true, val: 1}, access{writes: true, val: 1}
	for _, x := range []struct {
		name string
		ops  []done
		ok   bool
	}{
		{"zero at first", []done{{0, 1, 2, read, 0}}, true},
		{"nobody wrote that", []done{{0, 1, 2, read, 1}}, false},
		{"reads after a write", []done{{0, 1, 2, write, 9}, {1, 3, 4, read, 1}, {0, 5, 6, read, 1}}, true},
		{"stale", []done{{0, 1, 2, write, 9}, {1, 3, 4, read, 0}}, false},
		{"either way while it is written", []done{{0, 1, 9, write, 9}, {1, 2, 3, read, 0}, {1, 4, 5, read, 1}}, true},
		{"back again while it is written", []done{{0, 1, 9, write, 9}, {1, 2, 3, read, 1}, {1, 4, 5, read, 0}}, false},
		{"lost", []done{{0, 1, 9, exchange, 0}, {1, 1, 9, exchange, 0}}, false},
		{"one after the other", []done{{0, 1, 9, exchange, 1}, {1, 1, 9, exchange, 0}}, true},
	} {
		h := make(history, 1)
		for _, o := range x.ops {
			h.note(0, o.vcpu, o.called, o.done, o.in, o.found)
		}
		if sum, err := h.judge(); (err == nil) != x.ok || sum.Accesses != len(x.ops) {
			t.Errorf("%s: %+v, %v", x.name, sum, err)
		}
	}
}
