package engine

import (
	"context"

	"ironspan/engine/coherence"
	"ironspan/engine/control"
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
