package sim

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// mutant is a bug that is put in by replacing the one place in a file of engine/coherence where old stands.
type mutant struct{ name, file, old, new string }

// mutants are for TestSim to find.
var mutants = []mutant{
	{
		"requester does not wait for acknowledgements", "requester.go",
		"if r.got&need == need {", "if true {",
	},
	{
		"acknowledgement that overtakes the grant is forgotten", "requester.go",
		"r.got |= bit(m.From)\n", "if r.granted {\nr.got |= bit(m.From)\n}\n",
	},
	{
		"a write fault behind a read request asks again", "agent.go",
		"case p.slot != 0:\n", "case p.slot != 0 && !write:\n",
	},
	{
		"page of zeros installed from the slot", "requester.go",
		"act.Msg.Flags = r.carried", "act.Msg.Flags = r.carried &^ wire.FlagZero",
	},
	{
		"faults that wait for a slot are forgotten", "agent.go",
		"a.waiters.n > 0 && a.serveWaiters(now)", "false",
	},
	{
		"page sent before it is unmapped", "holder.go",
		"\ta.emit(OpUnmap, f.page)\n\tp.revoke()\n\ta.sendGrant(now, OpSendPage, f.page, f.index, f.transaction, wire.Modified, f.tenure, 0)\n",
		"\ta.sendGrant(now, OpSendPage, f.page, f.index, f.transaction, wire.Modified, f.tenure, 0)\n\ta.emit(OpUnmap, f.page)\n\tp.revoke()\n",
	},
	{
		"owner goes on writing after a read forward", "holder.go",
		"a.emit(OpProtect, f.page)", "",
	},
	{
		"owner does not write back", "holder.go",
		"!atHome && f.requester != home {", "!atHome && f.requester == home {",
	},
	{
		"reader keeps its copy while its upgrade waits", "holder.go",
		"if p.mode != wire.Shared {", "if p.mode != wire.Shared || p.slot != 0 {",
	},
	{
		"home goes on writing what a grant covers", "cover.go",
		"a.emit(OpProtect, a.pageAt(j))", "",
	},
	{
		"grant covers a page that is being taken away", "cover.go",
		"e.is(busy|writeBack|migratory)", "e.is(writeBack|migratory)",
	},
	{
		"home does not note who may read what a grant covers", "cover.go",
		"e.sharers |= bit(reader)\n", "",
	},
	{
		"what a grant covers besides is overlooked", "requester.go",
		"a.takeCovered(i, m.Args[2])", "",
	},
	{
		"deferred invalidation is forgotten", "agent.go",
		"a.serve(now, &d.forward)", "if d.kind != wire.Inv {\na.serve(now, &d.forward)\n}",
	},
	{
		"home does not notice that its own deferred page is gone", "agent.go",
		"a.ownForwardServed(now, d.index)", "",
	},
	{
		"home does not wait for the write-back", "home.go",
		"\te.bits &^= busy\n\ta.advance(now, i, e)", "\te.bits &^= busy | writeBack\n\ta.advance(now, i, e)",
	},
	{
		"home does not wait for the requester", "home.go",
		"\tif need != 0 {\n\t\tr.phase = waiting\n\t}", "",
	},
	{
		"home keeps its own copy", "home.go",
		"\ta.invalidate(page, &a.pages[i])\n", "",
	},
	{
		"home forgets the old owner, who still reads", "home.go",
		"e.sharers = bit(e.owner) | bit(r.requester)", "e.sharers = bit(r.requester)",
	},
	{
		"home forgets a reader", "home.go",
		"e.sharers |= bit(r.requester)", "e.sharers = bit(r.requester)",
	},
	{
		"home does not send data to an upgrade that lost its copy", "home.go",
		"bare := r.kind == wire.Upgrade && e.sharers&bit(r.requester) != 0", "bare := r.kind == wire.Upgrade",
	},
	{
		"page of zeros not written back", "home.go",
		"if m.Flags&wire.FlagZero != 0 {", "if false {",
	},
	{
		"next request not begun", "home.go",
		"\te.bits &^= busy\n\ta.advance(now, i, e)", "\te.bits &^= busy",
	},
	{
		"home calls a page owned that was returned to it", "home.go",
		"e.bits = e.bits&^(busy|writeBack) | shared", "e.bits &^= busy | writeBack",
	},
	{
		"home thinks that who had the page parked still owns it", "home.go",
		"| shared\n\te.sharers = 0\n\tr.phase = queued", "| shared\n\te.sharers = bit(m.From)\n\tr.phase = queued",
	},
	{
		"home grants itself less than its directory says", "home.go",
		"\t\town.want = mode // a reader may get more than it asked for\n", "",
	},
	{
		"page parked before it is unmapped", "evict.go",
		"\ta.emit(OpUnmap, page)\n\tp.marks |= parked\n\tp.setLevel(0)\n", "\tp.marks |= parked\n\tp.setLevel(0)\n\tdefer a.emit(OpUnmap, page)\n",
	},
	{
		"dirty page dropped", "evict.go",
		"if p.mode == wire.Shared {\n\t\ta.stats.EvictionsClean++", "if p.mode != wire.None {\n\t\ta.stats.EvictionsClean++",
	},
	{
		"page that was being fetched is used although the right has gone", "evict.go",
		"case !r.void:\n\t\tp.marks &^= parked\n", "case true:\n\t\tp.mode = max(p.mode, wire.Shared)\n\t\tp.marks &^= parked\n",
	},
	{
		"reader fetches a page whose home frame may not be good yet", "requester.go",
		"(p.mode == wire.Modified || a.cache.isGood(i))", "true",
	},
	{
		"owner keeps the right to a page that it returned", "evict.go",
		"\tp.marks &^= parked\n\tp.mode = wire.None\n", "\tp.marks &^= parked\n\tif f.kind == wire.Inv {\n\t\tp.mode = wire.None\n\t} else {\n\t\tp.marks |= parked\n\t}\n",
	},
	{
		"fault on a page that is being parked is forgotten", "evict.go",
		"if p.is(queuedAny) && !a.waiters.push(i) {", "if false {",
	},
	{
		"page that is asked for does not count", "requester.go",
		"\tif p.mapped() == wire.None {\n\t\ta.cache.frames++\n\t}\n", "",
	},
	{
		"page that goes counts on", "evict.go",
		"if p := &a.pages[i]; p.slot == 0 || a.parking(p) {", "if p := &a.pages[i]; p.slot == 0 {",
	},
	{
		"pages that are parked count for ever as being parked", "evict.go",
		"\t\ta.cache.parking--\n", "",
	},
	{
		"the hand never goes on", "agent.go",
		"\ta.cache.rests = a.cache.rests && now < a.cache.until\n", "",
	},
	{
		"tenure without a bound", "tenure.go",
		"base, limit := a.policy.levels[1], a.policy.levels[l]", "base, limit := a.policy.levels[1], 1000*a.policy.levels[l]",
	},
}

// mutantsOf are for other tests to find. Those of the judges run with the simulator's own checks switched off.
var mutantsOf = []struct {
	test string
	mutant
}{
	{"TestHistories", mutant{
		"porcupine: requester does not wait for acknowledgements", "requester.go",
		"if r.got&need == need {", "if true {",
	}},
	{"TestHistories", mutant{
		"porcupine: home does not wait for the write-back", "home.go",
		"\te.bits &^= busy\n\ta.advance(now, i, e)", "\te.bits &^= busy | writeBack\n\ta.advance(now, i, e)",
	}},
	{"TestHistories", mutant{
		"porcupine: node goes on reading a page after its invalidation", "../sim/node.go",
		"\t\tn.guest[a.Page] = wire.None\n", "\t\tn.guest[a.Page] = wire.None\nif n.isHome(a.Page) {\nn.guest[a.Page] = wire.Shared\n}\n",
	}},
	{"TestHistories", mutant{
		"porcupine: page installed before it has landed", "../sim/node.go",
		"\t\tc.transmit(n.id, int(a.Peer), land)\n", "\t\tdefer c.transmit(n.id, int(a.Peer), land)\n",
	}},
	{"TestLitmusBlind", mutant{
		"x86-TSO: requester does not wait for acknowledgements", "requester.go",
		"if r.got&need == need {", "if true {",
	}},
	{"TestLitmusBlind", mutant{
		"x86-TSO: node goes on reading a page after its invalidation", "../sim/node.go",
		"\t\tn.guest[a.Page] = wire.None\n", "\t\tn.guest[a.Page] = wire.None\nif n.isHome(a.Page) {\nn.guest[a.Page] = wire.Shared\n}\n",
	}},
	{"TestLitmusBlind", mutant{
		"x86-TSO: stores stay in their buffers when the right goes", "../sim/litmus.go",
		"\tif c.trial == nil {\n", "\tif !n.stopped {\n",
	}},
	{"TestLitmusBlind", mutant{
		"x86-TSO: stores retire in any order", "../sim/litmus.go",
		"\tc.retired(n, t.buffer[0])\n", "\tt.buffer[0], t.buffer[len(t.buffer)-1] = t.buffer[len(t.buffer)-1], t.buffer[0]\nc.retired(n, t.buffer[0])\n",
	}},
	{"TestFailures", mutant{
		"failure: what comes after a lost packet arrives", "../sim/failure.go",
		"l.broken && e.nth > l.last {", "l.broken && e.nth == l.last+1 {",
	}},
	{"TestFailures", mutant{
		"failure: a node is told of no failure but its own", "../sim/failure.go",
		"\tfor _, m := range c.nodes {\n\t\tc.plan(", "\tfor _, m := range c.nodes[n.id:n.id+1] {\n\t\tc.plan(",
	}},
	{"TestFailures", mutant{
		"losses: a lost node's pages that others read are not kept", "loss.go",
		"case p.mapped() != wire.None:\n\t\treturn Kept", "case p.mapped() == wire.Modified:\n\t\treturn Kept",
	}},
	{"TestFailures", mutant{
		"losses: what is asked for counts as kept", "loss.go",
		"case r.kind == wire.Parked, r.granted && r.carried != 0:", "case true:",
	}},
	{"TestFailures", mutant{
		"losses: what a lost node owned counts as safe", "loss.go",
		"case !e.is(shared) && gone(e.owner):", "case false:",
	}},
	{"TestFailures", mutant{
		"losses: what a lost node read counts as lost", "loss.go",
		"case !e.is(shared) && gone(e.owner):", "case e.sharers&lost != 0 || gone(e.owner):",
	}},
	{"TestFailures", mutant{
		"losses: what a lost node was about to write counts as safe", "loss.go",
		"\t\tif gone(r.requester) {\n", "\t\tif false {\n",
	}},
	{"TestFailures", mutant{
		"losses: what has been parked counts as kept", "loss.go",
		"case p.mapped() != wire.None:", "case p.mode != wire.None:",
	}},
	{"TestFailures", mutant{
		"losses: what a lost node was about to let others read counts as safe", "loss.go",
		"written here.\n\t\treturn Uncertain", "written here.\n\t\treturn 0",
	}},
	{"TestFailures", mutant{
		"losses: what was between two nodes counts as safe", "loss.go",
		"return Uncertain // it is at one of them", "return 0 // it is at one of them",
	}},
	{"TestFailures", mutant{
		"losses: what was between two nodes counts as lost", "loss.go",
		"return Uncertain // it is at one of them", "return Lost // it is at one of them",
	}},
	{"TestSim", mutant{
		"sets of nodes have room for 32", "agent.go",
		"func bit(n wire.NodeID) uint64 { return 1 << n }", "func bit(n wire.NodeID) uint64 { return 1 << (n % 32) }",
	}},
}

// TestMutants puts one bug after the other into the protocol, or into the simulator, and runs the test on it that has to
// find it. It says which seed that took.
func TestMutants(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the package once for each mutant")
	}
	goTool, err := exec.LookPath("go")
	if err != nil {
		t.Skip("needs the go tool to build the mutants")
	}
	rooms, err := filepath.Abs("../coherence")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mutants {
		t.Run(strings.ReplaceAll(m.name, " ", "_"), func(t *testing.T) { m.hunt(t, goTool, rooms, "TestSim") })
	}
	for _, m := range mutantsOf {
		t.Run(strings.ReplaceAll(m.name, " ", "_"), func(t *testing.T) { m.hunt(t, goTool, rooms, m.test) })
	}
}

var found = regexp.MustCompile(`seed (\d+): (.*)`)

// hunt runs a test on the mutant, which has to fail.
func (m *mutant) hunt(t *testing.T, goTool, rooms, test string) {
	t.Parallel()
	path := filepath.Join(rooms, m.file)
	src, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(src), m.old); n != 1 {
		t.Fatalf("%q stands %d times in %s: the mutant has to be adapted", m.old, n, m.file)
	}
	dir := t.TempDir()
	mutated := filepath.Join(dir, filepath.Base(m.file))
	if err := os.WriteFile(mutated, []byte(strings.Replace(string(src), m.old, m.new, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {path: mutated}})
	if err != nil {
		t.Fatal(err)
	}
	list := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(list, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(goTool, "test", "-overlay", list, "-vet=off", "-count=1", "-timeout=120s", "-run=^"+test+"$", ".", "-seeds=99")
	out, err := cmd.CombinedOutput()
	hit := found.FindSubmatch(out)
	if err == nil || hit == nil {
		t.Fatalf("not found (%v):\n%s", err, out)
	}
	t.Logf("seed %s: %s", hit[1], hit[2])
}
