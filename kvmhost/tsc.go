package kvmhost

import "math/bits"

// HostTSC reads this server's time stamp counter. It does not pass loads that come before it.
func HostTSC() uint64

// TSCToNs is how long so many ticks of a counter of khz kHz take, rounded up, saturating.
func TSCToNs(ticks, khz uint64) int64 {
	const most = 1<<63 - 1
	hi, lo := bits.Mul64(ticks, 1_000_000)
	lo, carry := bits.Add64(lo, khz-1, 0)
	hi += carry
	if hi >= khz {
		return most
	}
	q, _ := bits.Div64(hi, lo, khz)
	return int64(min(q, most))
}
