package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"ironspan/tools/lab/internal/lab"
	"ironspan/tools/lab/internal/remote"
)

type testCmd struct {
	Server  int `help:"Server to run the tests in." default:"0"`
	Servers int `help:"How many servers to bring up, if the lab is not up already." default:"2" short:"s"`
	machineFlags
	Args []string `arg:"" passthrough:"" name:"pkg" help:"Packages, as for go test; flags for go test behind --."`
}

// Help is kong's.
func (*testCmd) Help() string {
	return `Builds the packages' tests here and runs them in a server, as root, with IRONSPAN_LAB=1,
IRONSPAN_LAB_SERVER, IRONSPAN_LAB_SERVERS and IRONSPAN_LAB_PEERS (addresses, comma-separated) set:

  lab test ./verbs ./fastpath/... -- -run TestWrite -v

If the lab is not up, one is brought up for the tests and taken down afterwards. Tests see this machine's
files read-only; what they write belongs into a temporary directory.`
}

// grace is how long an interrupted child may take to end by itself.
const grace = 10 * time.Second

func (t *testCmd) Run(ctx context.Context, c *cli) error {
	goTool, err := exec.LookPath("go")
	if err != nil {
		return errors.New("lab: test needs the go tool in PATH")
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	packages, flags := splitTestArgs(t.Args)
	if len(packages) == 0 {
		packages = []string{"."}
	}
	if err := builds(ctx, goTool, packages, flags); err != nil {
		return err
	}
	d, stop, err := t.lab(ctx, c)
	if err != nil {
		return err
	}
	defer stop()
	args := []string{"test", "-exec", fmt.Sprintf("'%s' --name '%s' test-exec %d", self, d.Name, t.Server)}
	// One package at a time: they share the server's device. And never from go test's cache.
	args = append(args, "-p=1", "-count=1")
	args = append(append(args, flags...), packages...)
	cmd := exec.Command(goTool, args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return supervised(ctx, cmd)
}

// builds compiles the tests once before a lab is brought up for them, so that a mistake shows in seconds.
func builds(ctx context.Context, goTool string, packages, flags []string) error {
	tmp, err := os.MkdirTemp("", "lab-test-")
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	defer os.RemoveAll(tmp)
	cmd := exec.Command(goTool, append(append([]string{"test", "-c", "-o", tmp + "/"}, flags...), packages...)...)
	cmd.Stderr = os.Stderr
	return supervised(ctx, cmd)
}

// splitTestArgs tells packages from flags: the flags start at "--", or at the first dash.
func splitTestArgs(args []string) (packages, flags []string) {
	for i, a := range args {
		if a == "--" {
			return packages, append(flags, args[i+1:]...)
		}
		if strings.HasPrefix(a, "-") {
			return packages, append(flags, args[i:]...)
		}
		packages = append(packages, a)
	}
	return packages, nil
}

// lab returns the named lab if it is up, else one of its own; stop ends the latter.
func (t *testCmd) lab(ctx context.Context, c *cli) (lab.Dir, func(), error) {
	d, err := c.dir()
	if err != nil {
		return d, nil, err
	}
	st, err := d.Status()
	if err == nil && (st.State == "up" || st.State == "degraded") {
		if t.Server >= len(st.Servers) {
			return d, nil, fmt.Errorf("lab: --server %d: %s has servers 0 to %d", t.Server, d.Name, len(st.Servers)-1)
		}
		return d, func() {}, nil
	}
	if t.Server >= t.Servers {
		return d, nil, fmt.Errorf("lab: --server %d: there will be servers 0 to %d", t.Server, t.Servers-1)
	}
	return t.private(ctx, "test", t.Servers)
}

// private brings up a lab that ends with this process at the latest.
func (m *machineFlags) private(ctx context.Context, what string, servers int) (lab.Dir, func(), error) {
	d, err := lab.Open(fmt.Sprintf("%s-%d", what, os.Getpid()))
	if err != nil {
		return d, nil, err
	}
	begin := time.Now()
	cfg, err := m.config(ctx, servers)
	if err != nil {
		return d, nil, err
	}
	cfg.Tether = true
	r, err := lab.Start(ctx, d, cfg, progress(begin))
	if err != nil {
		return d, nil, err
	}
	return d, func() {
		if err := r.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}, nil
}

// supervised runs a child in a process group of its own, so that an interrupt reaches it once, and it has
// time to end.
func supervised(ctx context.Context, cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	var err error
	select {
	case err = <-ended:
	case <-ctx.Done():
		syscall.Kill(-cmd.Process.Pid, syscall.SIGINT)
		select {
		case <-ended:
		case <-time.After(grace):
		}
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		return errors.New("lab: interrupted")
	}
	var ee *exec.ExitError
	if errors.As(err, &ee) {
		if code := ee.ExitCode(); code > 0 {
			return exitStatus(code)
		}
	}
	return err
}

// testExecCmd is what go test calls for each test binary.
type testExecCmd struct {
	Server int      `arg:""`
	Cmd    []string `arg:"" passthrough:""`
}

func (t *testExecCmd) Run(c *cli) error {
	d, err := c.dir()
	if err != nil {
		return err
	}
	wd, err := os.Getwd()
	if err != nil {
		return err
	}
	env, err := environment(nil)
	if err != nil {
		return err
	}
	out, err := redirect(d, t.Cmd)
	if err != nil {
		return err
	}
	defer out.remove()
	signals, stop := remoteSignals()
	defer stop()
	// go test stops a test that takes too long by SIGQUIT, and its own interruption by SIGINT.
	exit, err := d.Exec(t.Server, &remote.Command{Args: out.args, Dir: wd, Env: env, Stage: true},
		remote.Stdio{Out: os.Stdout, Err: os.Stderr, Signals: signals})
	if err != nil {
		return err
	}
	if exit.Error != "" {
		fmt.Fprintf(os.Stderr, "lab: server %d: %s\n", t.Server, exit.Error)
	}
	if err := out.collect(); err != nil {
		return err
	}
	if exit.Code != 0 {
		return exitStatus(exit.Code)
	}
	return nil
}

// outputs are files a test binary is told to write: it writes them into the lab's share instead, from
// where they are fetched.
type outputs struct {
	args  []string
	dir   string            // in the share, on this machine
	files map[string]string // in dir -> wanted
}

const coverDirFlag = "-test.gocoverdir"

var outputFlags = map[string]bool{
	"-test.coverprofile": true, "-test.cpuprofile": true, "-test.memprofile": true, "-test.blockprofile": true,
	"-test.mutexprofile": true, "-test.trace": true, coverDirFlag: true,
}

func redirect(d lab.Dir, args []string) (*outputs, error) {
	o := &outputs{args: append([]string(nil), args...), files: map[string]string{}}
	for i, a := range o.args {
		flag, wanted, ok := strings.Cut(a, "=")
		if !ok || wanted == "" || !outputFlags[flag] {
			continue
		}
		if o.dir == "" {
			var err error
			if o.dir, err = os.MkdirTemp(d.Share(), "test-"); err != nil {
				return nil, fmt.Errorf("lab: %w", err)
			}
		}
		name := fmt.Sprintf("out-%d", i)
		o.args[i] = flag + "=" + filepath.Join(lab.ShareMount, filepath.Base(o.dir), name)
		if flag == coverDirFlag {
			// Scratch space from which the test binary itself makes its coverage profile.
			if err := os.Mkdir(filepath.Join(o.dir, name), 0o700); err != nil {
				return nil, fmt.Errorf("lab: %w", err)
			}
			continue
		}
		o.files[filepath.Join(o.dir, name)] = wanted
	}
	return o, nil
}

func (o *outputs) collect() error {
	for have, wanted := range o.files {
		if err := copyFile(wanted, have); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (o *outputs) remove() {
	if o.dir != "" {
		os.RemoveAll(o.dir)
	}
}

func copyFile(to, from string) (err error) {
	r, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	defer r.Close()
	w, err := os.Create(to)
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	defer func() {
		if cerr := w.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("lab: %w", cerr)
		}
	}()
	if _, err := io.Copy(w, r); err != nil {
		return fmt.Errorf("lab: copy %s: %w", from, err)
	}
	return nil
}
