package cpulatency

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
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

// kernel returns what the kernel keeps to at present, in microseconds.
func kernel(t *testing.T) func() int32 {
	t.Helper()
	f, err := os.Open(latencyFile)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { f.Close() })
	return func() int32 {
		var b [4]byte
		if _, err := f.ReadAt(b[:], 0); err != nil {
			t.Fatal(err)
		}
		return int32(binary.NativeEndian.Uint32(b[:]))
	}
}

// The kernel keeps to the request. Other processes may have requests of their own, also such as ask for more.
func TestKernel(t *testing.T) {
	limit := kernel(t)
	r, err := Open()
	if err != nil {
		t.Skip(err)
	}
	defer r.Close()
	before := limit()
	if err := r.Hold(true); err != nil {
		t.Fatal(err)
	}
	if got := limit(); got > r.micro {
		t.Errorf("held: the kernel keeps to %d us, want %d", got, r.micro)
	}
	if err := r.Hold(false); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d us before, %d us after", before, limit())
}

func TestKeepAwake(t *testing.T) {
	limit := kernel(t)
	r, err := Open()
	if err != nil {
		t.Skip(err)
	}
	r.Close()
	var wakes uint64
	var held atomic.Int64
	done, result := make(chan struct{}), make(chan error)
	go func() {
		result <- KeepAwake(done, func() uint64 { wakes += busyWakes; return wakes }, &held)
	}()
	for began := time.Now(); held.Load() == 0; time.Sleep(lookPeriod / 10) {
		if time.Since(began) > 10*time.Second {
			t.Fatal("idle cores may sleep deeply for all that happens")
		}
	}
	if got := limit(); got > r.micro {
		t.Errorf("the kernel keeps to %d us, want %d", got, r.micro)
	}
	close(done)
	if err := <-result; err != nil {
		t.Error(err)
	}
}
