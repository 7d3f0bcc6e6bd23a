package engine

import (
	"context"
	"fmt"
	"time"

	"ironspan/engine/coherence"
	"ironspan/engine/control"
	"ironspan/engine/lane"
	"ironspan/engine/spec"
	"ironspan/engine/wire"
)

// Losses implements control.Machine.
func (m *Machine) Losses(_ context.Context, lost []wire.NodeID) (*control.LossPart, error) {
	n := m.current()
	if n == nil {
		return nil, errIdle
	}
	return n.losses(lost), nil
}

// losses gathers what the shards' agents say. The shards have had from the end of the VM until now to take in what was
// still on its way between the nodes that are left; now they end, and nobody else touches the agents.
func (n *node) losses(lost []wire.NodeID) *control.LossPart {
	n.memory.stopShards()
	var set uint64
	for _, l := range lost {
		set |= 1 << l
	}
	var runs [coherence.Uncertain + 1][]control.PageRun
	var more [coherence.Uncertain + 1]uint64
	for _, a := range n.memory.agents {
		room := [coherence.Uncertain + 1]int{
			coherence.Kept: control.MaxPageRuns, coherence.Lost: control.MaxPageRuns, coherence.Uncertain: control.MaxPageRuns,
		}
		a.Losses(set, func(r coherence.Range, f coherence.Fate) {
			pages := uint64(r.Last - r.First)
			if room[f] == 0 {
				more[f] += pages
				return
			}
			room[f]--
			runs[f] = append(runs[f], control.PageRun{First: r.First, Pages: pages})
		})
	}
	of := func(f coherence.Fate) control.PageSet { return control.NewPageSet(runs[f], more[f]) }
	return &control.LossPart{Kept: of(coherence.Kept), Lost: of(coherence.Lost), Uncertain: of(coherence.Uncertain)}
}

// watchWaiting ends the VM when there is no answer about a page or a device. The mesh sees a peer that dies or goes silent
// as a whole, and queue pairs see their own end; this is for a peer that goes on living without taking part, and for a
// message that was refused: nobody sends it again. Patience is the time in which a silent peer counts as lost, after all
// others may have had the page before, each for the longest tenure.
func (n *node) watchWaiting() {
	patience := n.plan.Timeouts.Lost.Std() + time.Duration(len(n.plan.Nodes))*n.plan.Tenure.Max.Std()
	type since struct {
		id uint32
		at time.Time
	}
	watched := make([]since, len(n.memory.shards)+len(n.me().APICIDs))
	tick := time.NewTicker(max(patience/4, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-n.ended:
			return
		case <-tick.C:
		}
		for i := range watched {
			w, o := n.waiting(i), &watched[i]
			if w.id == 0 || w.id != o.id {
				*o = since{w.id, time.Now()}
				continue
			}
			if waited := time.Since(o.at); waited >= patience {
				n.end(w.outcome(n.self, waited))
				return
			}
		}
	}
}

// waiting is something that there may be no answer to.
type waiting struct {
	id     uint32 // tells it from others of the same shard or vCPU; 0: there is nothing
	on     wire.NodeID
	page   wire.PFN
	device bool // a device of node 0, and no page
}

// waiting returns what the shard with that number waits for, or the vCPU, which come after the shards.
func (n *node) waiting(i int) waiting {
	if i < len(n.memory.shards) {
		w := n.memory.shards[i].Oldest()
		return waiting{id: w.Txn, on: w.For, page: w.Page}
	}
	return waiting{id: n.lane.Waiting(i - len(n.memory.shards)), on: lane.Platform, device: true}
}

// outcome is how the VM ends for it.
func (w waiting) outcome(self wire.NodeID, waited time.Duration) control.Outcome {
	about := "a device"
	if !w.device {
		about = fmt.Sprintf("the page at %#x", spec.PFNToGPA(w.page))
	}
	reason := fmt.Sprintf("no answer for %v about %s", waited.Round(time.Millisecond), about)
	if w.on == self {
		return control.Outcome{Kind: control.Failed, Reason: reason}
	}
	return control.LostNode(w.on, reason)
}
