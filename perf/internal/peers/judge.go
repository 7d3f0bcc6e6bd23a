package peers

import (
	"strconv"

	"ironspan/perf/internal/result"
)

// Judge holds what Ironspan takes, in a run that has its microbenchmarks too, against the raw device and its peers.
// Where a series was measured in several ways, polling and sleeping, the better one counts, for either side.
func Judge(run *result.Run) {
	pageSizes := strconv.Itoa(pageSize)
	fault := pick(run, "fault/read/clean-at-home", nil)
	asked := pick(run, "fault/read/asked", nil)
	read := pick(run, "raw/read", result.Labels{"size": pageSizes})
	run.Judge(result.Ratio{
		Name:        "remote read fault, clean at home, asked of it, over raw transfer and userfault floor",
		Numerator:   []string{asked},
		Denominator: []string{pick(run, "raw/page-exchange", result.Labels{"size": pageSizes}), pick(run, "floor/userfault", nil)},
		Bound:       1.25,
	})
	run.Judge(result.Ratio{
		Name: "remote read fault, clean at home, over raw RDMA READ", Numerator: []string{fault}, Denominator: []string{read}, Bound: 1.6,
	})
	run.Judge(result.Ratio{
		Name: "the same where each fault asks the home, over raw RDMA READ", Numerator: []string{asked}, Denominator: []string{read},
		Bound: 1.6,
	})
	run.Judge(result.Ratio{
		Name: "sequential scan with prefetch as part of raw RDMA bandwidth", Bound: 0.8, AtLeast: true,
		Numerator:   []string{pick(run, "scan/sequential", nil)},
		Denominator: []string{pick(run, "raw/write/bandwidth", result.Labels{"size": pageSizes})},
	})
	random := pick(run, "random/read", nil)
	run.Judge(result.Ratio{
		Name: "swap on NVMe-oF over random access beyond the local budget", Bound: 2, AtLeast: true,
		Numerator: []string{pick(run, swapNVMe+"/read/all", nil)}, Denominator: []string{random},
	})
	run.Judge(result.Ratio{
		Name: "swap on NBD over random access beyond the local budget", Bound: 4, AtLeast: true,
		Numerator: []string{pick(run, swapNBD+"/read/all", nil)}, Denominator: []string{random},
	})
	run.Judge(result.Ratio{
		Name: "page request of QEMU's post-copy over remote read fault", Bound: 2, AtLeast: true,
		Numerator: []string{pick(run, migration+"/read/fault", nil)}, Denominator: []string{fault},
	})
	run.Judge(result.Ratio{
		Name: "IPI between servers over a raw 64 B write", Bound: 2,
		Numerator:   []string{pick(run, "ipi", nil)},
		Denominator: []string{pick(run, "raw/write-imm", nil)},
	})
}

// pick is the key of the best series that has a name and some labels; where there is none, the one that is missing.
func pick(run *result.Run, name string, labels result.Labels) string {
	var best *result.Series
	for _, s := range run.Select(name) {
		if s.Name != name || !has(s.Labels, labels) {
			continue
		}
		if best == nil || s.P50 != best.P50 && s.P50 > best.P50 == (s.Better == result.Higher) {
			best = s
		}
	}
	if best == nil {
		return result.Key(name, labels)
	}
	return best.Key()
}

func has(labels, wanted result.Labels) bool {
	for name, value := range wanted {
		if labels[name] != value {
			return false
		}
	}
	return true
}
