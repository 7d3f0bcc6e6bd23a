package micro

import "sync"

// gate is where the vCPUs of this process meet. When all of them are there, full is called, on the thread of the last;
// they go on when somebody calls open. Meeting allocates nothing.
type gate struct {
	want int
	full func()

	mu      sync.Mutex // guards what follows
	changed sync.Cond
	came    int
	opened  int // times
	ended   bool
}

func newGate(want int) *gate {
	g := &gate{want: want}
	g.changed.L = &g.mu
	return g
}

// come returns when the gate has been opened for everybody who came, or for good.
func (g *gate) come() {
	g.mu.Lock()
	meeting := g.opened
	g.came++
	if g.came == g.want && !g.ended {
		g.mu.Unlock()
		g.full()
		g.mu.Lock()
	}
	for g.opened == meeting && !g.ended {
		g.changed.Wait()
	}
	g.mu.Unlock()
}

// open lets those go who have come.
func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.came = 0
	g.opened++
	g.changed.Broadcast()
}

// end opens the gate for good.
func (g *gate) end() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ended = true
	g.changed.Broadcast()
}
