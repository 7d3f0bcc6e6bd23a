package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"ironspan/tools/lab/internal/kernel"
	"ironspan/tools/lab/internal/lab"
	"ironspan/tools/lab/internal/remote"
)

type modprobeCmd struct {
	Server int      `arg:"" help:"Server, from 0."`
	Words  []string `arg:"" name:"module" help:"Modules, each with its parameters (NAME=VALUE) behind it."`
}

// Help is kong's.
func (*modprobeCmd) Help() string {
	return `Loads modules of the server's own kernel, and all they need, which its initial RAM disk left out:

  lab modprobe 1 brd rd_nr=1 rd_size=262144 nvmet-rdma

A module that is loaded already stays as it is.`
}

func (m *modprobeCmd) Run(c *cli) error {
	names, parameters, err := moduleWords(m.Words)
	if err != nil {
		return err
	}
	d, err := c.dir()
	if err != nil {
		return err
	}
	tree, err := d.Modules()
	if err != nil {
		return err
	}
	modules, err := tree.Closure(names, nil)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(d.Share(), "modules-")
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	defer os.RemoveAll(dir)
	self, err := os.Executable()
	if err != nil {
		return err
	}
	args := []string{self, "insmod"}
	for i, mod := range modules {
		name := fmt.Sprintf("%03d-%s", i, mod.Name)
		if err := os.WriteFile(filepath.Join(dir, name), mod.Data, 0o600); err != nil {
			return fmt.Errorf("lab: %w", err)
		}
		args = append(args, filepath.Join(lab.ShareMount, filepath.Base(dir), name))
		args = append(args, parameters[mod.Name]...)
	}
	signals, stop := remoteSignals()
	defer stop()
	exit, err := d.Exec(m.Server, &remote.Command{Args: args, Dir: "/", Stage: true},
		remote.Stdio{Out: os.Stdout, Err: os.Stderr, Signals: signals})
	if err != nil {
		return err
	}
	if exit.Error != "" {
		fmt.Fprintf(os.Stderr, "lab: server %d: %s\n", m.Server, exit.Error)
	}
	if exit.Code != 0 {
		return exitStatus(exit.Code)
	}
	return nil
}

// moduleWords tells modules, in their order, from the parameters of each.
func moduleWords(words []string) (names []string, parameters map[string][]string, err error) {
	parameters = map[string][]string{}
	for _, w := range words {
		if !strings.Contains(w, "=") {
			names = append(names, w)
			continue
		}
		if len(names) == 0 {
			return nil, nil, fmt.Errorf("lab: parameter %s has no module before it", w)
		}
		last := kernel.ModuleName(names[len(names)-1])
		parameters[last] = append(parameters[last], w)
	}
	return names, parameters, nil
}

// insmodCmd is what modprobe runs in the server: files, each with its parameters behind it.
type insmodCmd struct {
	Words []string `arg:""`
}

func (x *insmodCmd) Run() error {
	files, parameters := []string{}, map[string][]string{}
	for _, w := range x.Words {
		if filepath.IsAbs(w) {
			files = append(files, w)
			continue
		}
		if len(files) == 0 {
			return fmt.Errorf("lab: parameter %s has no file before it", w)
		}
		last := files[len(files)-1]
		parameters[last] = append(parameters[last], w)
	}
	for _, file := range files {
		if err := insmod(file, strings.Join(parameters[file], " ")); err != nil {
			_, module, _ := strings.Cut(filepath.Base(file), "-")
			return fmt.Errorf("lab: module %s: %w", module, err)
		}
	}
	return nil
}

func insmod(file, parameters string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.FinitModule(int(f.Fd()), parameters, 0)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}
