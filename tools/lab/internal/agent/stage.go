package agent

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

const (
	stageDir = "/run/lab-stage"
	// stageKeep bounds how much memory copies take; a running process keeps what it runs.
	stageKeep = 4
	stageRead = 512 << 10 // what one 9p request carries
)

// stage copies programs into the server's memory before they run. Page by page over 9p, as a program runs,
// they would stall at moments that matter, such as in a handshake with a time limit.
type stage struct {
	mu     sync.Mutex // guards below
	copies []staged   // oldest first
	next   int
}

// staged is a copy of the file that was, at that time, at a path.
type staged struct {
	path       string
	ino        uint64
	size       int64
	mtimeNs    int64
	copiedPath string
}

func (s *stage) get(path string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok || !st.Mode().IsRegular() {
		return path, nil
	}
	want := staged{path: path, ino: sys.Ino, size: st.Size(), mtimeNs: st.ModTime().UnixNano()}
	for _, c := range s.copies {
		want.copiedPath = c.copiedPath
		if c == want {
			return c.copiedPath, nil
		}
	}
	if err := os.MkdirAll(stageDir, 0o700); err != nil {
		return "", err
	}
	s.next++
	want.copiedPath = filepath.Join(stageDir, fmt.Sprintf("%d-%s", s.next, filepath.Base(path)))
	if err := copyProgram(want.copiedPath, path); err != nil {
		os.Remove(want.copiedPath)
		return "", err
	}
	if s.copies = append(s.copies, want); len(s.copies) > stageKeep {
		os.Remove(s.copies[0].copiedPath)
		s.copies = s.copies[1:]
	}
	return want.copiedPath, nil
}

func copyProgram(to, from string) (err error) {
	r, err := os.Open(from)
	if err != nil {
		return err
	}
	defer r.Close()
	w, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o700)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := w.Close(); err == nil {
			err = cerr
		}
	}()
	// Plain reads and writes of a large buffer: no splicing in small pieces.
	_, err = io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, make([]byte, stageRead))
	return err
}
