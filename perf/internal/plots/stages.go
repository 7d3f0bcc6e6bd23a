package plots

import (
	"fmt"
	"image/color"
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

// stages draws a bar for each series of what its typical sample is made of, the first series on top, and the median of
// the whole as a mark: what lies between the two is what the stages' medians do not explain.
func stages(g group, name string) (*figure, error) {
	f := newFigure(name, "Stages: "+g.title(), "median of each stage, and of the whole", "")
	f.height = axisSpace + barSpace*vg.Length(len(g.series))
	p := f.plot
	var below *plotter.BarChart
	for i, stage := range stageNames(g.series) {
		values := make(plotter.Values, len(g.series))
		for at, s := range g.series {
			values[len(values)-1-at] = typical(s, stage)
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
	wholes := &marks{}
	for at, s := range g.series {
		wholes.values = append(wholes.values, s.P50)
		wholes.places = append(wholes.places, float64(len(g.series)-1-at))
	}
	p.Add(wholes)
	f.entries = append(f.entries, entry{"whole", []plot.Thumbnailer{wholes}})
	f.rows(names)
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

// typical is what a stage takes of a typical sample.
func typical(s *result.Series, name string) float64 {
	total := 0.0
	for _, stage := range s.Stages {
		if stage.Name == name {
			total += stage.Typical(s)
		}
	}
	return total
}

// marks are upright lines across bars, each at a value and a bar's place.
type marks struct{ values, places []float64 }

var markStyle = draw.LineStyle{Color: color.Black, Width: 2.5}

// Plot draws the marks, a little higher than the bars.
func (m *marks) Plot(c draw.Canvas, p *plot.Plot) {
	x, y := p.Transforms(&c)
	for i, value := range m.values {
		middle := y(m.places[i])
		c.StrokeLine2(markStyle, x(value), middle-bar*0.65, x(value), middle+bar*0.65)
	}
}

// DataRange is what the axes have to show.
func (m *marks) DataRange() (left, right, bottom, top float64) {
	return 0, slices.Max(m.values), slices.Min(m.places), slices.Max(m.places)
}

// Thumbnail draws a mark for the legend.
func (m *marks) Thumbnail(c *draw.Canvas) {
	c.StrokeLine2(markStyle, c.Center().X, c.Min.Y, c.Center().X, c.Max.Y)
}
