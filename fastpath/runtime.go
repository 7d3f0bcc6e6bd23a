package fastpath

import (
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"
)

// runtimeSlack is how late the Go runtime's timeouts may be. Its monitor thread otherwise wakes every 20 us as long as
// anything happens, and looks who is to be preempted: whoever runs for 10 ms, as threads of shards and vCPUs always do,
// which costs each of them two switches to another thread and back. On cores that are all busy, a remote fault takes 6 %
// longer without any slack than with one of 1 ms, and 10 % longer with that than with 5 ms or more.
const runtimeSlack = 10 * time.Millisecond

// PrepareRuntime has the Go runtime of this process suit so many threads of shards, lanes and vCPUs. Each of them finds
// a processor free when it returns from a sleep or from the guest; and the runtime's own threads, and all that will be
// started, sleep as much longer than they asked for as saves wake-ups. Threads of shards and vCPUs keep time. It
// returns what undoes the first of it.
func PrepareRuntime(threads int) (restore func()) {
	procs := runtime.GOMAXPROCS(0)
	runtime.GOMAXPROCS(max(procs, runtime.NumCPU()+threads+1))

	tasks, _ := filepath.Glob("/proc/self/task/*")
	slack := []byte(strconv.FormatInt(int64(runtimeSlack), 10))
	for _, task := range tasks {
		// Not below task. Who lacks CAP_SYS_NICE may do so for nobody, and a thread can have ended: it is a saving only.
		_ = os.WriteFile(filepath.Join("/proc", filepath.Base(task), "timerslack_ns"), slack, 0)
	}
	return func() { runtime.GOMAXPROCS(procs) }
}
