package cpulatency

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
)

func TestRequest(t *testing.T) {
	for driver, want := range map[string]int32{"intel_idle\n": shallowIdle, "haltpoll\n": pollingIdle, "": shallowIdle} {
		dir := t.TempDir()
		file, idle := filepath.Join(dir, "latency"), filepath.Join(dir, "driver")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if driver != "" {
			if err := os.WriteFile(idle, []byte(driver), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		r, err := open(file, idle)
		if err != nil {
			t.Fatal(err)
		}
		var wrote []byte
		for _, hold := range []bool{false, true, true, false, true} {
			if err := r.Hold(hold); err != nil {
				t.Fatal(err)
			}
			if r.held != hold {
				t.Errorf("%q: held %t after Hold(%t)", driver, r.held, hold)
			}
		}
		for _, micro := range []int32{want, anyIdle, want} {
			wrote = binary.NativeEndian.AppendUint32(wrote, uint32(micro))
		}
		if err := r.Close(); err != nil || r.held {
			t.Errorf("%q: held %t after Close: %v", driver, r.held, err)
		}
		if got, _ := os.ReadFile(file); !bytes.Equal(got, wrote) {
			t.Errorf("%q: wrote %x, want %x", driver, got, wrote)
		}
	}
	if _, err := open(filepath.Join(t.TempDir(), "none"), ""); err == nil {
		t.Error("opened what is not there")
	}
}

// The kernel says what it has been asked for.
func TestKernel(t *testing.T) {
	f, err := os.Open(latencyFile)
	if err != nil {
		t.Skip(err)
	}
	defer f.Close()
	asked := func() int32 {
		var b [4]byte
		if _, err := f.ReadAt(b[:], 0); err != nil {
			t.Fatal(err)
		}
		return int32(binary.NativeEndian.Uint32(b[:]))
	}
	before := asked()
	r, err := Open()
	if err != nil {
		t.Skip(err)
	}
	defer r.Close()
	for _, hold := range []bool{true, false} {
		want := before
		if hold {
			want = min(before, r.micro)
		}
		if err := r.Hold(hold); err != nil {
			t.Fatal(err)
		}
		// Another process may ask for more, or have done so, at any time.
		if got := asked(); hold && got > want {
			t.Errorf("the kernel keeps to %d us, want %d", got, want)
		} else {
			t.Logf("held %t: %d us", hold, got)
		}
	}
}
