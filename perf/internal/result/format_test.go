package result

import "testing"

func TestFormat(t *testing.T) {
	for _, test := range []struct {
		measure Measure
		value   float64
		want    string
	}{
		{Latency, 0, "0 ns"}, {Latency, 7, "7 ns"}, {Latency, 1250, "1.25 us"}, {Latency, 999.9, "1.00 us"},
		{Latency, 12345, "12.3 us"}, {Latency, 123456, "123 us"}, {Latency, 999_999, "1.00 ms"}, {Latency, 2.5e12, "2500 s"},
		{Bandwidth, 3.4e9, "3.40 GB/s"}, {Bytes, 65536, "64 KiB"}, {Rate, 110e3, "110 k/s"}, {Share, 0.8234, "0.823"},
		{Count, 1, "1"}, {Count, 1.256, "1.26"}, {Count, -0.5, "-0.5"}, {Count, 0.00123, "0.00123"},
	} {
		if got := test.measure.Format(test.value); got != test.want {
			t.Errorf("%v %s: %q, want %q", test.value, test.measure.Unit, got, test.want)
		}
	}
}
