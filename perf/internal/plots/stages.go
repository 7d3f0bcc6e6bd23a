package plots

import (
	"fmt"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"ironspan/perf/internal/result"
)

// Heights of a bar, of the space that it has, and of the axis below.
const (
	bar      = 0.8 * vg.Centimeter
	barSpace = 1.3 * vg.Centimeter

	axisSpace = 1.6 * vg.Centimeter
)

// stages draws a bar for each series of what its average sample is made of, the first series on top.
func stages(g group, name string) (*figure, error) {
	f := newFigure(name, "Stages: "+g.title(), "time of an average sample", "")
	f.height = axisSpace + barSpace*vg.Length(len(g.series))
	p := f.plot
	var below *plotter.BarChart
	for i, stage := range stageNames(g.series) {
		values := make(plotter.Values, len(g.series))
		for at, s := range g.series {
			values[len(values)-1-at] = perSample(s, stage)
		}
		bars, err := plotter.NewBarChart(values, bar)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", stage, err)
		}
		bars.Horizontal, bars.Color = true, colorOf(i)
		bars.LineStyle = draw.LineStyle{Color: p.BackgroundColor, Width: 0.8}
		if below != nil {
			bars.StackOn(below)
		}
		below = bars
		p.Add(bars)
		f.entries = append(f.entries, entry{stage, []plot.Thumbnailer{bars}})
	}
	names := make([]string, len(g.series))
	for at, s := range g.series {
		names[len(names)-1-at] = g.short(s)
	}
	p.NominalY(names...)
	p.Y.Min, p.Y.Max = -0.5, float64(len(names))-0.5
	p.Y.Tick.Label.Font = sans(tickSize)
	linear(&p.X, result.Latency)
	return f, nil
}

// stageNames are those of all series: each behind the one that comes before it in the first series that has it.
func stageNames(all []*result.Series) []string {
	var names []string
	for _, s := range all {
		at := 0
		for _, stage := range s.Stages {
			found := slices.Index(names, stage.Name)
			if found < 0 {
				names = slices.Insert(names, at, stage.Name)
				found = at
			}
			at = found + 1
		}
	}
	return names
}

// perSample is what a stage takes of an average sample.
func perSample(s *result.Series, name string) float64 {
	total := 0.0
	for _, stage := range s.Stages {
		if stage.Name == name {
			total += stage.PerSample(s)
		}
	}
	return total
}
