package apic

import (
	"encoding/binary"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// router delivers to one group.
type router struct {
	group Group
	kick  func(int)
}

func (r *router) Deliver(m Message) { r.group.Deliver(m, r.kick) }

func ioSet(a *IOAPIC, index uint8, v uint32) {
	a.Write(ioRegSel, []byte{index})
	a.Write(ioWin, binary.LittleEndian.AppendUint32(nil, v))
}

func ioGet(a *IOAPIC, index uint8) uint32 {
	var b [4]byte
	a.Write(ioRegSel, []byte{index, 0, 0, 0})
	a.Read(ioWin, b[:])
	return binary.LittleEndian.Uint32(b[:])
}

// pin programs a redirection entry with destination 0, without an allocation.
func pin(a *IOAPIC, n int, low uint32) {
	index, data := [1]byte{uint8(ioIndexTable + 2*n)}, [4]byte{}
	binary.LittleEndian.PutUint32(data[:], low)
	a.Write(ioRegSel, index[:])
	a.Write(ioWin, data[:])
}

func TestIOAPICRegisters(t *testing.T) {
	a := NewIOAPIC(5, &recorder{})
	if v := ioGet(a, ioIndexVersion); v != 0x00170020 {
		t.Errorf("version %#x", v)
	}
	if v := ioGet(a, ioIndexID); v != 5<<24 {
		t.Errorf("id %#x", v)
	}
	ioSet(a, ioIndexID, 0xffffffff)
	if v := ioGet(a, ioIndexArb); v != 0xf<<24 {
		t.Errorf("arbitration id %#x", v)
	}
	for n := range IOAPICPins {
		index := uint8(ioIndexTable + 2*n)
		if low, high := ioGet(a, index), ioGet(a, index+1); low != rteMasked || high != 0 {
			t.Errorf("pin %d: %#x %#x after reset", n, high, low)
		}
		ioSet(a, index, 0xffffffff)
		ioSet(a, index+1, 0xffffffff)
		if low, high := ioGet(a, index), ioGet(a, index+1); low != 0x1afff || high != 0xff000000 {
			t.Errorf("pin %d: %#x %#x", n, high, low)
		}
	}
	for _, index := range []uint8{3, 0xf, 0x40, 0xff} {
		ioSet(a, index, 0xffffffff)
		if v := ioGet(a, index); v != 0 {
			t.Errorf("register %#x: %#x", index, v)
		}
	}
	var b [1]byte
	if a.Read(ioRegSel, b[:]); b[0] != 0xff {
		t.Errorf("index %#x", b[0])
	}
}

func TestIOAPICEdge(t *testing.T) {
	r := &recorder{}
	a := NewIOAPIC(0, r)
	a.SetPin(4, true)
	a.SetPin(4, false)
	ioSet(a, 0x19, 3<<24)
	ioSet(a, 0x18, 0x31)
	if len(r.got) != 0 {
		t.Fatalf("an edge while masked: %v", r.got)
	}
	a.SetPin(4, true)
	a.SetPin(4, true)
	a.SetPin(4, false)
	a.SetPin(4, true)
	a.SetPin(-1, true)
	a.SetPin(24, true)
	want := Message{Dest: 3, Vector: 0x31, Level: true, Source: NoSource}
	if !slices.Equal(r.got, []Message{want, want}) {
		t.Errorf("two edges: %+v", r.got)
	}
	a.SetPin(4, false)
	r.got = nil
	ioSet(a, 0x18, 0x31|rteLogical|uint32(LowestPriority)<<8)
	a.SetPin(4, true)
	want.Logical, want.Mode = true, LowestPriority
	if !slices.Equal(r.got, []Message{want}) {
		t.Errorf("%+v, want %+v", r.got, want)
	}
	r.got = nil
	a.SetPin(4, false)
	ioSet(a, 0x18, uint32(NMI)<<8|rteLevel)
	a.SetPin(4, true)
	if len(r.got) != 1 || r.got[0].Mode != NMI || r.got[0].Trigger {
		t.Errorf("an NMI is an edge: %+v", r.got)
	}
}

func TestIOAPICLevel(t *testing.T) {
	r := &recorder{}
	a := NewIOAPIC(0, r)
	sent := func(want int, when string) {
		t.Helper()
		if len(r.got) != want {
			t.Fatalf("%s: %d messages, want %d", when, len(r.got), want)
		}
		r.got = nil
	}
	remote := func() bool { return ioGet(a, 0x1e)&rteRemoteIRR != 0 }
	a.SetPin(7, true)
	sent(0, "masked")
	pin(a, 7, 0x40|rteLevel)
	sent(1, "unmasked while asserted")
	if !remote() {
		t.Error("no remote IRR")
	}
	a.SetPin(7, false)
	a.SetPin(7, true)
	sent(0, "being serviced")
	a.EOI(0x41)
	sent(0, "another's EOI")
	a.EOI(0x40)
	sent(1, "EOI while asserted")
	a.SetPin(7, false)
	a.Write(ioEOI, []byte{0x40, 0, 0, 0})
	sent(0, "EOI after it was lowered")
	if remote() {
		t.Error("remote IRR after EOI")
	}
	a.SetPin(7, true)
	sent(1, "asserted again")
	pin(a, 7, 0x40|rteLevel|rteMasked)
	a.EOI(0x40)
	sent(0, "EOI while masked")
	pin(a, 7, 0x50|rteLevel)
	if sent(1, "unmasked with another vector"); !remote() {
		t.Error("no remote IRR")
	}
	pin(a, 7, 0x50|rteMasked)
	pin(a, 7, 0x50|rteLevel|rteMasked)
	if remote() {
		t.Error("going to edge does not clear remote IRR")
	}
	pin(a, 7, 0x50|rteLevel)
	sent(1, "after that")
}

func TestIOAPICWidths(t *testing.T) {
	a := NewIOAPIC(0, &recorder{})
	ioSet(a, 0x10, 0x31)
	for _, n := range []int{1, 2, 8} {
		a.Write(ioWin, make([]byte, n))
	}
	a.Write(ioWin+1, make([]byte, 4))
	if v := ioGet(a, 0x10); v != 0x31 {
		t.Errorf("%#x: a write that was not 32 bits wide and aligned counted", v)
	}
	var b [8]byte
	a.Read(ioWin, b[:])
	if binary.LittleEndian.Uint64(b[:]) != 0x31 {
		t.Errorf("wide read % x", b)
	}
	a.Read(1<<40|ioWin, b[:])
	if b != [8]byte{} {
		t.Errorf("read outside % x", b)
	}
}

// reentrant goes back into the IOAPIC from Deliver, as a router might that finds the EOI of one interrupt on
// its way to deliver another.
type reentrant struct {
	recorder
	a *IOAPIC
}

func (r *reentrant) Deliver(m Message) {
	r.recorder.Deliver(m)
	if len(r.got) < 5 {
		r.a.EOI(m.Vector)
		r.a.SetPin(9, len(r.got)%2 == 0)
	}
}

func TestIOAPICReentrant(t *testing.T) {
	r := &reentrant{}
	r.a = NewIOAPIC(0, r)
	pin(r.a, 8, 0x40|rteLevel)
	pin(r.a, 9, 0x50)
	done := make(chan struct{})
	go func() { r.a.SetPin(8, true); close(done) }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("deadlock")
	}
	if len(r.got) < 5 {
		t.Errorf("%d messages", len(r.got))
	}
}

// TestIOAPICConcurrent: level interrupts from several threads, serviced by a vCPU that lowers the pin and
// sends the EOI. None is lost, or its thread waits for ever.
func TestIOAPICConcurrent(t *testing.T) {
	const pins, each = 6, 500
	kicks := make(chan struct{}, 1)
	r := &router{}
	r.kick = func(int) {
		select {
		case kicks <- struct{}{}:
		default:
		}
	}
	l := enabledLAPIC(t, 0, r)
	r.group = Group{l}
	a := NewIOAPIC(0, r)
	var acks [pins]chan struct{}
	var wg sync.WaitGroup
	for p := range pins {
		pin(a, p, uint32(0x30+p)|rteLevel)
		acks[p] = make(chan struct{}, 1)
		wg.Go(func() {
			for range each {
				a.SetPin(p, true)
				<-acks[p]
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	taken := 0
	for running := true; running; {
		l.Sync()
		if v := take(l); v != 0 {
			p := int(v - 0x30)
			a.SetPin(p, false)
			if v, broadcast := l.EOI(); broadcast {
				a.EOI(v)
			} else {
				t.Error("EOI of a level is not broadcast")
			}
			taken++
			acks[p] <- struct{}{}
			continue
		}
		select {
		case <-kicks:
		case <-done:
			running = false
		}
	}
	if taken != pins*each {
		t.Errorf("%d taken, %d asserted", taken, pins*each)
	}
}

// TestIOAPICProperty holds the messages of random pin movements and EOIs against a model.
func TestIOAPICProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const pins = 3
		r := &recorder{}
		a := NewIOAPIC(0, r)
		var entry [pins]uint32
		var level, remote [pins]bool
		for p := range pins {
			entry[p] = rteMasked
		}
		var want []uint8
		settle := func() {
			for p := range pins {
				if entry[p]&(rteLevel|rteMasked) == rteLevel && level[p] && !remote[p] {
					remote[p] = true
					want = append(want, uint8(entry[p]))
				}
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"pin": func(t *rapid.T) {
				p, on := rapid.IntRange(0, pins-1).Draw(t, "pin"), rapid.Bool().Draw(t, "level")
				if on && !level[p] && entry[p]&(rteLevel|rteMasked) == 0 {
					want = append(want, uint8(entry[p]))
				}
				level[p] = on
				settle()
				a.SetPin(p, on)
			},
			"entry": func(t *rapid.T) {
				p := rapid.IntRange(0, pins-1).Draw(t, "pin")
				v := rapid.Uint32Range(0x30, 0x32).Draw(t, "vector")
				v |= rapid.SampledFrom([]uint32{0, rteLevel, rteMasked, rteLevel | rteMasked}).Draw(t, "kind")
				entry[p] = v
				remote[p] = remote[p] && v&rteLevel != 0
				settle()
				pin(a, p, v)
			},
			"eoi": func(t *rapid.T) {
				v := rapid.Uint8Range(0x30, 0x32).Draw(t, "vector")
				for p := range pins {
					if uint8(entry[p]) == v {
						remote[p] = false
					}
				}
				settle()
				a.EOI(v)
			},
			"": func(t *rapid.T) {
				var got []uint8
				for _, m := range r.got {
					got = append(got, m.Vector)
				}
				if !slices.Equal(got, want) {
					t.Fatalf("sent %#x, want %#x", got, want)
				}
				for p := range pins {
					if rte := ioGet(a, uint8(0x10+2*p)); rte&rteRemoteIRR != 0 != remote[p] {
						t.Fatalf("pin %d: entry %#x, remote IRR %v", p, rte, remote[p])
					}
				}
			},
		})
	})
}
