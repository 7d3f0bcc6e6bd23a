package check

import (
	"flag"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the tables of docs/protocol.md anew")

// TestDocument compares the tables of the protocol's document with what agents were seen to do. In the short
// tier they are not seen to do everything.
func TestDocument(t *testing.T) {
	file := filepath.FromSlash("../../../docs/protocol.md")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	_, table := small()
	if !testing.Short() {
		_, more := medium()
		table = table.with(more)
	}
	document := string(text)
	for role := range roles {
		begin := "<!-- " + role.String() + " -->\n"
		head, rest, found := strings.Cut(document, begin)
		old, tail, closed := strings.Cut(rest, "<!-- end -->")
		if !found || !closed {
			t.Fatalf("%s has no table for the %s", file, role)
		}
		switch now := table.Markdown(role); {
		case testing.Short():
			table.expect(t, role, old)
		case *update:
			document = head + begin + now + "<!-- end -->" + tail
		case old != now:
			t.Errorf("the %s's table in %s is not what agents do; -update writes it anew. They do:\n%s", role, file, now)
		}
	}
	if document != string(text) {
		if err := os.WriteFile(file, []byte(document), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// with returns a table with the rows of both.
func (t *Table) with(other *Table) *Table {
	sum := NewTable()
	for _, x := range []*Table{t, other} {
		for r, outcomes := range x.rows {
			if sum.rows[r] == nil {
				sum.rows[r] = map[string]bool{}
			}
			maps.Copy(sum.rows[r], outcomes)
		}
	}
	return sum
}

// expect says what a role was seen to do that is not in its table.
func (t *Table) expect(tb testing.TB, of role, markdown string) {
	documented := map[string]bool{} // row and outcome
	for line := range strings.Lines(markdown) {
		if cells := strings.Split(strings.Trim(line, "| \n"), " | "); len(cells) == 3 {
			for outcome := range strings.SplitSeq(cells[2], "; ") {
				documented[cells[0]+" | "+cells[1]+" | "+outcome] = true
			}
		}
	}
	for r, outcomes := range t.rows {
		for outcome := range outcomes {
			if line := r.state + " | " + r.input + " | " + outcome; r.role == of && !documented[line] {
				tb.Errorf("not in the %s's table: %s", of, line)
			}
		}
	}
}
