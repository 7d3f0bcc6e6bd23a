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
	Out  string `help:"Folder for the plots; not given: one beside the result, with its name." type:"path" placeholder:"DIR"`
}

// Run draws a result.
func (c *plotCmd) Run(stdout io.Writer) error {
	r, err := read(c.File)
	if err != nil {
		return err
	}
	out := c.Out
	if out == "" {
		out = strings.TrimSuffix(c.File, filepath.Ext(c.File)) + "-plots"
	}
	files, err := plots.Draw(r, out)
	for _, file := range files {
		if _, err := fmt.Fprintln(stdout, file); err != nil {
			return err
		}
	}
	return err
}
