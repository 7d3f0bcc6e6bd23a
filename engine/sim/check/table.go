package check

import (
	"fmt"
	"slices"
	"strings"

	"ironspan/engine/coherence"
	"ironspan/engine/wire"
)

// Table collects what agents were seen to do: for each role, by state and input, what followed. Nil collects
// nothing.
type Table struct {
	rows map[row]map[string]bool // outcomes
	was  []situation
}

// situation is what a page is at.
type situation struct {
	coherence.Roles
	queue int // requests at home
}

// othersWait says whether there is a request besides the one whose transaction is not over.
func (s *situation) othersWait() bool { return s.queue > 1 || s.queue == 1 && s.Home == "write-back" }

func situationOf(a *coherence.Agent, p wire.PFN) situation {
	r, _ := a.Roles(p)
	info, _ := a.Inspect(p)
	return situation{r, info.Queue}
}

// row is a state of a page in a role of its node, and an input.
type row struct {
	role         role
	state, input string
}

// role is one of the parts that a node plays for a page.
type role uint8

// The roles in the order of the protocol's document.
const (
	requester role = iota
	holder
	home
	roles
)

func (r role) String() string { return [...]string{"requester", "holder", "home"}[r] }

// NewTable returns an empty table.
func NewTable() *Table { return &Table{rows: map[row]map[string]bool{}} }

// before notes the states before an input.
func (t *Table) before(w *world, n wire.NodeID) {
	if t == nil {
		return
	}
	t.was = t.was[:0]
	for p := range w.cfg.Homes {
		t.was = append(t.was, situationOf(w.agents[n], wire.PFN(p)))
	}
}

// record notes what followed: the states now and the actions, each of which belongs to one role. Page is the one
// that the input is about, or -1.
func (t *Table) record(w *world, n wire.NodeID, page int, input string) {
	if t == nil {
		return
	}
	a := w.agents[n]
	for p := range w.cfg.Homes {
		var did [roles][]string
		for i := range a.Actions() {
			act := &a.Actions()[i]
			if act.Page != wire.PFN(p) {
				continue
			}
			r := roleOf(act, w.cfg.homeOf(act.Page) == n)
			if word := actionWord(act); !slices.Contains(did[r], word) {
				did[r] = append(did[r], word)
			}
		}
		was, is := &t.was[p], situationOf(a, wire.PFN(p))
		in := input
		if page >= 0 && p != page {
			if in = slotFree; was.Requester != "queued" {
				in = faultBeside
			}
		}
		t.add(row{requester, was.Requester, in}, is.Requester, did[requester])
		t.add(row{holder, was.Holder, in}, is.Holder, did[holder])
		if is.Home == "" {
			continue
		}
		if in == faultBeside && is.Home != was.Home {
			in = grantBeside
		}
		if is.queue > was.queue && is.Home == was.Home && len(did[home]) == 0 {
			did[home] = []string{"queue"}
		} else if was.othersWait() {
			in += ", others wait"
		}
		t.add(row{home, was.Home, in}, is.Home, did[home])
	}
}

// meets says whether an input is one for the role, whatever it does there.
func meets(r role, input string) bool {
	input, _, _ = strings.Cut(input, ",")
	switch input {
	case "Parked", eviction:
		return r != home
	case "GetS", "GetM", "Upgrade", "Done", "WriteBack", grantBeside:
		return r == home
	case "FwdGetS", "FwdGetM", "Inv":
		return r == holder
	case "Grant", "InvAck", "Fetched", readFault, writeFault, slotFree, faultBeside:
		return r == requester
	}
	return r != requester
}

// add notes an outcome. An input that is for another role of the node comes to this one as "own".
func (t *Table) add(r row, next string, did []string) {
	idle := len(did) == 0 && next == r.state
	if !meets(r.role, r.input) {
		if idle || r.role == holder && len(did) == 0 && !strings.Contains(next, "deferred") {
			return // nothing, or an installation, which is the requester's
		}
		r.input = "own " + r.input
		if r.role != home {
			r.input = "own home"
		}
	} else if idle && (r.input == slotFree || r.input == faultBeside || strings.HasPrefix(r.input, endOfTenure)) {
		return // it was another page's
	}
	outcome := strings.Join(did, ", ")
	if outcome == "" {
		outcome = "-"
	}
	if t.rows[r] == nil {
		t.rows[r] = map[string]bool{}
	}
	t.rows[r][outcome+" → "+next] = true
}

// roleOf says which role of a node an action belongs to.
func roleOf(act *coherence.Action, atHome bool) role {
	switch act.Op {
	case coherence.OpInstall, coherence.OpUnprotect, coherence.OpWake, coherence.OpFetch:
		return requester
	case coherence.OpProtect, coherence.OpUnmap, coherence.OpDiscard, coherence.OpPark:
		return holder
	case coherence.OpZeroFrame:
		return home
	}
	switch act.Msg.Kind {
	case wire.GetS, wire.GetM, wire.Upgrade, wire.Done:
		return requester
	case wire.Grant:
		if atHome {
			return home
		}
		return holder
	case wire.InvAck, wire.WriteBack:
		return holder
	}
	return home
}

func actionWord(act *coherence.Action) string {
	word := opNames[act.Op]
	switch act.Op {
	case coherence.OpSend, coherence.OpSendPage:
		word = act.Msg.Kind.String()
		if act.Msg.Flags == wire.FlagHome {
			word = returned
		}
		if act.Msg.Kind == wire.Grant {
			word += "(" + act.Msg.Mode.String() + ")"
		}
		if act.Op == coherence.OpSendPage {
			word += " with page"
		}
	case coherence.OpInstall:
		word += "(" + act.Mode.String() + ")"
	}
	return word
}

// Markdown prints the rows of a role, in order, with what can follow each.
func (t *Table) Markdown(of role) string {
	var lines []string
	for r, outcomes := range t.rows {
		if r.role != of {
			continue
		}
		var list []string
		for o := range outcomes {
			list = append(list, o)
		}
		slices.Sort(list)
		lines = append(lines, fmt.Sprintf("| %s | %s | %s |\n", r.state, r.input, strings.Join(list, "; ")))
	}
	slices.Sort(lines)
	return "| state | input | what is done → next state |\n|---|---|---|\n" + strings.Join(lines, "")
}
