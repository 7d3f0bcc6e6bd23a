package result

import (
	"fmt"
	"math"
	"strconv"
)

// Format writes a value of the measure for people, with three digits: "1.25 us", "3.40 GB/s", "64 KiB", "0.82".
func (m Measure) Format(v float64) string {
	switch m.Unit {
	case "ns":
		return scaled(v, 1000, "ns", "us", "ms", "s")
	case "B/s":
		return scaled(v, 1000, "B/s", "kB/s", "MB/s", "GB/s", "TB/s")
	case "1/s":
		return scaled(v, 1000, "/s", "k/s", "M/s", "G/s")
	case "B":
		return scaled(v, 1024, "B", "KiB", "MiB", "GiB", "TiB")
	}
	return digits(v)
}

// scaled writes a value in the largest unit that leaves at least 1 before the point.
func scaled(v, step float64, units ...string) string {
	i := 0
	for ; i < len(units)-1 && math.Abs(v) >= step*0.9995; i++ {
		v /= step
	}
	return digits(v) + " " + units[i]
}

// digits writes three significant ones, or all of a whole number.
func digits(v float64) string {
	switch size := math.Abs(v); {
	case v == math.Trunc(v) && size < 1e6 || size >= 999.5:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case size >= 99.95:
		return fmt.Sprintf("%.0f", v)
	case size >= 9.995:
		return fmt.Sprintf("%.1f", v)
	case size >= 0.9995:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3g", v)
}
