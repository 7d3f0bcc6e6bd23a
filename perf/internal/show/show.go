// Package show writes a run of benchmarks as tables for people.
package show

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"ironspan/perf/internal/result"
)

// Run writes all of a run: where it was measured, the series, their stages, the ratios, and what is missing.
func Run(w io.Writer, r *result.Run) error {
	var b strings.Builder
	head(&b, r)
	series(&b, r.Series)
	stages(&b, r.Series)
	ratios(&b, r.Ratios)
	missing(&b, r.Missing)
	_, err := io.WriteString(w, b.String())
	return err
}

// table writes rows of cells below a title, and nothing if there are no rows.
func table(b *strings.Builder, title string, header []string, rows [][]string) {
	if len(rows) == 0 {
		return
	}
	fmt.Fprintf(b, "\n%s\n", title)
	var aligned strings.Builder
	t := tabwriter.NewWriter(&aligned, 0, 0, 2, ' ', 0)
	for _, row := range append([][]string{header}, rows...) {
		fmt.Fprintf(t, "  %s\n", strings.Join(row, "\t"))
	}
	t.Flush() // into memory
	for line := range strings.Lines(aligned.String()) {
		b.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
}

func head(b *strings.Builder, r *result.Run) {
	fmt.Fprintf(b, "%s, %s, %.0f s, commit %s\n", r.Suite, r.Began.Format("2006-01-02 15:04"), r.Seconds, r.Commit)
	t := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	for _, key := range slices.Sorted(maps.Keys(r.Machine)) {
		fmt.Fprintf(t, "  %s\t%s\n", key, r.Machine[key])
	}
	t.Flush()
}

// series has samples and single numbers apart, for quantiles say little of a handful of numbers.
func series(b *strings.Builder, all []*result.Series) {
	var samples, numbers [][]string
	for _, s := range all {
		row := []string{s.Key(), s.Format(s.Min), s.Format(s.P50)}
		if s.Histogram == nil {
			numbers = append(numbers, append(row, s.Format(s.Max), fmt.Sprint(len(s.Rounds))))
			continue
		}
		samples = append(samples, append(row, s.Format(s.P90), s.Format(s.P99), s.Format(s.P999), s.Format(s.Max),
			fmt.Sprint(s.Count), fmt.Sprint(len(s.Rounds))))
	}
	table(b, "Samples", []string{"series", "min", "p50", "p90", "p99", "p99.9", "max", "samples", "rounds"}, samples)
	table(b, "One number for each round", []string{"series", "min", "median", "max", "rounds"}, numbers)
}

func stages(b *strings.Builder, all []*result.Series) {
	for _, s := range all {
		var rows [][]string
		total := 0.0
		for _, stage := range s.Stages {
			total += stage.Typical(s)
		}
		for _, stage := range s.Stages {
			share := ""
			if total > 0 {
				share = fmt.Sprintf("%.0f %%", 100*stage.Typical(s)/total)
			}
			rows = append(rows, []string{
				stage.Name, ns(stage.P50Ns), share, ns(stage.P99Ns), ns(stage.MeanNs), fmt.Sprint(stage.Count),
			})
		}
		if total > 0 && s.P50 > 0 {
			rows = append(rows, []string{"sum", ns(total), fmt.Sprintf("%.0f %% of p50", 100*total/s.P50)})
		}
		table(b, "Stages of "+s.Key(), []string{"stage", "p50", "share", "p99", "mean", "samples"}, rows)
	}
}

func ns(v float64) string { return result.Latency.Format(v) }

func ratios(b *strings.Builder, all []*result.Ratio) {
	var rows [][]string
	for _, r := range all {
		bound, value, interval := "at most ", "", ""
		if r.AtLeast {
			bound = "at least "
		}
		if r.Verdict != result.NotMeasured {
			value = number(r.Value)
			interval = number(r.Low) + " to " + number(r.High)
		}
		verdict := string(r.Verdict)
		if r.Doubtful {
			verdict += ", in doubt"
		}
		rows = append(rows, []string{r.Name, bound + number(r.Bound), value, interval, verdict, r.Reason})
	}
	table(b, "Ratios of medians", []string{"ratio", "bound", "value", "95 % interval", "verdict", "reason"}, rows)
}

func number(v float64) string { return result.Count.Format(v) }

func missing(b *strings.Builder, all []result.Missing) {
	var rows [][]string
	for _, m := range all {
		rows = append(rows, []string{m.Name, m.Reason})
	}
	table(b, "Not measured", []string{"series", "reason"}, rows)
}
