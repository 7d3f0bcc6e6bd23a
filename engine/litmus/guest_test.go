package litmus_test

import (
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ironspan/engine/coherence"
	"ironspan/engine/litmus"
	"ironspan/engine/litmus/x86"
	"ironspan/engine/nodetest"
	"ironspan/kvmhost"
)

var (
	seedFlag = flag.Uint64("seed", 1, "of the delays")
	longFlag = flag.Duration("long", 0, "how long each cluster goes on, with one seed after the other")
	allFlag  = flag.Bool("all", false, "all shapes at all placements in each run, and not a sample")
)

// cluster is where threads and variables are, and what else goes on there.
type cluster struct {
	name    string
	threads []int // node of each thread
	tenure  bool
	storm   bool
	// production: pages that look as if they migrated move at once, sequences are fetched ahead.
	production bool
	evict      bool // a node may hold fewer pages of the others than the shapes are on
}

func (c *cluster) nodes() int { return max(2, slices.Max(c.threads)+1) }

var (
	two   = []int{0, 1}
	three = []int{0, 1, 2, 0}
)

var clusters = []cluster{
	{"one node", []int{0, 0}, false, false, false, false}, // to compare with: no pages move
	{"two nodes", two, false, false, false, false},
	{"two nodes, storm", two, false, true, false, false},
	{"two nodes, tenure", two, true, false, true, false},
	{"two nodes, tenure, storm", two, true, true, true, false},
	{"two nodes, tenure, storm, eviction", two, true, true, true, true},
	{"three nodes", three, false, false, true, false},
	{"three nodes, storm", three, false, true, false, false},
	{"three nodes, tenure", three, true, false, false, false},
	{"three nodes, tenure, storm", three, true, true, true, false},
	{"three nodes, storm, eviction", three, false, true, false, true},
}

// trials are all shapes at all placements where they make sense, or some of them. litmus.Shapes of two threads run on two nodes.
func (c *cluster) trials(rng *rand.Rand) []trial {
	var all []trial
	for i := range litmus.Shapes {
		s := &litmus.Shapes[i]
		if n := len(s.Threads); n > len(c.threads) || n == 2 && len(c.threads) > 2 {
			continue
		}
		for p := range placements {
			if place := &placements[p]; place.fits(s) {
				all = append(all, trial{shape: s, place: place, batches: max(2, 16/place.instances)})
			}
		}
	}
	if !*allFlag {
		rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		sample := 8
		if testing.Short() {
			sample = 3
		}
		all = all[:min(sample, len(all))]
	}
	first, batch := 0, 0
	for i := range all {
		all[i].first, all[i].batch = first, batch
		first += all[i].rounds()
		batch += all[i].batches
	}
	return all
}

// TestGuests runs the shapes as guests and holds every round against the model.
func TestGuests(t *testing.T) {
	nodetest.Need(t)
	for i := range clusters {
		c := &clusters[i]
		t.Run(c.name, func(t *testing.T) {
			found := &findings{}
			seed, end := *seedFlag, time.Now().Add(*longFlag)
			for {
				t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { c.run(t, seed, found) })
				if seed++; t.Failed() || !time.Now().Before(end) {
					break
				}
			}
			found.log(t)
		})
	}
}

// run is one run of all trials.
func (c *cluster) run(t *testing.T, seed uint64, found *findings) {
	rng := rand.New(rand.NewPCG(seed, 0x117305))
	trials := c.trials(rng)
	cfg := nodetest.Config{Pages: nodePages, Image: imagePage, Slots: 32, Code: make([][][]byte, c.nodes())}
	if c.tenure {
		cfg.Tenure = coherence.Tenure{Base: 200 * time.Microsecond, Max: 2 * time.Millisecond, Window: 5 * time.Millisecond}
	}
	if c.production {
		cfg.Migratory, cfg.Prefetch, cfg.CoverFrom = true, 16, 1
	}
	if c.evict {
		cfg.Cache = 3
	}
	areas := make([]uint64, len(c.threads)) // each thread's memory
	for i, node := range c.threads {
		areas[i] = addr(node, recordPage+areaPages*len(cfg.Code[node]))
		cfg.Code[node] = append(cfg.Code[node], threadProgram(len(c.threads), i, areas[i], trials))
	}
	for node := range cfg.Code {
		if c.storm {
			cfg.Code[node] = append(cfg.Code[node], stormProgram(addr(node, stormPage)))
		}
	}
	ns := nodetest.New(t, cfg)
	m := meeting{trials: trials, head: make([][]byte, len(c.threads)), all: make(chan struct{})}
	for node, n := range ns {
		if n.Image != nil && n.Image.End > addr(node, recordPage) {
			t.Fatalf("node %d: the image ends at %#x, among the records", node, n.Image.End)
		}
		tables := n.RAM.Service()[addr(node, stormPage):addr(node, sharedPage)]
		drawStorm(rng, tables[headSize:], trials)
		m.storms = append(m.storms, storm{tables, addr(node, stormPage) + headSize})
		n.OnPort(sleepPort, 4, func(b []byte) {
			ns := binary.LittleEndian.Uint32(b) &^ sleepBit
			_ = unix.Nanosleep(&unix.Timespec{Nsec: int64(ns)}, nil) // cut short by a signal: as well
		})
		n.OnPort(meetPort, 1, func([]byte) { m.come() })
		n.OnPort(donePort, 1, func([]byte) {
			if m.done.Add(1) == int32(len(c.threads)) {
				for _, n := range ns {
					n.StopVM()
				}
			}
		})
	}
	memory := make([][]byte, len(c.threads)) // the records of each thread
	for i, node := range c.threads {
		area := ns[node].RAM.Service()[areas[i]:]
		m.head[i], memory[i] = area, area[headSize:][:maxRecords*recordSize]
	}
	drawDelays(rng, memory, trials)
	t.Cleanup(m.end) // before nodes wait for their guests
	for _, n := range ns {
		n.Run()
	}
	limit := time.Now().Add(time.Minute)
	for i, n := range ns {
		if err := n.Wait(time.Until(limit)); err != nil {
			t.Fatalf("node %d: %v", i, err)
		}
	}
	for _, n := range ns {
		n.StopShards()
	}
	found.judge(t, memory, trials)
	for _, n := range ns {
		snap := n.Shard.Snapshot()
		found.faults += snap.Faults
		found.evictions += snap.Agent.EvictionsClean + snap.Agent.EvictionsDirty
	}
}

// storm is the memory of a node's storm, and the guest's address of its first table.
type storm struct {
	mem   []byte
	first uint64
}

// meeting is where threads wait for each other, twice in a batch. What it says to guests it writes to pages that never
// move, while the guest it is for waits here; a storm may read the old word or the new one.
type meeting struct {
	trials []trial
	head   [][]byte // of each thread
	storms []storm
	done   atomic.Int32 // threads that have ended

	mu       sync.Mutex // guards what follows
	came     int
	meetings int
	batch    int // the next one, of all trials
	all      chan struct{}
	ended    bool
}

// come returns when all threads have.
func (m *meeting) come() {
	m.mu.Lock()
	if m.came++; m.came < len(m.head) || m.ended {
		all := m.all
		m.mu.Unlock()
		<-all
		return
	}
	m.came = 0
	if m.meetings++; m.meetings%2 == 1 {
		m.begin()
	}
	close(m.all)
	m.all = make(chan struct{})
	m.mu.Unlock()
}

// begin prepares the next batch.
func (m *meeting) begin() {
	x := len(m.trials) - 1
	for x > 0 && m.trials[x].batch > m.batch {
		x--
	}
	m.batch++
	for _, s := range m.storms {
		binary.LittleEndian.PutUint64(s.mem, s.first+uint64(stormTable*x))
	}
	at := kvmhost.HostTSC() + leadCycles
	for _, h := range m.head {
		binary.LittleEndian.PutUint64(h, at)
	}
}

// end lets everybody go.
func (m *meeting) end() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.ended {
		m.ended = true
		close(m.all)
	}
}

// drawDelays has threads wait before each instruction: asleep for as long as a fault takes, and then a node loses its
// pages in the midst of a round; or shorter, for what happens inside of one processor. In one round of four nobody waits
// but for a moment at the start, for what store buffers do.
func drawDelays(rng *rand.Rand, memory [][]byte, trials []trial) {
	last := &trials[len(trials)-1]
	for r := range last.first + last.rounds() {
		tight := rng.IntN(4) == 0
		for _, records := range memory {
			for i := range litmus.MaxInstrs {
				var d uint32
				switch {
				case tight && i == 0:
					d = rng.Uint32N(128)
				case tight:
				case rng.IntN(3) == 0:
					d = rng.Uint32N(2 << rng.IntN(16))
				default:
					d = sleepBit | rng.Uint32N(150_000)
				}
				binary.LittleEndian.PutUint32(records[recordSize*r+recDelay+4*i:], d)
			}
		}
	}
}

func drawStorm(rng *rand.Rand, tables []byte, trials []trial) {
	for i := range trials {
		pages := trials[i].place.pages()
		for e := range stormEntries {
			b := tables[stormTable*i+stormEntry*e:]
			binary.LittleEndian.PutUint64(b, pages[rng.IntN(len(pages))])
			binary.LittleEndian.PutUint32(b[8:], 1+rng.Uint32N(2<<rng.IntN(18)))
			binary.LittleEndian.PutUint32(b[12:], rng.Uint32N(2))
		}
	}
}

// outcome puts together what the threads know of a round. janitor is the thread that has the final values.
func (x *trial) outcome(memory [][]byte, round, janitor int) (o litmus.Outcome, err error) {
	at := recordSize * (x.first + round)
	value := func(thread, off int) (v litmus.Value) {
		word := binary.LittleEndian.Uint64(memory[thread][at+off:])
		v, ok := x86.Decode(word, x.place.width)
		if !ok && err == nil {
			err = fmt.Errorf("thread %d has %#x, which nobody stored", thread, word)
		}
		return v
	}
	for t, code := range x.shape.Threads {
		for i, in := range code {
			if in.Op.Reads() {
				o.Regs[t][i] = value(t, recRegs+8*i)
			}
		}
	}
	for v := range x.shape.Vars() {
		o.Mem[v] = value(janitor, recMem+8*v)
	}
	return o, err
}

// findings are what runs ended with.
type findings struct {
	litmus.Judge
	faults, evictions uint64
}

// judge fails the test for each outcome that the model does not have.
func (f *findings) judge(t *testing.T, memory [][]byte, trials []trial) {
	for i := range trials {
		x := &trials[i]
		for round := range x.rounds() {
			o, err := x.outcome(memory, round, (x.batch+round/x.place.instances)%len(memory))
			if err == nil {
				err = f.Round(x.shape, x.place.split, o)
			}
			if err != nil {
				t.Errorf("%v; %s: round %d: %v", x.shape, x.place.name, round, err)
			}
		}
	}
}

func (f *findings) log(t *testing.T) {
	var lines []string
	for _, is := range f.Tallies() {
		lines = append(lines, fmt.Sprintf("%-20s %6d rounds, %d of %d allowed outcomes: %s",
			is.Name(), is.Rounds, is.Outcomes(), is.Allowed(), is.Histogram()))
	}
	_, all, _, interleaved := f.Sum()
	t.Logf("%d rounds, %d of them ended as no order of whole threads does, %d faults, %d evictions\n%s", all, interleaved, f.faults,
		f.evictions, strings.Join(lines, "\n"))
}
