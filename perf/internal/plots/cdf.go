package plots

import (
	"fmt"
	"math"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"

	"ironspan/perf/internal/result"
)

// cdf draws the distributions of series with samples.
func cdf(g group, name string) (*figure, error) {
	m := g.series[0].Measure
	f := newFigure(name, g.title(), measureName(m), "share of samples that took at most so long")
	p := f.plot
	p.Add(plotter.NewGrid())
	top := 2.0
	for i, s := range g.series {
		points := distribution(s.Histogram)
		l, err := plotter.NewLine(points)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.Key(), err)
		}
		l.LineStyle, l.StepStyle = lineStyle(i), plotter.PostStep
		p.Add(l)
		top = max(top, points[len(points)-1].Y)
		f.entries = append(f.entries, entry{fmt.Sprintf("%s (p50 %s)", g.short(s), s.Format(s.P50)), []plot.Thumbnailer{l}})
	}
	logarithmic(&p.X, m)
	p.Y.Min, p.Y.Max = 0, math.Ceil(top)
	p.Y.Tick.Marker = plot.ConstantTicks(nineTicks(p.Y.Max))
	return f, nil
}

// nines is the scale of shares: 0 for none, 1 for 0.9, 2 for 0.99 and so on.
func nines(share float64) float64 { return -math.Log10(1 - share) }

// distribution are the steps of a histogram, from none of the samples to all but half of one: all would lie infinitely
// high.
func distribution(h *result.Histogram) plotter.XYs {
	steps := h.Steps()
	points := plotter.XYs{{X: math.Max(float64(steps[0].Value), 1), Y: 0}}
	most := 1 - 0.5/float64(h.Count())
	for _, step := range steps {
		points = append(points, plotter.XY{X: math.Max(float64(step.Value), 1), Y: nines(min(step.Share, most))})
	}
	return points
}

// nineTicks are at the percentiles that people ask for.
func nineTicks(top float64) []plot.Tick {
	ticks := []plot.Tick{{Value: 0, Label: "0"}, {Value: nines(0.5), Label: "50 %"}}
	label := "90"
	for n := 1.0; n <= top; n++ {
		ticks = append(ticks, plot.Tick{Value: n, Label: label + " %"})
		switch n {
		case 1:
			label = "99"
		case 2:
			label = "99.9"
		default:
			label += "9"
		}
	}
	return ticks
}
