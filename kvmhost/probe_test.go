package kvmhost

import (
	"errors"
	"testing"
)

func TestProbe(t *testing.T) {
	s, err := Probe()
	if errors.Is(err, ErrNotSupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", *s)
	if s.TSCKHz == 0 || s.MaxVCPUs < 1 || s.MaxSlots < 2 {
		t.Errorf("support %+v", *s)
	}
	c, err := HostCPUID()
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range c.forVCPU(5, Topology{2, 3}) {
		t.Logf("%08x.%d %08x %08x %08x %08x", e.Function, e.Index, e.EAX, e.EBX, e.ECX, e.EDX)
	}
}
