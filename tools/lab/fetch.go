package main

import (
	"context"
	"fmt"
	"time"

	"ironspan/tools/lab/internal/kernel"
	"ironspan/tools/lab/internal/qemu"
)

type fetchCmd struct {
	Kernel []string `help:"Kernels to get: 6.1, 6.12 or newest." default:"6.12" placeholder:"K" short:"k"`
}

func (f *fetchCmd) Run(ctx context.Context) error {
	begin := time.Now()
	progress := func(format string, args ...any) { say(begin, format, args...) }
	for _, name := range f.Kernel {
		t, err := kernel.FindTrack(name)
		if err != nil {
			return err
		}
		i, err := t.Fetch(ctx, progress)
		if err != nil {
			return err
		}
		fmt.Println(i.Path)
	}
	q, err := qemu.Fetch(ctx, progress)
	if err != nil {
		return err
	}
	fmt.Println(q.Path)
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
