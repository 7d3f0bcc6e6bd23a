package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"ironspan/tools/lab/internal/apt"
	"ironspan/tools/lab/internal/kernel"
	"ironspan/tools/lab/internal/qemu"
)

type fetchCmd struct {
	Kernel []string `help:"Kernels to get: 6.1, 6.12 or newest." default:"6.12" placeholder:"K" short:"k"`
}

func (f *fetchCmd) Run(ctx context.Context) error {
	begin := time.Now()
	if _, err := ensureQEMU(ctx, begin); err != nil {
		return err
	}
	for _, name := range f.Kernel {
		t, err := kernel.FindTrack(name)
		if err != nil {
			return err
		}
		i, err := t.Fetch(ctx, func(format string, args ...any) { say(begin, format, args...) })
		if err != nil {
			return err
		}
		fmt.Println(i.Path)
	}
	return nil
}

type kernelCmd struct {
	Kernel  string `arg:"" help:"6.1, 6.12 or newest." default:"6.12"`
	Modules bool   `help:"The directory of its modules instead."`
}

func (k *kernelCmd) Run(ctx context.Context) error {
	t, err := kernel.FindTrack(k.Kernel)
	if err != nil {
		return err
	}
	begin := time.Now()
	i, err := t.Get(ctx, func(format string, args ...any) { say(begin, format, args...) })
	if err != nil {
		return err
	}
	if k.Modules {
		fmt.Println(i.Modules)
	} else {
		fmt.Println(i.Path)
	}
	return nil
}

// ensureQEMU returns a QEMU that is new enough, installing one from backports if need be.
func ensureQEMU(ctx context.Context, begin time.Time) (string, error) {
	path, reason := qemu.Usable(ctx)
	if reason == "" {
		return path, nil
	}
	say(begin, "%s", reason)
	cache, err := kernel.CacheDir()
	if err != nil {
		return "", err
	}
	a, err := apt.Open(filepath.Join(cache, "apt", "system"), "", "-backports")
	if err != nil {
		return "", err
	}
	a.Progress = func(format string, args ...any) { say(begin, format, args...) }
	if err := a.Update(ctx); err != nil {
		return "", err
	}
	if err := a.Install(ctx, "qemu-system-x86"); err != nil {
		return "", err
	}
	if path, reason = qemu.Usable(ctx); reason != "" {
		return "", fmt.Errorf("lab: installed qemu-system-x86, and yet: %s", reason)
	}
	return path, nil
}
