package lane

import (
	"testing"

	"ironspan/engine/wire"
)

// FuzzHandle: a lane does nothing that a message must not have it do, whatever a peer sends, and answers with messages
// that are proper.
func FuzzHandle(f *testing.F) {
	add := func(m wire.Message) {
		var b [wire.Size]byte
		m.Encode(b[:])
		f.Add(b[:])
	}
	for _, args := range [][4]uint64{
		{0x3f8, 1 | accessPort}, {0x3f8, 1 | accessPort | accessWrite, 'x'}, {0xfec00000, 4}, {0x10000, 4 | accessPort},
		{0x3f8, 8 | accessPort}, {0, 3}, {0, 1 << 20},
	} {
		add(wire.Message{Kind: wire.Access, From: 1, Epoch: testEpoch, Slot: 1, Args: args})
	}
	add(wire.Message{Kind: wire.AccessAck, From: 1, Epoch: testEpoch, Txn: 1 << 31, Slot: 1})
	add(wire.Message{Kind: wire.EOI, From: 1, Epoch: testEpoch, Args: [4]uint64{256}})
	add(wire.Message{Kind: wire.IPI, From: 1, Epoch: testEpoch, Args: [4]uint64{1, 0x30, 2}})
	add(wire.Message{Kind: wire.Ping, From: 1, Epoch: testEpoch, Txn: 3})
	add(wire.Message{Kind: wire.Pong, From: 1, Epoch: testEpoch, Txn: 3})
	add(wire.Message{Kind: wire.Ping, From: 63, Epoch: testEpoch})
	f.Fuzz(func(t *testing.T, in []byte) {
		node, end := &fakeNode{}, &fakeEndpoint{} // platform node, which serves accesses
		l := &Lane{cfg: Config{Nodes: 2, Epoch: testEpoch, Endpoint: end, Handler: node}, waiters: make([]waiter, 1)}
		l.clock.init()
		for len(in) >= wire.Size {
			var m wire.Message
			if m.Decode(in) == nil {
				l.handle(&m)
			}
			in = in[wire.Size:]
		}
		for _, a := range node.accesses {
			if a.port && (a.addr > 0xffff || a.size > 4) || a.size < 1 || a.size > 8 || a.size&(a.size-1) != 0 {
				t.Errorf("performed %+v", a)
			}
		}
		for _, p := range end.posts {
			var b [wire.Size]byte
			p.msg.Encode(b[:])
			if err := new(wire.Message).Decode(b[:]); err != nil || p.peer != 1 {
				t.Errorf("answered node %d with %+v: %v", p.peer, p.msg, err)
			}
		}
	})
}
