package main

import (
	"io"

	"ironspan/perf/internal/result"
	"ironspan/perf/internal/show"
)

type showCmd struct {
	File string `arg:"" help:"A result, as in build/bench." type:"path"`
}

// Run prints a result.
func (c *showCmd) Run(stdout io.Writer) error {
	r, err := read(c.File)
	if err != nil {
		return err
	}
	return show.Run(stdout, r)
}

// read takes in a result that the command line names.
func read(file string) (*result.Run, error) {
	r, err := result.Read(file)
	if err != nil {
		return nil, &exitError{exitUsage, err}
	}
	return r, nil
}
