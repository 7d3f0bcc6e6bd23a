package sim

import (
	"fmt"
	"time"

	"github.com/anishathalye/porcupine"

	"ironspan/engine/wire"
)

// Histories says what porcupine was given to judge.
type Histories struct {
	Pages, Accesses int
	Unknown         int // pages on which it reached no verdict in judgeTime
}

// judgeTime is what a page's history may take. The problem is NP-complete: up to a dozen vCPUs take milliseconds, 48
// may take for ever.
const judgeTime = 10 * time.Second

// plainMost is up to how many vCPUs some writes are plain ones. A write that does not say what it found leaves the
// judge with many orders to try.
const plainMost = 8

// history is what vCPUs did, by page. The judge knows of an access when its vCPU first tried it, when it was done, in
// numbers of events, what was read and what was written: nothing of agents, messages or mappings.
type history [][]porcupine.Operation

// access is the input of an operation: a read, a write, or both in one, an exchange. The output is the value that it
// found, which a mere write does not tell.
type access struct {
	reads, writes bool
	val           uint64
}

// register is the model of a page: one word, zero at first.
var register = porcupine.Model{
	Init: func() any { return uint64(0) },
	Step: func(state, input, output any) (bool, any) {
		in := input.(access)
		if in.reads && state != output {
			return false, state
		}
		if in.writes {
			return true, in.val
		}
		return true, state
	},
}

// note adds an access that is done.
func (h history) note(page wire.PFN, vcpu int, called, done int, in access, found uint64) {
	h[page] = append(h[page], porcupine.Operation{
		ClientId: vcpu, Input: in, Call: int64(called), Output: found, Return: int64(done),
	})
}

// judge has porcupine look for an order of each page's accesses in which every one finds what the one before left, and
// which keeps to the order of accesses that did not overlap.
func (h history) judge() (sum Histories, err error) {
	for page, ops := range h {
		if len(ops) == 0 {
			continue
		}
		sum.Pages++
		sum.Accesses += len(ops)
		switch porcupine.CheckOperationsTimeout(register, ops, judgeTime) {
		case porcupine.Illegal:
			return sum, fmt.Errorf("page %d is not linearizable: of its %d accesses at most %d can be put in an order",
				page, len(ops), longest(ops))
		case porcupine.Unknown:
			sum.Unknown++
		}
	}
	return sum, nil
}

// longest is how many accesses can be put in an order.
func longest(ops []porcupine.Operation) (most int) {
	_, info := porcupine.CheckOperationsVerbose(register, ops, judgeTime)
	for _, orders := range info.PartialLinearizations() {
		for _, order := range orders {
			most = max(most, len(order))
		}
	}
	return most
}
