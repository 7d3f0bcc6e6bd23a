package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"ironspan/perf/internal/peers"
	"ironspan/perf/internal/result"
	"ironspan/perf/internal/servers"
	"ironspan/perf/internal/show"
)

type cli struct {
	Inside peers.Commands `cmd:""`
	Run    runCmd         `cmd:""`
}
type runCmd struct {
	Lab    string `arg:""`
	Rounds string `arg:""`
	What   string `arg:"" optional:""`
}

func (r *runCmd) Run(ctx context.Context) error {
	self, _ := os.Executable()
	lab := servers.Lab{Command: "bin/lab", Name: r.Lab, Self: self}
	run := result.New("lab", "")
	var parts []result.Part
	for _, p := range peers.Parts(run, lab) {
		if strings.HasPrefix(p.Name, r.What) {
			parts = append(parts, p)
		}
	}
	n, _ := strconv.Atoi(r.Rounds)
	err := run.Interleave(ctx, n, 1, parts...)
	show.Run(os.Stdout, run)
	fmt.Println(run.Missing)
	return err
}

func main() {
	var c cli
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	k := kong.Parse(&c)
	k.BindTo(ctx, (*context.Context)(nil))
	k.BindTo(os.Stdout, (*io.Writer)(nil))
	k.FatalIfErrorf(k.Run())
}
