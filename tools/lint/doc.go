// Package lint holds the rules of the house that no compiler knows: which room may import which, where
// cgo and unsafe live, and what a committed file may not say. It is all tests:
//
//	go test ./tools/lint
package lint
