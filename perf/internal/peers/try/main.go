package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/alecthomas/kong"

	"ironspan/perf/internal/peers"
	"ironspan/perf/internal/raw"
	"ironspan/perf/internal/servers"
)

type cli struct {
	Inside peers.Commands `cmd:""`
	Run    runCmd         `cmd:""`
}
type runCmd struct {
	Lab  string `arg:""`
	What string `arg:""`
}

func q(ns []int64) string {
	s := slices.Sorted(slices.Values(ns))
	at := func(f float64) float64 { return float64(s[min(int(f*float64(len(s))), len(s)-1)]) / 1e3 }
	return fmt.Sprintf("n %d min %.0f p10 %.0f p50 %.0f p90 %.0f p99 %.0f max %.0f us", len(s), at(0), at(.1), at(.5), at(.9), at(.99), at(1))
}

func (r *runCmd) Run(ctx context.Context) error {
	self, _ := os.Executable()
	lab := servers.Lab{Command: "bin/lab", Name: r.Lab, Self: self}
	if r.What == "raw" || r.What == "all" {
		rep, err := peers.Raw(ctx, lab)
		if err != nil {
			return err
		}
		for _, l := range rep.Latency {
			fmt.Println(l.Name, l.Bytes, l.Event, q(l.Ns))
		}
		for _, b := range rep.Bandwidth {
			fmt.Printf("%s %d event %v window %d: %d messages, %.1f MB/s\n", b.Name, b.Bytes, b.Event, b.Window, b.Messages, b.BytesPerSecond/1e6)
		}
	}
	if r.What == "tools" || r.What == "all" {
		for _, t := range raw.Tools() {
			rep, err := raw.Perftest(ctx, lab, t)
			if err != nil {
				fmt.Println(t, err)
				continue
			}
			if rep.Ns != nil {
				fmt.Println(t, q(rep.Ns))
			} else {
				fmt.Println(t, rep.BytesPerSecond/1e6, "MB/s")
			}
		}
	}
	if r.What == "peers" || r.What == "all" {
		s, m, err := peers.Run(ctx, lab, func(f string, a ...any) { fmt.Printf(f+"\n", a...) })
		for _, x := range s {
			fmt.Println(x.Name, q(x.Ns), x.Note)
		}
		fmt.Println(m, err)
	}
	_ = json.Marshal
	return nil
}

func main() {
	var c cli
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	k := kong.Parse(&c)
	k.BindTo(ctx, (*context.Context)(nil))
	k.FatalIfErrorf(k.Run())
}
