package fabric

import (
	"errors"
	"strings"
	"testing"
)

func TestConfigValidate(t *testing.T) {
	good := Config{
		Self: 1, Nodes: 2, RAM: Memory{Addr: 0x10000, Len: 0x4000}, Slots: Memory{Addr: 0x20000, Len: 0x1000},
		Homes: []Span{{0, 0x2000}, {0x2000, 0x4000}},
	}
	for name, c := range map[string]struct {
		change func(*Config)
		want   string // in the error; empty: none
	}{
		"good":             {func(*Config) {}, ""},
		"machine lane":     {func(c *Config) { c.Homes, c.RAM, c.Slots = nil, Memory{}, Memory{} }, ""},
		"no nodes":         {func(c *Config) { c.Nodes = 0 }, "0 nodes"},
		"too many nodes":   {func(c *Config) { c.Nodes = 65 }, "65 nodes"},
		"stranger":         {func(c *Config) { c.Self = 2 }, "self"},
		"homes":            {func(c *Config) { c.Homes = c.Homes[:1] }, "home ranges"},
		"no homes":         {func(c *Config) { c.Homes = nil }, "without home"},
		"home outside":     {func(c *Config) { c.Homes[1].Last = 0x8000 }, "node 1"},
		"home not aligned": {func(c *Config) { c.Homes[0].Last = 0x1800 }, "node 0"},
		"slots":            {func(c *Config) { c.Slots.Len = 100 }, "page-aligned"},
	} {
		cfg := good
		cfg.Homes = append([]Span(nil), good.Homes...)
		c.change(&cfg)
		err := cfg.Validate()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestNames(t *testing.T) {
	for got, want := range map[string]string{
		RAM.String(): "ram", Slots.String(): "slots", Region(7).String(): "Region(7)",
		FetchAdd.String(): "fetch_add", Verb(9).String(): "Verb(9)",
		(&PeerError{Peer: 2, Op: "poll", Reason: ErrPeerDied}).Error(): "fabric: node 2 lost: poll: its process ended",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if !errors.Is(&PeerError{Reason: ErrGarbled}, ErrGarbled) {
		t.Error("the reason is not found")
	}
}

func TestSnapshot(t *testing.T) {
	var s Stats
	s.Posted[Write].Add(4096)
	s.Posted[Send].Add(64)
	s.Received.Add(64)
	got := s.Snapshot()
	want := StatsSnapshot{Send: VerbCount{1, 64}, Write: VerbCount{1, 4096}, Received: VerbCount{1, 64}}
	if got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}
