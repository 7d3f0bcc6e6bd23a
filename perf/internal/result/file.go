package result

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// maxFile bounds what Read takes in: a thousand series are some 10 MiB.
const maxFile = 256 << 20

// Write puts the run into a file, and makes the folders that lead there.
func (r *Run) Write(file string) error {
	if err := r.check(); err != nil {
		return fmt.Errorf("result: write %s: %w", file, err)
	}
	data, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return fmt.Errorf("result: write %s: %w", file, err)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("result: write: %w", err)
	}
	if err := os.WriteFile(file, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("result: write: %w", err)
	}
	return nil
}

// Read takes a run from a file that Write made.
func Read(file string) (*Run, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("result: read: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("result: read %s: %w", file, err)
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("result: read %s: more than %d MiB: no result of perf", file, maxFile>>20)
	}
	r, err := Decode(data)
	if err != nil {
		return nil, fmt.Errorf("result: read %s: %w", file, err)
	}
	return r, nil
}

// Decode takes a run from what Write put into a file. What can be computed from the rest, it does not believe.
func Decode(data []byte) (*Run, error) {
	// The version comes first, in a loose form: what else there is, is for that version to say.
	var head struct {
		Schema json.RawMessage `json:"schema"`
		Series json.RawMessage `json:"series"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return nil, explain(err)
	}
	if head.Schema == nil || head.Series == nil {
		return nil, errors.New("JSON, but no result of perf: it has no schema or no series")
	}
	if version := string(head.Schema); version != fmt.Sprint(Schema) {
		return nil, fmt.Errorf("schema %.20s, and this perf reads %d: use the perf that wrote it, or measure again",
			version, Schema)
	}
	r := &Run{}
	if err := json.Unmarshal(data, r); err != nil {
		return nil, explain(err)
	}
	if err := r.check(); err != nil {
		return nil, err
	}
	for _, s := range r.Series {
		s.summarize()
	}
	return r, nil
}

// explain says where JSON goes wrong.
func explain(err error) error {
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		if strings.Contains(err.Error(), "unexpected end") {
			return fmt.Errorf("cut off after %d bytes: measure again, or copy the file again", syntax.Offset)
		}
		return fmt.Errorf("no JSON at byte %d: %w", syntax.Offset, err)
	}
	return err
}

// check says what is wrong with a run that is about to be written, or was read.
func (r *Run) check() error {
	seen := map[string]bool{}
	for i, s := range r.Series {
		if s == nil {
			return fmt.Errorf("series %d is null", i)
		}
		if err := s.check(); err != nil {
			return fmt.Errorf("series %d, %q: %w", i, s.Name, err)
		}
		if seen[s.Key()] {
			return fmt.Errorf("two series %s", s.Key())
		}
		seen[s.Key()] = true
	}
	for i, ratio := range r.Ratios {
		if ratio == nil {
			return fmt.Errorf("ratio %d is null", i)
		}
		if !finite(ratio.Bound, ratio.Value, ratio.Low, ratio.High) {
			return fmt.Errorf("ratio %q is not finite: is there a series of zeros below the line?", ratio.Name)
		}
		if !slices.Contains([]Verdict{Met, Missed, NotMeasured}, ratio.Verdict) {
			return fmt.Errorf("ratio %q has the verdict %q", ratio.Name, ratio.Verdict)
		}
	}
	return nil
}

func (s *Series) check() error {
	if s.Name == "" || strings.ContainsAny(s.Name, reserved) {
		return fmt.Errorf("the name is empty or has one of %s", reserved)
	}
	for label, value := range s.Labels {
		if label == "" || strings.ContainsAny(label+value, reserved) {
			return fmt.Errorf("the label %q, %q is empty or has one of %s", label, value, reserved)
		}
	}
	if !slices.Contains([]string{"ns", "B/s", "1/s", "B", "1"}, s.Unit) {
		return fmt.Errorf("unit %q", s.Unit)
	}
	if s.Better != Lower && s.Better != Higher {
		return fmt.Errorf("better is %q, neither %s nor %s", s.Better, Lower, Higher)
	}
	if len(s.Rounds) == 0 {
		return errors.New("no rounds")
	}
	var count int64
	for i, round := range s.Rounds {
		if round.Count <= 0 || !finite(round.Mean, round.P50, round.P90, round.P99) {
			return fmt.Errorf("round %d is empty or not finite", i)
		}
		count += round.Count
	}
	if s.Histogram != nil && s.Histogram.Count() != count {
		return fmt.Errorf("%d samples, and %d in rounds", s.Histogram.Count(), count)
	}
	for i, stage := range s.Stages {
		if stage.Name == "" || stage.Count < 0 || !finite(stage.MeanNs, stage.P50Ns, stage.P99Ns) {
			return fmt.Errorf("stage %d has no name or is not finite", i)
		}
	}
	return nil
}

// reserved are the characters that Key puts between names.
const reserved = "{},="

func finite(values ...float64) bool {
	for _, v := range values {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return false
		}
	}
	return true
}
