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

// curves finds what can be drawn over a label: series of one name that agree in all other labels, but for those that go
// along with this one, as the number of nodes does with that of sharers. Of labels that go along with each other, the
// last in the alphabet is the axis.
func curves(all []*result.Series, label string) []curve {
	names := map[string][]*result.Series{}
	var order []string
	for _, s := range all {
		if _, err := number(s, label); err != nil {
			continue
		}
		if names[s.Name] == nil {
			order = append(order, s.Name)
		}
		names[s.Name] = append(names[s.Name], s)
	}
	var lines []curve
	for _, name := range order {
		along := goAlong(names[name], label)
		if len(along) == 0 || slices.Max(along) < label {
			lines = append(lines, split(names[name], label, along)...)
		}
	}
	return lines
}

// number is the value of a label.
func number(s *result.Series, label string) (float64, error) {
	x, err := strconv.ParseFloat(s.Labels[label], 64)
	if err == nil && (math.IsNaN(x) || math.IsInf(x, 0)) {
		err = strconv.ErrRange
	}
	return x, err
}

// goAlong are the other labels with numbers that have another value exactly where this one has.
func goAlong(all []*result.Series, label string) []string {
	var along []string
	for other := range all[0].Labels {
		there, back, good := map[string]string{}, map[string]string{}, other != label
		for _, s := range all {
			a, b := s.Labels[label], s.Labels[other]
			_, err := number(s, other)
			if there[a] == "" {
				there[a] = b
			}
			if back[b] == "" {
				back[b] = a
			}
			good = good && err == nil && there[a] == b && back[b] == a
		}
		if good && len(there) > 1 {
			along = append(along, other)
		}
	}
	return along
}

// split puts series of one name on lines, each in the order of the label's numbers.
func split(all []*result.Series, label string, along []string) []curve {
	found := map[string]*curve{}
	var order []string
	for _, s := range all {
		others := maps.Clone(s.Labels)
		maps.DeleteFunc(others, func(name, _ string) bool { return name == label || slices.Contains(along, name) })
		key := result.Key(s.Name, others)
		if found[key] == nil {
			found[key] = &curve{}
			order = append(order, key)
		}
		c := found[key]
		x, _ := number(s, label) // it is one
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
	varying := varyingIn(lines)
	zero := zeroAt(lines)
	f := newFigure(name, g.title(varying...), label, measureName(m)+": median of the rounds, and their range")
	p := f.plot
	p.Add(plotter.NewGrid())
	var xs []float64
	for i, c := range lines {
		middles, ranges := c.points(zero)
		ranges.LineStyle = draw.LineStyle{Color: colorOf(i), Width: 1.2}
		l, points, err := plotter.NewLinePoints(middles)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.series[0].Key(), err)
		}
		l.LineStyle = lineStyle(i)
		points.GlyphStyle = draw.GlyphStyle{Color: colorOf(i), Radius: 4, Shape: glyphs[i%len(glyphs)]}
		p.Add(ranges, l, points)
		f.entries = append(f.entries, entry{g.short(c.series[0], varying...), []plot.Thumbnailer{l, points}})
		xs = append(xs, ranges.x...)
	}
	slices.Sort(xs)
	xs = slices.Compact(xs)
	if xs[0] > 0 && xs[len(xs)-1]/xs[0] >= wide {
		logarithmic(&p.X, m)
	}
	at(&p.X, xs, func(x float64) string {
		if x == zero {
			x = 0
		}
		return labelFormat(label)(x)
	})
	if p.Y.Min > 0 && p.Y.Max/p.Y.Min > 20 {
		logarithmic(&p.Y, m)
	} else {
		linear(&p.Y, m)
	}
	return f, nil
}

// varyingIn are the labels whose values differ along a line.
func varyingIn(lines []curve) []string {
	var labels []string
	for _, c := range lines {
		same := shared(c.series)
		for label := range c.series[0].Labels {
			if _, found := same[label]; !found {
				labels = append(labels, label)
			}
		}
	}
	return labels
}

// wide is how much larger the largest number of an axis is than the smallest, for its scale to be logarithmic.
const wide = 8

// zeroAt is where 0 is drawn: at 0, or, where the numbers above it want a logarithmic scale, a little to their left.
func zeroAt(lines []curve) float64 {
	least, most := math.Inf(1), 0.0
	for _, c := range lines {
		for _, x := range c.x {
			if x < 0 {
				return 0
			}
			if most = max(most, x); x > 0 {
				least = min(least, x)
			}
		}
	}
	if most/least < wide {
		return 0
	}
	return least / 2.5
}

// points are the medians of a curve, and the ranges of its rounds, with the number 0 drawn at zero.
func (c curve) points(zero float64) (plotter.XYs, *ranges) {
	var middles plotter.XYs
	r := &ranges{}
	for i, s := range c.series {
		medians, x := s.Medians(), c.x[i]
		if x == 0 {
			x = zero
		}
		middles = append(middles, plotter.XY{X: x, Y: result.Median(medians)})
		r.x, r.low, r.high = append(r.x, x), append(r.low, slices.Min(medians)), append(r.high, slices.Max(medians))
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
