package fastpath

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"ironspan/engine/coherence"
	"ironspan/fastpath/fabric"
)

// Snapshot is a shard's state at one moment, for reports.
type Snapshot struct {
	Latency   map[string]HistogramSnapshot `json:"latency"` // by FaultKind
	Stages    map[string]HistogramSnapshot `json:"stages"`  // by Stage
	Faults    uint64                       `json:"faults"`
	ZeroPages uint64                       `json:"zero_pages"`
	Leftovers uint64                       `json:"leftovers"`
	Batched   uint64                       `json:"batched"`
	Remapped  uint64                       `json:"remapped"`
	Rounds    uint64                       `json:"rounds"`
	Spins     uint64                       `json:"spins"`
	Sleeps    uint64                       `json:"sleeps"`
	Agent     coherence.Stats              `json:"agent"`
	Fabric    fabric.StatsSnapshot         `json:"fabric"`
	Hot       []coherence.HotPage          `json:"hot,omitempty"` // homed here, most moved first
}

// Metrics returns the shard's counters.
func (s *Shard) Metrics() *Metrics { return &s.metrics }

// Snapshot returns the shard's state. The shard's thread copies what only it may read, so while it runs this waits
// for the end of its round. It must not be called on the shard's thread, nor after Close.
func (s *Shard) Snapshot() Snapshot {
	agent, hot, _ := s.shot.read(s) // first: what follows is then of the end of that round or later
	m := &s.metrics
	snap := Snapshot{
		Agent: agent, Hot: hot,
		Latency: make(map[string]HistogramSnapshot, FaultKinds), Stages: make(map[string]HistogramSnapshot, Stages),
		Faults: m.Faults.Load(), ZeroPages: m.ZeroPages.Load(), Leftovers: m.Leftovers.Load(), Batched: m.Batched.Load(), Remapped: m.Remapped.Load(),
		Rounds: m.Rounds.Load(), Spins: m.Spins.Load(), Sleeps: m.Sleeps.Load(),
		Fabric: s.ep.Stats().Snapshot(),
	}
	for k := range FaultKinds {
		snap.Latency[k.String()] = m.Latency[k].Snapshot()
	}
	for g := range Stages {
		snap.Stages[g.String()] = m.Stage[g].Snapshot()
	}
	return snap
}

// Oldest returns the request that the shard has waited for longest; otherwise it is like Snapshot.
func (s *Shard) Oldest() coherence.Waiting {
	_, _, oldest := s.shot.read(s)
	return oldest
}

// shot carries what only the shard's thread may read to whoever wants a snapshot.
//
// While the shard runs, agent, hot and oldest belong to the thread from the moment want is set until it clears it, and to
// the reader, who holds readers, before and after. While it does not run, the reader takes them himself, under
// life, which Run holds when it begins and ends, never in between.
type shot struct {
	readers sync.Mutex
	life    sync.Mutex
	running bool
	want    atomic.Bool
	agent   coherence.Stats
	hot     []coherence.HotPage
	oldest  coherence.Waiting
}

func (t *shot) begin() {
	t.life.Lock()
	t.running = true
	t.life.Unlock()
}

func (t *shot) end(s *Shard) {
	t.life.Lock()
	t.running = false
	t.answer(s)
	t.life.Unlock()
}

// answer is the thread's part: one load in a round in which nobody asks.
func (t *shot) answer(s *Shard) {
	if t.want.Load() {
		t.take(s)
		t.want.Store(false)
	}
}

func (t *shot) take(s *Shard) {
	t.agent = *s.agent.Stats()
	t.hot = s.agent.HotPages(t.hot[:0], hotMax)
	t.oldest = s.agent.Oldest()
}

// read is the reader's part.
func (t *shot) read(s *Shard) (coherence.Stats, []coherence.HotPage, coherence.Waiting) {
	t.readers.Lock()
	defer t.readers.Unlock()
	t.life.Lock()
	running := t.running
	if running {
		t.want.Store(true)
	} else {
		t.take(s)
	}
	t.life.Unlock()
	if running {
		s.rouse()
		for round := 0; t.want.Load(); round++ {
			if round < 100 {
				runtime.Gosched()
			} else {
				time.Sleep(100 * time.Microsecond)
			}
		}
	}
	return t.agent, append([]coherence.HotPage(nil), t.hot...), t.oldest
}
