package remote

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

// Stdio is the caller's end of a process.
type Stdio struct {
	In       io.Reader // nil: none
	Out, Err io.Writer
	// Signals are passed on to the process group.
	Signals <-chan os.Signal
}

// ErrGone is matched by the error of a command whose server went away before it was over.
var ErrGone = errors.New("remote: the server went away while the command ran")

// Configure runs a Setup over a stream of its own.
func Configure(rw io.ReadWriteCloser, setup *Setup, progress func(string)) (*Result, error) {
	return ask(rw, Request{Setup: setup}, progress)
}

// Await waits until the server can connect to addresses.
func Await(rw io.ReadWriteCloser, d *Dial) error {
	_, err := ask(rw, Request{Dial: d}, func(string) {})
	return err
}

func ask(rw io.ReadWriteCloser, req Request, progress func(string)) (*Result, error) {
	s := NewStream(rw)
	defer s.Close()
	if err := s.WriteJSON(KindRequest, req); err != nil {
		return nil, fmt.Errorf("remote: %w", err)
	}
	for {
		k, p, err := s.Read()
		if err != nil {
			return nil, fmt.Errorf("remote: %w", err)
		}
		switch k {
		case KindProgress:
			var pr Progress
			if err := json.Unmarshal(p, &pr); err != nil {
				return nil, fmt.Errorf("remote: %w", err)
			}
			progress(pr.Text)
		case KindResult:
			var r Result
			if err := json.Unmarshal(p, &r); err != nil {
				return nil, fmt.Errorf("remote: %w", err)
			}
			if r.Error != "" {
				return &r, errors.New(r.Error)
			}
			return &r, nil
		default:
			return nil, ErrFrame
		}
	}
}

// Run runs a command over a stream of its own and waits for its end.
func Run(rw io.ReadWriteCloser, cmd *Command, io_ Stdio) (*Exit, error) {
	s := NewStream(rw)
	defer s.Close()
	cmd.Stdin = io_.In != nil
	if err := s.WriteJSON(KindRequest, Request{Command: cmd}); err != nil {
		return nil, fmt.Errorf("remote: run: %w", err)
	}
	done := make(chan struct{})
	defer close(done)
	if io_.Signals != nil {
		go func() {
			for {
				select {
				case sig := <-io_.Signals:
					if n, ok := sig.(syscall.Signal); ok {
						if s.Write(KindSignal, []byte{byte(n)}) != nil {
							return
						}
					}
				case <-done:
					return
				}
			}
		}()
	}
	credit := make(chan int, StdinWindow) // more entries than credits can be outstanding
	if io_.In != nil {
		go sendStdin(s, io_.In, credit, done)
	}
	for {
		k, p, err := s.Read()
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrGone, err)
		}
		switch k {
		case KindStdout:
			if _, err := io_.Out.Write(p); err != nil {
				return nil, err
			}
		case KindStderr:
			if _, err := io_.Err.Write(p); err != nil {
				return nil, err
			}
		case KindCredit:
			if len(p) != 4 {
				return nil, ErrFrame
			}
			select {
			case credit <- int(binary.BigEndian.Uint32(p)):
			default:
				return nil, ErrFrame
			}
		case KindExit:
			var e Exit
			if err := json.Unmarshal(p, &e); err != nil {
				return nil, fmt.Errorf("remote: run: %w", err)
			}
			return &e, nil
		default:
			return nil, ErrFrame
		}
	}
}

func sendStdin(s *Stream, in io.Reader, credit <-chan int, done <-chan struct{}) {
	window := StdinWindow
	buf := make([]byte, chunk)
	for {
		for window < len(buf) {
			select {
			case n := <-credit:
				window += n
			case <-done:
				return
			}
		}
		n, err := in.Read(buf)
		if n > 0 {
			window -= n
			if s.Write(KindStdin, buf[:n]) != nil {
				return
			}
		}
		if err != nil {
			s.Write(KindStdinEOF, nil) // its failure shows at the reader
			return
		}
	}
}
