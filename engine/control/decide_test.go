package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"ironspan/engine/spec"
	"ironspan/engine/wire"
)

func TestDecide(t *testing.T) {
	plan := &spec.Plan{Nodes: []spec.PlanNode{{ID: 0, Name: "a", Addr: "a:1"}, {ID: 1, Name: "b", Addr: "b:1"}, {ID: 2, Name: "c", Addr: "c:1"}}}
	o := func(k OutcomeKind, r string) Outcome { return Outcome{Kind: k, Reason: r} }
	type outcomes = map[wire.NodeID]Outcome
	type broken = map[wire.NodeID]error
	gone := errors.New("EOF")
	tests := []struct {
		name string
		outcomes
		broken
		kind OutcomeKind
		lost int
		says string
	}{
		{"power-off everywhere", outcomes{0: o(PoweredOff, "off"), 1: o(Stopped, "peer"), 2: o(Stopped, "peer")}, nil, PoweredOff, -1, "off"},
		{"power-off, and a connection breaks", outcomes{0: o(PoweredOff, "off")}, broken{1: gone}, PoweredOff, -1, ""},
		{"reset", outcomes{0: o(GuestReset, "reset"), 1: o(Stopped, "")}, nil, GuestReset, -1, ""},
		{"node killed", outcomes{0: LostNode(1, "died"), 2: LostNode(1, "died")}, broken{1: gone}, NodeLost, 1, "b at b:1"},
		{"node lost by the mesh alone", outcomes{0: LostNode(1, "silent for 10s"), 2: o(Stopped, "")}, nil, NodeLost, 1, "seen by node 0: silent"},
		{"two lost each other", outcomes{0: o(Stopped, ""), 1: LostNode(2, "retries"), 2: LostNode(1, "retries")}, nil, LinkLost, -1, "node 1 (b at b:1): retries"},
		{"one lost another that is there", outcomes{0: LostNode(1, "retries"), 1: o(Stopped, ""), 2: o(Stopped, "")}, nil, LinkLost, -1, "both still answer"},
		{"two lost each other, and a third dies", outcomes{0: LostNode(1, "x"), 1: LostNode(0, "x")}, broken{2: gone}, NodeLost, 2, "c at c:1"},
		{"a node says what only the client can", outcomes{0: {Kind: LinkLost, Link: &[2]wire.NodeID{7, 9}}}, nil, Failed, -1, "no node says"},
		{"lost node speaks for itself", outcomes{0: LostNode(1, "died"), 1: o(Failed, "device error")}, nil, Failed, -1, "node 1 (b at b:1): device error"},
		{"crash", outcomes{0: o(Stopped, ""), 1: o(GuestCrash, "triple fault")}, nil, GuestCrash, -1, "node 1"},
		{"two broken", nil, broken{2: gone, 1: gone}, NodeLost, 1, "node 2"},
		{"stopped", outcomes{0: o(Stopped, "x"), 1: o(Stopped, "y")}, nil, Stopped, -1, "x"},
		{"nothing", nil, nil, Failed, -1, "no node says"},
		{"lost without saying which", outcomes{0: o(NodeLost, "x")}, nil, NodeLost, -1, "x"},
		{"lost nobody knows", outcomes{0: LostNode(9, "x")}, nil, NodeLost, 9, "no member"},
	}
	for _, tt := range tests {
		got := Decide(plan, tt.outcomes, tt.broken)
		lost := -1
		if got.Lost != nil {
			lost = int(*got.Lost)
		}
		if got.Kind != tt.kind || lost != tt.lost || !strings.Contains(got.Reason, tt.says) {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

func TestConsoleDropsOldest(t *testing.T) {
	c := newConsole()
	chunk := []byte(strings.Repeat("x", 1<<20))
	for range 5 {
		if n, err := c.Write(chunk); n != len(chunk) || err != nil {
			t.Fatal(n, err)
		}
	}
	c.Write([]byte("end"))
	c.end()
	b, err := c.take(context.Background())
	if err != nil || !strings.Contains(string(b[:200]), fmt.Sprintf("%d bytes", 1<<20+3)) || !strings.HasSuffix(string(b), "xend") {
		t.Errorf("%d bytes, %v: %.100q", len(b), err, b)
	}
	if _, err := c.take(context.Background()); err != io.EOF {
		t.Error(err)
	}
}

func TestConsoleInput(t *testing.T) {
	c := newConsole()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := c.put(ctx, make([]byte, consoleInput+1)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a guest that does not read: %v", err)
	}
	n := 0
	for n < consoleInput {
		k, err := c.Read(make([]byte, 1000))
		if err != nil {
			t.Fatal(err)
		}
		n += k
	}
	done := make(chan error, 1)
	go func() { _, err := c.Read(make([]byte, 1)); done <- err }()
	c.close()
	if err := <-done; err != io.EOF {
		t.Error(err)
	}
	if err := c.put(context.Background(), []byte("x")); err == nil {
		t.Error("input after the end")
	}
	if n, err := c.Write([]byte("x")); n != 1 || err != nil {
		t.Error("output after the end blocks or fails:", n, err)
	}
}

func TestEventsCoalesce(t *testing.T) {
	q := newEvents(3)
	for i := range uint64(5000) {
		q.add(Event{Phase: PhasePopulate, Done: i})
	}
	q.add(Event{Kind: KindEnded, Outcome: &Outcome{Kind: PoweredOff}})
	for range 5000 {
		q.add(Event{Kind: KindLog, Text: "x"})
	}
	es, err := q.next(context.Background())
	if err != nil || len(es) != maxEvents {
		t.Fatal(len(es), err)
	}
	ended := 0
	for _, e := range es {
		if e.Node != 3 || e.Time.IsZero() {
			t.Fatal(e)
		}
		if e.Kind == KindEnded {
			ended++
		}
	}
	if ended != 1 {
		t.Errorf("the end was dropped")
	}
	q.close()
	if _, err := q.next(context.Background()); err != io.EOF {
		t.Error(err)
	}
}

func FuzzDecodeOpen(f *testing.F) {
	f.Add([]byte(`{"proto":1,"node":0,"plan":{},"kernel":{"size":1,"sha256":"00"}}`))
	f.Add([]byte(`{"proto":1,"node":64,"plan":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		req, plan, err := decodeOpen(b)
		if err != nil {
			if err.Message == "" || httpStatus[err.Code] == 0 {
				t.Fatalf("%+v", err)
			}
			return
		}
		_ = plan.Nodes[req.Node]
	})
}
