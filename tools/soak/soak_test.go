package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"ironspan/engine/sim"
)

func TestSoak(t *testing.T) {
	s := soak{first: 5, seeds: 20, most: 1, run: simulate, notes: io.Discard}
	sum := s.during(t.Context(), time.Minute, 2)
	if sum.Seeds != 20 || sum.Operations < 20*500 || len(sum.Violations) != 0 || sum.Rate == 0 {
		t.Errorf("%+v", sum)
	}
	var text bytes.Buffer
	if err := sum.write(&text, false); err != nil || !strings.Contains(text.String(), "\n20 seeds from 5, ") {
		t.Errorf("%q %v", &text, err)
	}
	if !strings.Contains(text.String(), "Upgrade, no data, sharers") || len(sum.Kinds) < 10 {
		t.Errorf("what transactions cost is missing: %q", &text)
	}
}

// Violations end it, in order, with what is needed to see them again.
func TestViolations(t *testing.T) {
	s := soak{first: 10, most: 3, notes: io.Discard, run: func(seed uint64) (*sim.Result, error) {
		if seed%4 == 0 {
			return &sim.Result{Ops: [][]int{{1}}}, errors.New("broken")
		}
		return &sim.Result{Ops: [][]int{{2, 3}}}, nil
	}}
	sum := s.during(t.Context(), time.Minute, 1)
	if len(sum.Violations) != 3 || sum.Seeds != 11 || sum.Operations != 3*1+8*5 {
		t.Fatalf("%+v", sum)
	}
	for i, v := range sum.Violations {
		if v.Seed != uint64(12+4*i) || v.Error != "broken" || !strings.HasSuffix(v.Replay, " -seed "+[]string{"12", "16", "20"}[i]) {
			t.Errorf("%+v", v)
		}
	}
	var text bytes.Buffer
	var again summary
	if err := sum.write(&text, true); err != nil || json.Unmarshal(text.Bytes(), &again) != nil || again.Violations[2].Seed != 20 {
		t.Errorf("%s %v", &text, err)
	}
}

// Somebody who waits is told how far it has come.
func TestProgress(t *testing.T) {
	told := make(lines, 1)
	s := soak{first: 1, seeds: 2, most: 1, notes: told, every: time.Millisecond, run: func(seed uint64) (*sim.Result, error) {
		if seed == 2 {
			if line := <-told; !strings.Contains(line, " s: 1 seeds, 0 operations, ") {
				t.Errorf("%q", line)
			}
		}
		return &sim.Result{}, nil
	}}
	s.during(t.Context(), time.Hour, 1)
}

// lines takes what is written, as far as somebody reads it.
type lines chan string

func (l lines) Write(p []byte) (int, error) {
	select {
	case l <- string(p):
	default:
	}
	return len(p), nil
}

// An interrupt ends it as its time does.
func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := soak{first: 1, most: 1, notes: io.Discard, run: func(seed uint64) (*sim.Result, error) {
		if seed == 7 {
			cancel()
		}
		return &sim.Result{}, nil
	}}
	if sum := s.during(ctx, time.Hour, 1); sum.Seeds != 7 || sum.Seconds > 60 {
		t.Errorf("%+v", sum)
	}
}
