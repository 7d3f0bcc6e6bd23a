package kvmhost

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ironspan/kvmhost/minivm"
)

// A page table that another server changes: KVM goes on with what it knew until it is told to forget.
func TestForget(t *testing.T) {
	needKVM(t)
	if s, _ := Probe(); s.Translation != Shadow || !s.Snoop {
		t.Skipf("page tables are %v, snoopers possible: %v", s.Translation, s.Snoop)
	}
	const window, elsewhere, result = 6 << 20, 4 << 20, 5 << 20
	code := minivm.NewAsm().MovImm(minivm.RBX, window).MovImm(minivm.RSI, result).
		Label("again").Load(minivm.RAX, minivm.RBX, 0).Store(minivm.RSI, 0, minivm.RAX).Jmp("again").Bytes()
	g := newGuest(t, 1, minivm.Config{Code: [][]byte{code}}, func(c *Config) {
		c.Snoopers, c.ServiceSlots = 2, c.Slots
	})
	le := binary.LittleEndian
	le.PutUint64(g.ram[window:], 1)
	le.PutUint64(g.ram[elsewhere:], 2)
	g.start()
	waitFor(t, "word through the window", func() bool { return g.word(result) == 1 })

	const flags = 0xe7 // present, writable, user, accessed, dirty, large
	var entry [8]byte
	le.PutUint64(entry[:], window|flags)
	at := bytes.Index(g.ram[g.img.Start:g.img.End], entry[:])
	if at < 0 {
		t.Fatal("no page directory entry of the window")
	}
	gpa := g.img.Start + uint64(at)
	atomicWord(g.ram, gpa).Store(elsewhere | flags)
	time.Sleep(20 * time.Millisecond)
	if got := g.word(result); got != 1 {
		t.Errorf("the guest reads %d through a page table that nobody said had changed", got)
	}
	page := gpa &^ 4095
	before := bytes.Clone(g.ram[page : page+4096])
	for i := range 2 {
		if errno := g.vm.Snooper(i).Forget(page, g.ram[page+SnoopOffset]); errno != 0 {
			t.Fatal(errno)
		}
	}
	waitFor(t, "word through the changed page table", func() bool { return g.word(result) == 2 })
	if !bytes.Equal(before, g.ram[page:page+4096]) {
		t.Error("the page changed")
	}
	g.vm.Stop()
	if err := g.wait(); err != nil {
		t.Error(err)
	}
}

func BenchmarkForget(b *testing.B) {
	needKVM(b)
	if s, _ := Probe(); !s.Snoop {
		b.Skip("no system management mode")
	}
	g := newGuest(b, 1, minivm.Config{Code: [][]byte{minivm.NewAsm().Jmp("x").Label("x").Bytes()}}, func(c *Config) {
		c.Snoopers, c.ServiceSlots = 1, c.Slots
	})
	for b.Loop() {
		if errno := g.vm.Snooper(0).Forget(testRAM-4096, 0); errno != unix.Errno(0) {
			b.Fatal(errno)
		}
	}
}
