package engine

import (
	"os"
	"testing"
	"time"

	"ironspan/engine/leaktest"
)

func TestMain(m *testing.M) { os.Exit(leaktest.Main(m)) }

// eventually polls until cond holds.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(100 * time.Microsecond) {
		if time.Now().After(end) {
			t.Fatal("it never came to: ", what)
		}
	}
}
