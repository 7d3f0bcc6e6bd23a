package result

import (
	"context"
	"math/rand/v2"
)

// Part is one of a group of things that are measured side by side.
type Part struct {
	Name  string                                     // of its series, or what all their names begin with
	Round func(ctx context.Context, round int) error // one round of it
}

// Interleave measures the parts of a group in rounds: in each round every part has one turn, in the given order at
// first, which is that of the series in the run, and from then on in one that the seed decides, so that no part always
// follows the same other one. A part that fails twice running is left out from then on. The run says why of each failure;
// the rounds that a part had stay. It returns an error only when the context ends.
func (r *Run) Interleave(ctx context.Context, rounds int, seed uint64, parts ...Part) error {
	order := rand.New(rand.NewPCG(seed, uint64(len(parts))))
	failed := make([]int, len(parts)) // rounds running
	turns := make([]int, len(parts))
	for i := range turns {
		turns[i] = i
	}
	for round := range rounds {
		if round > 0 {
			turns = order.Perm(len(parts))
		}
		for _, i := range turns {
			if failed[i] == 2 {
				continue
			}
			err := parts[i].Round(ctx, round)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err == nil {
				failed[i] = 0
				continue
			}
			failed[i]++
			r.Miss(parts[i].Name, err)
		}
	}
	return nil
}
