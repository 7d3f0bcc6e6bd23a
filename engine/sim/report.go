package sim

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"

	"ironspan/engine/wire"
)

// Kinds says what transactions cost, by kind, in the order of their names.
type Kinds []Kind

// Kind is one sort of transaction, named by what was asked and who answered.
type Kind struct {
	Name     string  `json:"name"`
	Count    int     `json:"count"`
	Messages float64 `json:"messages"` // sent to other nodes, mean
	Pages    float64 `json:"pages"`    // of these, with a page before them, mean
	Hops     float64 `json:"hops"`     // messages one after the other until the requester has the page, mean
	MaxHops  int     `json:"max_hops"`
}

// Add is what the transactions of both cost together.
func (k Kinds) Add(more Kinds) Kinds {
	sum := slices.Clone(k)
	for _, x := range more {
		i, found := slices.BinarySearchFunc(sum, x.Name, func(y Kind, name string) int { return cmp.Compare(y.Name, name) })
		if !found {
			sum = slices.Insert(sum, i, x)
			continue
		}
		y := &sum[i]
		n, m := float64(y.Count), float64(x.Count)
		mean := func(a, b float64) float64 { return (a*n + b*m) / (n + m) }
		y.Messages, y.Pages, y.Hops = mean(y.Messages, x.Messages), mean(y.Pages, x.Pages), mean(y.Hops, x.Hops)
		y.Count += x.Count
		y.MaxHops = max(y.MaxHops, x.MaxHops)
	}
	return sum
}

// Write writes the table.
func (k Kinds) Write(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "transaction\tcount\tmessages\tpages\thops\tmost\t")
	for _, x := range k {
		fmt.Fprintf(t, "%s\t%d\t%.2f\t%.2f\t%.2f\t%d\t\n", x.Name, x.Count, x.Messages, x.Pages, x.Hops, x.MaxHops)
	}
	return t.Flush()
}

// costs follows transactions through their messages.
type costs struct {
	open map[costKey]*cost
	now  map[askKey]*cost // the last transaction of a node for a page
	all  []*cost
}

type askKey struct {
	requester wire.NodeID
	page      wire.PFN
}

type costKey struct {
	requester wire.NodeID
	page      wire.PFN
	txn       uint32
}

type cost struct {
	asked                                    wire.Kind
	first                                    wire.NodeID // sender of the first message
	granter                                  int         // who granted, -1: nobody yet
	requester                                wire.NodeID
	messages, pages, forwards, invalidations int
	chain                                    int
	bare, served                             bool
	parked                                   bool                 // its owner had
	depth                                    [wire.MaxNodes]uint8 // longest chain of messages that has reached a node
}

func (c *costs) of(m *wire.Message) *cost {
	k := costKey{m.Requester, m.Page, m.Txn}
	x := c.open[k]
	if x == nil {
		x = &cost{asked: m.Kind, first: m.From, requester: m.Requester, granter: -1}
		c.open[k] = x
		c.now[askKey{m.Requester, m.Page}] = x
		c.all = append(c.all, x)
	}
	return x
}

// sent notes a message and returns of how many, one after the other, it is the last.
func (c *costs) sent(from int, m *wire.Message) (chain int) {
	x := c.of(m)
	x.messages++
	switch m.Kind {
	case wire.FwdGetS, wire.FwdGetM:
		x.forwards++
	case wire.Inv:
		x.invalidations++
	case wire.Grant:
		x.granter = from
		x.bare = m.Flags == 0
	case wire.WriteBack:
		x.parked = x.parked || m.Flags == wire.FlagHome
	}
	if m.Flags&wire.FlagData != 0 {
		x.pages++
	}
	return int(x.depth[from]) + 1
}

func (c *costs) received(at int, m *wire.Message, chain int) {
	x := c.of(m)
	if x.served {
		return
	}
	x.depth[at] = max(x.depth[at], uint8(chain))
}

// served closes the transaction of a node for a page: what comes later is not waited for.
func (c *costs) served(node int, page wire.PFN) {
	if x := c.now[askKey{wire.NodeID(node), page}]; x != nil && !x.served {
		x.served = true
		x.chain = int(x.depth[node])
	}
}

func (x *cost) name() string {
	asked := x.asked.String()
	if x.first == x.requester && x.asked > wire.Upgrade { // the home itself asked
		switch x.asked {
		case wire.FwdGetS:
			asked = "GetS"
		default:
			asked = "GetM"
		}
		asked += " by home"
	}
	switch {
	case x.bare:
		asked += ", no data"
	case x.asked == wire.Upgrade:
		asked += ", lost its copy"
	}
	if x.parked {
		return asked + ", parked by owner"
	}
	if x.forwards > 0 {
		return asked + ", from owner"
	}
	if x.invalidations > 0 {
		return asked + ", sharers"
	}
	return asked + ", from home"
}

func (c *costs) sum() Kinds {
	sums := map[string]*Kind{}
	for _, x := range c.all {
		if !x.served {
			continue
		}
		k := sums[x.name()]
		if k == nil {
			k = &Kind{Name: x.name()}
			sums[x.name()] = k
		}
		k.Count++
		k.Messages += float64(x.messages)
		k.Pages += float64(x.pages)
		k.Hops += float64(x.chain)
		k.MaxHops = max(k.MaxHops, x.chain)
	}
	var out Kinds
	for _, k := range sums {
		k.Messages /= float64(k.Count)
		k.Pages /= float64(k.Count)
		k.Hops /= float64(k.Count)
		out = append(out, *k)
	}
	slices.SortFunc(out, func(x, y Kind) int { return cmp.Compare(x.Name, y.Name) })
	return out
}
