package engine

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"testing"
	"time"

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

// noLeak fails the test if it ends with more goroutines or descriptors than it began with. What is torn down behind
// the last call's back gets a moment.
func noLeak(t *testing.T) {
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

// eventually polls until cond holds.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(100 * time.Microsecond) {
		if time.Now().After(end) {
			t.Fatal("it never came to: ", what)
		}
	}
}
