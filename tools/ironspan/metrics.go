package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/bits"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"ironspan/engine/control"
)

// collector gives Prometheus what the node's VM has counted: asked when it is scraped, nothing in between. Without a
// VM there is ironspan_vm_up alone, 0.
type collector struct {
	report func(context.Context) (*control.Report, error)
	log    *slog.Logger
}

// Describe sends nothing: what there is to collect depends on the VM.
func (collector) Describe(chan<- *prometheus.Desc) {}

// gauges are the counters that can fall.
var gauges = map[string]bool{"cached_pages": true, "cached_pages_most": true, "clock_error_ns": true, "clock_drift_ns": true}

// Collect implements prometheus.Collector.
func (c collector) Collect(out chan<- prometheus.Metric) {
	up := prometheus.NewDesc("ironspan_vm_up", "Whether a VM has its share on this node.", nil, nil)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	r, err := c.report(ctx)
	if err != nil {
		if !errors.Is(err, control.ErrIdle) {
			c.log.Warn("metrics: no report", "err", err)
		}
		out <- prometheus.MustNewConstMetric(up, prometheus.GaugeValue, 0)
		return
	}
	vm := prometheus.Labels{"vm": r.VM, "node": strconv.Itoa(int(r.Node))}
	one := func(kind prometheus.ValueType, name, help string, v float64, labels []string, values ...string) {
		out <- prometheus.MustNewConstMetric(prometheus.NewDesc("ironspan_"+name, help, labels, vm), kind, v, values...)
	}
	out <- prometheus.MustNewConstMetric(up, prometheus.GaugeValue, 1)
	one(prometheus.CounterValue, "vm_seconds_total", "How long the VM has been running here.", r.Seconds, nil)
	durations(out, prometheus.NewDesc("ironspan_fault_seconds", "From reading a fault to resuming its vCPU, by what it took.", []string{"kind"}, vm), r.Faults)
	durations(out, prometheus.NewDesc("ironspan_stage_seconds", "What faults are made of, by stage.", []string{"stage"}, vm), r.Stages)
	for verb, o := range r.Verbs {
		one(prometheus.CounterValue, "fabric_operations_total", "Operations posted to the fabric.", float64(o.Ops), []string{"verb"}, verb)
		one(prometheus.CounterValue, "fabric_bytes_total", "Payload of the operations posted.", float64(o.Bytes), []string{"verb"}, verb)
	}
	for _, v := range r.VCPUs {
		for kind, n := range v.Exits {
			one(prometheus.CounterValue, "vcpu_exits_total", "Exits of a vCPU from its guest, and what was done about them.",
				float64(n), []string{"apic_id", "kind"}, strconv.Itoa(int(v.APICID)), kind)
		}
	}
	for name, n := range r.Counters {
		kind, metric := prometheus.CounterValue, strings.ToLower(name)+"_total"
		if gauges[name] {
			kind, metric = prometheus.GaugeValue, name
		}
		one(kind, metric, "See the counter "+name+" of ironspan run's report.", float64(n), nil)
	}
}

// durations are sent as histograms with a bucket for each power of two, which keeps a scrape small.
func durations(out chan<- prometheus.Metric, desc *prometheus.Desc, by map[string]control.Latency) {
	for name, l := range by {
		buckets, count := map[float64]uint64{}, uint64(0)
		for _, b := range l.Buckets {
			count += b[1]
			buckets[math.Ldexp(1e-9, bits.Len64(b[0]))] = count // the last of a power's buckets stands
		}
		out <- prometheus.MustNewConstHistogram(desc, count, float64(l.SumNS)/1e9, buckets, name)
	}
}

// serveMetrics answers Prometheus at addr until stop is called.
func serveMetrics(addr string, report func(context.Context) (*control.Report, error), log *slog.Logger) (stop func(), err error) {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fail(exitUsage, "--metrics %s: %w", addr, err)
	}
	reg := prometheus.NewRegistry()
	if err := reg.Register(collector{report, log}); err != nil {
		ln.Close()
		return nil, fmt.Errorf("metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 15 * time.Second}))
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute}
	go func() {
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			log.Error("metrics: not served any more", "err", err)
		}
	}()
	log.Info("metrics: ready", "url", "http://"+ln.Addr().String()+"/metrics")
	return func() { srv.Close() }, nil
}
