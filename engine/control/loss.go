package control

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"ironspan/engine/spec"
	"ironspan/engine/wire"
)

const (
	// MaxPageRuns bounds the runs of a PageSet, and with them the answer of a node: some MiB.
	MaxPageRuns = 1 << 16

	// maxLossRanges bounds each list of ranges in a run's report.
	maxLossRanges = 4096
)

// PageRun is a run of RAM pages. Its JSON form is [first, pages].
type PageRun struct {
	First wire.PFN
	Pages uint64
}

// MarshalJSON implements json.Marshaler.
func (r PageRun) MarshalJSON() ([]byte, error) {
	return fmt.Appendf(nil, "[%d,%d]", r.First, r.Pages), nil
}

// UnmarshalJSON implements json.Unmarshaler.
func (r *PageRun) UnmarshalJSON(b []byte) error {
	var pair []uint64
	if err := json.Unmarshal(b, &pair); err != nil {
		return err
	}
	if len(pair) != 2 {
		return fmt.Errorf("control: a run of pages is [first, pages], not %d numbers", len(pair))
	}
	r.First, r.Pages = wire.PFN(pair[0]), pair[1]
	return nil
}

// PageSet is a set of RAM pages.
type PageSet struct {
	Pages uint64    `json:"pages"`          // how many
	Runs  []PageRun `json:"runs,omitempty"` // which, in ascending order; if Cut, some of them
	Cut   bool      `json:"cut,omitempty"`
}

// NewPageSet makes a set of runs in any order, which do not overlap, and of more pages that are not in them.
func NewPageSet(runs []PageRun, more uint64) PageSet {
	s := PageSet{Pages: more, Cut: more > 0}
	slices.SortFunc(runs, func(a, b PageRun) int { return cmp.Compare(a.First, b.First) })
	for _, r := range runs {
		s.Pages += r.Pages
		n := len(s.Runs)
		switch {
		case n > 0 && s.Runs[n-1].First+wire.PFN(s.Runs[n-1].Pages) == r.First:
			s.Runs[n-1].Pages += r.Pages
		case n == MaxPageRuns:
			s.Cut = true
		default:
			s.Runs = append(s.Runs, r)
		}
	}
	return s
}

// spans returns the runs as ranges. The set must have been checked.
func (s *PageSet) spans() spans {
	out := make(spans, 0, len(s.Runs))
	for _, r := range s.Runs {
		out = append(out, spec.PFNRange{First: r.First, Last: r.First + wire.PFN(r.Pages)})
	}
	return out.joined()
}

// check says what is wrong with a set that came from a node and is to lie within some ranges.
func (s *PageSet) check(within spans) error {
	if len(s.Runs) > MaxPageRuns {
		return fmt.Errorf("%d runs of pages, at most %d are allowed", len(s.Runs), MaxPageRuns)
	}
	if s.Pages > within.pages() {
		return fmt.Errorf("%d pages of %d", s.Pages, within.pages())
	}
	var next wire.PFN
	listed := uint64(0)
	for _, r := range s.Runs {
		if r.First < next || r.Pages == 0 || r.Pages > s.Pages-listed || r.First > spec.MaxMemory/wire.PageSize {
			return fmt.Errorf("a run of %d pages from %d on does not belong there", r.Pages, r.First)
		}
		next = r.First + wire.PFN(r.Pages)
		listed += r.Pages
	}
	if listed != s.Pages && !s.Cut {
		return fmt.Errorf("%d pages are listed of %d", listed, s.Pages)
	}
	if len(s.spans().minus(within)) > 0 {
		return errors.New("pages that the node has nothing to say about")
	}
	return nil
}

// LossPart is what one node can say of the VM's pages after others were lost: see coherence.Fate.
type LossPart struct {
	Kept      PageSet `json:"kept"`      // homed at a lost node, and here are the bytes last written
	Lost      PageSet `json:"lost"`      // homed here, and the only current copy was at a lost node
	Uncertain PageSet `json:"uncertain"` // either, and it cannot be told
}

// check says what is wrong with a part that came from a node.
func (p *LossPart) check(plan *spec.Plan, node wire.NodeID, lost []wire.NodeID) error {
	theirs, own := homesOf(plan, lost), homesOf(plan, []wire.NodeID{node})
	for _, s := range []struct {
		what   string
		set    *PageSet
		within spans
	}{{"kept", &p.Kept, theirs}, {"lost", &p.Lost, own}, {"uncertain", &p.Uncertain, append(own, theirs...).joined()}} {
		if err := s.set.check(s.within); err != nil {
			return fmt.Errorf("control: node %d's %s pages: %w", node, s.what, err)
		}
	}
	return nil
}

// Losses is what a VM lost with its nodes.
type Losses struct {
	Nodes     []wire.NodeID `json:"nodes"`             // the lost ones; none if it was the connection between two
	Pages     uint64        `json:"pages"`             // their only current copy was at a lost node
	Uncertain uint64        `json:"uncertain"`         // something was under way for them, and it cannot be told
	AtMost    bool          `json:"at_most,omitempty"` // some of Pages may have been kept by nodes that did not say
	Silent    []wire.NodeID `json:"silent,omitempty"`  // nodes that are left and did not say; nothing is known of their pages
	Memory    []MemoryLoss  `json:"memory,omitempty"`  // by home: the lost nodes, and others whose pages were with them
}

// MemoryLoss is what was lost of the pages that are homed at one node.
type MemoryLoss struct {
	Node            wire.NodeID     `json:"node"`
	Name            string          `json:"name"`
	Lost            uint64          `json:"lost"`
	Uncertain       uint64          `json:"uncertain"`
	Kept            uint64          `json:"kept"` // of a lost node: pages of which another node has the bytes last written
	LostRanges      []spec.GPARange `json:"lost_ranges,omitempty"`
	UncertainRanges []spec.GPARange `json:"uncertain_ranges,omitempty"`
	Cut             bool            `json:"cut,omitempty"` // there are more ranges
}

// mergeLosses makes one of what the nodes say that are left, by node; nil is one that did not say. The parts must have
// been checked.
func mergeLosses(plan *spec.Plan, lost []wire.NodeID, parts map[wire.NodeID]*LossPart) *Losses {
	l := &Losses{Nodes: lost}
	var kept, uncertain spans
	for n := range plan.Nodes {
		node := wire.NodeID(n)
		if slices.Contains(lost, node) {
			continue
		}
		p := parts[node]
		if p == nil {
			l.Silent = append(l.Silent, node)
			continue
		}
		kept = append(kept, p.Kept.spans()...)
		uncertain = append(uncertain, p.Uncertain.spans()...)
		l.AtMost = l.AtMost || p.Kept.Cut || p.Uncertain.Cut
	}
	l.AtMost = l.AtMost || len(l.Silent) > 0 && len(lost) > 0
	kept, uncertain = kept.joined(), uncertain.joined().minus(kept.joined())
	for n, pn := range plan.Nodes {
		node, home := wire.NodeID(n), spans{pn.RAM}
		m := MemoryLoss{Node: node, Name: pn.Name}
		unsure := uncertain.within(home)
		var gone spans
		if slices.Contains(lost, node) {
			gone = home.minus(kept).minus(uncertain)
			m.Kept, m.Lost = kept.within(home).pages(), gone.pages()
		} else if p := parts[node]; p != nil {
			gone = p.Lost.spans()
			m.Lost, m.Cut = p.Lost.Pages, p.Lost.Cut
		}
		m.Uncertain = unsure.pages()
		if m.Lost == 0 && m.Uncertain == 0 && !slices.Contains(lost, node) {
			continue
		}
		m.LostRanges = gone.gpas(&m.Cut)
		m.UncertainRanges = unsure.gpas(&m.Cut)
		l.Pages += m.Lost
		l.Uncertain += m.Uncertain
		l.Memory = append(l.Memory, m)
	}
	return l
}

// String says it in one line for the user.
func (l *Losses) String() string {
	var b strings.Builder
	if len(l.Nodes) > 0 {
		l.nameLost(&b)
	}
	switch {
	case l.Pages == 0 && len(l.Silent) > 0:
		b.WriteString("no page was lost that is known of")
	case l.Pages == 0:
		b.WriteString("no page was lost")
	default:
		if l.AtMost {
			b.WriteString("at most ")
		}
		verb := " had their"
		if l.Pages == 1 {
			verb = " had its"
		}
		fmt.Fprintf(&b, "%s (%s)%s only copy there", countPages(l.Pages), size(l.Pages), verb)
		l.describe(&b)
	}
	if l.Uncertain > 0 {
		verb := " are"
		if l.Uncertain == 1 {
			verb = " is"
		}
		fmt.Fprintf(&b, "; %s%s uncertain", countPages(l.Uncertain), verb)
	}
	for _, n := range l.Silent {
		fmt.Fprintf(&b, "; node %d does not say what it has", n)
	}
	return b.String()
}

// nameLost says which nodes are lost.
func (l *Losses) nameLost(b *strings.Builder) {
	var who []string
	for _, m := range l.Memory {
		if slices.Contains(l.Nodes, m.Node) {
			who = append(who, fmt.Sprintf("%d (%s)", m.Node, m.Name))
		}
	}
	if len(who) == 1 {
		fmt.Fprintf(b, "node %s is lost; ", who[0])
		return
	}
	fmt.Fprintf(b, "nodes %s are lost; ", strings.Join(who, ", "))
}

// describe says whose memory the lost pages are, that of lost nodes first, and where the first of them are.
func (l *Losses) describe(b *strings.Builder) {
	own := func(m MemoryLoss) bool { return slices.Contains(l.Nodes, m.Node) }
	list := slices.DeleteFunc(slices.Clone(l.Memory), func(m MemoryLoss) bool { return m.Lost == 0 })
	slices.SortStableFunc(list, func(x, y MemoryLoss) int {
		switch {
		case own(x) == own(y):
			return 0
		case own(x):
			return -1
		}
		return 1
	})
	sep := ": "
	var ranges []spec.GPARange
	for _, m := range list {
		whose := fmt.Sprintf("node %d's", m.Node)
		switch {
		case own(m) && len(l.Nodes) == 1:
			whose = "its own memory"
		case own(m):
			whose += " own memory"
		}
		fmt.Fprintf(b, "%s%s of %s", sep, thousands(m.Lost), whose)
		sep = ", "
		ranges = append(ranges, m.LostRanges...)
	}
	if len(ranges) > 0 {
		fmt.Fprintf(b, "; first: %#x-%#x", ranges[0].Start, ranges[0].End-1)
	}
	if len(ranges) > 1 {
		b.WriteString(" ...")
	}
}

func countPages(n uint64) string {
	if n == 1 {
		return "1 page"
	}
	return thousands(n) + " pages"
}

// thousands writes a number with a comma before every three digits.
func thousands(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// size writes the size of so many pages.
func size(pages uint64) string {
	kib := pages * (wire.PageSize >> 10)
	if kib < 1<<10 {
		return fmt.Sprintf("%d KiB", kib)
	}
	mib := strconv.FormatFloat(float64(kib)/(1<<10), 'f', 1, 64)
	return strings.TrimSuffix(mib, ".0") + " MiB"
}

// spans is a set of pages as ranges in ascending order that do not touch.
type spans []spec.PFNRange

// joined sorts ranges and joins those that touch or overlap.
func (s spans) joined() spans {
	s = slices.Clone(s)
	slices.SortFunc(s, func(a, b spec.PFNRange) int { return cmp.Compare(a.First, b.First) })
	out := s[:0]
	for _, r := range s {
		if n := len(out); n > 0 && r.First <= out[n-1].Last {
			out[n-1].Last = max(out[n-1].Last, r.Last)
			continue
		}
		out = append(out, r)
	}
	return out
}

// minus returns what is in s and not in t.
func (s spans) minus(t spans) spans {
	var out spans
	for _, r := range s {
		for len(t) > 0 && t[0].Last <= r.First {
			t = t[1:]
		}
		for _, x := range t {
			if x.First >= r.Last {
				break
			}
			if x.First > r.First {
				out = append(out, spec.PFNRange{First: r.First, Last: x.First})
			}
			r.First = max(r.First, x.Last)
		}
		if r.First < r.Last {
			out = append(out, r)
		}
	}
	return out
}

// within returns what is in both.
func (s spans) within(t spans) spans { return s.minus(s.minus(t)) }

func (s spans) pages() (n uint64) {
	for _, r := range s {
		n += r.Pages()
	}
	return n
}

// gpas returns the first of the ranges as guest-physical addresses, and sets cut if there are more.
func (s spans) gpas(cut *bool) []spec.GPARange {
	var out []spec.GPARange
	for _, r := range s {
		if len(out) >= maxLossRanges {
			*cut = true
			break
		}
		out = append(out, r.GPAs()...)
	}
	return out
}

// homesOf returns the pages that are homed at any of the nodes.
func homesOf(plan *spec.Plan, nodes []wire.NodeID) spans {
	var s spans
	for _, n := range nodes {
		s = append(s, plan.Nodes[n].RAM)
	}
	return s.joined()
}

// parseLost reads the nodes that a client calls lost, separated by commas; there may be none.
func parseLost(plan *spec.Plan, self wire.NodeID, list string) ([]wire.NodeID, *Error) {
	if list == "" {
		return nil, nil
	}
	var lost []wire.NodeID
	for s := range strings.SplitSeq(list, ",") {
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil || n >= uint64(len(plan.Nodes)) || wire.NodeID(n) == self || slices.Contains(lost, wire.NodeID(n)) {
			return nil, errorf(CodeBad, "lost: %.64q is no list of other nodes of this VM", list)
		}
		lost = append(lost, wire.NodeID(n))
	}
	return lost, nil
}

// Losses asks what became of the VM's pages when other nodes were lost. The VM must have ended there.
func (l *Lease) Losses(ctx context.Context, plan *spec.Plan, node wire.NodeID, lost []wire.NodeID) (*LossPart, error) {
	var list []string
	for _, n := range lost {
		list = append(list, fmt.Sprint(n))
	}
	var p LossPart
	if err := l.c.call(ctx, "GET", l.path+"/losses?of="+strings.Join(list, ","), nil, &p); err != nil {
		return nil, err
	}
	if err := p.check(plan, node, lost); err != nil {
		return nil, err
	}
	return &p, nil
}

// losses asks all nodes that are left what was lost with the others; nil if that is not how the VM ended.
func (r *runner) losses(o Outcome) *Losses {
	if o.Kind != NodeLost && o.Kind != LinkLost {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), max(5*time.Second, r.plan.Timeouts.Stop.Std()))
	defer cancel()
	lost := []wire.NodeID{}
	for n := range r.leases {
		if r.lost[wire.NodeID(n)] {
			lost = append(lost, wire.NodeID(n))
		}
	}
	parts := make([]*LossPart, len(r.leases))
	var wg sync.WaitGroup
	for i, l := range r.leases {
		node := wire.NodeID(i)
		if r.lost[node] {
			continue
		}
		wg.Go(func() {
			var err error
			if parts[i], err = l.Losses(ctx, r.plan, node, lost); err != nil {
				r.emit(Event{Kind: KindLog, Node: node, Text: "what it has of the lost memory: " + strings.TrimPrefix(err.Error(), "control: ")})
			}
		})
	}
	wg.Wait()
	byNode := map[wire.NodeID]*LossPart{}
	for i, p := range parts {
		byNode[wire.NodeID(i)] = p
	}
	return mergeLosses(r.plan, lost, byNode)
}
