package sim

import (
	"math"
	"time"
)

// Spread is how the latencies of packets are distributed.
type Spread uint8

// The distributions. None goes beyond tail times Latency[1].
const (
	// Uniform: from Latency[0] to Latency[1].
	Uniform Spread = iota
	// LogNormal: Latency is two standard deviations to either side of the median, so one packet in 44 takes longer.
	LogNormal
	// Bimodal: as Uniform, but one packet in 50 takes Latency[1] once more up to tail times, as if it were sent again.
	Bimodal
)

const (
	tail      = 8
	cloggedBy = 10
	oneIn     = 50 // of Bimodal
)

// latency draws how long a packet takes on a link that is not clogged.
func (c *cluster) latency() int64 {
	lo, hi := c.cfg.Latency[0], c.cfg.Latency[1]
	switch c.cfg.Spread {
	case LogNormal:
		l, h := math.Log(float64(max(lo, 1))), math.Log(float64(max(hi, 1)))
		return min(int64(math.Exp((l+h)/2+(h-l)/4*c.rng.NormFloat64())), tail*int64(hi))
	case Bimodal:
		if c.rng.IntN(oneIn) == 0 {
			return c.between(hi, tail*hi)
		}
	}
	return c.between(lo, hi)
}

// logUniform draws a time whose order of magnitude is as likely as any other.
func logUniform(x float64, lo, hi time.Duration) time.Duration {
	return time.Duration(float64(lo) * math.Pow(float64(hi)/float64(lo), x))
}
