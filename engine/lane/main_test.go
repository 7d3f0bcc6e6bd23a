package lane

import (
	"os"
	"testing"

	"ironspan/engine/leaktest"
)

func TestMain(m *testing.M) { os.Exit(leaktest.Main(m)) }
