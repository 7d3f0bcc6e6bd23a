package fastpath

import (
	"math"
	"testing"

	"ironspan/engine/coherence"
	"ironspan/engine/wire"
)

func TestTransit(t *testing.T) {
	tr := newTransit(3, 4)
	get := wire.Message{Kind: wire.GetM, Requester: 2, Slot: 3}
	tr.arrive(1000, &get)
	forwarded := wire.Message{Kind: wire.FwdGetM, Requester: 1, Slot: 0, Spent: 300}
	tr.arrive(2000, &forwarded)
	if at := *tr.of(&get); at != 1000 {
		t.Errorf("a request that arrived at 1000: %d", at)
	}
	if at := *tr.of(&forwarded); at != 1700 {
		t.Errorf("a forward that arrived at 2000 after 300 elsewhere: %d", at)
	}
	for _, m := range []wire.Message{{Requester: 3}, {Slot: 4}, {Requester: 63, Slot: math.MaxUint32}} {
		m.Kind = wire.GetS
		if tr.of(&m) != nil {
			t.Errorf("a place for %+v", m)
		}
		tr.arrive(1, &m)
	}
	for _, k := range []wire.Kind{wire.Done, wire.Fetched, wire.Parked} {
		over := wire.Message{Kind: k, Requester: 2, Slot: 3}
		tr.arrive(5000, &over)
		if at := *tr.of(&get); at != 1000 {
			t.Errorf("%v: the end of a transaction counted as its arrival: %d", k, at)
		}
	}
}

func TestStagesAddUp(t *testing.T) {
	for _, tt := range []struct {
		name                                string
		spent                               uint32
		queue, remote, flight, install, n   uint64
		sent, start, lastMessage, installed int64
	}{
		{"plain", 40, 10, 40, 60, 5, 1, 110, 100, 210, 215},
		{"a peer that claims more than there was", math.MaxUint32, 10, 100, 0, 5, 1, 110, 100, 210, 215},
		{"served without others", 0, 0, 0, 0, 0, 0, 0, 100, 210, 215},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &Shard{cause: &wire.Message{Kind: wire.Grant, Page: 7, Spent: tt.spent}}
			s.staged(tt.lastMessage, tt.installed, &coherence.Action{Page: 7}, &waiting{start: tt.start, sent: tt.sent})
			for g, want := range map[Stage]uint64{StageQueue: tt.queue, StageRemote: tt.remote, StageFlight: tt.flight, StageInstall: tt.install} {
				if h := s.metrics.Stage[g].Snapshot(); h.Sum != want || h.Count != tt.n {
					t.Errorf("%v: %d ns in %d faults, want %d in %d", g, h.Sum, h.Count, want, tt.n)
				}
			}
		})
	}
}
