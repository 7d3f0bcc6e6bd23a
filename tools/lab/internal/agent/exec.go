package agent

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"ironspan/tools/lab/internal/remote"
)

// grace is how long a process group whose caller went away has between SIGTERM and SIGKILL.
const grace = 2 * time.Second

// serve answers one stream.
func (a *agent) serve(rw io.ReadWriteCloser) {
	s := remote.NewStream(rw)
	defer s.Close()
	k, p, err := s.Read()
	if err != nil || k != remote.KindRequest {
		return
	}
	var req remote.Request
	if err := json.Unmarshal(p, &req); err != nil {
		return
	}
	switch {
	case req.Setup != nil:
		r := a.setup(req.Setup, func(format string, args ...any) {
			s.WriteJSON(remote.KindProgress, remote.Progress{Text: fmt.Sprintf(format, args...)})
		})
		s.WriteJSON(remote.KindResult, r)
	case req.Dial != nil:
		r := &remote.Result{}
		if err := await(req.Dial); err != nil {
			r.Error = err.Error()
		}
		s.WriteJSON(remote.KindResult, r)
	case req.Command != nil:
		s.WriteJSON(remote.KindExit, a.run(s, req.Command))
	}
}

// run starts the process in a group of its own and stays until it has ended and its output is drained.
func (a *agent) run(s *remote.Stream, c *remote.Command) *remote.Exit {
	if len(c.Args) == 0 {
		return &remote.Exit{Code: 127, Error: "no command given"}
	}
	if err := a.reveal(c.Dir); err != nil {
		return &remote.Exit{Code: 126, Error: err.Error()}
	}
	env := append(a.environment(), c.Env...)
	path, err := lookPath(c.Args[0], c.Dir, env)
	if err != nil {
		return &remote.Exit{Code: 127, Error: err.Error()}
	}
	if c.Stage {
		if path, err = a.programs.get(path); err != nil {
			return &remote.Exit{Code: 126, Error: err.Error()}
		}
	}
	cmd := &exec.Cmd{
		Path: path, Args: c.Args, Dir: c.Dir, Env: env,
		Stdout: frames{s, remote.KindStdout}, Stderr: frames{s, remote.KindStderr},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
		// A daemon left behind may hold the pipes; the command itself has ended by then.
		WaitDelay: 500 * time.Millisecond,
	}
	var stdin io.WriteCloser
	if c.Stdin {
		if stdin, err = cmd.StdinPipe(); err != nil {
			return &remote.Exit{Code: 126, Error: err.Error()}
		}
	}
	if err := cmd.Start(); err != nil {
		return &remote.Exit{Code: 126, Error: err.Error()}
	}
	ended := make(chan struct{})
	go a.control(s, cmd.Process.Pid, stdin, ended)
	err = cmd.Wait()
	close(ended)
	if ee := (*exec.ExitError)(nil); err != nil && !errors.As(err, &ee) && !errors.Is(err, exec.ErrWaitDelay) && cmd.ProcessState == nil {
		return &remote.Exit{Code: 126, Error: err.Error()}
	}
	ws := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ws.Signaled() {
		return &remote.Exit{Code: 128 + int(ws.Signal()), Signal: int(ws.Signal())}
	}
	return &remote.Exit{Code: ws.ExitStatus()}
}

// control feeds stdin and signals to the process until the stream or the process ends. A caller that
// vanishes takes the whole process group with it.
func (a *agent) control(s *remote.Stream, pid int, stdin io.WriteCloser, ended <-chan struct{}) {
	var feed chan []byte
	if stdin != nil {
		feed = make(chan []byte, remote.StdinWindow) // never full: the window bounds bytes, hence frames
		go func() {
			defer stdin.Close()
			for b := range feed {
				if b == nil {
					return
				}
				_, err := stdin.Write(b)
				var n [4]byte
				binary.BigEndian.PutUint32(n[:], uint32(len(b)))
				if s.Write(remote.KindCredit, n[:]) != nil || err != nil {
					return
				}
			}
		}()
	}
	for {
		k, p, err := s.Read()
		if err != nil {
			break
		}
		switch k {
		case remote.KindStdin, remote.KindStdinEOF:
			if k == remote.KindStdinEOF {
				p = nil
			}
			if feed != nil {
				select {
				case feed <- p:
				default:
				}
			}
		case remote.KindSignal:
			if len(p) == 1 {
				syscall.Kill(-pid, syscall.Signal(p[0]))
			}
		}
	}
	if feed != nil {
		close(feed)
	}
	select {
	case <-ended:
		return
	default:
	}
	syscall.Kill(-pid, syscall.SIGTERM)
	select {
	case <-ended:
	case <-time.After(grace):
	}
	syscall.Kill(-pid, syscall.SIGKILL)
}

// frames writes output as frames.
type frames struct {
	s *remote.Stream
	k remote.Kind
}

func (f frames) Write(p []byte) (int, error) {
	for done := 0; done < len(p); {
		n := min(len(p)-done, remote.MaxPayload)
		if err := f.s.Write(f.k, p[done:done+n]); err != nil {
			return done, err
		}
		done += n
	}
	return len(p), nil
}

// lookPath is exec.LookPath with the command's own PATH and directory.
func lookPath(name, dir string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		if _, err := os.Stat(name); err != nil {
			// Perhaps hidden by a fresh /tmp.
			if _, err := os.Stat(HostView + name); err == nil {
				return HostView + name, nil
			}
			return "", fmt.Errorf("%s does not exist in the server (its /tmp and /run are its own; the host's are under %s)", name, HostView)
		}
		return name, nil
	}
	path := ""
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			path = v // the last one counts
		}
	}
	for _, d := range filepath.SplitList(path) {
		p := filepath.Join(d, name)
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s: no such command in the server's PATH %s", name, path)
}
