// Package peers measures the raw device, and what a user would pick instead of Ironspan, between servers of a lab: swap on NVMe over RDMA,
// swap on NBD over TCP, and the page requests of QEMU's post-copy migration. The components are the distribution's own.
// Server 0 is the one that lacks pages, server 1 has them.
//
// [Parts] are called on the lab's host; [Commands] are the parts of this program that it runs in servers. Each part undoes
// what it did when it ends, also by a signal or with an error.
package peers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"time"

	"ironspan/perf/internal/raw"
	"ironspan/perf/internal/result"
	"ironspan/perf/internal/servers"
)

const (
	pageSize   = 4096
	maxSamples = 1 << 20

	// The working set is four times what the program may have of it, as in Ironspan's own benchmark.
	swapLimit = 32 << 20
	swapSet   = 4 * swapLimit
	swapDisk  = 192 << 20
	accesses  = 800
	span      = 5 * time.Second
)

// Names of the peers' series begin so.
const (
	swapNVMe  = "peer/swap-nvmeof-rdma"
	swapNBD   = "peer/swap-nbd-tcp"
	migration = "peer/qemu-postcopy"
)

// Parts are all that is measured here, for run.Interleave; run takes it in. What a kernel, or this machine, cannot run
// is noted there with the reason. Nothing of it is Ironspan, so all series are controls.
func Parts(run *result.Run, lab servers.Lab) []result.Part {
	parts := []result.Part{
		{Name: "raw", Round: func(ctx context.Context, _ int) error { return recordRaw(ctx, run, lab) }},
		{Name: swapNVMe, Round: func(ctx context.Context, _ int) error { return overNVMe(ctx, run, lab) }},
		{Name: swapNBD, Round: func(ctx context.Context, _ int) error { return overNBD(ctx, run, lab) }},
		{Name: migration, Round: func(ctx context.Context, _ int) error { return postCopy(ctx, run, lab) }},
	}
	for _, t := range raw.Tools() {
		name := "perftest/" + t.Program
		parts = append(parts, result.Part{Name: result.Key(name, labels(t.Bytes, t.Event)), Round: func(ctx context.Context, _ int) error {
			r, err := raw.Perftest(ctx, lab, t)
			if err != nil {
				return err
			}
			if r.Ns == nil {
				run.Record(name, result.Bandwidth, labels(t.Bytes, t.Event)).Control().Value(r.BytesPerSecond)
			} else {
				record(run, name, labels(t.Bytes, t.Event), r.Ns)
			}
			return nil
		}})
	}
	return parts
}

// labels of what the device itself does: size of a message, and how completions are waited for.
func labels(bytes int, event bool) result.Labels {
	l := result.Labels{"size": strconv.Itoa(bytes), "wait": "poll"}
	if event {
		l["wait"] = "event"
	}
	return l
}

// record takes in a round.
func record(run *result.Run, name string, l result.Labels, ns []int64) {
	rec := run.Record(name, result.Latency, l).Control()
	rec.Begin()
	for _, v := range ns {
		rec.Add(v)
	}
	rec.End()
}

// recordRaw measures verbs between servers 1 and 0.
func recordRaw(ctx context.Context, run *result.Run, lab servers.Lab) (err error) {
	addr, err := lab.Addr(ctx, 1)
	if err != nil {
		return err
	}
	addr = net.JoinHostPort(addr, rawPort)
	target, err := lab.Serve(ctx, 1, "raw-serve", addr)
	if err != nil {
		return err
	}
	defer func() {
		if _, end := target.End(); end != nil {
			err = errors.Join(err, end)
		}
	}()
	var r raw.Report
	if err := lab.Ask(ctx, &r, 0, "raw-measure", addr); err != nil {
		target.Interrupt() // it waits for what does not come
		return err
	}
	for _, l := range r.Latency {
		record(run, "raw/"+l.Name, labels(l.Bytes, l.Event), l.Ns)
	}
	for _, b := range r.Bandwidth {
		run.Record("raw/"+b.Name, result.Bandwidth, labels(b.Bytes, b.Event)).Control().Value(b.BytesPerSecond)
	}
	return nil
}

func overNVMe(ctx context.Context, run *result.Run, lab servers.Lab) error {
	disk := []string{"brd", "rd_nr=1", "rd_size=" + strconv.Itoa(swapDisk>>10)}
	if err := lab.Modprobe(ctx, 1, append(disk, "nvmet-rdma")...); err != nil {
		return err
	}
	if err := lab.Modprobe(ctx, 0, "nvme-rdma"); err != nil {
		return err
	}
	return overSwap(ctx, run, lab, swapNVMe, []string{"nvmet"}, []string{"swap-nvme"})
}

func overNBD(ctx context.Context, run *result.Run, lab servers.Lab) error {
	if err := lab.Modprobe(ctx, 0, "nbd", "nbds_max=1"); err != nil {
		return err
	}
	server, err := lab.Program(ctx, "nbd-server")
	if err != nil {
		return err
	}
	client, err := lab.Program(ctx, "nbd-client")
	if err != nil {
		return err
	}
	return overSwap(ctx, run, lab, swapNBD,
		append([]string{"nbd-server", "--"}, server...), append([]string{"swap-nbd", "--"}, client...))
}

// overSwap runs a target in server 1 and a program over swap on it in server 0. The target's address goes behind the
// command's name. A series named fault has the accesses that had to swap in, the other one has all.
func overSwap(ctx context.Context, run *result.Run, lab servers.Lab, name string, target, initiator []string) (err error) {
	addr, err := lab.Addr(ctx, 1)
	if err != nil {
		return err
	}
	served, err := lab.Serve(ctx, 1, slices.Insert(target, 1, addr)...)
	if err != nil {
		return err
	}
	defer func() {
		if _, end := served.End(); end != nil {
			err = errors.Join(err, end)
		}
	}()
	var t Touched
	if err := lab.Ask(ctx, &t, 0, slices.Insert(initiator, 1, addr)...); err != nil {
		return err
	}
	if len(t.ReadFault) == 0 || len(t.WriteFault) == 0 {
		return errors.New("peers: nothing was swapped in: the working set seems to fit")
	}
	l := result.Labels{"limit": strconv.Itoa(swapLimit), "set": strconv.Itoa(swapSet)}
	record(run, name+"/read/fault", l, t.ReadFault)
	record(run, name+"/read/all", l, t.ReadAll)
	record(run, name+"/write/fault", l, t.WriteFault)
	record(run, name+"/write/all", l, t.WriteAll)
	return nil
}

func postCopy(ctx context.Context, run *result.Run, lab servers.Lab) (err error) {
	addr, err := lab.Addr(ctx, 1)
	if err != nil {
		return err
	}
	program, err := lab.Program(ctx, "qemu-system-x86_64")
	if err != nil {
		return err
	}
	target, err := lab.Serve(ctx, 1, append([]string{"migrate-to", addr, "--"}, program...)...)
	if err != nil {
		return err
	}
	defer target.End()
	var m Migration
	if err := lab.Ask(ctx, &m, 0, append([]string{"migrate-from", addr, "--"}, program...)...); err != nil {
		return err
	}
	var w Waits
	if err := target.Answer(&w); err != nil {
		return err
	}
	if m.Requests == 0 || len(w.Ns) < m.Requests {
		return fmt.Errorf("peers: %d slow accesses and %d page requests: nothing can be said", len(w.Ns), m.Requests)
	}
	record(run, migration+"/read/fault", result.Labels{"qemu": m.QEMU}, longest(w.Ns, m.Requests))
	return nil
}
