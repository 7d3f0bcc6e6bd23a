package engine

import (
	"time"

	"ironspan/engine/coherence"
	"ironspan/engine/control"
	"ironspan/engine/lane"
	"ironspan/engine/spec"
	"ironspan/engine/wire"
	"ironspan/fastpath"
	"ironspan/fastpath/fabric"
	"ironspan/kvmhost"
)

// hotReported is the number of hot pages in a report.
const hotReported = 20

// report collects what the parts have counted. It may be called from the moment n.memory is there.
func (n *node) report() *control.Report {
	r := &control.Report{
		Node: n.self, Name: n.me().Name, VM: n.plan.Name, Seconds: n.seconds(),
		Faults: map[string]control.Latency{}, Stages: map[string]control.Latency{}, Verbs: map[string]control.Ops{}, Exits: map[string]uint64{},
		Counters: map[string]uint64{},
	}
	if !n.ready.Load() {
		return r
	}
	faults, stages := histograms{}, histograms{}
	for _, s := range n.memory.shards {
		snap := s.Snapshot()
		faults.add(snap.Latency)
		stages.add(snap.Stages)
		addAgent(r.Counters, &snap.Agent)
		r.Counters["faults"] += snap.Faults
		r.Counters["installed_together"] += snap.Batched
		r.Counters["zero_pages_sent"] += snap.ZeroPages
		r.Counters["shard_sleeps"] += snap.Sleeps
		for _, h := range snap.Hot {
			if len(r.HotPages) < hotReported {
				r.HotPages = append(r.HotPages, control.HotPage{
					Page: h.Page, GPA: spec.PFNToGPA(h.Page), Moves: h.Moves, TenureNS: uint64(h.Tenure),
				})
			}
		}
	}
	faults.report(r.Faults)
	stages.report(r.Stages)
	for _, l := range n.memory.lanes {
		for v := range fabric.Verbs {
			c := &l.Stats().Posted[v]
			o := r.Verbs[v.String()]
			o.Ops += c.Ops.Load()
			o.Bytes += c.Bytes.Load()
			r.Verbs[v.String()] = o
		}
	}
	r.Counters["cores_awake_ns"] = uint64(n.awakeNs.Load())
	r.Counters["huge_page_bytes"] = n.memory.ram.HugeBytes()
	n.reportVCPUs(r)
	l := n.lane.Stats()
	r.Counters["lane_ipis_sent"] = l.SentIPIs
	r.Counters["lane_ipis_received"] = l.ReceivedIPIs
	r.Counters["lane_reads"] = l.Reads
	r.Counters["lane_writes"] = l.Writes
	r.Counters["lane_served"] = l.Served
	r.Counters["lane_dropped"] = l.Dropped
	if n.self != lane.Platform {
		khz := n.me().TSCKHz
		r.Counters["clock_error_ns"] = uint64(kvmhost.TSCToNs(l.RoundTrip/2, khz))
		r.Counters["clock_drift_ns"] = uint64(kvmhost.TSCToNs(uint64(max(l.Drift, -l.Drift)), khz))
	}
	return r
}

// histograms are sums over shards, by name.
type histograms map[string]fastpath.HistogramSnapshot

func (hs histograms) add(more map[string]fastpath.HistogramSnapshot) {
	for name, h := range more {
		sum := hs[name]
		sum.Merge(h)
		hs[name] = sum
	}
}

func (hs histograms) report(to map[string]control.Latency) {
	for name, h := range hs {
		l := control.Latency{
			Count: h.Count, SumNS: h.Sum, P50NS: uint64(h.Quantile(0.5)), P99NS: uint64(h.Quantile(0.99)),
			P999NS: uint64(h.Quantile(0.999)), MaxNS: h.Max,
		}
		for _, b := range h.Buckets {
			l.Buckets = append(l.Buckets, [2]uint64{b.Top, b.Count})
		}
		to[name] = l
	}
}

func (n *node) reportVCPUs(r *control.Report) {
	for i, id := range n.me().APICIDs {
		stats := n.vm.Stats(i)
		v := control.VCPUReport{APICID: id, Exits: map[string]uint64{}}
		for _, c := range kvmhost.Counters() {
			if stats[c] != 0 {
				v.Exits[c.String()] = stats[c]
				r.Exits[c.String()] += stats[c]
			}
		}
		v.Online = n.self == lane.Platform && i == 0 || stats[kvmhost.StartupsTaken] > 0
		r.VCPUs = append(r.VCPUs, v)
	}
}

// seconds is how long the VM has been running here.
func (n *node) seconds() float64 {
	from := n.started.Load()
	if from == 0 {
		return 0
	}
	to := n.endedAt.Load()
	if to == 0 {
		to = time.Now().UnixNano()
	}
	return float64(to-from) / 1e9
}

// addAgent adds the protocol's counters.
func addAgent(c map[string]uint64, s *coherence.Stats) {
	c["read_faults"] += s.ReadFaults
	c["write_faults"] += s.WriteFaults
	c["upgrade_faults"] += s.UpgradeFaults
	c["stale_faults"] += s.StaleFaults
	c["follower_faults"] += s.FollowerFaults
	c["companions"] += s.Companions
	c["prefetches"] += s.Prefetches
	c["migrations"] += s.Migrations
	c["upgrades_bare"] += s.UpgradesBare
	c["upgrades_carried"] += s.UpgradesCarried
	c["zero_grants"] += s.ZeroGrants
	c["home_grants"] += s.HomeGrants
	c["forwards"] += s.Forwards
	c["invalidates"] += s.Invalidates
	c["moves"] += s.Moves
	c["ping_pongs"] += s.PingPongs
	c["frame_waits"] += s.FrameWaits
	c["cached_pages"] += s.Cached
	c["cached_pages_most"] += s.CachedMost
	c["evictions_clean"] += s.EvictionsClean
	c["evictions_dirty"] += s.EvictionsDirty
	c["fetches"] += s.Fetches
	c["returns"] += s.Returns
	c["covered"] += s.Covered
	c["deferred"] += s.Deferred
	c["deferred_ns"] += s.DeferredNs
	c["pages_sent"] += s.PagesSent
	for k := wire.CoherenceFirst; k <= wire.CoherenceLast; k++ {
		c["sent_"+k.String()] += s.Sent[k]
	}
	for _, d := range s.Dropped {
		c["messages_refused"] += d
	}
}
