package compare

import (
	"fmt"
	"io"
	"math"
	"strings"
	"text/tabwriter"
)

// Text writes the report for people.
func (r *Report) Text(w io.Writer) error {
	var b strings.Builder
	r.section(&b, "regressions", Regression)
	r.section(&b, "improvements", Improvement)
	r.section(&b, "controls that moved, though nothing of ours is in them: so may everything else have", Moved)
	list(&b, "ratios", r.Verdicts)
	list(&b, "the runs differ in more than the code (old, new), so doubt the differences", r.Doubts)
	list(&b, "only in the old run", r.Gone)
	list(&b, "only in the new run", r.Added)
	list(&b, "not comparable, for what is measured has changed", r.Incomparable)
	r.closing(&b)
	_, err := io.WriteString(w, b.String())
	return err
}

func (r *Report) section(b *strings.Builder, title string, o Outcome) {
	changes := r.With(o)
	if len(changes) == 0 {
		return
	}
	fmt.Fprintf(b, "%s:\n", title)
	t := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "  series\t\told\tnew\tchange\t%.0f %% interval\tp, adjusted\n", 100*(1-r.Alpha))
	for _, c := range changes {
		fmt.Fprintf(t, "  %s\t%s\t%s\t%s\t%s\t%s to %s\t%.2g\n", c.Series, c.Statistic, c.Format(c.Old), c.Format(c.New),
			c.by(c.Shift), c.by(c.Low), c.by(c.High), c.Adjusted)
	}
	t.Flush() // into memory
	b.WriteString("\n")
}

// by writes a shift.
func (c *Change) by(shift float64) string {
	if c.Relative {
		return fmt.Sprintf("%+.1f %%", 100*shift)
	}
	sign := "+"
	if shift < 0 {
		sign = "-"
	}
	return sign + c.Format(math.Abs(shift))
}

func list(b *strings.Builder, title string, lines []string) {
	if len(lines) == 0 {
		return
	}
	fmt.Fprintf(b, "%s:\n", title)
	for _, line := range lines {
		fmt.Fprintf(b, "  %s\n", line)
	}
	b.WriteString("\n")
}

// closing says what was compared and how much that is worth.
func (r *Report) closing(b *strings.Builder) {
	few := len(r.With(TooFewRounds))
	fmt.Fprintf(b, "statistics compared at alpha %v: %d; regressions: %d, improvements: %d, unchanged or within noise: %d",
		r.Alpha, len(r.Changes)-few, len(r.With(Regression)), len(r.With(Improvement)), len(r.With(Unchanged)))
	if few > 0 {
		fmt.Fprintf(b, "; too few rounds to tell anything: %d", few)
	}
	b.WriteString("\n")
	if r.RoundsNeeded > 0 {
		const words = "To name a series that alone has changed, among as many as here, takes %d rounds in each run.\n"
		fmt.Fprintf(b, words, r.RoundsNeeded)
	}
}
