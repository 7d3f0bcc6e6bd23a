package control

import (
	"context"
	"io"
	"sync"
	"time"

	"ironspan/engine/wire"
)

// maxEvents bounds the events that wait for a slow client. Progress of one phase replaces what waits of the
// same phase; beyond the bound, lines are dropped from the oldest on. The end is never dropped.
const maxEvents = 1024

// events is the queue between a Machine and the lease's stream.
type events struct {
	node wire.NodeID

	mu      sync.Mutex
	queue   []Event
	closed  bool
	changed chan struct{}
}

func newEvents(node wire.NodeID) *events { return &events{node: node, changed: make(chan struct{})} }

// add queues an event. It never blocks.
func (q *events) add(e Event) {
	e.Node = q.node
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	if e.Kind == "" {
		e.Kind = KindProgress
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return
	}
	if n := len(q.queue); n > 0 && e.Kind == KindProgress && q.queue[n-1].Kind == KindProgress && q.queue[n-1].Phase == e.Phase {
		q.queue[n-1] = e
	} else {
		q.queue = append(q.queue, e)
	}
	if len(q.queue) > maxEvents {
		for i := range q.queue {
			if q.queue[i].Kind != KindEnded {
				q.queue = append(q.queue[:i], q.queue[i+1:]...)
				break
			}
		}
	}
	close(q.changed)
	q.changed = make(chan struct{})
}

// next returns what is queued, blocking until there is something; io.EOF after close.
func (q *events) next(ctx context.Context) ([]Event, error) {
	for {
		q.mu.Lock()
		if len(q.queue) > 0 {
			es := q.queue
			q.queue = nil
			q.mu.Unlock()
			return es, nil
		}
		closed, changed := q.closed, q.changed
		q.mu.Unlock()
		if closed {
			return nil, io.EOF
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (q *events) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.closed {
		q.closed = true
		close(q.changed)
		q.changed = make(chan struct{})
	}
}
