package kvmhost

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// TestMain fails on goroutines and file descriptors that tests leave behind.
func TestMain(m *testing.M) {
	before := openFiles()
	code := m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if after := openFiles(); len(after) > len(before) && code == 0 {
		fmt.Fprintf(os.Stderr, "file descriptors leaked: %d before, after:\n%v\n", len(before), after)
		code = 1
	}
	os.Exit(code)
}

// openFiles lists this process's descriptors, without what the Go runtime keeps for itself once it has them.
func openFiles() map[string]string {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(err)
	}
	files := map[string]string{}
	for _, e := range entries {
		name, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || name == "anon_inode:[eventpoll]" || name == "anon_inode:[eventfd]" {
			continue
		}
		files[e.Name()] = name
	}
	return files
}
