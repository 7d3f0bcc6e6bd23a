package raw

import (
	"bufio"
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"ironspan/verbs"
)

func TestParseLatency(t *testing.T) {
	report := func(lines ...string) []byte {
		return []byte("local address: LID 0000\n#, usec\n" + strings.Join(lines, "\n") +
			"\n---\n #bytes #iterations    t_min[usec] \n 4096 4 1.00\n")
	}
	tool := Tool{Program: "ib_read_lat", Bytes: page, Rounds: 4}
	for _, tt := range []struct {
		name string
		out  []byte
		want []int64
		err  string
	}{
		{"one less than rounds", report("1, 585.01", "2, 600.5", "3, 2000"), []int64{585010, 600500, 2000000}, ""},
		{"as many as rounds, from 0", report("0, 1", "1, 2", "2, 3", "3, 4"), []int64{1000, 2000, 3000, 4000}, ""},
		{"too few", report("1, 585.01"), nil, "1 samples of 4 rounds"},
		{"out of order", report("1, 1", "3, 1", "4, 1"), nil, `sample 1 is called "3"`},
		{"negative", report("1, -1", "2, 1", "3, 1"), nil, `sample 0 is " -1"`},
		{"no number", report("1, x", "2, 1", "3, 1"), nil, `sample 0 is " x"`},
		{"nothing", nil, nil, "0 samples"},
	} {
		got, err := parseLatency(tt.out, tool)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: %v, want %q", tt.name, err, tt.err)
			}
			continue
		}
		if err != nil || len(got) != len(tt.want) {
			t.Errorf("%s: %v, %v", tt.name, got, err)
			continue
		}
		for i := range got {
			if got[i] != tt.want[i] {
				t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
			}
		}
	}
}

func TestParseBandwidth(t *testing.T) {
	const heading = " #bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]   MsgRate[Mpps]\n"
	tool := Tool{Program: "ib_read_bw", Bytes: page}
	for out, want := range map[string]float64{
		heading + " 4096       2000             45.10              43.25              0.011072\n---\n": 43.25 * (1 << 20),
		heading + " 64         2000             45.10              43.25              0.011072\n":      0,
		heading + " 4096       2000             45.10              0.00               0.011072\n":      0,
		heading + " 4096       2000\n": 0,
		heading:                        0,
		"Couldn't connect\n":           0,
	} {
		got, err := parseBandwidth([]byte(out), tool)
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: %v, %v", out, got, err)
		}
	}
}

func TestPlans(t *testing.T) {
	for _, p := range Plans() {
		if err := p.validate(); err != nil {
			t.Error(err)
		}
	}
	good := Plans()[0]
	for name, spoil := range map[string]func(*Plan){
		"no rounds":       func(p *Plan) { p.Rounds = 0 },
		"many rounds":     func(p *Plan) { p.Rounds = maxRounds + 1 },
		"negative warmup": func(p *Plan) { p.Warmup = -1 },
		"no window":       func(p *Plan) { p.Window = 0 },
		"wide window":     func(p *Plan) { p.Window = maxWindow + 1 },
		"empty message":   func(p *Plan) { p.Sizes = []int{0} },
		"long message":    func(p *Plan) { p.Sizes = []int{maxSize + 1} },
	} {
		p := good
		spoil(&p)
		if err := p.validate(); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

// What comes over the control connection is not believed.
func TestControl(t *testing.T) {
	endpoint := verbs.QPEndpoint{QPN: 17, PSN: 1, GID: verbs.GID{10: 0xff, 11: 0xff, 12: 10, 15: 1}, MTU: verbs.MTU4096}
	good := hello{Version: version, Endpoint: endpoint, Addr: 1 << 20, RKey: 1, Bytes: memory}
	if err := good.validate(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*hello){
		"version":  func(h *hello) { h.Version++ },
		"short":    func(h *hello) { h.Bytes-- },
		"nowhere":  func(h *hello) { h.Addr = 0 },
		"overflow": func(h *hello) { h.Addr = 1<<64 - page },
		"qp":       func(h *hello) { h.Endpoint.QPN = 1 << 24 },
	} {
		h := good
		spoil(&h)
		if err := h.validate(); err == nil {
			t.Errorf("hello, %s: taken", name)
		}
	}
	for _, r := range []request{{Test: Read, Rounds: 1}, {Test: Page}, {Test: Page, Rounds: 2*maxRounds + 1}} {
		if err := r.validate(); err == nil {
			t.Errorf("%+v was taken", r)
		}
	}
	for _, line := range []string{"\n", "{}x\n", `{"unknown":1}` + "\n", strings.Repeat("x", maxLine+1), `{"error":"gone"}` + "\n"} {
		here, there := net.Pipe()
		go func() {
			there.Write([]byte(line))
			there.Close()
		}()
		if err := newControl(here).answer(); err == nil {
			t.Errorf("%.20q was taken for a reply", line)
		}
		here.Close()
	}
}

// Both ends in one process, over whatever device there is: in the lab.
func TestMeasure(t *testing.T) {
	if err := verbs.Probe(); err != nil {
		t.Skip(err)
	}
	const addr = "127.0.0.1:4555"
	ready, served := make(chan struct{}), make(chan error, 1)
	go func() { served <- Serve(t.Context(), addr, "", func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-served:
		t.Fatal(err)
	}
	plans := []Plan{
		{Event: true, Rounds: 20, Warmup: 2, Sizes: []int{64, maxSize}, Window: 16, Span: 20 * time.Millisecond},
		{Event: false, Rounds: 5, Sizes: []int{page}, Window: 8, Span: time.Millisecond},
	}
	r, err := Measure(t.Context(), addr, "", plans)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	if len(r.Latency) != 8 || len(r.Bandwidth) != 6 {
		t.Errorf("%d latencies, %d bandwidths", len(r.Latency), len(r.Bandwidth))
	}
	for _, l := range r.Latency {
		if want := map[bool]int{true: 20, false: 5}[l.Event]; len(l.Ns) != want {
			t.Errorf("%s: %d samples, want %d", l.Name, len(l.Ns), want)
		}
	}
	for _, b := range r.Bandwidth {
		if b.BytesPerSecond <= 0 || b.Messages < doorbell {
			t.Errorf("%+v", b)
		}
	}
}

// An end whose peer does not speak, or that is told to stop, ends.
func TestServeStops(t *testing.T) {
	if err := verbs.Probe(); err != nil {
		t.Skip(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served, ready := make(chan error, 1), make(chan struct{})
	go func() { served <- Serve(ctx, "127.0.0.1:4556", "", func() { close(ready) }) }()
	<-ready
	conn, err := net.Dial("tcp", "127.0.0.1:4556")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := bufio.NewReader(conn).ReadString('\n'); err != nil { // its hello
		t.Fatal(err)
	}
	cancel()
	if err := <-served; err == nil {
		t.Errorf("it ended with %v", err)
	}
}
