package x86

import (
	"testing"

	"ironspan/engine/litmus"
)

func TestDecodeRefusesWhatNobodyStores(t *testing.T) {
	for _, width := range []int{4, 8} {
		v := litmus.Value{Lo: 1, Hi: 2}
		word := Encode(v, width)
		if got, ok := Decode(word, width); got != v || !ok {
			t.Errorf("width %d: %#x is %v, %v", width, word, got, ok)
		}
		if got, ok := Decode(word|0x100, width); ok {
			t.Errorf("width %d: %#x is %v", width, word|0x100, got)
		}
	}
}

func TestFits(t *testing.T) {
	for _, c := range []struct {
		shape string
		width int
		at    uint64
		fits  bool
	}{
		{"MP", 8, 60, true},
		{"MP", 4, 2, true},
		{"INC", 8, 56, true},
		{"INC", 8, 60, false}, // would lock the bus
		{"INC", 4, 8, false},
	} {
		for i := range litmus.Shapes {
			if s := &litmus.Shapes[i]; s.Name == c.shape && Fits(s, c.width, [litmus.MaxVars]uint64{c.at}) != c.fits {
				t.Errorf("%s of %d bytes at %d: want %v", c.shape, c.width, c.at, c.fits)
			}
		}
	}
}
