package main

import (
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"ironspan/tools/lab/internal/remote"
)

type execCmd struct {
	Dir    string   `help:"Working directory in the server; default: this one." short:"C" placeholder:"DIR"`
	Env    []string `help:"Set a variable, or pass one on by its name." short:"e" placeholder:"NAME[=VALUE]" sep:"none"`
	Server int      `arg:"" help:"Server, from 0."`
	Cmd    []string `arg:"" passthrough:"" help:"-- and the command."`
}

// passed on by themselves are variables that make a command behave as here without tying it to this
// machine.
var passedOn = []string{"PATH", "LANG", "TERM", "TZ", "LC_ALL", "LC_CTYPE"}
var passedOnPrefix = []string{"IRONSPAN_", "IBV_", "RDMAV_", "MLX", "GOMAXPROCS", "GODEBUG", "GOTRACEBACK", "GOGC", "GOCOVERDIR"}

func environment(extra []string) ([]string, error) {
	var env []string
	for _, name := range passedOn {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	for _, kv := range os.Environ() {
		if strings.HasPrefix(kv, "IRONSPAN_LAB") {
			continue // the server knows better
		}
		for _, p := range passedOnPrefix {
			if strings.HasPrefix(kv, p) {
				env = append(env, kv)
			}
		}
	}
	for _, e := range extra {
		name, _, set := strings.Cut(e, "=")
		if name == "" {
			return nil, fmt.Errorf("lab: --env %q: write NAME=VALUE, or NAME to pass it on", e)
		}
		if !set {
			v, ok := os.LookupEnv(name)
			if !ok {
				continue
			}
			e = name + "=" + v
		}
		env = append(env, e)
	}
	return env, nil
}

// remoteSignals are what a caller's signal is to the process in the server.
func remoteSignals() (<-chan os.Signal, func()) {
	c := make(chan os.Signal, 8)
	signal.Notify(c, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	return c, func() { signal.Stop(c) }
}

func (e *execCmd) Run(c *cli) error {
	d, err := c.dir()
	if err != nil {
		return err
	}
	args := e.Cmd
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		return fmt.Errorf("lab: no command given: lab exec SERVER -- CMD ARGS")
	}
	dir := e.Dir
	if dir == "" {
		if dir, err = os.Getwd(); err != nil {
			return err
		}
	}
	env, err := environment(e.Env)
	if err != nil {
		return err
	}
	signals, stop := remoteSignals()
	defer stop()
	exit, err := d.Exec(e.Server, &remote.Command{Args: args, Dir: dir, Env: env},
		remote.Stdio{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Signals: signals})
	if err != nil {
		return err
	}
	if exit.Error != "" {
		fmt.Fprintf(os.Stderr, "lab: server %d: %s\n", e.Server, exit.Error)
	}
	if exit.Code != 0 {
		return exitStatus(exit.Code)
	}
	return nil
}
