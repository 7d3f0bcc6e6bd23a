// Package peers measures what a user would pick instead of Ironspan, between servers of a lab: swap on NVMe over RDMA,
// swap on NBD over TCP, and the page requests of QEMU's post-copy migration. The components are the distribution's own.
// Server 0 is the one that lacks pages, server 1 has them.
//
// [Run] is called on the lab's host; [Commands] are the parts of this program that it runs in servers. Each part undoes
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
	"ironspan/perf/internal/servers"
)

const (
	pageSize   = 4096
	maxSamples = 1 << 20

	// The working set is four times what the program may have of it, as in Ironspan's own benchmark.
	swapLimit = 32 << 20
	swapSet   = 4 * swapLimit
	swapDisk  = 192 << 20
	accesses  = 2000
	span      = 8 * time.Second
)

// Samples are the times of one kind of event, in nanoseconds.
type Samples struct {
	Name string
	Ns   []int64
	Note string // how they came about, for whoever reads them
}

// Missing is a peer that could not be measured here.
type Missing struct {
	Name   string
	Reason string
}

// Peers by their names.
const (
	NVMe     = "swap-nvmeof-rdma"
	NBD      = "swap-nbd-tcp"
	PostCopy = "qemu-postcopy"
)

// peer is how one is measured.
type peer struct {
	name    string
	measure func(context.Context, servers.Lab) ([]Samples, error)
}

var all = []peer{{NVMe, overNVMe}, {NBD, overNBD}, {PostCopy, postCopy}}

// Run measures all peers; what a kernel, or this machine, cannot run is missing, with the reason. The error is ctx's.
func Run(ctx context.Context, lab servers.Lab, say func(string, ...any)) ([]Samples, []Missing, error) {
	var samples []Samples
	var missing []Missing
	for _, p := range all {
		begin := time.Now()
		got, err := p.measure(ctx, lab)
		if ctx.Err() != nil {
			return samples, missing, ctx.Err()
		}
		if err != nil {
			say("%s: %v", p.name, err)
			missing = append(missing, Missing{p.name, err.Error()})
			continue
		}
		say("%s: %.1f s", p.name, time.Since(begin).Seconds())
		samples = append(samples, got...)
	}
	return samples, missing, nil
}

func overNVMe(ctx context.Context, lab servers.Lab) ([]Samples, error) {
	disk := []string{"brd", "rd_nr=1", "rd_size=" + strconv.Itoa(swapDisk>>10)}
	if err := lab.Modprobe(ctx, 1, append(disk, "nvmet-rdma")...); err != nil {
		return nil, err
	}
	if err := lab.Modprobe(ctx, 0, "nvme-rdma"); err != nil {
		return nil, err
	}
	return overSwap(ctx, lab, NVMe, "NVMe over RDMA, nvmet over a RAM disk", []string{"nvmet"}, []string{"swap-nvme"})
}

func overNBD(ctx context.Context, lab servers.Lab) ([]Samples, error) {
	if err := lab.Modprobe(ctx, 0, "nbd", "nbds_max=1"); err != nil {
		return nil, err
	}
	server, err := lab.Program(ctx, "nbd-server")
	if err != nil {
		return nil, err
	}
	client, err := lab.Program(ctx, "nbd-client")
	if err != nil {
		return nil, err
	}
	return overSwap(ctx, lab, NBD, "NBD over TCP, nbd-server over a file in tmpfs",
		append([]string{"nbd-server", "--"}, server...), append([]string{"swap-nbd", "--"}, client...))
}

// overSwap runs a target in server 1 and a program over swap on it in server 0. The target's address goes behind the
// command's name.
func overSwap(ctx context.Context, lab servers.Lab, name, how string, target, initiator []string) (s []Samples, err error) {
	addr, err := lab.Addr(ctx, 1)
	if err != nil {
		return nil, err
	}
	served, err := lab.Serve(ctx, 1, slices.Insert(target, 1, addr)...)
	if err != nil {
		return nil, err
	}
	defer func() {
		if _, end := served.End(); err == nil {
			err = end
		}
	}()
	var t Touched
	if err := lab.Ask(ctx, &t, 0, slices.Insert(initiator, 1, addr)...); err != nil {
		return nil, err
	}
	note := fmt.Sprintf("%s; a program in a control group of %d MiB over %d MiB, page-cluster 0", how, swapLimit>>20, swapSet>>20)
	for _, x := range []Samples{
		{Name: "read-fault", Ns: t.ReadFault, Note: "reads that had to swap in; " + note},
		{Name: "read", Ns: t.ReadAll, Note: "all reads; " + note},
		{Name: "write-fault", Ns: t.WriteFault, Note: "writes that had to swap in; " + note},
		{Name: "write", Ns: t.WriteAll, Note: "all writes; " + note},
	} {
		if len(x.Ns) == 0 {
			return nil, fmt.Errorf("peers: no %s was seen: the working set seems to fit", x.Name)
		}
		x.Name = name + "/" + x.Name
		s = append(s, x)
	}
	return s, nil
}

func postCopy(ctx context.Context, lab servers.Lab) (s []Samples, err error) {
	addr, err := lab.Addr(ctx, 1)
	if err != nil {
		return nil, err
	}
	program, err := lab.Program(ctx, "qemu-system-x86_64")
	if err != nil {
		return nil, err
	}
	target, err := lab.Serve(ctx, 1, append([]string{"migrate-to", addr, "--"}, program...)...)
	if err != nil {
		return nil, err
	}
	defer target.End()
	var m Migration
	if err := lab.Ask(ctx, &m, 0, append([]string{"migrate-from", addr, "--"}, program...)...); err != nil {
		return nil, err
	}
	var w Waits
	if err := target.Answer(&w); err != nil {
		return nil, err
	}
	if m.Requests == 0 || len(w.Ns) < m.Requests {
		return nil, fmt.Errorf("peers: %d slow accesses and %d page requests: nothing can be said", len(w.Ns), m.Requests)
	}
	return []Samples{{
		Name: PostCopy + "/read-fault", Ns: longest(w.Ns, m.Requests),
		Note: fmt.Sprintf("QEMU %s, KVM, postcopy-preempt over TCP, %d KiB/s in the background; the guest's %d longest waits, as many as pages were requested",
			m.QEMU, backgroundRate>>10, m.Requests),
	}}, nil
}

// Raw measures verbs between servers 1 and 0.
func Raw(ctx context.Context, lab servers.Lab) (r *raw.Report, err error) {
	addr, err := lab.Addr(ctx, 1)
	if err != nil {
		return nil, err
	}
	addr = net.JoinHostPort(addr, rawPort)
	target, err := lab.Serve(ctx, 1, "raw-serve", addr)
	if err != nil {
		return nil, err
	}
	defer func() {
		_, end := target.End()
		if err != nil && end != nil {
			err = errors.Join(err, end)
		}
	}()
	r = &raw.Report{}
	return r, lab.Ask(ctx, r, 0, "raw-measure", addr)
}
