package rdma

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"ironspan/engine/wire"
	"ironspan/fastpath/fabric"
	"ironspan/verbs"
)

// paperLane has what reading an offer needs, and no device.
func paperLane() *Lane {
	return &Lane{cfg: fabric.Config{
		Self: 1, Nodes: 3, Lane: 5, Epoch: 77,
		RAM:   fabric.Memory{Addr: 0x7f0000000000, Len: 96 << 12},
		Homes: []fabric.Span{{First: 0, Last: 32 << 12}, {First: 32 << 12, Last: 64 << 12}, {First: 64 << 12, Last: 96 << 12}},
		Slots: fabric.Memory{Addr: 0x7f1000000000, Len: 8 << 12},
	}, links: make([]link, 3)}
}

// goodOffer is one of node 2 that paperLane takes.
func goodOffer() offer {
	return offer{
		Magic: offerMagic, Version: offerVersion, Lane: 5, Epoch: 77, From: 2, To: 1, Nodes: 3,
		MTU: uint8(verbs.MTU4096), QPN: 17, PSN: 0xabcdef, GID: [16]byte{10: 0xff, 11: 0xff, 12: 10, 15: 1}, ReadDepth: 16, Depth: 256,
		Home: fabric.Span{First: 64 << 12, Last: 96 << 12},
		RAM:  region{0x7e0000000000, 32 << 12, 123}, Slots: region{0x7e1000000000, 8 << 12, 456},
	}
}

func encode(t testing.TB, o offer) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := binary.Write(&b, binary.LittleEndian, &o); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestOfferIsChecked(t *testing.T) {
	l := paperLane()
	if o, err := l.readOffer(2, encode(t, goodOffer())); err != nil || *o != goodOffer() {
		t.Fatalf("a good offer: %+v, %v", o, err)
	}
	for _, c := range []struct {
		name  string
		spoil func(*offer)
		says  string
	}{
		{"magic", func(o *offer) { o.Magic[0] ^= 1 }, "not one of the rdma fabric"},
		{"version", func(o *offer) { o.Version++ }, "version 5, want 4"},
		{"epoch", func(o *offer) { o.Epoch = 76 }, "epoch 76, want 77"},
		{"lane", func(o *offer) { o.Lane = 4 }, "lane 4"},
		{"from", func(o *offer) { o.From = 0 }, "from node 0"},
		{"to", func(o *offer) { o.To = 0 }, "to node 0"},
		{"nodes", func(o *offer) { o.Nodes = 4 }, "4 nodes"},
		{"no receives", func(o *offer) { o.Depth = 0 }, "0 receives"},
		{"too many receives", func(o *offer) { o.Depth = 1 << 20 }, "receives"},
		{"qp", func(o *offer) { o.QPN = 1 }, "qp number"},
		{"psn", func(o *offer) { o.PSN = 1 << 24 }, "psn"},
		{"mtu", func(o *offer) { o.MTU = 9 }, "mtu"},
		{"gid", func(o *offer) { o.GID = [16]byte{} }, "neither gid nor lid"},
		{"multicast", func(o *offer) { o.GID = [16]byte{0xff, 2, 15: 1} }, "multicast"},
		{"home", func(o *offer) { o.Home.Last += 4096 }, "home range"},
		{"ram length", func(o *offer) { o.RAM.Len += 4096 }, "home frames"},
		{"ram address zero", func(o *offer) { o.RAM.Addr = 0 }, "user memory"},
		{"ram address odd", func(o *offer) { o.RAM.Addr++ }, "user memory"},
		{"ram address in the kernel", func(o *offer) { o.RAM.Addr = 0xffff888000000000 }, "user memory"},
		{"ram wraps", func(o *offer) { o.RAM.Addr = 1<<57 - 4096 }, "user memory"},
		{"slots length", func(o *offer) { o.Slots.Len = 0 }, "slots"},
		{"slots address", func(o *offer) { o.Slots.Addr = 12 }, "slots"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := goodOffer()
			c.spoil(&o)
			if err := l.Connect(2, encode(t, o)); !errors.Is(err, fabric.ErrOffer) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want a refusal that says %q", err, c.says)
			}
			if l.links[2].state != linkNone {
				t.Error("the link has changed")
			}
		})
	}
	for _, n := range []int{0, offerSize - 1} {
		if err := l.Connect(2, encode(t, goodOffer())[:n]); !errors.Is(err, fabric.ErrOffer) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	if err := l.Connect(2, append(encode(t, goodOffer()), 0)); !errors.Is(err, fabric.ErrOffer) {
		t.Errorf("a byte more: %v", err)
	}
	for _, peer := range []wire.NodeID{1, 3, 63} {
		if err := l.Connect(peer, encode(t, goodOffer())); err == nil {
			t.Errorf("connected to node %d", peer)
		}
		if _, err := l.Offer(peer); err == nil {
			t.Errorf("offered to node %d", peer)
		}
	}
}

func TestLaneWithoutMemoryTakesNoAddresses(t *testing.T) {
	l := paperLane()
	l.cfg.RAM, l.cfg.Homes, l.cfg.Slots = fabric.Memory{}, nil, fabric.Memory{}
	o := goodOffer()
	o.Home, o.RAM, o.Slots = fabric.Span{}, region{}, region{}
	if _, err := l.readOffer(2, encode(t, o)); err != nil {
		t.Fatal(err)
	}
	o.RAM.RKey = 1
	if _, err := l.readOffer(2, encode(t, o)); err == nil {
		t.Error("a key for no memory was taken")
	}
}

func FuzzOffer(f *testing.F) {
	f.Add(encode(f, goodOffer()))
	f.Add([]byte("short"))
	l := paperLane()
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := l.readOffer(2, b)
		if err != nil {
			return
		}
		// Whatever was accepted cannot lead a write astray.
		r := remoteRegion{o.Home.First, o.Home.Last, o.RAM.Addr, o.RAM.RKey}
		for _, off := range []uint64{0, r.first - 4096, r.first, r.last - 4096, r.last, 1 << 63} {
			if at, ok := r.at(off); ok && (at.Addr < o.RAM.Addr || at.Addr+4096 > o.RAM.Addr+o.RAM.Len) {
				t.Errorf("offset %#x leads to %#x", off, at.Addr)
			}
		}
	})
}

func TestRemoteRegion(t *testing.T) {
	r := remoteRegion{first: 0x10000, last: 0x20000, addr: 0x7f0000000000, rkey: 9}
	for _, c := range []struct {
		off  uint64
		addr uint64 // 0: refused
	}{
		{0x10000, 0x7f0000000000}, {0x1f000, 0x7f000000f000}, {0xf000, 0}, {0x20000, 0}, {0x10800, 0}, {^uint64(0) &^ 4095, 0},
	} {
		got, ok := r.at(c.off)
		if ok != (c.addr != 0) || got.Addr != c.addr {
			t.Errorf("%#x: got %+v, %v", c.off, got, ok)
		}
	}
	if _, ok := (&remoteRegion{}).at(0); ok {
		t.Error("a region without bytes takes a write")
	}
}

func TestOptions(t *testing.T) {
	o := Options{}
	if err := o.fill(8); err != nil || o.Depth != defaultDepth || o.SendWR != defaultSendWR || o.Backlog != defaultBacklog || o.Bounce != 64 {
		t.Errorf("defaults %+v, %v", o, err)
	}
	o = Options{SendWR: 100, Bounce: 10}
	if err := o.fill(4096); err != nil || o.SendWR != 128 || o.Bounce != 10 {
		t.Errorf("got %+v, %v", o, err)
	}
	for _, o := range []Options{{Depth: 1}, {Depth: 1 << 20}, {SendWR: 4}, {SendWR: 1 << 20}, {Backlog: -1}, {Bounce: 1}, {Bounce: 1 << 20}} {
		if err := o.fill(0); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
}
