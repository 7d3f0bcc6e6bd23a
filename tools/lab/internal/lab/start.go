package lab

import (
	"bufio"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// SuperviseCommand is the hidden command of this binary that is a supervisor.
const SuperviseCommand = "supervise"

// The files a supervisor inherits.
const (
	fdLock = 3 + iota
	fdEvents
	fdTether
)

// event is a line from the supervisor to whoever starts it.
type event struct {
	Server int    `json:"server"` // -1: the lab
	Text   string `json:"text,omitempty"`
	Ready  bool   `json:"ready,omitempty"`
	Error  string `json:"error,omitempty"`
}

// Running is a lab this process started.
type Running struct {
	Dir    Dir
	tether *os.File
}

// Start brings a lab up and returns when all its servers answer. When ctx ends before that, the lab is
// taken down again. It fetches a QEMU if there is none that suits. With Config.Tether the lab lives until Stop, or
// until this process dies.
func Start(ctx context.Context, d Dir, c *Config, progress func(server int, text string)) (*Running, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	if err := static("/proc/self/exe"); err != nil {
		return nil, err
	}
	say := func(format string, args ...any) { progress(-1, fmt.Sprintf(format, args...)) }
	if err := c.complete(ctx, say); err != nil {
		return nil, err
	}
	lock, err := d.lock()
	for i := 0; i < 10 && lock == nil && err == nil; i++ {
		time.Sleep(20 * time.Millisecond) // a status call holds the lock for a moment
		lock, err = d.lock()
	}
	if err != nil {
		return nil, err
	}
	if lock == nil {
		return nil, fmt.Errorf("lab: %s is already up: use it, take it down with `lab down`, or choose another --name", d.Name)
	}
	defer lock.Close() // the supervisor has its own
	if err := prepare(d, c); err != nil {
		d.clean()
		d.unlock(lock)
		return nil, err
	}
	eventsR, eventsW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer eventsR.Close()
	tetherR, tetherW, err := os.Pipe()
	if err != nil {
		eventsW.Close()
		return nil, err
	}
	log, err := os.OpenFile(d.Log(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	cmd := exec.Command("/proc/self/exe", SuperviseCommand, d.Name)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), EnvDir+"="+d.root)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{lock, eventsW, tetherR}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	log.Close()
	eventsW.Close()
	tetherR.Close()
	if err != nil {
		tetherW.Close()
		d.clean()
		d.unlock(lock)
		return nil, fmt.Errorf("lab: start supervisor: %w", err)
	}
	go cmd.Wait()

	cancel := context.AfterFunc(ctx, func() { tetherW.Close() })
	err = follow(eventsR, progress)
	if err == nil && !cancel() {
		err = ctx.Err()
	}
	if err != nil {
		tetherW.Close()
		d.waitDown(gracePeriod)
		if ctx.Err() != nil {
			return nil, errors.New("lab: interrupted; taken down")
		}
		return nil, err
	}
	if !c.Tether {
		tetherW.Close()
		tetherW = nil
	}
	return &Running{Dir: d, tether: tetherW}, nil
}

// static makes sure that this binary can be a server's init, where there is no library.
func static(path string) error {
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return errors.New("lab: this binary needs shared libraries and so cannot be the init of a server: build it with CGO_ENABLED=0 go build -o bin/lab ./tools/lab")
		}
	}
	return nil
}

func prepare(d Dir, c *Config) error {
	if err := d.clean(); err != nil {
		return err
	}
	if err := os.Mkdir(d.Path(), 0o700); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	if err := os.Mkdir(d.Share(), 0o700); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(d.config(), b, 0o600); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	return nil
}

// follow reads events until the lab is ready or has failed.
func follow(r *os.File, progress func(int, string)) error {
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		var e event
		if err := json.Unmarshal(s.Bytes(), &e); err != nil {
			return fmt.Errorf("lab: supervisor: %w", err)
		}
		switch {
		case e.Error != "":
			return errors.New(e.Error)
		case e.Ready:
			return nil
		default:
			progress(e.Server, e.Text)
		}
	}
	if err := s.Err(); err != nil {
		return fmt.Errorf("lab: supervisor: %w", err)
	}
	return errors.New("lab: the supervisor died while starting")
}

// Stop ends the lab.
func (r *Running) Stop() error {
	_, err := r.Dir.Down()
	if r.tether != nil {
		r.tether.Close()
	}
	return err
}
