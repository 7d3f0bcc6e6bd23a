package coherence

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"ironspan/engine/wire"
)

var rewrite = flag.Bool("rewrite", false, "write the outputs of the scripts in testdata anew")

// TestScripts plays testdata/*.txt. A line "> command" is followed by what it has to print; other lines that
// begin with # are comments. Look at the difference after -rewrite.
//
//	> cluster nodes=3 pages=4 [slots=2] [tenure=base,max,window] [cache=1] [cover=2] [readaswrite]   node n is home of pages n*4...
//	> fault NODE PAGE read|write
//	> evict NODE PAGE
//	> deliver FROM->TO          the oldest message of that link
//	> over NODE                 the node's oldest one-sided operation is over
//	> all                       deliver everything, links in order, operations are over, no time passes
//	> time DURATION             let that time pass; deadlines are met
//	> zero PAGE / nonzero PAGE  the page is, or is not, full of zeros from now on
//	> inject FROM->TO KIND page=.. txn=.. slot=.. requester=.. mode=.. flags=.. acks=.. arg0=.. arg1=.. arg2=.. epoch=..
//	> show PAGE                 directory and rights
//	> waits NODE                what it has waited for longest, and for whom
//	> lose NODE...              what those that are left say of their pages: nothing changes
func TestScripts(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("testdata", "*.txt"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, string(want))
			if bytes.Equal(got, want) {
				return
			}
			if !*rewrite {
				t.Fatalf("%s: output differs; got:\n%s", f, got)
			}
			if err := os.WriteFile(f, got, 0o644); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// play runs a script and returns it with the outputs that it has.
func play(t *testing.T, script string) []byte {
	t.Helper()
	var out bytes.Buffer
	var c *cluster
	for _, line := range strings.SplitAfter(script, "\n") {
		line = strings.TrimRight(line, "\n")
		cmd, isCommand := strings.CutPrefix(line, "> ")
		switch {
		case isCommand:
			fmt.Fprintln(&out, line)
			if f := strings.Fields(cmd); f[0] == "cluster" {
				c = clusterOf(t, f[1:])
			} else {
				c.command(t, f)
				out.WriteString(c.log.String())
				if p := c.problem(false); p != "" {
					fmt.Fprintf(&out, "  BROKEN: %s\n", p)
				}
				c.log.Reset()
			}
		case strings.HasPrefix(line, "#"):
			fmt.Fprintln(&out, line)
		case strings.TrimSpace(line) == "":
			out.WriteByte('\n')
		}
	}
	return append(bytes.TrimRight(out.Bytes(), "\n"), '\n')
}

func clusterOf(t *testing.T, args []string) *cluster {
	t.Helper()
	nodes, pages := 2, 1
	var change []func(*Config)
	for _, a := range args {
		k, v, _ := strings.Cut(a, "=")
		switch k {
		case "nodes":
			nodes = number(t, v)
		case "pages":
			pages = number(t, v)
		case "slots":
			change = append(change, func(c *Config) { c.Slots = number(t, v) })
		case "cache":
			change = append(change, func(c *Config) { c.Cache = number(t, v) })
		case "cover":
			change = append(change, func(c *Config) { c.CoverFrom = number(t, v) })
		case "readaswrite":
			change = append(change, func(c *Config) { c.ReadAsWrite = true })
		case "tenure":
			d := strings.Split(v, ",")
			change = append(change, func(c *Config) {
				c.Tenure = Tenure{Base: span(t, d[0]), Max: span(t, d[1]), Window: span(t, d[2])}
			})
		default:
			t.Fatalf("cluster has no option %q", k)
		}
	}
	return newCluster(t, nodes, pages, func(c *Config) {
		for _, f := range change {
			f(c)
		}
	})
}

func number(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.ParseInt(s, 0, 64)
	if err != nil {
		t.Fatal(err)
	}
	return int(n)
}

func span(t *testing.T, s string) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func (c *cluster) command(t *testing.T, f []string) {
	t.Helper()
	link := func() (int, int) {
		from, to, ok := strings.Cut(f[1], "->")
		if !ok {
			t.Fatalf("%v: want FROM->TO", f)
		}
		return number(t, from), number(t, to)
	}
	verdict := func(s Status) {
		if s != OK {
			fmt.Fprintf(&c.log, "  refused: %v\n", s)
		}
	}
	switch f[0] {
	case "fault":
		verdict(c.fault(number(t, f[1]), wire.PFN(number(t, f[2])), f[3] == "write"))
	case "evict":
		if !c.evict(number(t, f[1]), wire.PFN(number(t, f[2]))) {
			fmt.Fprintln(&c.log, "  not now")
		}
	case "deliver":
		from, to := link()
		if len(c.links[from][to]) == 0 {
			t.Fatalf("%v: no message on that link", f)
		}
		m, s := c.deliver(from, to)
		if s != OK {
			fmt.Fprintf(&c.log, "  refused %v: %v\n", m.Kind, s)
		}
	case "over":
		n := number(t, f[1])
		if len(c.over[n]) == 0 {
			t.Fatalf("%v: no operation is under way", f)
		}
		m, s := c.finish(n)
		if s != OK {
			fmt.Fprintf(&c.log, "  refused %v: %v\n", m.Kind, s)
		}
	case "all":
		for again := true; again; {
			again = false
			for n := range c.over {
				for len(c.over[n]) > 0 {
					again = true
					_, s := c.finish(n)
					verdict(s)
				}
			}
			for from := range c.links {
				for to := range c.links[from] {
					for len(c.links[from][to]) > 0 {
						again = true
						_, s := c.deliver(from, to)
						verdict(s)
					}
				}
			}
		}
	case "time":
		c.tick(c.now + int64(span(t, f[1])))
	case "zero", "nonzero":
		c.zero[wire.PFN(number(t, f[1]))] = f[0] == "zero"
	case "inject":
		from, to := link()
		m := messageOf(t, from, f[2:])
		verdict(c.step(to, &m))
	case "show":
		c.show(wire.PFN(number(t, f[1])))
	case "waits":
		w := c.agents[number(t, f[1])].Oldest()
		fmt.Fprintf(&c.log, "  transaction %d, page %d, node %d\n", w.Txn, w.Page, w.For)
	case "lose":
		lost := uint64(0)
		for _, n := range f[1:] {
			lost |= 1 << number(t, n)
		}
		for n, a := range c.agents {
			if lost>>n&1 == 0 {
				a.Losses(lost, func(r Range, f Fate) { fmt.Fprintf(&c.log, "  %d: %d to %d %v\n", n, r.First, r.Last-1, f) })
			}
		}
	default:
		t.Fatalf("no command %q", f[0])
	}
}

func messageOf(t *testing.T, from int, f []string) wire.Message {
	t.Helper()
	m := wire.Message{From: wire.NodeID(from), Requester: wire.NodeID(from), Epoch: 1, Txn: 1}
	for k := wire.CoherenceFirst; k <= wire.Parked; k++ {
		if k.String() == f[0] {
			m.Kind = k
		}
	}
	for _, a := range f[1:] {
		k, v, _ := strings.Cut(a, "=")
		n := number(t, v)
		switch k {
		case "page":
			m.Page = wire.PFN(n)
		case "txn":
			m.Txn = uint32(n)
		case "slot":
			m.Slot = uint32(n)
		case "requester":
			m.Requester = wire.NodeID(n)
		case "mode":
			m.Mode = wire.Mode(n)
		case "flags":
			m.Flags = wire.Flags(n)
		case "acks":
			m.Acks = uint8(n)
		case "arg0":
			m.Args[0] = uint64(n)
		case "arg1":
			m.Args[1] = uint64(n)
		case "arg2":
			m.Args[2] = uint64(n)
		case "epoch":
			m.Epoch = wire.Epoch(n)
		default:
			t.Fatalf("messages have no field %q", k)
		}
	}
	return m
}

func (c *cluster) show(p wire.PFN) {
	home := c.agents[0].homeOf(p)
	info, _ := c.agents[home].Inspect(p)
	fmt.Fprintf(&c.log, "  home %d: ", home)
	if info.Shared {
		fmt.Fprintf(&c.log, "shared by {%s}", bitsOf(info.Sharers))
	} else {
		fmt.Fprintf(&c.log, "owned by %d", info.Owner)
	}
	if info.Busy {
		fmt.Fprintf(&c.log, ", busy")
	}
	if info.Queue > 0 {
		fmt.Fprintf(&c.log, ", %d requests", info.Queue)
	}
	if info.Tenure > 0 {
		fmt.Fprintf(&c.log, ", tenure %v", info.Tenure)
	}
	fmt.Fprint(&c.log, "; rights")
	for _, a := range c.agents {
		i, _ := a.Inspect(p)
		fmt.Fprintf(&c.log, " %v", i.Right)
		if i.Right != i.Mode {
			fmt.Fprint(&c.log, "-parked")
		}
		if i.Waiting {
			fmt.Fprint(&c.log, "?")
		}
		if i.Deferred {
			fmt.Fprint(&c.log, "*")
		}
	}
	fmt.Fprintln(&c.log)
}
