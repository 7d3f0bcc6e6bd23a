package micro

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Runner runs trials.
type Runner interface {
	// Run runs one round of a benchmark.
	Run(ctx context.Context, b *Bench) (*Outcome, error)
	// Fabric is what joins the nodes: shm or verbs.
	Fabric() string
}

// Local runs trials on nodes of this process, over shared memory.
type Local struct{}

// Fabric implements Runner.
func (Local) Fabric() string { return "shm" }

// patience is how long a trial may take.
const patience = 30 * time.Second

// Run implements Runner.
func (Local) Run(ctx context.Context, b *Bench) (_ *Outcome, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("micro: %s: its guests had %v", b.Name, patience))
	defer cancel()
	s, err := newShare(b.Trial(), 0, 1, nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.stop(), s.close()) }()
	offers, err := s.offers()
	if err != nil {
		return nil, err
	}
	if err := s.connect(offers); err != nil {
		return nil, err
	}
	meeting := 0
	s.gate.full = func() {
		s.met(meeting)
		meeting++
		s.gate.open()
	}
	if err := s.start(); err != nil {
		return nil, err
	}
	s.run()
	if err := s.wait(ctx); err != nil {
		return nil, err
	}
	return s.collect()
}

// met calls the trial's hook.
func (s *share) met(meeting int) {
	if s.trial.Meet != nil {
		s.trial.Meet(s, meeting)
	}
}
