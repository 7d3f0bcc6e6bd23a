package micro

import (
	"strconv"

	"ironspan/perf/internal/result"
)

// Judge holds the figures against their bounds, as far as the suite measures what they need: the others need the raw
// verbs beside them.
func Judge(run *result.Run, c Scale) {
	fabric := run.Machine["fabric"]
	key := func(name string, labels ...string) []string {
		l := result.Labels{}
		for i := 0; i < len(labels); i += 2 {
			l[labels[i]] = labels[i+1]
		}
		return []string{result.Key(name, l)}
	}
	sharers := func(n int) []string {
		return key("fault/write", "fabric", fabric, "nodes", strconv.Itoa(2+n), "sharers", strconv.Itoa(n))
	}
	run.Judge(result.Ratio{
		Name: "write fault with 3 sharers over the same with 1", Numerator: sharers(3), Denominator: sharers(1), Bound: 1.3,
	})
	crowd := func(n int) []string {
		return key("fault/concurrent", "fabric", fabric, "vcpus", strconv.Itoa(n), "shards", strconv.Itoa(n))
	}
	most := c.VCPUs[len(c.VCPUs)-1]
	concurrent := result.Ratio{
		Name:      strconv.Itoa(most) + " vCPUs faulting at once on as many shards over 1 on 1",
		Numerator: crowd(most), Denominator: crowd(1), Bound: 1.3,
	}
	if cores := run.Machine["cores"]; !enough(cores, 4*most) {
		run.NotMeasured(concurrent, "the machine has "+cores+" cores for the "+strconv.Itoa(4*most)+
			" threads of both nodes' vCPUs and shards, so that they wait for cores and not for each other")
	} else {
		run.Judge(concurrent)
	}
	size := strconv.FormatUint(c.walkSize(), 10)
	run.Judge(result.Ratio{
		Name: "local memory never shared, random walk, over plain KVM", Bound: 1.02,
		Numerator:   key("local/walk", "size", size, "memory", "home"),
		Denominator: key("local/walk", "size", size, "memory", "plain"),
	})
	run.Judge(result.Ratio{Name: "allocations per fault", Numerator: key("fault/allocations", "fabric", "shm"), Bound: 0})
}

// enough says whether there are as many cores as threads.
func enough(cores string, threads int) bool {
	n, err := strconv.Atoi(cores)
	return err == nil && n >= threads
}
