package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"ironspan/perf/internal/compare"
	"ironspan/perf/internal/result"
)

type compareCmd struct {
	Old   string  `arg:"" help:"The result to compare with, or several with commas between."`
	New   string  `arg:"" help:"The result in question, or several."`
	Alpha float64 `default:"0.05" help:"Probability of naming anything if nothing changed."`
	JSON  bool    `help:"Print JSON."`
}

// Help is the end of the command's help.
func (c *compareCmd) Help() string {
	return `The rounds of both results are held against each other by a Mann-Whitney U test, whose p values are adjusted
for the number of series. Of several results on one side, each counts as one round: that is surer, since what the
machine did during a run hits all its rounds alike. Take turns between the sides when measuring them, at least four
times.

Exit status: 0 no regression, 1 regressions, 2 bad input.`
}

// Run compares two results.
func (c *compareCmd) Run(stdout io.Writer) error {
	old, err := readAll(c.Old)
	if err != nil {
		return err
	}
	new, err := readAll(c.New)
	if err != nil {
		return err
	}
	r, err := compare.Runs(old, new, c.Alpha)
	if err != nil {
		return &exitError{exitUsage, err}
	}
	if err := c.print(stdout, old, new, r); err != nil {
		return err
	}
	if len(r.With(compare.Regression)) > 0 {
		return &exitError{status: exitFailed}
	}
	return nil
}

func (c *compareCmd) print(w io.Writer, old, new *result.Run, r *compare.Report) error {
	if c.JSON {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	for _, run := range []struct {
		age string
		*result.Run
	}{{"old", old}, {"new", new}} {
		_, err := fmt.Fprintf(w, "%s: %s, %s, commit %s\n", run.age, run.Suite, run.Began.Format("2006-01-02 15:04"), run.Commit)
		if err != nil {
			return err
		}
	}
	if _, err := fmt.Fprintln(w); err != nil {
		return err
	}
	return r.Text(w)
}

// readAll takes in one result, or a pool of several with commas between.
func readAll(files string) (*result.Run, error) {
	var runs []*result.Run
	for _, file := range strings.Split(files, ",") {
		r, err := read(file)
		if err != nil {
			return nil, err
		}
		runs = append(runs, r)
	}
	return result.Pool(runs...)
}
