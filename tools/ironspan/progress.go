package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"

	"ironspan/engine/control"
	"ironspan/engine/wire"
)

// lineWriter writes lines to a terminal that may be in raw mode, where a line feed alone does not return the
// carriage. It may be used from several goroutines.
type lineWriter struct {
	mu sync.Mutex
	w  io.Writer
	cr func() bool
}

func (l *lineWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := b
	if l.cr != nil && l.cr() {
		out = bytes.ReplaceAll(b, []byte("\n"), []byte("\r\n"))
	}
	if _, err := l.w.Write(out); err != nil {
		return 0, err
	}
	return len(b), nil
}

// progress shows a VM's events, one line each, and thins out those that come often.
type progress struct {
	w     io.Writer
	json  *json.Encoder // nil: text
	began time.Time
	last  map[progressKey]time.Time
}

type progressKey struct {
	node  wire.NodeID
	phase string
}

// between is the least time between two progress lines of a phase at a node.
const between = 500 * time.Millisecond

func newProgress(w io.Writer, asJSON bool) *progress {
	p := &progress{w: w, began: time.Now(), last: map[progressKey]time.Time{}}
	if asJSON {
		p.json = json.NewEncoder(w)
	}
	return p
}

// event shows an event. It is not called concurrently.
func (p *progress) event(e control.Event) {
	if e.Kind == control.KindProgress && e.Total > 0 && e.Done < e.Total {
		k := progressKey{e.Node, e.Phase}
		if e.Time.Sub(p.last[k]) < between {
			return
		}
		p.last[k] = e.Time
	}
	if p.json != nil {
		_ = p.json.Encode(e) // nobody to tell
		return
	}
	fmt.Fprintf(p.w, "[%8.3f] node %d: %s\n", max(0, e.Time.Sub(p.began).Seconds()), e.Node, eventText(e))
}

func eventText(e control.Event) string {
	s := e.Phase
	if e.Kind == control.KindProgress && e.Total > 0 {
		s += fmt.Sprintf(" %d %%", uint64(float64(e.Done)*100/float64(e.Total)))
	}
	if e.Text != "" {
		if s != "" {
			s += ": "
		}
		s += e.Text
	}
	if e.Outcome != nil {
		s = e.Outcome.String()
	}
	return s
}
