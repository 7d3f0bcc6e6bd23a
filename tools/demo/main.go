// Command demo shows Ironspan: it boots an unmodified Linux kernel in the lab, on one server for comparison
// and then as one machine across several, lets the guest check itself, and reports what it cost.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"ironspan/tools/demo/initrd"
	"ironspan/tools/demo/report"
)

type cli struct {
	Servers   int           `default:"2" help:"How many servers the guest spans."`
	Vcpus     []int         `placeholder:"N,..." help:"vCPUs on each server (default: 1 each)."`
	Mem       []string      `placeholder:"SIZE,..." help:"Memory on each server (default: 512M each)."`
	Fabric    string        `default:"verbs" enum:"verbs,shm" help:"verbs: RDMA between servers; shm: shared memory within one."`
	Kernel    string        `default:"newest" help:"The guest's kernel: one of the lab's (6.1, 6.12, newest) or a bzImage."`
	LabKernel string        `placeholder:"NAME" help:"The servers' kernel: 6.1, 6.12 or newest (default: the lab's)."`
	Dilate    string        `placeholder:"F|auto" help:"How many times slower the guest's clock goes (default: the lab's)."`
	Append    string        `default:"loglevel=6" placeholder:"WORDS" help:"Further words for the guest's kernel command line (${default})."`
	Workload  string        `placeholder:"KEY:VALUE,..." help:"Parameters of the guest's workload, as go doc ironspan/tools/demo/init has them."`
	Spec      []string      `placeholder:"LINE" sep:"none" help:"A further line for the span.yaml, such as 'cache: 96MiB'."`
	Single    bool          `default:"true" negatable:"" help:"Boot the guest on one server first, for comparison."`
	Timeout   time.Duration `default:"20m" help:"How long each guest may run."`
	Out       string        `default:"build/demo" placeholder:"DIR" help:"Where the report and the consoles' logs go."`
	Lab       string        `placeholder:"FILE" help:"The lab's program (default: beside this one)."`
}

const description = `One unmodified Linux guest across several servers, checked from inside. The servers are QEMU
machines of the lab (bin/lab), with soft-RoCE between them. Leaves DIR/report.json and a log of each console.`

func main() {
	runtime.LockOSThread() // the lab's process is to die with this thread, which is the last to go
	var c cli
	kong.Parse(&c, kong.Name("demo"), kong.Description(description), kong.UsageOnError())
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends this process at once
	switch err := c.run(ctx); {
	case err == nil:
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "demo: interrupted")
		os.Exit(130)
	default:
		fmt.Fprintln(os.Stderr, "demo: "+err.Error())
		os.Exit(1)
	}
}

// errFailed: the table says why.
var errFailed = errors.New("the demonstration failed")

func (c *cli) run(ctx context.Context) error {
	shape, err := c.shape()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.Out, 0o755); err != nil {
		return err
	}
	s := newScreen(os.Stdout)
	defer s.close()
	d := &report.Demo{Began: time.Now()}
	l := &lab{program: c.Lab, screen: s, out: c.Out}
	if l.program == "" {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		l.program = filepath.Join(filepath.Dir(self), "lab")
	}
	if _, err := os.Stat(l.program); err != nil {
		return fmt.Errorf("no lab: %w: run make build", err)
	}

	s.title("the guest's init")
	disk := filepath.Join(c.Out, "initrd.cpio")
	if err := initrd.Build(ctx, disk, os.Stderr); err != nil {
		return err
	}
	s.title("the guest's kernel")
	kernel, err := l.kernel(ctx, c.Kernel)
	if err != nil {
		return err
	}
	s.line(kernel)

	if c.Single {
		s.title("the guest on one server, for comparison")
		d.Single = l.run(ctx, c.job("single", shape.onOne(), kernel, disk))
	}
	if ctx.Err() == nil {
		s.title("the guest across " + report.Servers(c.Servers))
		d.Span = l.run(ctx, c.job("span", shape, kernel, disk))
	}
	s.close()
	d.Ended = time.Now()

	file := filepath.Join(c.Out, "report.json")
	if err := d.Write(file); err != nil {
		return err
	}
	fmt.Println()
	if err := d.Table(os.Stdout); err != nil {
		return err
	}
	fmt.Println("report:", file)
	if len(d.Failures()) > 0 {
		return errFailed
	}
	return nil
}

// shape is how much of the guest is on which server.
type shape struct {
	vcpus []int
	mbs   []int
}

func (c *cli) shape() (shape, error) {
	var s shape
	var err error
	if c.Servers < 1 || c.Servers > 64 {
		return s, fmt.Errorf("--servers %d: from 1 to 64", c.Servers)
	}
	if s.vcpus, err = spread("vcpus", c.Vcpus, c.Servers, 1); err != nil {
		return s, err
	}
	var mbs []int
	for _, text := range c.Mem {
		mb, err := mebibytes(text)
		if err != nil {
			return s, err
		}
		mbs = append(mbs, mb)
	}
	s.mbs, err = spread("mem", mbs, c.Servers, 512)
	return s, err
}

// spread makes one value stand for all servers.
func spread(flag string, values []int, servers, otherwise int) ([]int, error) {
	switch len(values) {
	case 0:
		values = []int{otherwise}
		fallthrough
	case 1:
		all := make([]int, servers)
		for i := range all {
			all[i] = values[0]
		}
		return all, nil
	case servers:
		return values, nil
	}
	return nil, fmt.Errorf("--%s gives %d values for %d servers", flag, len(values), servers)
}

// mebibytes reads a size such as 512M or 1G.
func mebibytes(text string) (int, error) {
	number, unit := strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(text), "IB"), "M"), 1
	if trimmed, found := strings.CutSuffix(number, "G"); found {
		number, unit = trimmed, 1024
	}
	n, err := strconv.Atoi(number)
	if err != nil || n <= 0 || n > 1<<20 {
		return 0, fmt.Errorf("--mem: %q is not a size: write 512M or 1G", text)
	}
	return n * unit, nil
}

// onOne is the same machine on one server.
func (s shape) onOne() shape {
	one := shape{vcpus: []int{0}, mbs: []int{0}}
	for i := range s.vcpus {
		one.vcpus[0] += s.vcpus[i]
		one.mbs[0] += s.mbs[i]
	}
	return one
}

func (s shape) servers() int { return len(s.vcpus) }

// workload tells init what machine to expect.
func (s shape) workload(more string) string {
	words := []string{
		"vcpus:" + join(s.vcpus, "+", ""), fmt.Sprintf("nodes:%d", s.servers()), "mem:" + join(s.mbs, "+", ""),
	}
	if more != "" {
		words = append(words, more)
	}
	return "ironspan.demo=" + strings.Join(words, ",")
}

func join(list []int, between, unit string) string {
	words := make([]string, len(list))
	for i, n := range list {
		words[i] = strconv.Itoa(n) + unit
	}
	return strings.Join(words, between)
}

// job is what the lab is asked to run.
func (c *cli) job(name string, s shape, kernel, disk string) job {
	args := []string{
		"run", "--servers", strconv.Itoa(s.servers()), "--vcpus", join(s.vcpus, ",", ""), "--mem", join(s.mbs, ",", "M"),
		"--fabric", c.Fabric, "--kernel", kernel, "--initrd", disk,
		"--append", strings.TrimSpace(c.Append + " " + s.workload(c.Workload)),
		"--timeout", strconv.Itoa(int(c.Timeout.Seconds())),
	}
	if c.LabKernel != "" {
		args = append(args, "--lab-kernel", c.LabKernel)
	}
	if c.Dilate != "" {
		args = append(args, "--dilate", c.Dilate)
	}
	for _, spec := range c.Spec {
		args = append(args, "--spec", spec)
	}
	return job{name: name, servers: s.servers(), args: args}
}
