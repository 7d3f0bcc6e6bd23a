package show

import (
	"errors"
	"strings"
	"testing"
	"time"

	"ironspan/perf/internal/result"
)

func TestRun(t *testing.T) {
	r := result.New("host", "0123abc")
	r.Began, r.Seconds = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), 12
	r.Machine = map[string]string{"kernel": "6.12", "cores": "2"}
	rec := r.Record("fault/read", result.Latency, result.Labels{"nodes": "2"})
	for _, v := range []int64{1000, 2000, 3000} {
		rec.Add(v)
	}
	rec.End()
	rec.Stages(result.Stage{Name: "request", Count: 3, MeanNs: 1500, P50Ns: 1400, P99Ns: 1900},
		result.Stage{Name: "revoke", Count: 1, MeanNs: 1500, P50Ns: 1500, P99Ns: 1500})
	r.Record("scan", result.Bandwidth, nil).Value(2.5e9)
	r.Miss("peer/nvmeof", errors.New("nvmet-rdma: module absent"))
	r.Judge(result.Ratio{Name: "fault", Numerator: []string{"fault/read{nodes=2}"}, Denominator: []string{"fault/read{nodes=2}"}, Bound: 1.25})
	r.Judge(result.Ratio{Name: "peer", Numerator: []string{"peer/nvmeof"}, Bound: 2, AtLeast: true})
	var b strings.Builder
	if err := Run(&b, r); err != nil {
		t.Fatal(err)
	}
	want := `host, 2026-01-02 03:04, 12 s, commit 0123abc
  cores   2
  kernel  6.12

Samples
  series               min   p50   p90      p99      p99.9    max      samples  rounds
  fault/read{nodes=2}  1 us  2 us  3.00 us  3.00 us  3.00 us  3.00 us  3        1

One number for each round
  series  min        median     max        rounds
  scan    2.50 GB/s  2.50 GB/s  2.50 GB/s  1

Stages of fault/read{nodes=2}
  stage    p50      share  p99      mean     samples
  request  1.40 us  74 %   1.90 us  1.50 us  3
  revoke   1.50 us  26 %   1.50 us  1.50 us  1
  sum      1.90 us  95 % of p50

Ratios of medians
  ratio  bound         value  95 % interval  verdict       reason
  fault  at most 1.25  1      1 to 1         met
  peer   at least 2                          not measured  nvmet-rdma: module absent

Not measured
  series       reason
  peer/nvmeof  nvmet-rdma: module absent
`
	if got := b.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
