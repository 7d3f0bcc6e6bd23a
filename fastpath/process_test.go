package fastpath

import (
	"encoding/gob"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"ironspan/engine/coherence"
	"ironspan/engine/wire"
	"ironspan/fastpath/fabric"
	"ironspan/fastpath/uffd"
)

// childVariable makes the test binary act as a node in a process of its own.
const childVariable = "IRONSPAN_FASTPATH_CHILD"

// Descriptors of a child, after the standard three.
const (
	childIn = 3 + iota
	childOut
	childHistory
)

// order is what the parent, node 0, tells a child to do.
type order struct {
	Self                        int
	Nodes, Shards, Pages, Slots int
	Cache                       int // as in layout
	Tenure                      coherence.Tenure
	Seed                        uint64
	For                         time.Duration
	Offers                      map[int][][]byte // by node; sent in a second round
}

func (o *order) layout() layout {
	return layout{
		nodes: o.Nodes, shards: o.Shards, pages: o.Pages, slots: o.Slots, cache: o.Cache, tenure: o.Tenure,
		poll: Event, continueWP: true,
	}
}

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		if err := child(); err != nil {
			fmt.Fprintln(os.Stderr, "child:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	before := openFiles()
	code := m.Run()
	if after := openFiles(); code == 0 && after != before {
		fmt.Fprintf(os.Stderr, "descriptors leaked: %s before, %s after\n", before, after)
		code = 1
	}
	os.Exit(code)
}

// openFiles names what is open, but for what the Go runtime opens when it first polls.
func openFiles() string {
	var names []string
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		name, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && (strings.Contains(name, "memfd:") || strings.Contains(name, "userfaultfd") || strings.Contains(name, "pidfd")) {
			names = append(names, name)
		}
	}
	return strings.Join(names, " ")
}

// child is a node's life: offers out, offers in, work, verify when told to, stop when told to.
func child() error {
	in := gob.NewDecoder(os.NewFile(childIn, "in"))
	out := gob.NewEncoder(os.NewFile(childOut, "out"))
	var o order
	if err := in.Decode(&o); err != nil {
		return err
	}
	l := o.layout()
	h, err := newHistory(childHistory, l.total(), l.nodes*workersPerNode)
	if err != nil {
		return err
	}
	n, err := newTestNode(o.Self, l)
	if err != nil {
		return err
	}
	n.fill()
	mine := map[int][][]byte{}
	for p := range l.nodes {
		if p != o.Self {
			if mine[p], err = n.offers(wire.NodeID(p)); err != nil {
				return err
			}
		}
	}
	if err := out.Encode(mine); err != nil {
		return err
	}
	if err := in.Decode(&o); err != nil {
		return err
	}
	for p, os := range o.Offers {
		if err := n.connect(wire.NodeID(p), os); err != nil {
			return err
		}
	}
	n.start()
	errs := make(chan error, h.workers+1)
	phase := func(f func() error) error {
		if err := f(); err != nil {
			return err
		}
		if err := out.Encode(true); err != nil {
			return err
		}
		var next bool
		return in.Decode(&next)
	}
	until := time.Now().Add(o.For)
	if err := phase(func() error { return nil }); err != nil { // all are connected
		return err
	}
	if err := phase(func() error {
		var wg sync.WaitGroup
		for w := o.Self; w < h.workers; w += l.nodes {
			wg.Go(func() {
				if err := n.work(h, w, o.Seed, until); err != nil {
					errs <- err
				}
			})
		}
		wg.Wait()
		select {
		case err := <-errs:
			return err
		default:
			return nil
		}
	}); err != nil {
		return err
	}
	if err := phase(func() error { return n.verify(h) }); err != nil {
		return err
	}
	if err := n.stop(); err != nil {
		return err
	}
	return n.closeAll()
}

// process is a child, seen by the parent.
type process struct {
	cmd *exec.Cmd
	in  *gob.Encoder
	out *gob.Decoder
}

func (p *process) wait(t *testing.T) {
	t.Helper()
	var ok bool
	if err := p.out.Decode(&ok); err != nil {
		t.Fatalf("child: %v", err)
	}
}

func (p *process) proceed(t *testing.T) {
	t.Helper()
	if err := p.in.Encode(true); err != nil {
		t.Fatalf("child: %v", err)
	}
}

func spawn(t *testing.T, history int) *process {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	theirIn, ourOut, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), childVariable+"=1")
	cmd.Stderr = os.Stderr
	hist, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", history), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	cmd.ExtraFiles = []*os.File{theirIn, theirs, hist}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range cmd.ExtraFiles {
		f.Close()
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // if it is still there
		_ = cmd.Wait()
		ours.Close()
		ourOut.Close()
	})
	return &process{cmd: cmd, in: gob.NewEncoder(ourOut), out: gob.NewDecoder(ours)}
}

// spanned starts a VM of processes: node 0 is this one. It returns once all are connected and running.
func spanned(t *testing.T, o order) (*testNode, []*process, *history) {
	t.Helper()
	l := o.layout()
	if _, err := uffd.Probe(); err != nil {
		t.Skip(err)
	}
	h, fd := newTestHistory(t, l)
	n, err := newTestNode(0, l)
	if err != nil {
		t.Fatal(err)
	}
	n.fill()
	t.Cleanup(func() {
		if err := n.closeAll(); err != nil {
			t.Error(err)
		}
	})
	offers := make([]map[int][][]byte, l.nodes) // from, to
	offers[0] = map[int][][]byte{}
	var ps []*process
	for i := 1; i < l.nodes; i++ {
		p := spawn(t, fd)
		o.Self = i
		if err := p.in.Encode(o); err != nil {
			t.Fatal(err)
		}
		if err := p.out.Decode(&offers[i]); err != nil {
			t.Fatal(err)
		}
		if offers[0][i], err = n.offers(wire.NodeID(i)); err != nil {
			t.Fatal(err)
		}
		if err := n.connect(wire.NodeID(i), offers[i][0]); err != nil {
			t.Fatal(err)
		}
		ps = append(ps, p)
	}
	for i, p := range ps {
		o.Self, o.Offers = i+1, map[int][][]byte{}
		for from := range l.nodes {
			if from != o.Self {
				o.Offers[from] = offers[from][o.Self]
			}
		}
		if err := p.in.Encode(o); err != nil {
			t.Fatal(err)
		}
	}
	n.start()
	for _, p := range ps {
		p.wait(t)
	}
	for _, p := range ps {
		p.proceed(t)
	}
	return n, ps, h
}

func TestProcesses(t *testing.T) {
	for _, nodes := range []int{2, 3} {
		t.Run(fmt.Sprintf("%d nodes", nodes), func(t *testing.T) {
			o := order{
				Nodes: nodes, Shards: 2, Pages: 64, Slots: 16, Cache: 12, Seed: uint64(time.Now().UnixNano()), For: stressTime(t),
				Tenure: coherence.Tenure{Base: 20 * time.Microsecond, Max: 200 * time.Microsecond, Window: time.Millisecond},
			}
			n, ps, h := spanned(t, o)
			defer guard(t, []*testNode{n}, 60*time.Second)()
			var wg sync.WaitGroup
			until := time.Now().Add(o.For)
			for w := 0; w < h.workers; w += nodes {
				wg.Go(func() {
					if err := n.work(h, w, o.Seed, until); err != nil {
						t.Errorf("seed %d: %v", o.Seed, err)
					}
				})
			}
			wg.Wait()
			for _, p := range ps {
				p.wait(t)
			}
			for _, p := range ps {
				p.proceed(t)
			}
			if err := n.verify(h); err != nil {
				t.Errorf("seed %d: %v", o.Seed, err)
			}
			for _, p := range ps {
				p.wait(t)
			}
			report(t, []*testNode{n})
			for _, p := range ps {
				p.proceed(t)
				if err := p.cmd.Wait(); err != nil {
					t.Errorf("child: %v", err)
				}
			}
			// They closed their ends: each shard hears of each of them once.
			for range (nodes - 1) * o.Shards {
				select {
				case lost := <-n.lost:
					if !errors.Is(lost, fabric.ErrPeerClosed) && !errors.Is(lost, fabric.ErrPeerDied) {
						t.Error(lost)
					}
				case <-time.After(5 * time.Second):
					t.Fatal("the end of a peer was not noticed")
				}
			}
			if err := n.stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestKilledProcess kills a node in mid-run: every shard of the others must say so within a second, and go on.
func TestKilledProcess(t *testing.T) {
	o := order{Nodes: 3, Shards: 2, Pages: 64, Slots: 16, Seed: 1, For: time.Minute}
	n, ps, h := spanned(t, o)
	var wg sync.WaitGroup
	until := time.Now().Add(500 * time.Millisecond)
	for w := 0; w < h.workers; w += o.Nodes {
		wg.Go(func() { _ = n.work(h, w, o.Seed, until) }) // it may be waiting for what died
	}
	time.Sleep(200 * time.Millisecond)
	killed := time.Now()
	if err := ps[0].cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for range o.Shards {
		select {
		case lost := <-n.lost:
			t.Logf("after %v: %v", time.Since(killed), lost)
			if lost.Peer != 1 || !errors.Is(lost, fabric.ErrPeerDied) {
				t.Errorf("lost %v", lost)
			}
		case <-time.After(5 * time.Second):
			t.Fatal("not noticed")
		}
	}
	if took := time.Since(killed); took > time.Second {
		t.Errorf("noticed after %v", took)
	}
	// Pages of node 2 that node 1 had nothing to do with are still served: the loop is alive. Its answer to a
	// message is enough to know.
	before := n.shards[0].Metrics().Rounds.Load()
	n.shards[0].rouse()
	for wait := 0; n.shards[0].Metrics().Rounds.Load() == before && wait < 1000; wait++ {
		time.Sleep(time.Millisecond)
	}
	if n.shards[0].Metrics().Rounds.Load() == before {
		t.Error("the loop stands still")
	}
	select {
	case lost := <-n.lost:
		t.Errorf("reported again: %v", lost)
	case <-time.After(50 * time.Millisecond):
	}
	if err := n.stop(); err != nil {
		t.Error(err)
	}
	for _, u := range n.uffds {
		u.Close() // lets the workers go
	}
	wg.Wait()
}
