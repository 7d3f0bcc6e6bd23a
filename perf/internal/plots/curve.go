package plots

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg/draw"

	"ironspan/perf/internal/result"
)

// curve is one line of a figure: series that differ in one label only, in the order of its numbers.
type curve struct {
	series []*result.Series
	x      []float64
}

// leastPoints is how many numbers a label needs to be an axis.
const leastPoints = 3

// curves finds what can be drawn over a label: series of one name that agree in all other labels.
func curves(all []*result.Series, label string) []curve {
	found := map[string]*curve{}
	var order []string
	for _, s := range all {
		x, err := strconv.ParseFloat(s.Labels[label], 64)
		if err != nil || math.IsNaN(x) || math.IsInf(x, 0) {
			continue
		}
		others := maps.Clone(s.Labels)
		delete(others, label)
		key := result.Key(s.Name, others)
		if found[key] == nil {
			found[key] = &curve{}
			order = append(order, key)
		}
		c := found[key]
		at, _ := slices.BinarySearch(c.x, x)
		c.x, c.series = slices.Insert(c.x, at, x), slices.Insert(c.series, at, s)
	}
	var lines []curve
	for _, key := range order {
		if len(found[key].x) >= leastPoints {
			lines = append(lines, *found[key])
		}
	}
	return lines
}

// over draws curves over a label; g has the first series of each.
func over(g group, label string, lines []curve, name string) (*figure, error) {
	m := g.series[0].Measure
	f := newFigure(name, g.title(label), label, measureName(m)+": median of the rounds, and their range")
	p := f.plot
	p.Add(plotter.NewGrid())
	var xs []float64
	for i, c := range lines {
		middles, ranges := c.points()
		ranges.LineStyle = draw.LineStyle{Color: colorOf(i), Width: 1.2}
		l, points, err := plotter.NewLinePoints(middles)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.series[0].Key(), err)
		}
		l.LineStyle = lineStyle(i)
		points.GlyphStyle = draw.GlyphStyle{Color: colorOf(i), Radius: 4, Shape: glyphs[i%len(glyphs)]}
		p.Add(ranges, l, points)
		f.entries = append(f.entries, entry{g.short(c.series[0], label), []plot.Thumbnailer{l, points}})
		xs = append(xs, c.x...)
	}
	slices.Sort(xs)
	xs = slices.Compact(xs)
	if xs[0] > 0 && xs[len(xs)-1]/xs[0] >= 8 {
		logarithmic(&p.X, m)
	}
	at(&p.X, xs, labelFormat(label))
	if p.Y.Min > 0 && p.Y.Max/p.Y.Min > 20 {
		logarithmic(&p.Y, m)
	} else {
		linear(&p.Y, m)
	}
	return f, nil
}

// points are the medians of a curve, and the ranges of its rounds.
func (c curve) points() (plotter.XYs, *ranges) {
	var middles plotter.XYs
	r := &ranges{}
	for i, s := range c.series {
		medians := s.Medians()
		middles = append(middles, plotter.XY{X: c.x[i], Y: result.Median(medians)})
		r.x, r.low, r.high = append(r.x, c.x[i]), append(r.low, slices.Min(medians)), append(r.high, slices.Max(medians))
	}
	return middles, r
}

// ranges are vertical lines from the lowest to the highest round of each point.
type ranges struct {
	draw.LineStyle
	x, low, high []float64
}

// Plot draws the lines.
func (r *ranges) Plot(c draw.Canvas, p *plot.Plot) {
	x, y := p.Transforms(&c)
	for i := range r.x {
		c.StrokeLine2(r.LineStyle, x(r.x[i]), y(r.low[i]), x(r.x[i]), y(r.high[i]))
	}
}

// DataRange is what the axes have to show.
func (r *ranges) DataRange() (left, right, bottom, top float64) {
	return slices.Min(r.x), slices.Max(r.x), slices.Min(r.low), slices.Max(r.high)
}
