package result

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// sample is a run with each kind of thing in it.
func sample(t testing.TB) *Run {
	t.Helper()
	r := New("host", "0123abc")
	draw := rand.New(rand.NewPCG(1, 2))
	for round := range 5 {
		for sharers, base := range []int64{2000, 2600} {
			rec := r.Record("fault/write", Latency, Labels{"sharers": string(rune('0' + sharers))})
			rec.Begin()
			for range 100 {
				rec.Add(base + draw.Int64N(base))
			}
			rec.End()
			h := NewHistogram()
			h.Add(base / 2)
			rec.Stages(StageOf("request", h), StageOf("data", h))
		}
		r.Record("scan", Bandwidth, nil).Value(1e9 + float64(round)*1e6)
	}
	r.Miss("peer/nvmeof", errors.New("nvmet-rdma: module absent"))
	r.Judge(Ratio{Name: "sharers", Numerator: []string{"fault/write{sharers=1}"}, Denominator: []string{"fault/write{sharers=0}"}, Bound: 1.4})
	r.Judge(Ratio{Name: "peer", Numerator: []string{"peer/nvmeof/read"}, Denominator: []string{"scan"}, Bound: 2, AtLeast: true})
	return r
}

func TestFileKeepsARun(t *testing.T) {
	want := sample(t)
	want.Ended()
	file := filepath.Join(t.TempDir(), "build", "bench", "host.json")
	if err := want.Write(file); err != nil {
		t.Fatal(err)
	}
	got, err := Read(file)
	if err != nil {
		t.Fatal(err)
	}
	same := cmp.Options{
		cmpopts.IgnoreUnexported(Run{}),
		cmp.Comparer(func(a, b *Histogram) bool { return a == b || a != nil && b != nil && a.hdr.Equals(b.hdr) }),
	}
	if diff := cmp.Diff(want, got, same); diff != "" {
		t.Errorf("wrote (-), read (+):\n%s", diff)
	}
}

func TestRecorder(t *testing.T) {
	r := New("host", "x")
	rec := r.Record("a/b", Latency, nil)
	rec.End()
	if len(r.Series) != 0 {
		t.Error("a series without a round is in the run")
	}
	rec.Add(1)
	rec.Begin() // forgets the warm-up
	for v := range int64(101) {
		rec.Add(v)
	}
	rec.Add(math.MaxInt64)
	rec.Add(-5)
	rec.End()
	h := NewHistogram()
	h.AddN(7, 3)
	rec.Merge(h)
	rec.End()
	s := r.Find("a/b")
	if s == nil || s.Count != 106 || len(s.Rounds) != 2 || s.Min != 0 || s.Max < histogramMax || s.Rounds[0].P50 != 50 || s.Rounds[1].P50 != 7 {
		t.Errorf("%+v", s)
	}
	if r.Record("a/b", Latency, nil) != rec {
		t.Error("another recorder for the same series")
	}
	defer func() {
		if recover() == nil {
			t.Error("a series in two units")
		}
	}()
	r.Record("a/b", Bandwidth, nil)
}

func TestRecordingDoesNotAllocate(t *testing.T) {
	rec := New("host", "x").Record("a", Latency, nil)
	v := int64(1)
	if n := testing.AllocsPerRun(1000, func() { rec.Add(v); v += v/8 + 1 }); n != 0 {
		t.Errorf("%v allocations for a sample", n)
	}
}

func TestKey(t *testing.T) {
	if got := Key("a/b", Labels{"sharers": "3", "nodes": "4"}); got != "a/b{nodes=4,sharers=3}" {
		t.Error(got)
	}
	if got := Key("a/b", nil); got != "a/b" {
		t.Error(got)
	}
}

func TestSelect(t *testing.T) {
	r := sample(t)
	for prefix, want := range map[string]int{"": 3, "fault": 2, "fault/": 2, "fault/write": 2, "fau": 0, "scan": 1} {
		if got := len(r.Select(prefix)); got != want {
			t.Errorf("%q: %d series, want %d", prefix, got, want)
		}
	}
}

func TestMedian(t *testing.T) {
	for _, test := range []struct {
		values []float64
		want   float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1}, 5}, {[]float64{3, 1, 2}, 2}, {[]float64{4, 1, 3, 2}, 2.5}} {
		if got := Median(test.values); got != test.want {
			t.Errorf("%v: %v", test.values, got)
		}
	}
}

func TestInterleave(t *testing.T) {
	r := New("host", "x")
	var turns []string
	part := func(name string, failsIn int) Part {
		return Part{name, func(_ context.Context, round int) error {
			turns = append(turns, name)
			if failsIn >= 0 && round >= failsIn {
				return errors.New("lost")
			}
			return nil
		}}
	}
	if err := r.Interleave(context.Background(), 20, 1, part("a", -1), part("b", 3), part("c", -1)); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(turns[:3], []string{"a", "b", "c"}) {
		t.Errorf("the first round is %v", turns[:3])
	}
	orders := map[string]bool{}
	for i := 15; i+1 < len(turns); i += 2 {
		pair := slices.Sorted(slices.Values(turns[i : i+2]))
		if !slices.Equal(pair, []string{"a", "c"}) {
			t.Fatalf("turns %v", turns)
		}
		orders[strings.Join(turns[i:i+2], "")] = true
	}
	if len(turns) != 60-15 || len(orders) != 2 {
		t.Errorf("%d turns, orders %v", len(turns), orders)
	}
	if !slices.Equal(r.Missing, []Missing{{"b", "lost"}, {"b", "lost"}}) {
		t.Errorf("missing %v", r.Missing)
	}
	rounds := 0
	now := Part{"now and then", func(_ context.Context, round int) error {
		if rounds++; round%2 == 0 {
			return errors.New("lost")
		}
		return nil
	}}
	if err := r.Interleave(context.Background(), 6, 1, now); err != nil || rounds != 6 {
		t.Errorf("a part that fails every other time had %d rounds, %v", rounds, err)
	}
	ended, end := context.WithCancel(context.Background())
	end()
	if err := r.Interleave(ended, 1, 1, part("d", -1)); !errors.Is(err, context.Canceled) {
		t.Errorf("%v after the context's end", err)
	}
}

func TestMerge(t *testing.T) {
	r, o := New("lab", "x"), sample(t)
	o.Machine = map[string]string{"kernel": "other", "cores": r.Machine["cores"]}
	if err := r.Merge("server", o); err != nil {
		t.Fatal(err)
	}
	if len(r.Series) != 3 || len(r.Ratios) != 2 || len(r.Missing) != 1 || r.Machine["server/kernel"] != "other" || r.Machine["server/cores"] != "" {
		t.Errorf("%+v", r)
	}
	if err := r.Merge("server", o); err == nil || !strings.Contains(err.Error(), "fault/write{sharers=0}") {
		t.Errorf("%v for a series that both have", err)
	}
}

// A pool has one round for each run, of what all of them have.
func TestPool(t *testing.T) {
	a, b := sample(t), sample(t)
	a.Machine, b.Machine = map[string]string{"kernel": "6.1", "cpu": "x"}, map[string]string{"kernel": "6.12", "cpu": "x"}
	a.Record("only/here", Latency, nil).Value(1)
	a.Record("other/unit", Latency, nil).Value(1)
	b.Record("other/unit", Rate, nil).Value(1)
	pool, err := Pool(a, b)
	if err != nil {
		t.Fatal(err)
	}
	if err := pool.check(); err != nil {
		t.Error(err)
	}
	if len(pool.Series) != 3 || pool.Machine["kernel"] != "6.1 | 6.12" || pool.Machine["cpu"] != "x" || pool.Commit != "0123abc" {
		t.Errorf("%+v", pool)
	}
	for _, s := range pool.Series {
		one := a.Find(s.Key())
		if len(s.Rounds) != 2 || s.Rounds[0].P50 != Median(one.Medians()) || s.P50 != one.P50 {
			t.Errorf("%+v", s)
		}
	}
	if same, err := Pool(a); same != a || err != nil {
		t.Errorf("a pool of one: %v", err)
	}
	if _, err := Pool(); err == nil {
		t.Error("a pool of none")
	}
}

func TestDecodeRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a.json")
	if err := sample(t).Write(file); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	good := string(data)
	wide, err := (&Histogram{hdrhistogram.New(1, 1<<50, 4)}).MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	first := good[strings.Index(good, `"histogram": "`)+len(`"histogram": `):]
	first = first[:strings.Index(first[1:], `"`)+2]
	replace := func(old, new string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("no %s in %s", old, good)
		}
		return strings.Replace(good, old, new, 1)
	}
	for _, test := range []struct{ name, text, want string }{
		{"nothing", "", "cut off after 0 bytes"},
		{"half", good[:len(good)/2], "cut off"},
		{"text", "goos: linux", "no JSON"},
		{"a list", "[]", "cannot unmarshal"},
		{"foreign JSON", `{"ok":true}`, "no result of perf"},
		{"another version", replace(`"schema": 1`, `"schema": 7`), "measure again"},
		{"a version in words", replace(`"schema": 1`, `"schema": "one"`), "measure again"},
		{"unit", replace(`"unit": "ns"`, `"unit": "furlong"`), "furlong"},
		{"better", replace(`"better": "lower"`, `"better": "left"`), "left"},
		{"no name", replace(`"name": "scan"`, `"name": ""`), "name is empty"},
		{"twice the same", replace(`"sharers": "1"`, `"sharers": "0"`), "two series"},
		{"round", replace(`"count": 100`, `"count": 0`), "round 0 is empty"},
		{"count", replace(`"count": 100`, `"count": 99`), "500 samples, and 499 in rounds"},
		{"verdict", replace(`"verdict": "met"`, `"verdict": "perhaps"`), "perhaps"},
		{"null", `{"schema":1,"series":[null]}`, "series 0 is null"},
		{"histogram", replace(first, `"AAAA"`), "too short"},
		{"histogram of other geometry", replace(first, string(wide)), "digits"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := Decode([]byte(test.text)); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q in it", err, test.want)
			}
		})
	}
}

func TestReadSaysWhichFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.json")
	if err := os.WriteFile(file, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{file, file + ".absent"} {
		if _, err := Read(name); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%v", err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	file := filepath.Join(f.TempDir(), "a.json")
	if err := sample(f).Write(file); err != nil {
		f.Fatal(err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add(data[:len(data)-200])
	f.Add([]byte(`{"schema":1,"series":[null],"ratios":[null]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := Decode(data)
		if err != nil {
			return
		}
		for _, s := range r.Series {
			_, _ = s.Key(), s.Medians()
			if s.Histogram != nil {
				s.Histogram.Steps()
			}
		}
		out := filepath.Join(t.TempDir(), "again.json")
		if err := r.Write(out); err != nil {
			t.Fatalf("read, but not to be written: %v", err)
		}
		if _, err := Read(out); err != nil {
			t.Fatalf("written, but not to be read: %v", err)
		}
	})
}
