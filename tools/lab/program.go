package main

import (
	"context"
	"fmt"
	"time"

	"ironspan/tools/lab/internal/program"
)

type programCmd struct {
	Name string `arg:"" help:"The program."`
}

// Help is kong's.
func (*programCmd) Help() string {
	return `Programs of Debian that comparisons need (nbd-server, nbd-client) are fetched into the cache with their libraries, and
not installed here. What is printed, a word a line, runs one in any server:

  lab exec 1 -- $(lab program nbd-server) --help`
}

func (p *programCmd) Run(ctx context.Context) error {
	begin := time.Now()
	words, err := program.Get(ctx, p.Name, func(format string, args ...any) { say(begin, format, args...) })
	if err != nil {
		return err
	}
	for _, w := range words {
		fmt.Println(w)
	}
	return nil
}
