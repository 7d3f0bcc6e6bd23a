package apic

import (
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestKick(t *testing.T) {
	l := enabledLAPIC(t, 0, &recorder{})
	if !l.Post(0x40, false) || l.Post(0x41, true) || l.PostNMI() {
		t.Error("the first post kicks, and only that")
	}
	get(l, 0, regIRR+0x20) // folds, but the kick is still due
	if l.Post(0x42, false) {
		t.Error("reading the IRR takes the outstanding bit away")
	}
	if ev := l.Sync(); ev != (Events{NMI: true}) {
		t.Errorf("%+v", ev)
	}
	if !l.Post(0x42, false) {
		t.Error("the first post after Sync does not kick")
	}
	l.Sync()
	if irr := get(l, 0, regIRR+0x20); irr != 7 {
		t.Errorf("IRR %#x", irr)
	}
}

// TestDelivery posts random vectors and lets the guest take, nest and end them: what it takes is always the
// highest that may come, and each posted vector comes once.
func TestDelivery(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l, err := NewLAPIC(Config{TSCHz: 1, BusHz: 1, Router: &recorder{}})
		if err != nil {
			t.Fatal(err)
		}
		set(l, 0, regSVR, 0x1ff)
		waiting := map[uint8]bool{} // value: level
		var service []uint8
		tpr := uint8(0)
		t.Repeat(map[string]func(*rapid.T){
			"post": func(t *rapid.T) {
				v := rapid.Uint8Range(16, 255).Draw(t, "vector")
				level, ok := waiting[v]
				if !ok {
					level = rapid.Bool().Draw(t, "level")
				}
				l.Post(v, level)
				waiting[v] = level
				l.Sync()
			},
			"tpr": func(t *rapid.T) {
				tpr = rapid.Uint8().Draw(t, "tpr")
				set(l, 0, regTPR, uint32(tpr))
			},
			"take": func(t *rapid.T) {
				floor := tpr >> 4
				if len(service) > 0 {
					floor = max(floor, slices.Max(service)>>4)
				}
				want := uint8(0)
				for v := range waiting {
					if v>>4 > floor {
						want = max(want, v)
					}
				}
				if got := take(l); got != want {
					t.Fatalf("took %#x, want %#x", got, want)
				}
				if want != 0 {
					service = append(service, want)
				}
			},
			"eoi": func(t *rapid.T) {
				v, _ := l.EOI()
				if len(service) == 0 {
					if v != 0 {
						t.Fatalf("EOI of %#x out of nothing", v)
					}
					return
				}
				i := slices.Index(service, slices.Max(service))
				if v != service[i] {
					t.Fatalf("EOI of %#x, want %#x", v, service[i])
				}
				service = slices.Delete(service, i, i+1)
			},
			"": func(t *rapid.T) {
				for v := range waiting {
					if slices.Contains(service, v) && l.irr[v>>6]>>(v&63)&1 == 0 {
						delete(waiting, v)
					}
				}
			},
		})
	})
}

// TestConcurrentPosters has threads post two vectors each, one right after the other, and wait until both were
// taken. The owner does nothing unless kicked, as a halted vCPU: a lost post or a lost kick is a hang (with one
// thread; several help each other out), an interrupt too many is counted.
func TestConcurrentPosters(t *testing.T) {
	for _, posters := range []int{1, 3} {
		t.Run(fmt.Sprint(posters), func(t *testing.T) { testPosters(t, posters, 100_000/posters) })
	}
}

func testPosters(t *testing.T, posters, each int) {
	l := enabledLAPIC(t, 0, &recorder{})
	var kicked atomic.Bool
	kick := func(needed bool) {
		if needed {
			kicked.Store(true)
		}
	}
	patience := time.Now().Add(time.Minute)
	acks := make([]atomic.Int32, posters)
	var finished atomic.Int32
	for p := range posters {
		vector := uint8(0x20 + p*0x21)
		go func() {
			defer finished.Add(1)
			for i := range int32(each) {
				kick(l.Post(vector, i%2 == 0))
				for range i % 16 { // a little later each time
					acks[p].Load()
				}
				kick(l.Post(vector+1, i%3 == 0))
				for acks[p].Load() < 2*i+2 {
					if runtime.Gosched(); time.Now().After(patience) {
						return
					}
				}
			}
		}()
	}
	taken := 0
	for finished.Load() < int32(posters) || kicked.Load() {
		if !kicked.Swap(false) {
			runtime.Gosched()
			continue
		}
		l.Sync()
		for v := take(l); v != 0; v = take(l) {
			l.EOI()
			taken++
			acks[(v-0x20)/0x21].Add(1)
		}
	}
	if taken != 2*posters*each {
		t.Errorf("%d interrupts taken, %d posted", taken, 2*posters*each)
	}
}

// TestConcurrentMatches reads the identity while the owner changes it.
func TestConcurrentMatches(t *testing.T) {
	l := enabledLAPIC(t, 1, &recorder{})
	set(l, 0, regLDR, 2<<24)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for range 2000 {
				if !l.Matches(Message{Dest: 1, Mode: NMI}) {
					t.Error("physical destination does not match")
					return
				}
				l.Matches(Message{Dest: 2, Logical: true})
			}
		})
	}
	for i := range uint32(2000) {
		set(l, 0, regLDR, i<<24)
		set(l, 0, regDFR, i<<28)
		set(l, 0, regSVR, 0xff|i&1<<8)
	}
	wg.Wait()
}

func TestGroup(t *testing.T) {
	for _, c := range []struct {
		name    string
		m       Message
		kicked  []int
		forward bool
		rest    Message
	}{
		{"physical, here", Message{Dest: 2, Vector: 0x40}, []int{1}, false, Message{}},
		{"physical, elsewhere", Message{Dest: 9, Vector: 0x40}, nil, true, Message{Dest: 9, Vector: 0x40}},
		{"all", Message{Dest: Broadcast, Vector: 0x40}, []int{0, 1, 2}, true, Message{Dest: Broadcast, Vector: 0x40}},
		{"logical", Message{Dest: 0x16, Logical: true, Vector: 0x40}, []int{0, 1}, true, Message{Dest: 0x16, Logical: true, Vector: 0x40}},
		{"lowest, here", Message{Dest: 0x1c, Logical: true, Mode: LowestPriority, Vector: 0x40}, []int{1}, false, Message{}},
		{"lowest, elsewhere", Message{Dest: 0x60, Logical: true, Mode: LowestPriority, Vector: 0x40}, nil, true,
			Message{Dest: 0x20, Logical: true, Vector: 0x40}},
		{"all but self", Message{Shorthand: AllExcludingSelf, Source: 2, Vector: 0x40}, []int{0, 2}, true,
			Message{Shorthand: AllExcludingSelf, Source: 2, Vector: 0x40}},
		{"all, no kick for the sender", Message{Shorthand: AllIncludingSelf, Source: 2, Vector: 0x40}, []int{0, 2}, true,
			Message{Shorthand: AllIncludingSelf, Source: 2, Vector: 0x40}},
		{"other's self", Message{Shorthand: Self, Source: 9, Vector: 0x40}, nil, false, Message{}},
	} {
		var g Group
		for id := range uint32(3) {
			l := enabledLAPIC(t, id+1, &recorder{})
			set(l, 0, regLDR, 1<<(24+id+1))
			g = append(g, l)
		}
		if c.m.Source == 0 {
			c.m.Source, c.rest.Source = NoSource, NoSource
		}
		var kicked []int
		rest, forward := g.Deliver(c.m, func(i int) { kicked = append(kicked, i) })
		if !slices.Equal(kicked, c.kicked) || forward != c.forward || forward && rest != c.rest {
			t.Errorf("%s: kicked %v, rest %+v, %v", c.name, kicked, rest, forward)
		}
	}
}

// TestGroupModes has each delivery mode arrive as what it is.
func TestGroupModes(t *testing.T) {
	l := enabledLAPIC(t, 1, &recorder{})
	g := Group{l}
	for _, c := range []struct {
		m    Message
		want Events
	}{
		{Message{Dest: 1, Mode: NMI, Vector: 3}, Events{NMI: true}},
		{Message{Dest: 1, Mode: INIT}, Events{INIT: true}},
		{Message{Dest: 1, Mode: Startup, Vector: 0x9a}, Events{SIPI: true, Vector: 0x9a}},
		{Message{Dest: 1, Mode: SMI}, Events{}},
		{Message{Dest: 1, Mode: ExtINT, Vector: 0x40}, Events{}},
	} {
		if !g.Accept(c.m, func(int) {}) {
			t.Errorf("%v: not accepted", c.m.Mode)
		}
		if ev := l.Sync(); ev != c.want {
			t.Errorf("%v: %+v", c.m.Mode, ev)
		}
		if v := take(l); v != 0 {
			t.Errorf("%v: vector %#x", c.m.Mode, v)
		}
	}
}

// TestLowestPriority: whoever sends, exactly one of all LAPICs of the VM gets it.
func TestLowestPriority(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		clustered := rapid.Bool().Draw(t, "clustered")
		nodes := make([]Group, 3)
		present := uint32(0)
		count := rapid.IntRange(1, 4).Draw(t, "lapics")
		for i := range count {
			l, err := NewLAPIC(Config{ID: uint32(i), TSCHz: 1, BusHz: 1, Router: &recorder{}})
			if err != nil {
				t.Fatal(err)
			}
			set(l, 0, regSVR, 0x1ff)
			ldr := uint32(1) << i
			present |= ldr
			if clustered {
				ldr |= 0x30
				set(l, 0, regDFR, 0)
			}
			set(l, 0, regLDR, ldr<<24)
			n := rapid.IntRange(0, 2).Draw(t, "node")
			nodes[n] = append(nodes[n], l)
		}
		m := Message{Dest: rapid.Uint32Range(1, 15).Draw(t, "dest") & present, Logical: true, Mode: LowestPriority, Vector: 0x40, Source: NoSource}
		if m.Dest == 0 {
			t.Skip("nobody is asked")
		}
		if clustered {
			m.Dest |= 0x30
		}
		from := rapid.IntRange(0, 2).Draw(t, "from")
		if clustered && len(nodes[from]) == 0 {
			t.Skip("a node without LAPICs does not know the model")
		}
		if rest, forward := nodes[from].Deliver(m, func(int) {}); forward {
			for n, g := range nodes {
				if n != from {
					g.Accept(rest, func(int) {})
				}
			}
		}
		taken := 0
		for _, g := range nodes {
			for _, l := range g {
				l.Sync()
				if take(l) == 0x40 {
					taken++
				}
			}
		}
		if taken != 1 {
			t.Fatalf("%d took it", taken)
		}
	})
}

func TestNoAllocation(t *testing.T) {
	r := &router{}
	g := Group{enabledLAPIC(t, 0, r), enabledLAPIC(t, 1, r)}
	r.group, r.kick = g, func(int) {}
	l, word := g[0], []byte{0x40, 0, 4, 0}
	io := NewIOAPIC(0, r)
	now := uint64(0)
	if n := testing.AllocsPerRun(100, func() {
		now += 1000
		for off := uint64(0); off < 0x400; off += 0x10 {
			if off != regSVR {
				l.Write(now, off, word)
			}
			l.Read(now, off, word)
			word = append(word[:0], 0x40, 0, 4, 0)
		}
		l.WriteMSR(now, MSRTSCDeadline, now+10)
		l.Advance(now)
		l.NextDeadline()
		g.Deliver(Message{Dest: Broadcast, Vector: 0x50, Source: NoSource}, r.kick)
		l.Sync()
		take(l)
		l.EOI()
		pin(io, 4, 0x50)
		io.SetPin(4, true)
		io.SetPin(4, false)
		io.EOI(0x50)
		io.Read(ioWin, word)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
