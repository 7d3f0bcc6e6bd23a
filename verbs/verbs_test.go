package verbs_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"ironspan/verbs"
)

func fill(b []byte, seed byte) {
	for i := range b {
		b[i] = seed + byte(i)*7
	}
}

func TestEveryVerb(t *testing.T) {
	a, b := pair(t)
	mine, theirs := a.mem.Bytes(), b.mem.Bytes()
	batch := a.qp.Batch()
	const s = verbs.Signaled

	t.Run("send", func(t *testing.T) {
		fill(mine[:200], 1)
		b.recv(1, 0)
		a.add(batch.Send(1, s, a.mr.SGE(0, 200)))
		a.post()
		w, r := a.ok(1)[0], b.ok(1)[0]
		if w.ID != 1 || w.Opcode != verbs.OpSend || w.QPN != a.qp.QPN() {
			t.Errorf("send completed as %+v", w)
		}
		if r.ID != 1000 || r.Opcode != verbs.OpRecv || r.Len != 200 || r.QPN != b.qp.QPN() || r.Flags&verbs.WithImm != 0 {
			t.Errorf("receive completed as %+v", r)
		}
		if !bytes.Equal(theirs[:200], mine[:200]) {
			t.Error("bytes differ")
		}
	})
	t.Run("send of several pieces into several", func(t *testing.T) {
		fill(mine[:4096], 2)
		rb := b.qp.RecvBatch()
		b.add(rb.Add(7, b.mr.SGE(0, 10)) && rb.AddSGE(b.mr.SGE(512, 100)))
		if _, err := rb.Post(); err != nil {
			t.Fatal(err)
		}
		a.add(batch.Send(1, s, a.mr.SGE(0, 8)) && batch.AddSGE(a.mr.SGE(100, 8)) && batch.AddSGE(a.mr.SGE(200, 8)))
		a.post()
		a.ok(1)
		b.ok(1)
		want := append(append(append([]byte{}, mine[:8]...), mine[100:108]...), mine[200:208]...)
		if got := append(append([]byte{}, theirs[:10]...), theirs[512:526]...); !bytes.Equal(got, want) {
			t.Errorf("got %x, want %x", got, want)
		}
	})
	t.Run("send inline", func(t *testing.T) {
		b.recv(1, 0)
		msg := []byte("a message whose buffer is reused at once, before the post..........")[:64]
		want := bytes.Clone(msg)
		a.add(batch.SendInline(2, s, msg))
		clear(msg)
		a.post()
		a.ok(1)
		if r := b.ok(1)[0]; r.Len != 64 || !bytes.Equal(theirs[:64], want) {
			t.Errorf("got %d bytes %q", r.Len, theirs[:64])
		}
	})
	t.Run("send with immediate data", func(t *testing.T) {
		b.recv(3, 0)
		a.add(batch.SendImm(3, s, a.mr.SGE(0, 16), 0xcafe0001))
		a.add(batch.SendInlineImm(4, s, []byte("x"), 0xcafe0002))
		a.add(batch.SendInlineImm(5, s, nil, 0xcafe0003))
		a.post()
		a.ok(3)
		for i, r := range b.ok(3) {
			if want := 0xcafe0001 + uint32(i); r.Imm != want || r.Flags&verbs.WithImm == 0 || r.Len != []uint32{16, 1, 0}[i] {
				t.Errorf("%d: got %+v", i, r)
			}
		}
	})
	t.Run("write", func(t *testing.T) {
		fill(mine[:8192], 3)
		a.add(batch.Write(6, s, a.mr.SGE(0, 8192), b.mr.Remote(4096)))
		a.post()
		if w := a.ok(1)[0]; w.Opcode != verbs.OpWrite {
			t.Errorf("completed as %v", w.Opcode)
		}
		if !bytes.Equal(theirs[4096:4096+8192], mine[:8192]) {
			t.Error("bytes differ")
		}
	})
	t.Run("write inline", func(t *testing.T) {
		a.add(batch.WriteInline(7, s, []byte("written inline"), b.mr.Remote(64)))
		a.post()
		a.ok(1)
		if !bytes.Equal(theirs[64:78], []byte("written inline")) {
			t.Errorf("got %q", theirs[64:78])
		}
	})
	t.Run("write with immediate data", func(t *testing.T) {
		fill(mine[:4096], 4)
		rb := b.qp.RecvBatch()
		b.add(rb.Add(9, verbs.SGE{})) // needs no memory
		if _, err := rb.Post(); err != nil {
			t.Fatal(err)
		}
		a.add(batch.WriteImm(8, s, a.mr.SGE(0, 4096), b.mr.Remote(8192), 0x01020304))
		a.post()
		a.ok(1)
		r := b.ok(1)[0]
		if r.Opcode != verbs.OpRecvImm || r.Imm != 0x01020304 || r.Len != 4096 || r.ID != 9 {
			t.Errorf("receive completed as %+v", r)
		}
		if !bytes.Equal(theirs[8192:8192+4096], mine[:4096]) {
			t.Error("bytes differ")
		}
	})
	t.Run("write that is given immediate data afterwards", func(t *testing.T) {
		rb := b.qp.RecvBatch()
		b.add(rb.Add(9, verbs.SGE{}))
		if _, err := rb.Post(); err != nil {
			t.Fatal(err)
		}
		if batch.SetImm(1) {
			t.Error("an empty batch took it")
		}
		a.add(batch.Read(7, 0, a.mr.SGE(0, 64), b.mr.Remote(0)))
		if batch.SetImm(1) {
			t.Error("a read took it")
		}
		a.add(batch.Write(8, s, a.mr.SGE(0, 4096), b.mr.Remote(8192)))
		a.add(batch.SetImm(1) && batch.SetImm(0x05060708))
		a.post()
		a.ok(1)
		if r := b.ok(1)[0]; r.Opcode != verbs.OpRecvImm || r.Imm != 0x05060708 || r.Len != 4096 {
			t.Errorf("receive completed as %+v", r)
		}
	})
	t.Run("read", func(t *testing.T) {
		fill(theirs[:4096], 5)
		a.add(batch.Read(9, s, a.mr.SGE(12288, 4096), b.mr.Remote(0)))
		a.post()
		if w := a.ok(1)[0]; w.Opcode != verbs.OpRead || w.Len != 4096 {
			t.Errorf("completed as %+v", w)
		}
		if !bytes.Equal(mine[12288:12288+4096], theirs[:4096]) {
			t.Error("bytes differ")
		}
	})
	t.Run("compare and swap", func(t *testing.T) {
		word := theirs[128:136]
		binary.NativeEndian.PutUint64(word, 100)
		for _, c := range []struct{ compare, swap, before, after uint64 }{{100, 200, 100, 200}, {100, 300, 200, 200}} {
			a.add(batch.CompareSwap(10, s, a.mr.SGE(0, 8), b.mr.Remote(128), c.compare, c.swap))
			a.post()
			if w := a.ok(1)[0]; w.Opcode != verbs.OpCompareSwap {
				t.Errorf("completed as %v", w.Opcode)
			}
			if before, after := binary.NativeEndian.Uint64(mine), binary.NativeEndian.Uint64(word); before != c.before || after != c.after {
				t.Errorf("%+v: got %d, left %d", c, before, after)
			}
		}
	})
	t.Run("fetch and add", func(t *testing.T) {
		word := theirs[128:136]
		binary.NativeEndian.PutUint64(word, 40)
		a.add(batch.FetchAdd(11, s, a.mr.SGE(0, 8), b.mr.Remote(128), 2))
		a.add(batch.FetchAdd(12, s, a.mr.SGE(8, 8), b.mr.Remote(128), 1<<40))
		a.post()
		if w := a.ok(2)[0]; w.Opcode != verbs.OpFetchAdd {
			t.Errorf("completed as %v", w.Opcode)
		}
		got := [3]uint64{binary.NativeEndian.Uint64(mine), binary.NativeEndian.Uint64(mine[8:]), binary.NativeEndian.Uint64(word)}
		if got != [3]uint64{40, 42, 42 + 1<<40} {
			t.Errorf("got %d", got)
		}
	})
}

// One doorbell for a mixed batch, only its last request signalled; what came before is in order.
func TestMixedBatch(t *testing.T) {
	a, b := pair(t)
	mine, theirs := a.mem.Bytes(), b.mem.Bytes()
	batch := a.qp.Batch()
	for round := range 20 {
		b.recv(16, 0)
		for i := range 16 {
			fill(mine[4096+i*1024:4096+(i+1)*1024], byte(round*16+i))
			a.add(batch.Write(0, 0, a.mr.SGE(uint64(4096+i*1024), 1024), b.mr.Remote(uint64(8192+i*1024))))
			var f verbs.SendFlags
			if i == 15 {
				f = verbs.Signaled
			}
			a.add(batch.SendInline(uint64(i), f, fmt.Appendf(nil, "round %d message %d", round, i)))
		}
		if batch.Len() != 32 {
			t.Fatalf("%d requests in the batch", batch.Len())
		}
		a.post()
		for i, r := range b.ok(16) {
			if want := fmt.Sprintf("round %d message %d", round, i); string(theirs[i*256:i*256+int(r.Len)]) != want {
				t.Fatalf("got %q, want %q", theirs[i*256:i*256+int(r.Len)], want)
			}
		}
		if !bytes.Equal(theirs[8192:8192+16*1024], mine[4096:4096+16*1024]) {
			t.Fatal("bytes written before the message are not there")
		}
		if w := a.ok(1)[0]; w.ID != 15 {
			t.Fatalf("completed as %+v", w)
		}
	}
}

func TestBatchBounds(t *testing.T) {
	a, _ := pair(t, func(c *pairConfig) {
		c.qp.SendWR, c.qp.RecvWR, c.qp.SendSGE, c.qp.RecvSGE, c.qp.MaxInline = 4, 4, 2, 1, 64
	})
	b := a.qp.Batch()
	if b.SendInline(0, 0, make([]byte, 65)) {
		t.Error("inline data that is too long was taken")
	}
	if b.AddSGE(a.mr.SGE(0, 1)) {
		t.Error("a piece of no request was taken")
	}
	a.add(b.SendInline(0, 0, make([]byte, 64)))
	if b.AddSGE(a.mr.SGE(0, 1)) {
		t.Error("a piece of an inline request was taken")
	}
	a.add(b.Send(0, 0, a.mr.SGE(0, 1)) && b.AddSGE(a.mr.SGE(0, 1)))
	if b.AddSGE(a.mr.SGE(0, 1)) {
		t.Error("a third piece was taken")
	}
	if !b.AddSGE(a.mr.SGE(1, 7)) {
		t.Error("what goes on with the last piece was not taken")
	}
	for b.Len() < b.Cap() {
		a.add(b.Read(0, 0, a.mr.SGE(0, 8), verbs.Remote{}))
	}
	if b.Cap() != 4 || b.Send(0, 0, a.mr.SGE(0, 1)) || b.SendInline(0, 0, nil) || b.FetchAdd(0, 0, a.mr.SGE(0, 8), verbs.Remote{}, 1) {
		t.Error("a full batch took one more")
	}
	b.Reset()
	if n, err := b.Post(); n != 0 || err != nil {
		t.Errorf("posting nothing: %d, %v", n, err)
	}
	rb := a.qp.RecvBatch()
	for range 4 {
		a.add(rb.Add(1, a.mr.SGE(0, 64)))
	}
	if rb.Add(1, a.mr.SGE(0, 64)) || rb.AddSGE(a.mr.SGE(0, 64)) {
		t.Error("a full batch of receives took one more")
	}
}

func TestFullQueueIsAnError(t *testing.T) {
	a, _ := pair(t, func(c *pairConfig) { c.qp.RecvWR = 4 })
	var err error
	posted := 0
	for range 64 {
		rb := a.qp.RecvBatch()
		for range 4 {
			a.add(rb.Add(1, a.mr.SGE(0, 64)))
		}
		var n int
		n, err = rb.Post()
		posted += n
		if err != nil {
			break
		}
	}
	var e *verbs.OpError
	if !errors.As(err, &e) || e.Op != "post recv" || e.Errno == 0 || e.Hint == "" {
		t.Errorf("after %d receives: %v", posted, err)
	}
}

func TestPostAndPollDoNotAllocate(t *testing.T) {
	a, b := pair(t)
	batch, rb := a.qp.Batch(), b.qp.RecvBatch()
	msg := make([]byte, 64)
	var wcs [32]verbs.WC
	round := func() {
		for i := range 8 {
			rb.Add(uint64(i), b.mr.SGE(uint64(i)*64, 64))
		}
		if _, err := rb.Post(); err != nil {
			t.Fatal(err)
		}
		for i := range 8 {
			batch.Write(0, 0, a.mr.SGE(4096, 4096), b.mr.Remote(8192))
			f := verbs.SendFlags(0)
			if i == 7 {
				f = verbs.Signaled
			}
			batch.SendInline(0, f, msg)
		}
		if _, err := batch.Post(); err != nil {
			t.Fatal(err)
		}
		for want := 8; want > 0; {
			n, err := b.cq.Poll(wcs[:])
			if err != nil {
				t.Fatal(err)
			}
			want -= n
		}
		for n := 0; n == 0; {
			n, _ = a.cq.Poll(wcs[:])
		}
		if err := a.cq.Arm(); err != nil {
			t.Fatal(err)
		}
		if _, err := a.ch.Drain(); err != nil {
			t.Fatal(err)
		}
	}
	if n := testing.AllocsPerRun(50, round); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkPollEmpty(b *testing.B) {
	a, _ := pair(b)
	var wcs [32]verbs.WC
	b.ReportAllocs()
	for b.Loop() {
		if _, err := a.cq.Poll(wcs[:]); err != nil {
			b.Fatal(err)
		}
	}
}
