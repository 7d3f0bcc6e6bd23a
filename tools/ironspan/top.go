package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"

	"ironspan/engine/cluster"
	"ironspan/engine/control"
	"ironspan/engine/spec"
	"ironspan/fastpath"
)

type topCmd struct {
	Of       []string      `arg:"" placeholder:"SPEC.yaml|HOST:PORT" help:"Whose nodes to watch: a VM's description, or nodes."`
	CertDir  string        `default:"${certs}" placeholder:"DIR" help:"Directory with ca.pem and client.pem (default ${certs})."`
	Interval time.Duration `default:"2s" short:"n" help:"Time between two looks (default 2s)."`
	Count    int           `placeholder:"N" short:"c" help:"End after so many looks."`
	JSON     bool          `help:"Write each look as one line of JSON: the nodes' reports since the VM's start."`
}

func (topCmd) Help() string {
	return `Shows what a VM does on its nodes: faults by kind with their rate and latency in the last interval,
what they are made of by stage, traffic, exits, and the pages that move most. It only watches: the VM
belongs to the ironspan run that started it.

Stages of a fault, at the node whose vCPU waits: queue (for a free slot), remote (at the home and the
holder of the page), flight (on the wire, and until somebody looks), install. What a node does for
others: split (mapping a huge page's pages one by one), revoke, forget (KVM's shadow page tables), send.

For Prometheus there is ironspan node --metrics.`
}

func (c *topCmd) Run(con *console) error {
	if c.Interval < 100*time.Millisecond || c.Count < 0 {
		return fail(exitUsage, "--interval is at least 100ms, --count not negative")
	}
	nodes, err := c.nodes()
	if err != nil {
		return &exitError{exitUsage, err}
	}
	id, err := cluster.CertDir(c.CertDir).Client()
	if err != nil {
		return &exitError{exitRefused, err}
	}
	var ws []*watched
	for _, n := range nodes {
		cl := control.NewClient(n.Addr, id.ClientTLS(n.Name, cluster.ALPNControl), control.ClientOptions{Connect: 5 * time.Second})
		defer cl.Close()
		ws = append(ws, &watched{reporter: cl})
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	f, ok := con.out.(*os.File)
	return c.watch(ctx, ws, con.out, ok && openTerminal(f).isTTY)
}

// nodes are whom to ask: address, and name in the certificate.
func (c *topCmd) nodes() ([]spec.Node, error) {
	var nodes []spec.Node
	for _, of := range c.Of {
		if host, _, err := net.SplitHostPort(of); err == nil {
			nodes = append(nodes, spec.Node{Addr: of, Name: host})
			continue
		}
		sp, err := spec.Load(of)
		if err != nil {
			return nil, err
		}
		if len(sp.Nodes) == 0 {
			return nil, fmt.Errorf("%s names no nodes", of)
		}
		nodes = append(nodes, sp.Nodes...)
	}
	return nodes, nil
}

const clearScreen = "\x1b[H\x1b[2J"

// watch looks again and again. It fails if no node could be asked at the first look.
func (c *topCmd) watch(ctx context.Context, ws []*watched, out io.Writer, tty bool) error {
	tick := time.NewTicker(c.Interval)
	defer tick.Stop()
	for look := 1; ; look++ {
		ask(ctx, ws)
		if ctx.Err() != nil {
			return nil
		}
		if err := allFailed(ws); err != nil && look == 1 {
			return &exitError{exitRefused, err}
		}
		var b bytes.Buffer
		if c.JSON {
			writeLook(&b, ws)
		} else {
			if tty {
				b.WriteString(clearScreen)
			}
			for _, w := range ws {
				w.show(&b)
			}
		}
		if _, err := out.Write(b.Bytes()); err != nil {
			return err
		}
		if look == c.Count {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// reporter is a control.Client.
type reporter interface {
	Addr() string
	Report(context.Context) (*control.Report, error)
}

// watched is a node and what it said at the last two looks.
type watched struct {
	reporter
	last, now *control.Report
	err       error
}

// ask looks at all nodes at once.
func ask(ctx context.Context, ws []*watched) {
	var wg sync.WaitGroup
	for _, w := range ws {
		wg.Go(func() {
			r, err := w.Report(ctx)
			w.last, w.now, w.err = w.now, r, err
			if w.last != nil && r != nil && (w.last.VM != r.VM || w.last.Seconds > r.Seconds) {
				w.last = nil // another VM
			}
		})
	}
	wg.Wait()
}

func allFailed(ws []*watched) error {
	var errs []error
	for _, w := range ws {
		var e *control.Error
		if w.err == nil || errors.As(w.err, &e) && e.Code == control.CodeUnknown { // idle, not lost
			return nil
		}
		errs = append(errs, w.err)
	}
	return errors.Join(errs...)
}

func writeLook(b *bytes.Buffer, ws []*watched) {
	type node struct {
		Addr   string          `json:"addr"`
		Error  string          `json:"error,omitempty"`
		Report *control.Report `json:"report,omitempty"`
	}
	look := struct {
		Time  time.Time `json:"time"`
		Nodes []node    `json:"nodes"`
	}{Time: time.Now()}
	for _, w := range ws {
		n := node{Addr: w.Addr(), Report: w.now}
		if w.err != nil {
			n.Error = w.err.Error()
		}
		look.Nodes = append(look.Nodes, n)
	}
	_ = json.NewEncoder(b).Encode(look) // into memory
}

// since is what a distribution gained from one look to the next.
func since(now, last control.Latency) fastpath.HistogramSnapshot {
	s := fastpath.HistogramSnapshot{Sum: now.SumNS - min(last.SumNS, now.SumNS), Max: now.MaxNS}
	old := map[uint64]uint64{}
	for _, b := range last.Buckets {
		old[b[0]] = b[1]
	}
	for _, b := range now.Buckets {
		if n := b[1] - min(old[b[0]], b[1]); n > 0 {
			s.Buckets = append(s.Buckets, fastpath.Bucket{Top: b[0], Count: n})
			s.Count += n
		}
	}
	return s
}

const hotShown = 5

// show writes a node's part of the screen.
func (w *watched) show(out io.Writer) {
	r, last := w.now, w.last
	if r == nil {
		fmt.Fprintf(out, "%s: %v\n\n", w.Addr(), w.err)
		return
	}
	period := r.Seconds
	if last == nil {
		last = &control.Report{}
	} else {
		period -= last.Seconds
	}
	span := "since its start"
	if last.Seconds > 0 {
		span = fmt.Sprintf("in the last %.1f s", period)
	}
	fmt.Fprintf(out, "node %d %s, VM %s, running for %.0f s; %s:\n", r.Node, r.Name, r.VM, r.Seconds, span)
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	rate := func(n uint64) string {
		if period <= 0 {
			return "-"
		}
		return fmt.Sprintf("%.0f/s", float64(n)/period)
	}
	table := func(title string, now, last map[string]control.Latency, order []string) {
		fmt.Fprintf(t, "%s\tcount\trate\tp50\tp99\tp99.9\t\n", title)
		for _, name := range order {
			h := since(now[name], last[name])
			if h.Count == 0 {
				continue
			}
			fmt.Fprintf(t, "%s\t%d\t%s\t%v\t%v\t%v\t\n", name, h.Count, rate(h.Count), brief(h.Quantile(0.5)), brief(h.Quantile(0.99)), brief(h.Quantile(0.999)))
		}
	}
	var kinds, stages []string
	for k := range fastpath.FaultKinds {
		kinds = append(kinds, k.String())
	}
	for g := range fastpath.Stages {
		stages = append(stages, g.String())
	}
	table("fault", r.Faults, last.Faults, kinds)
	table("stage", r.Stages, last.Stages, stages)
	fmt.Fprintf(t, "fabric\tcount\trate\tMB/s\t\t\t\n")
	for _, verb := range slices.Sorted(maps.Keys(r.Verbs)) {
		ops, bytes := r.Verbs[verb].Ops-last.Verbs[verb].Ops, r.Verbs[verb].Bytes-last.Verbs[verb].Bytes
		if ops > 0 && period > 0 {
			fmt.Fprintf(t, "%s\t%d\t%s\t%.2f\t\t\t\n", verb, ops, rate(ops), float64(bytes)/period/1e6)
		}
	}
	t.Flush()
	fmt.Fprintf(out, "prefetched %s, moved %s, fought over %s, cached %d pages\n",
		rate(r.Counters["prefetches"]-last.Counters["prefetches"]), rate(r.Counters["moves"]-last.Counters["moves"]),
		rate(r.Counters["ping_pongs"]-last.Counters["ping_pongs"]), r.Counters["cached_pages"])
	for i, h := range r.HotPages {
		if i == hotShown {
			break
		}
		fmt.Fprintf(out, "hot page %#x: %d moves\n", uint64(h.GPA), h.Moves)
	}
	fmt.Fprintln(out)
}

// brief rounds a duration to three digits.
func brief(d time.Duration) time.Duration {
	unit := time.Duration(1)
	for d/unit >= 1000 {
		unit *= 10
	}
	return d.Round(unit)
}
