package rdma

import (
	"encoding/gob"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"ironspan/engine/wire"
	"ironspan/fastpath/fabric"
	"ironspan/verbs"
)

// TestAcrossServers runs between two processes, on two servers of a lab: one with
// IRONSPAN_RDMA_ACROSS=listen:ADDR:PORT, the other with dial:ADDR:PORT. The listener asks for pages and
// measures, the dialler is their home and, at the end, dies without a goodbye.
func TestAcrossServers(t *testing.T) {
	role := os.Getenv("IRONSPAN_RDMA_ACROSS")
	if role == "" {
		t.Skip("set IRONSPAN_RDMA_ACROSS=listen:ADDR:PORT here and =dial:ADDR:PORT on another server")
	}
	how, addr, _ := strings.Cut(role, ":")
	if err := verbs.Probe(); errors.Is(err, verbs.ErrNoDevice) {
		t.Skip(err)
	}
	conn, err := rendezvous(how, addr)
	must(t, err)
	defer conn.Close()
	self := wire.NodeID(0)
	if how == "dial" {
		self = 1
	}
	n := newNode(t, self, 2, Options{Retry: quick})
	mine, err := n.Offer(1 - self)
	must(t, err)
	must(t, gob.NewEncoder(conn).Encode(mine))
	var theirs []byte
	dec := gob.NewDecoder(conn)
	must(t, dec.Decode(&theirs))
	must(t, n.Connect(1-self, theirs))
	// Both are connected before the first post.
	must(t, gob.NewEncoder(conn).Encode([]byte{1}))
	must(t, dec.Decode(&theirs))
	if self == 1 {
		home(t, n)
		return
	}
	ask(t, n)
}

func rendezvous(how, addr string) (net.Conn, error) {
	if how == "listen" {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return nil, err
		}
		defer l.Close()
		_ = l.(*net.TCPListener).SetDeadline(time.Now().Add(time.Minute))
		return l.Accept()
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
		c, err := net.DialTimeout("tcp", addr, time.Second)
		if err == nil || time.Now().After(end) {
			return c, err
		}
	}
}

const lastRound = 500

// home answers every request with the page it names, until the last.
func home(t *testing.T, n *node) {
	for i := range homePages {
		stamp(n.frame(homePages+i), i)
	}
	for {
		m := n.get()
		n.WritePage(0, fabric.Slots, uint64(m.Slot)*page, fabric.RAM, uint64(m.Page)*page)
		n.Send(0, &wire.Message{Kind: wire.Grant, From: 1, Txn: m.Txn, Page: m.Page, Slot: m.Slot})
		n.Flush()
		if m.Txn == lastRound {
			break
		}
	}
	time.Sleep(time.Second) // until the last page is taken
	for i := range n.links {
		if q := n.links[i].qp; q != nil {
			must(t, q.Close())
			n.links[i].state = linkLost
		}
	}
}

// ask has pages sent and reads them itself, checks them, and then sees its peer die.
func ask(t *testing.T, n *node) {
	var took, read []time.Duration
	for i := 1; i <= lastRound; i++ {
		pfn := homePages + i%homePages
		begin := time.Now()
		n.Send(1, &wire.Message{Kind: wire.GetS, From: 0, Txn: uint32(i), Page: wire.PFN(pfn), Slot: uint32(i % slotPages)})
		n.Flush()
		m := n.get()
		took = append(took, time.Since(begin))
		if m.Txn != uint32(i) || !stamped(n.slot(i%slotPages), pfn-homePages) {
			t.Fatalf("round %d: got %+v", i, m)
		}
		s := (i + 1) % slotPages
		begin = time.Now()
		n.ReadPage(1, uint64(pfn)*page, uint32(s), over(wire.Fetched, 1, s))
		n.Flush()
		m = n.get()
		read = append(read, time.Since(begin))
		if m != *over(wire.Fetched, 1, s) || !stamped(n.slot(s), pfn-homePages) {
			t.Fatalf("round %d: read %+v", i, m)
		}
	}
	t.Log(latencies("page read between servers", read))
	t.Log(latencies("request, page, grant between servers", took))
	time.Sleep(2 * time.Second)
	begin := time.Now()
	n.Send(1, n.msg(0))
	n.Flush()
	lost := n.loss()
	if lost.Peer != 1 || !errors.Is(lost, verbs.StatusRetryExceeded) {
		t.Errorf("got %v", lost)
	}
	t.Logf("the peer's death was known after %v (bound %v): %v", time.Since(begin), quick.Bound(), lost)
}
