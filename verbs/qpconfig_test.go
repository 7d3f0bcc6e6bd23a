package verbs

import (
	"errors"
	"testing"
	"time"
)

func TestRetryCodes(t *testing.T) {
	for _, c := range []struct {
		name string
		r    Retry
		want retryCodes
		bad  bool
	}{
		{"defaults", Retry{}, retryCodes{16, 7, 20, 6}, false},
		{"rounded up", Retry{AckTimeout: time.Millisecond, Count: 2, RNRTimer: time.Millisecond, RNRCount: 1}, retryCodes{8, 2, 14, 1}, false},
		{"exact", Retry{AckTimeout: 4096 * time.Nanosecond << 14, RNRTimer: 640 * time.Microsecond}, retryCodes{14, 7, 12, 6}, false},
		{"never", Retry{Count: -1, RNRCount: -1}, retryCodes{16, 0, 20, 0}, false},
		{"least", Retry{AckTimeout: 1, RNRTimer: 1}, retryCodes{1, 7, 1, 6}, false},
		{"most", Retry{AckTimeout: MaxAckTimeout, RNRTimer: MaxRNRTimer}, retryCodes{21, 7, 31, 6}, false},
		{"for ever is refused", Retry{RNRCount: 7}, retryCodes{}, true},
		{"count", Retry{Count: 8}, retryCodes{}, true},
		{"ack timeout", Retry{AckTimeout: MaxAckTimeout + 1}, retryCodes{}, true},
		{"negative ack timeout", Retry{AckTimeout: -1}, retryCodes{}, true},
		{"rnr timer", Retry{RNRTimer: time.Second}, retryCodes{}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := c.r.codes()
			if got != c.want || (err != nil) != c.bad || c.bad && !errors.Is(err, ErrInvalid) {
				t.Errorf("got %+v, %v; want %+v", got, err, c.want)
			}
		})
	}
	if b := (Retry{}).Bound(); b != 8*(4096*time.Nanosecond<<16) {
		t.Errorf("default bound is %v", b)
	}
}

func TestEndpointValidate(t *testing.T) {
	ok := QPEndpoint{QPN: 17, PSN: 99, GID: gid("10.0.0.1"), MTU: MTU4096}
	if err := ok.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*QPEndpoint){
		"qp 0":       func(e *QPEndpoint) { e.QPN = 0 },
		"qp 1":       func(e *QPEndpoint) { e.QPN = 1 },
		"qp 25 bits": func(e *QPEndpoint) { e.QPN = 1 << 24 },
		"psn":        func(e *QPEndpoint) { e.PSN = 1 << 24 },
		"mtu 0":      func(e *QPEndpoint) { e.MTU = 0 },
		"mtu 6":      func(e *QPEndpoint) { e.MTU = 6 },
		"address":    func(e *QPEndpoint) { e.GID = GID{} },
		"multicast":  func(e *QPEndpoint) { e.GID = gid("ff02::1") },
	} {
		e := ok
		spoil(&e)
		if err := e.Validate(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestMTUFor(t *testing.T) {
	for netdev, want := range map[int]MTU{
		9000: MTU4096, 4192: MTU4096, 4191: MTU2048, 1500: MTU1024, 1120: MTU1024, 1119: MTU512, 608: MTU512, 352: MTU256, 351: 0, 0: 0,
	} {
		if got := MTUFor(netdev); got != want {
			t.Errorf("%d: got %v, want %v", netdev, got, want)
		}
	}
}
