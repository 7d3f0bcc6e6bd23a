package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// escape is the key that ends the VM from its console: Ctrl-].
const escape = 0x1d

// terminal is standard input, which may or may not be a terminal.
type terminal struct {
	f     *os.File
	isTTY bool

	begun chan struct{} // closed when keys begin to be the console's

	mu    sync.Mutex
	saved *unix.Termios // the state to go back to while raw
}

func openTerminal(f *os.File) *terminal {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return &terminal{f: f, isTTY: err == nil, begun: make(chan struct{})}
}

// enterRaw passes every key on as it is, from now on. It is called once.
func (t *terminal) enterRaw(say io.Writer) {
	if !t.isTTY {
		return
	}
	fmt.Fprintln(say, "console: Ctrl-] ends the VM")
	defer close(t.begun)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.saved != nil {
		return
	}
	old, err := unix.IoctlGetTermios(int(t.f.Fd()), unix.TCGETS)
	if err != nil {
		return
	}
	raw := *old
	raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	raw.Oflag &^= unix.OPOST
	raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	raw.Cflag = raw.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if unix.IoctlSetTermios(int(t.f.Fd()), unix.TCSETSW, &raw) == nil {
		t.saved = old
	}
}

// raw reports whether the terminal is in raw mode.
func (t *terminal) raw() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.saved != nil
}

// restore undoes enterRaw.
func (t *terminal) restore() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.saved != nil {
		// Nothing to do about an error: the terminal is gone.
		_ = unix.IoctlSetTermios(int(t.f.Fd()), unix.TCSETSW, t.saved)
		t.saved = nil
	}
}

// input returns what the guest is to read. On a terminal the escape key calls quit and ends it.
func (t *terminal) input(quit func()) io.Reader {
	if !t.isTTY {
		return t.f
	}
	return &keys{r: t.f, begun: t.begun, quit: quit}
}

// keys looks for the escape key in what is typed.
type keys struct {
	r     io.Reader
	begun <-chan struct{} // what is typed before is for later
	quit  func()
	over  bool
}

func (k *keys) Read(b []byte) (int, error) {
	if k.over {
		return 0, io.EOF
	}
	<-k.begun
	n, err := k.r.Read(b)
	if i := bytes.IndexByte(b[:n], escape); i >= 0 {
		k.over = true
		k.quit()
		return i, nil
	}
	return n, err
}
