// Package leaktest fails tests that leave goroutines or file descriptors behind.
package leaktest

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// Main runs a package's tests and returns the exit code for its TestMain, which is a failure if they left goroutines or
// file descriptors behind.
func Main(m *testing.M) int {
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
	return code
}

// openFiles lists this process's descriptors. The Go runtime's own are made first, so that they are always in it.
func openFiles() map[string]string {
	if r, w, err := os.Pipe(); err == nil {
		r.Close()
		w.Close()
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(err)
	}
	files := map[string]string{}
	for _, e := range entries {
		if name, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			files[e.Name()] = name
		}
	}
	return files
}

// Check fails the test if it ends with more goroutines or descriptors than it began with. What is torn down behind
// the last call's back gets a moment.
func Check(t testing.TB) {
	t.Helper()
	files, goroutines := openFiles(), goleak.IgnoreCurrent()
	t.Cleanup(func() {
		if err := goleak.Find(goroutines); err != nil {
			t.Error(err)
		}
		after := openFiles()
		for end := time.Now().Add(time.Second); len(after) > len(files) && time.Now().Before(end); after = openFiles() {
			time.Sleep(time.Millisecond)
		}
		if len(after) > len(files) {
			t.Errorf("descriptors: %d before, %d after: %v", len(files), len(after), slices.Sorted(maps.Values(after)))
		}
	})
}
