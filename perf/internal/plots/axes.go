package plots

import (
	"math"
	"strconv"

	"gonum.org/v1/plot"

	"ironspan/perf/internal/result"
)

// linear is an axis from 0 on, with ticks in the measure's units.
func linear(axis *plot.Axis, m result.Measure) {
	axis.Min = min(axis.Min, 0)
	axis.Max += (axis.Max - axis.Min) * 0.05
	axis.Tick.Marker = plot.TickerFunc(func(low, high float64) []plot.Tick { return even(low, high, m) })
}

// even puts five ticks or so at multiples of 1, 2 or 5 times a power of ten.
func even(low, high float64, m result.Measure) []plot.Tick {
	step := math.Pow(10, math.Floor(math.Log10((high-low)/5)))
	for _, times := range []float64{2, 2.5, 2} { // 2, 5, 10
		if (high-low)/step > 7 {
			step *= times
		}
	}
	var ticks []plot.Tick
	for n := math.Ceil(low / step); n*step <= high; n++ {
		ticks = append(ticks, plot.Tick{Value: n * step, Label: m.Format(n * step)})
	}
	return ticks
}

// logarithmic is an axis with a tick for each decade, or finer ones where there are few of them.
func logarithmic(axis *plot.Axis, m result.Measure) {
	axis.Min, axis.Max = max(axis.Min, math.SmallestNonzeroFloat32), max(axis.Max, math.SmallestNonzeroFloat32)
	if axis.Max < axis.Min*1.5 {
		axis.Min, axis.Max = axis.Min/1.25, axis.Max*1.25
	}
	axis.Scale = plot.LogScale{}
	axis.Tick.Marker = plot.TickerFunc(func(low, high float64) []plot.Tick { return decades(low, high, m) })
}

// decades labels the 1 of each decade; in less than two decades 2 and 5, too, and in half of one all digits.
func decades(low, high float64, m result.Measure) []plot.Tick {
	if high/low < 2 {
		return even(low, high, m)
	}
	few := high/low < 100
	fewer := high/low < 4
	var ticks []plot.Tick
	for power := math.Floor(math.Log10(low)); power <= math.Ceil(math.Log10(high)); power++ {
		for i := range 9 {
			digit := float64(i + 1)
			value := digit * math.Pow(10, power)
			if value < low*0.999 || value > high*1.001 {
				continue
			}
			tick := plot.Tick{Value: value}
			if digit == 1 || few && (digit == 2 || digit == 5) || fewer {
				tick.Label = m.Format(value)
			}
			ticks = append(ticks, tick)
		}
	}
	return ticks
}

// at puts a tick at each of some values in rising order, and a label at those that have room for one.
func at(axis *plot.Axis, values []float64, format func(float64) string) {
	const room = 0.07 // of the axis
	ticks := make([]plot.Tick, len(values))
	last := math.Inf(-1)
	for i, v := range values {
		ticks[i].Value = v
		if place := axis.Norm(v); place-last >= room {
			ticks[i].Label, last = format(v), place
		}
	}
	axis.Tick.Marker = plot.ConstantTicks(ticks)
}

// labelFormat is how the values of a label with numbers are written, by the label's name.
func labelFormat(label string) func(float64) string {
	switch label {
	case "size", "memory", "cache", "working_set":
		return result.Bytes.Format
	case "tenure":
		return result.Latency.Format
	}
	return func(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }
}

// measureName says what an axis in a measure shows.
func measureName(m result.Measure) string {
	switch m.Unit {
	case "ns":
		return "time"
	case "B/s":
		return "bandwidth"
	case "1/s":
		return "rate"
	case "B":
		return "size"
	}
	return "number"
}
