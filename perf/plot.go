package main

import (
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"ironspan/perf/internal/plots"
)

type plotCmd struct {
	File string `arg:"" help:"A result, as in build/bench." type:"path"`
	Out  string `help:"Folder for the plots; otherwise one beside the result." type:"path" placeholder:"DIR"`
}

// beside is the folder for the plots of a result's file.
func beside(file string) string { return strings.TrimSuffix(file, filepath.Ext(file)) + "-plots" }

// Run draws a result.
func (c *plotCmd) Run(stdout io.Writer) error {
	r, err := read(c.File)
	if err != nil {
		return err
	}
	out := c.Out
	if out == "" {
		out = beside(c.File)
	}
	files, err := plots.Draw(r, out)
	for _, file := range files {
		if _, err := fmt.Fprintln(stdout, file); err != nil {
			return err
		}
	}
	return err
}
