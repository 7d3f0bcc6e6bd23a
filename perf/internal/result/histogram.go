package result

import (
	"bytes"
	"compress/zlib"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// The geometry of every histogram: three digits, from 1 ns to 18 minutes. One takes a quarter of a MiB.
const (
	histogramMin    = 1
	histogramMax    = 1 << 40
	histogramDigits = 3
	// histogramBytes bounds what an encoded one inflates to: nine bytes for each of its 32768 counters.
	histogramBytes = 9 << 15
)

// Histogram holds samples with three significant digits. In JSON it is HdrHistogram's own form (version 2, compressed,
// in base64), which other tools read, too.
type Histogram struct{ hdr *hdrhistogram.Histogram }

// NewHistogram returns an empty histogram.
func NewHistogram() *Histogram {
	return &Histogram{hdrhistogram.New(histogramMin, histogramMax, histogramDigits)}
}

// Add takes in a sample. Negative ones count as 0, and those beyond the range as its end. It does not allocate.
func (h *Histogram) Add(v int64) { h.AddN(v, 1) }

// AddN takes in a sample n times.
func (h *Histogram) AddN(v, n int64) {
	_ = h.hdr.RecordValues(min(max(v, 0), histogramMax), n) // in range, so without error
}

// Merge takes in all that another has.
func (h *Histogram) Merge(o *Histogram) { h.hdr.Merge(o.hdr) }

// Reset forgets all samples.
func (h *Histogram) Reset() { h.hdr.Reset() }

// Count is the number of samples.
func (h *Histogram) Count() int64 { return h.hdr.TotalCount() }

// Mean is that of all samples; 0 if there are none.
func (h *Histogram) Mean() float64 { return h.hdr.Mean() }

// Quantile returns a value that a share of q of the samples do not exceed, 0 if there are none.
func (h *Histogram) Quantile(q float64) int64 { return h.hdr.ValueAtPercentile(100 * q) }

// Steps is the distribution in rising order: a share of Share of all samples is at most Value. It has one step for each
// counter that is not zero.
func (h *Histogram) Steps() []Step {
	var steps []Step
	var sum int64
	for _, bar := range h.hdr.Distribution() {
		if bar.Count == 0 {
			continue
		}
		sum += bar.Count
		steps = append(steps, Step{Value: bar.To, Share: float64(sum) / float64(h.Count())})
	}
	return steps
}

// Step is a point of a cumulative distribution.
type Step struct {
	Value int64
	Share float64
}

func (h *Histogram) summary() Summary {
	at := func(q float64) float64 { return float64(h.Quantile(q)) }
	return Summary{
		Count: h.Count(), Min: float64(h.hdr.Min()), P50: at(0.5), P90: at(0.9), P99: at(0.99), P999: at(0.999),
		Max: float64(h.hdr.Max()),
	}
}

// MarshalJSON encodes the histogram as a string.
func (h *Histogram) MarshalJSON() ([]byte, error) {
	encoded, err := h.hdr.Encode(hdrhistogram.V2CompressedEncodingCookieBase)
	if err != nil {
		return nil, fmt.Errorf("result: encode histogram: %w", err)
	}
	return json.Marshal(string(encoded))
}

// UnmarshalJSON decodes what MarshalJSON made, and refuses histograms of another geometry.
func (h *Histogram) UnmarshalJSON(data []byte) error {
	var encoded string
	if err := json.Unmarshal(data, &encoded); err != nil {
		return err
	}
	if err := checkEncoded(encoded); err != nil {
		return fmt.Errorf("histogram: %w", err)
	}
	hdr, err := hdrhistogram.Decode([]byte(encoded))
	if err != nil {
		return fmt.Errorf("histogram: %w", err)
	}
	h.hdr = hdr
	return nil
}

// checkEncoded looks at an encoded histogram before it is decoded: its header decides how much memory that takes, and
// little input can inflate to much.
func checkEncoded(encoded string) error {
	raw, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return err
	}
	if len(raw) < 8 {
		return errors.New("too short")
	}
	z, err := zlib.NewReader(bytes.NewReader(raw[8:]))
	if err != nil {
		return err
	}
	var header struct {
		Cookie, Length, Offset, Digits int32
		Lowest, Highest                int64
		Ratio                          float64
	}
	if err := binary.Read(z, binary.BigEndian, &header); err != nil {
		return err
	}
	if header.Lowest != histogramMin || header.Highest != histogramMax || header.Digits != histogramDigits {
		return fmt.Errorf("%d to %d with %d digits, not %d to %d with %d",
			header.Lowest, header.Highest, header.Digits, histogramMin, int64(histogramMax), histogramDigits)
	}
	if n, err := io.CopyN(io.Discard, z, histogramBytes+1); n > histogramBytes {
		return errors.New("too long")
	} else if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}
