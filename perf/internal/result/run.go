package result

import (
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// Schema is the version of the file format. Files of another version are refused.
const Schema = 1

// Run is one run of a suite of benchmarks.
type Run struct {
	Schema  int       `json:"schema"`
	Suite   string    `json:"suite"` // host, lab
	Began   time.Time `json:"began"`
	Seconds float64   `json:"seconds"`
	Commit  string    `json:"commit"` // of the program, with "+changes" if its tree was not clean; "unknown"
	// Machine says where it was measured: the keys of ThisMachine, and what a suite knows besides (fabric, dilation).
	Machine map[string]string `json:"machine"`
	Series  []*Series         `json:"series"`
	Ratios  []*Ratio          `json:"ratios,omitempty"`
	Missing []Missing         `json:"missing,omitempty"`

	recorders map[string]*Recorder
}

// Missing is something that could not be measured, and why.
type Missing struct {
	Name   string `json:"name"`   // of the series, or what all their names begin with
	Reason string `json:"reason"` // for people: what is lacking and, if it can be mended, how
}

// New returns an empty run of a suite that begins now, on this machine. An empty commit is read from the program.
func New(suite, commit string) *Run {
	if commit == "" {
		commit = builtFrom()
	}
	return &Run{Schema: Schema, Suite: suite, Began: time.Now().Round(time.Second), Commit: commit, Machine: ThisMachine()}
}

// builtFrom is the commit that the running program was built from, as far as its build noted that.
func builtFrom() string {
	info, found := debug.ReadBuildInfo()
	if !found {
		return "unknown"
	}
	commit, changes := "unknown", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			commit = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			changes = "+changes"
		}
	}
	return commit + changes
}

// Ended notes how long the run took.
func (r *Run) Ended() { r.Seconds = time.Since(r.Began).Seconds() }

// Miss notes that a series, or all whose names begin so, could not be measured.
func (r *Run) Miss(name string, reason error) {
	r.Missing = append(r.Missing, Missing{Name: name, Reason: reason.Error()})
}

// Find returns the series with a key (see Key), or nil.
func (r *Run) Find(key string) *Series {
	for _, s := range r.Series {
		if s.Key() == key {
			return s
		}
	}
	return nil
}

// Select returns the series whose names are the prefix or lie below it, in the order in which they were measured.
func (r *Run) Select(prefix string) []*Series {
	var found []*Series
	for _, s := range r.Series {
		if below(s.Name, prefix) {
			found = append(found, s)
		}
	}
	return found
}

// below: a name is the prefix, or lies below it as a file below a folder. Everything lies below the empty one.
func below(name, prefix string) bool {
	rest, found := strings.CutPrefix(name, strings.TrimSuffix(prefix, "/"))
	return found && (rest == "" || prefix == "" || rest[0] == '/')
}

// Merge takes in the series, ratios and gaps of another run, one that ran elsewhere for this one (in a server, say).
// What it knows of its machine is kept under its own keys with the prefix "elsewhere/", where this run does not know
// the same; a series that both have is an error, and then nothing is taken.
func (r *Run) Merge(elsewhere string, o *Run) error {
	for _, s := range o.Series {
		if r.Find(s.Key()) != nil {
			return fmt.Errorf("result: merge %s: both have the series %s", elsewhere, s.Key())
		}
	}
	for key, value := range o.Machine {
		if r.Machine[key] == value {
			continue
		}
		if r.Machine == nil {
			r.Machine = map[string]string{}
		}
		r.Machine[elsewhere+"/"+key] = value
	}
	r.Series = append(r.Series, o.Series...)
	r.Ratios = append(r.Ratios, o.Ratios...)
	r.Missing = append(r.Missing, o.Missing...)
	return nil
}

// Labels tell series of one name apart: nodes, vcpus, shards, fabric, size and the like, with their values. Sizes are
// in bytes and times in nanoseconds, as plain numbers, so that plots can put them on an axis.
type Labels map[string]string

// Key names one series within a run: its name, and its labels in the order of their names, as in
// "fault/write{nodes=4,sharers=3}".
func Key(name string, labels Labels) string {
	if len(labels) == 0 {
		return name
	}
	var b strings.Builder
	b.WriteString(name)
	separator := "{"
	for _, label := range slices.Sorted(maps.Keys(labels)) {
		b.WriteString(separator + label + "=" + labels[label])
		separator = ","
	}
	b.WriteString("}")
	return b.String()
}
