package main

import (
	"bytes"
	"fmt"
	"io"
	"sync"
	"time"
)

// screen prints lines with the time since the start before each, and a sign of life when there are none.
type screen struct {
	began time.Time
	over  chan struct{}
	once  sync.Once

	mu   sync.Mutex // guards below
	w    io.Writer
	last time.Time
	part []byte
}

// silence is how long the screen stays still at most.
const silence = 15 * time.Second

func newScreen(w io.Writer) *screen {
	s := &screen{began: time.Now(), over: make(chan struct{}), w: w, last: time.Now()}
	go s.live()
	return s
}

func (s *screen) live() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-s.over:
			return
		case <-tick.C:
			s.mu.Lock()
			quiet := time.Since(s.last)
			s.mu.Unlock()
			if quiet >= silence {
				s.line("... still running")
			}
		}
	}
}

// close ends the signs of life.
func (s *screen) close() { s.once.Do(func() { close(s.over) }) }

func (s *screen) line(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = time.Now()
	fmt.Fprintf(s.w, "[%7.1f s] %s\n", s.last.Sub(s.began).Seconds(), text)
}

func (s *screen) title(text string) { s.line("== " + text) }

// Write takes another program's words.
func (s *screen) Write(data []byte) (int, error) {
	s.mu.Lock()
	s.part = append(s.part, data...)
	var whole []string
	for {
		i := bytes.IndexByte(s.part, '\n')
		if i < 0 {
			break
		}
		whole = append(whole, string(s.part[:i]))
		s.part = s.part[i+1:]
	}
	s.mu.Unlock()
	for _, text := range whole {
		if match := labWord.FindStringSubmatch(text); match != nil {
			text = "lab: " + match[1]
		}
		s.line(text)
	}
	return len(data), nil
}
