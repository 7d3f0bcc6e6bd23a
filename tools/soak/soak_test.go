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
	if err := sum.write(&text, false); err != nil || !strings.HasPrefix(text.String(), "20 seeds from 5, ") {
		t.Errorf("%q %v", &text, err)
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
