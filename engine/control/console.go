package control

import (
	"context"
	"fmt"
	"io"
	"sync"
)

// consoleBuffer is how much guest output is kept until a client takes it, in bytes.
const consoleBuffer = 4 << 20

// consoleInput is how much input waits for the guest to read it, in bytes; a client that sends more has to wait.
const consoleInput = 64 << 10

// console joins the guest's serial port to the client's console stream.
type console struct {
	mu      sync.Mutex
	out     []byte // guest output nobody has taken yet
	dropped int    // bytes of output lost before out
	in      []byte // input the guest has not read yet
	ended   bool   // the guest writes no more
	closed  bool   // the VM is released
	changed chan struct{}
}

func newConsole() *console { return &console{changed: make(chan struct{})} }

func (c *console) notify() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// Write takes guest output. It never blocks: if nobody reads, the oldest output is dropped and counted.
func (c *console) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.ended {
		return len(b), nil
	}
	n := len(b)
	if n > consoleBuffer {
		c.dropped += n - consoleBuffer
		b = b[n-consoleBuffer:]
	}
	if over := len(c.out) + len(b) - consoleBuffer; over > 0 {
		c.out = append(c.out[:0], c.out[over:]...)
		c.dropped += over
	}
	c.out = append(c.out, b...)
	c.notify()
	return n, nil
}

// Read gives input to the guest, blocking until there is some; io.EOF when the VM is released.
func (c *console) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	for {
		c.mu.Lock()
		if len(c.in) > 0 {
			n := copy(b, c.in)
			c.in = append(c.in[:0], c.in[n:]...)
			c.notify()
			c.mu.Unlock()
			return n, nil
		}
		closed, changed := c.closed, c.changed
		c.mu.Unlock()
		if closed {
			return 0, io.EOF
		}
		<-changed
	}
}

// take returns the guest output that has come since the last call, blocking until there is some; io.EOF after
// the last of it.
func (c *console) take(ctx context.Context) ([]byte, error) {
	for {
		c.mu.Lock()
		if len(c.out) > 0 {
			b := c.out
			if c.dropped > 0 {
				b = append(fmt.Appendf(nil, "\r\n[ironspan: %d bytes of console output lost: nobody read them]\r\n", c.dropped), b...)
				c.dropped = 0
			}
			c.out = nil
			c.mu.Unlock()
			return b, nil
		}
		over, changed := c.ended || c.closed, c.changed
		c.mu.Unlock()
		if over {
			return nil, io.EOF
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// put gives the guest input, blocking while it has not read what came before.
func (c *console) put(ctx context.Context, b []byte) error {
	for len(b) > 0 {
		c.mu.Lock()
		if c.closed {
			c.mu.Unlock()
			return io.ErrClosedPipe
		}
		if n := min(consoleInput-len(c.in), len(b)); n > 0 {
			c.in = append(c.in, b[:n]...)
			b = b[n:]
			c.notify()
		}
		changed := c.changed
		c.mu.Unlock()
		if len(b) == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// end marks the end of the guest's output; what is there can still be taken.
func (c *console) end() {
	c.mu.Lock()
	c.ended = true
	c.notify()
	c.mu.Unlock()
}

// close ends both directions.
func (c *console) close() {
	c.mu.Lock()
	c.ended, c.closed = true, true
	c.notify()
	c.mu.Unlock()
}
