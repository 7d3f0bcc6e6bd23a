package plots

import (
	"fmt"
	"image/color"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"ironspan/perf/internal/result"
)

// verdicts draws how far each ratio is from its bound, on whichever side that lies: left of 1 is within.
func verdicts(r *result.Run) ([]*figure, error) {
	var judged []*result.Ratio
	for _, ratio := range r.Ratios {
		if ratio.Verdict != result.NotMeasured && ratio.Bound > 0 && ratio.Low > 0 {
			judged = append(judged, ratio)
		}
	}
	if len(judged) == 0 {
		return nil, nil
	}
	f := newFigure("ratios", "Ratios against their bounds", "times the bound; to the left of 1 is within", "")
	f.height = axisSpace + barSpace*vg.Length(len(judged))
	p := f.plot
	left, right := 0.8, 1.25
	names := make([]string, len(judged))
	for verdict, color := range map[result.Verdict]color.Color{result.Met: palette[0], result.Missed: palette[1]} {
		d := &deviations{color: color}
		for i, ratio := range judged {
			place := len(judged) - 1 - i
			names[place] = fmt.Sprintf("%s: %s", result.Count.Format(ratio.Value), ratio.Name) // the end may be cut off
			low, value, high := ratio.OfBound()
			left, right = min(left, low), max(right, high)
			if ratio.Verdict == verdict {
				d.add(float64(place), low, value, high)
			}
		}
		p.Add(d)
	}
	bound, err := plotter.NewLine(plotter.XYs{{X: 1, Y: -0.5}, {X: 1, Y: float64(len(judged)) - 0.5}})
	if err != nil {
		return nil, err
	}
	bound.LineStyle = draw.LineStyle{Color: color.Black, Width: 1, Dashes: dashes[1]}
	p.Add(bound)
	f.rows(names)
	p.X.Min, p.X.Max = left/1.05, right*1.05
	logarithmic(&p.X, result.Count)
	return []*figure{f}, nil
}

// deviations are points on rows, with their intervals.
type deviations struct {
	color                    color.Color
	places, low, value, high []float64
}

func (d *deviations) add(place, low, value, high float64) {
	d.places, d.low = append(d.places, place), append(d.low, low)
	d.value, d.high = append(d.value, value), append(d.high, high)
}

// Plot draws the points.
func (d *deviations) Plot(c draw.Canvas, p *plot.Plot) {
	x, y := p.Transforms(&c)
	for i, place := range d.places {
		c.StrokeLine2(draw.LineStyle{Color: d.color, Width: 2.5}, x(d.low[i]), y(place), x(d.high[i]), y(place))
		dot := draw.GlyphStyle{Color: d.color, Radius: 5, Shape: draw.CircleGlyph{}}
		c.DrawGlyph(dot, vg.Point{X: x(d.value[i]), Y: y(place)})
	}
}
