package plots

import (
	"bytes"
	"errors"
	"fmt"
	"image/png"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gonum.org/v1/plot"

	"ironspan/perf/internal/result"
)

// made is a run with something for each kind of figure.
func made() *result.Run {
	r := result.New("host", "0123456789abcdef")
	r.Machine = map[string]string{"cpu": "Example 9000", "cores": "8", "kernel": "6.12.9", "fabric": "shm"}
	draw := rand.New(rand.NewPCG(5, 0))
	scattered := func(median, spread float64) float64 { return median * math.Exp(spread*draw.NormFloat64()) }
	latency := func(name string, median float64, labels result.Labels) *result.Recorder {
		rec := r.Record(name, result.Latency, labels)
		for range 5 {
			for range 2000 {
				v := scattered(median, 0.12)
				if draw.IntN(150) == 0 {
					v = scattered(12*median, 0.4)
				}
				rec.Add(int64(v))
			}
			rec.End()
		}
		return rec
	}
	stage := func(name string, median float64) result.Stage {
		h := result.NewHistogram()
		for range 10000 {
			h.Add(int64(scattered(median, 0.1)))
		}
		return result.StageOf(name, h)
	}
	parts := func(rec *result.Recorder, median float64, shares ...float64) {
		var all []result.Stage
		for i, name := range []string{"fault delivery", "queueing", "request", "home", "revoke", "data", "install", "resume"} {
			if shares[i] > 0 {
				all = append(all, stage(name, median*shares[i]))
			}
		}
		rec.Stages(all...)
	}
	parts(latency("fault/read/clean-at-home", 9000, nil), 9000, 0.2, 0.05, 0.15, 0.1, 0, 0.2, 0.2, 0.1)
	parts(latency("fault/read/dirty-at-home", 11000, nil), 11000, 0.15, 0.05, 0.15, 0.1, 0.15, 0.15, 0.15, 0.1)
	parts(latency("fault/read/dirty-elsewhere", 16000, nil), 16000, 0.1, 0.05, 0.2, 0.15, 0.15, 0.15, 0.1, 0.1)
	for n := range 4 {
		latency("fault/write", 10000+900*float64(n), result.Labels{"sharers": fmt.Sprint(n)})
	}
	latency("fault/upgrade", 7000, nil)
	latency("fault/zero", 5000, nil)
	latency("raw/read", 2600, result.Labels{"size": "4096"}).Control()
	latency("floor/uffd", 4300, nil).Control()
	for size := 64; size <= 1<<20; size *= 2 {
		for _, verb := range []string{"read", "write"} {
			rec := r.Record("raw/"+verb+"/bandwidth", result.Bandwidth, result.Labels{"size": fmt.Sprint(size), "fabric": "shm"})
			peak := 9e9
			if verb == "write" {
				peak = 11e9
			}
			for range 5 {
				rec.Value(scattered(peak*float64(size)/(float64(size)+16384), 0.03))
			}
		}
	}
	for _, vcpus := range []float64{1, 2, 4, 8} {
		for _, shards := range []string{"1", "4"} {
			rec := r.Record("scaling/faults", result.Rate, result.Labels{"vcpus": fmt.Sprint(vcpus), "shards": shards})
			for range 5 {
				rec.Value(scattered(110e3*math.Min(vcpus, 1.3*float64(shards[0]-'0')), 0.03))
			}
		}
	}
	for _, us := range []float64{0, 5, 10, 20, 50, 100, 200, 500, 1000} {
		rec := r.Record("tenure/throughput", result.Rate, result.Labels{"tenure": fmt.Sprint(us * 1000)})
		for range 5 {
			rec.Value(scattered(2e6*us/(us+60), 0.05))
		}
	}
	r.Judge(result.Ratio{
		Name: "remote read fault, clean at home, over raw transfer and floor", Numerator: []string{"fault/read/clean-at-home"},
		Denominator: []string{"raw/read{size=4096}", "floor/uffd"}, Bound: 1.25,
	})
	r.Judge(result.Ratio{
		Name: "write fault, 3 sharers over 1", Numerator: []string{"fault/write{sharers=3}"},
		Denominator: []string{"fault/write{sharers=1}"}, Bound: 1.3,
	})
	r.Judge(result.Ratio{Name: "fault against NVMe-oF", Numerator: []string{"peer/nvmeof"}, Bound: 2, AtLeast: true})
	r.Miss("peer/nvmeof", errors.New("nvmet-rdma: module absent"))
	return r
}

// coarse is a resolution for tests, which take their time for each pixel.
const coarse = 30

// Each figure becomes both files, and the picture is one.
func TestDraw(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "plots")
	files, err := drawAt(coarse, made(), dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(filepath.Base(file), filepath.Ext(file))
		if filepath.Ext(file) == ".svg" {
			names = append(names, name)
			if !bytes.Contains(data, []byte("</svg>")) || !bytes.Contains(data, []byte("kernel 6.12.9")) {
				t.Errorf("%s: no end, or no caption", file)
			}
			continue
		}
		picture, err := png.Decode(bytes.NewReader(data))
		if err != nil {
			t.Errorf("%s: %v", file, err)
		} else if size := picture.Bounds().Size(); size.X < 280 || size.Y < 60 {
			t.Errorf("%s: %v", file, size)
		}
	}
	want := []string{
		"ratios", "cdf-fault-read", "cdf-fault-write", "cdf-fault", "cdf-raw", "cdf-floor",
		"cdf-ratio-remote-read-fault-clean-at-home-over-raw-transfer-and-floor", "cdf-ratio-write-fault-3-sharers-over-1",
		"stages-fault", "over-sharers-fault-time", "over-size-raw-bandwidth", "over-tenure-tenure-rate", "over-vcpus-scaling-rate",
	}
	if !slices.Equal(names, want) || len(files) != 2*len(want) {
		t.Errorf("figures %q", names)
	}
}

// What little there is can be drawn, and nothing at all.
func TestDrawExtremes(t *testing.T) {
	r := result.New("host", "")
	rec := r.Record("zero", result.Latency, nil)
	rec.Add(0)
	rec.End()
	rec.Stages(result.Stage{Name: "nothing", Count: 1})
	end := r.Record("end", result.Latency, nil)
	end.Add(math.MaxInt64)
	end.End()
	for i := range 30 {
		many := r.Record("many", result.Latency, result.Labels{"long-and-telling-label-of-this-series": fmt.Sprint(i * i * i), "odd": "word"})
		many.Add(int64(1000 + i))
		many.End()
	}
	for _, x := range []string{"0", "1", "3", "none", "NaN"} {
		r.Record("flat", result.Count, result.Labels{"x": x}).Value(0)
		r.Record("negative", result.Count, result.Labels{"x": x}).Value(-5)
	}
	r.Judge(result.Ratio{Name: strings.Repeat("a very long name ", 20), Numerator: []string{"end"}, Bound: 1})
	long := r.Record(strings.Repeat("long", 100), result.Latency, nil)
	long.Value(7)
	long.Stages(result.Stage{Name: strings.Repeat("stage", 50), Count: 1, P50Ns: 5})
	for _, run := range []*result.Run{r, result.New("host", "")} {
		if _, err := drawAt(coarse, run, t.TempDir()); err != nil {
			t.Error(err)
		}
	}
}

func TestByFolder(t *testing.T) {
	var all []*result.Series
	for _, name := range []string{"a/x/1", "a/x/2", "a/x/3", "a/y/1", "a/y/2", "a/y/3", "a/z", "a/w", "a/v", "b/1", "b/2", "c"} {
		all = append(all, &result.Series{Name: name})
	}
	var got []string
	for _, g := range byFolder(all) {
		got = append(got, fmt.Sprint(g.name, " ", len(g.series)))
	}
	if want := []string{"a/x 3", "a/y 3", "a 3", "b 2", "c 1"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// Labels that go along with each other are one axis.
func TestCurves(t *testing.T) {
	var all []*result.Series
	for n := range 3 {
		for _, fabric := range []string{"shm", "rdma"} {
			all = append(all, &result.Series{Name: "write", Labels: result.Labels{
				"sharers": fmt.Sprint(2 - n), "nodes": fmt.Sprint(4 - n), "fabric": fabric, "size": "4096",
			}})
		}
		all = append(all,
			&result.Series{Name: "word", Labels: result.Labels{"sharers": "some"}},
			&result.Series{Name: "two", Labels: result.Labels{"sharers": fmt.Sprint(n % 2), "other": fmt.Sprint(n)}},
		)
	}
	for label, want := range map[string]int{"sharers": 2, "nodes": 0, "size": 0, "fabric": 0} {
		lines := curves(all, label)
		if len(lines) != want {
			t.Errorf("%s: %d lines, want %d", label, len(lines), want)
		}
		for _, c := range lines {
			if !slices.Equal(c.x, []float64{0, 1, 2}) || c.series[0].Labels["nodes"] != "2" {
				t.Errorf("%s: %+v", label, c)
			}
		}
	}
}

func TestStagesKeepTheirOrder(t *testing.T) {
	series := func(names ...string) *result.Series {
		s := &result.Series{}
		for _, name := range names {
			s.Stages = append(s.Stages, result.Stage{Name: name})
		}
		return s
	}
	got := stageNames([]*result.Series{series("fault", "data", "resume"), series("fault", "revoke", "data", "end"), series("before", "fault")})
	if want := []string{"before", "fault", "revoke", "data", "end", "resume"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestTicks(t *testing.T) {
	labels := func(ticks []plot.Tick) string {
		var all []string
		for _, tick := range ticks {
			if tick.Label != "" {
				all = append(all, tick.Label)
			}
		}
		return strings.Join(all, ", ")
	}
	for _, test := range []struct{ name, got, want string }{
		{"decades", labels(decades(800, 2e6, result.Latency)), "1 us, 10 us, 100 us, 1 ms"},
		{"less than two", labels(decades(900, 30e3, result.Latency)), "1 us, 2 us, 5 us, 10 us, 20 us"},
		{"half of one", labels(decades(8000, 20e3, result.Latency)), "8 us, 9 us, 10 us, 20 us"},
		{"a little", labels(decades(2000, 2600, result.Latency)), "2 us, 2.10 us, 2.20 us, 2.30 us, 2.40 us, 2.50 us, 2.60 us"},
		{"even", labels(even(0, 12.6e9, result.Bandwidth)), "0 B/s, 2 GB/s, 4 GB/s, 6 GB/s, 8 GB/s, 10 GB/s, 12 GB/s"},
		{"nines", labels(nineTicks(4)), "0, 50 %, 90 %, 99 %, 99.9 %, 99.99 %"},
	} {
		if test.got != test.want {
			t.Errorf("%s: %s, want %s", test.name, test.got, test.want)
		}
	}
}
