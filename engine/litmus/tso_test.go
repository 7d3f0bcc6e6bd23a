package litmus

import (
	"fmt"
	"strings"
	"testing"
)

// verdicts are what the literature says of the shapes: a final state, in part, and whether x86 allows it.
var verdicts = []struct {
	shape, state string
	allowed      bool
}{
	{"SB", "0:r1=0 1:r1=0", true}, // SDM 3A, "Loads may be reordered with earlier stores to different locations"
	{"SB", "0:r1=1 1:r1=1", true},
	{"SB+mfences", "0:r2=0 1:r2=0", false}, // amd5
	{"SB+xchgs", "0:r1=0 1:r1=0", false},   // iwp2.8.a
	{"SB+mfence+xadd", "0:r2=0 1:r2=0", false},
	{"SB+rfi", "0:r1=1 0:r2=0 1:r1=1 1:r2=0", true}, // iwp2.4
	{"MP", "1:r0=1 1:r1=0", false},                  // iwp2.1
	{"LB", "0:r0=1 1:r0=1", false},                  // iwp2.2
	{"S", "1:r0=1 x=2", false},
	{"R", "1:r1=0 y=2", true},
	{"R+mfence", "1:r2=0 y=2", false},
	{"2+2W", "x=1 y=1", false},
	{"2+2W", "x=2 y=2", true},
	{"CoRR", "1:r0=2 1:r1=1", false},
	{"CoRR", "1:r1=1 1:r2=0", false},
	{"CoRR", "1:r0=0 1:r1=1 1:r2=2", true},
	{"CoRW", "0:r0=2 x=2", false},
	{"n5", "0:r1=2 1:r1=1", false},
	{"n6", "0:r1=1 0:r2=0 x=1 y=2", true}, // allowed by TSO, which the first of Intel's papers denied
	{"INC", "x=5|0", false},
	{"INC", "x=6|0", true},
	{"XADD", "0:r0=0 1:r0=0", false},
	{"CAS", "0:r0=0 1:r0=0", false},
	{"WRC", "1:r0=1 2:r0=1 2:r1=0", false}, // iwp2.5
	{"ISA2", "1:r0=1 2:r0=1 2:r1=0", false},
	{"3.SB+mfences", "0:r2=0 1:r2=0 2:r2=0", false},
	{"IRIW", "2:r0=1 2:r1=0 3:r0=1 3:r1=0", false}, // iwp2.6
}

func shapeNamed(t testing.TB, name string) *Shape {
	for i := range Shapes {
		if Shapes[i].Name == name {
			return &Shapes[i]
		}
	}
	t.Fatalf("no shape %s", name)
	return nil
}

// reaches says that one of the outcomes has all parts of a state.
func reaches(s *Shape, outcomes map[Outcome]bool, state string) bool {
	for o := range outcomes {
		text := " " + o.Describe(s) + " "
		all := true
		for _, part := range strings.Fields(state) {
			all = all && strings.Contains(text, " "+part+" ")
		}
		if all {
			return true
		}
	}
	return false
}

func TestModelAgreesWithTheLiterature(t *testing.T) {
	judged := map[string]bool{}
	for _, v := range verdicts {
		s := shapeNamed(t, v.shape)
		judged[s.Name] = true
		if got := reaches(s, Outcomes(s, Split{}), v.state); got != v.allowed {
			t.Errorf("%v: %s is allowed: %v, want %v", s, v.state, got, v.allowed)
		}
	}
	for i := range Shapes {
		s := &Shapes[i]
		if !judged[s.Name] {
			t.Errorf("%s: nothing from the literature to hold it against", s.Name)
		}
		if len(s.Threads) > MaxThreads || s.Vars() > MaxVars {
			t.Errorf("%s is too large", s.Name)
		}
		t.Logf("%v: %d outcomes", s, len(Outcomes(s, Split{})))
	}
}

// A split access shows in halves of one value beside another, and in nothing else.
func TestSplit(t *testing.T) {
	for _, c := range []struct {
		shape, state string
		allowed      bool
	}{
		{"MP", "1:r0=0 1:r1=1|0", true}, // half of the store
		{"MP", "1:r0=0 1:r1=0|1", true}, // the other half: no order between them
		{"MP", "1:r0=1 1:r1=1", true},
		{"MP", "1:r0=1 1:r1=1|0", false}, // but both come before the flag
		{"MP", "1:r0=1 1:r1=0|1", false},
		{"CoRR", "1:r0=1|2 1:r1=1", false}, // a half, too, does not go back
		{"CoRR", "1:r0=1|2 1:r1=2", true},
		{"CoRR", "1:r0=0|2 1:r1=1|2", true},
		{"SB+rfi", "0:r1=1|0", false}, // one's own store is seen whole
		{"INC", "x=5|0", false},       // locked: atomic all the same
		{"SB+mfences", "0:r2=0 1:r2=0|1", false},
	} {
		s := shapeNamed(t, c.shape)
		if got := reaches(s, Outcomes(s, Split{X: true}), c.state); got != c.allowed {
			t.Errorf("%v: with x split, %s is allowed: %v, want %v", s, c.state, got, c.allowed)
		}
	}
}

// What is allowed to whole variables is allowed to split ones.
func TestSplitAddsOutcomes(t *testing.T) {
	for i := range Shapes {
		s := &Shapes[i]
		whole, split := Outcomes(s, Split{}), Outcomes(s, Split{X: true, Y: true})
		for o := range whole {
			if !split[o] {
				t.Errorf("%v: %s needs whole variables", s, o.Describe(s))
			}
		}
	}
}

func ExampleOutcomes() {
	s := &Shapes[0]
	fmt.Println(s)
	allowed := Outcomes(s, Split{})
	for a := range uint8(2) {
		for b := range uint8(2) {
			o := Outcome{Mem: [MaxVars]Value{X: Both(1), Y: Both(1)}}
			o.Regs[0][1], o.Regs[1][1] = Both(a), Both(b)
			fmt.Println(o.Describe(s), allowed[o])
		}
	}
	// Output:
	// SB: x=1 r=y || y=1 r=x
	// 0:r1=0 1:r1=0 x=1 y=1 true
	// 0:r1=0 1:r1=1 x=1 y=1 true
	// 0:r1=1 1:r1=0 x=1 y=1 true
	// 0:r1=1 1:r1=1 x=1 y=1 true
}
