// Package litmus holds small concurrent programs that tell memory models apart, and the model that says what each
// may do on x86.
//
// A [Shape] is a program as data: what each thread loads, stores and locks. [Outcomes] runs it through an operational
// model of x86-TSO in every possible order and returns all final states. So nobody types in what is forbidden: it is
// whatever the model cannot reach. The model is that of Sewell, Sarkar, Owens, Zappa Nardelli and Myreen, "x86-TSO: a
// rigorous and usable programmer's model for x86 multiprocessors", CACM 53(7), 2010, section 3.2:
//
//   - each hardware thread has a FIFO buffer of stores; a load takes the newest store to its address from there, and
//     else from memory;
//   - the oldest store of a buffer may go to memory at any time;
//   - MFENCE waits until the thread's buffer is empty;
//   - a locked instruction (and XCHG with memory, always) does too, and reads and writes memory while nobody else does.
//
// What that leaves out is an access that is not atomic. Intel SDM volume 3A promises atomicity to aligned accesses, and
// to unaligned ones only inside a cache line ("Guaranteed Atomic Operations"); AMD APM volume 2, section 7.3.2, only
// inside an aligned quadword. Other accesses "may be implemented with multiple memory accesses", for which "there are
// no guarantees regarding the relative order in which the constituent memory accesses are made" (SDM 3A, "Examples
// Illustrating the Memory-Ordering Principles": assumptions). So a variable has two halves here, and a plain access to
// a split variable is two accesses, of one half each, in either order. Each of them keeps its place between the
// instructions before and after it. Thus a load may see half of a store, but whoever sees a flag that was stored after
// both halves sees both. A locked access is atomic wherever it lies: "the integrity of a bus lock is not affected by
// the alignment of the memory field" (SDM 3A, "Bus Locking").
//
// A [Judge] holds rounds against the model. They come from two kinds of guests, in which the threads are on different
// nodes and the variables on pages that these take from each other; package x86 has the machine code of both:
//
//   - The tests of this package are guests without a kernel. Rounds begin by the clock, the host draws delays as long as
//     page faults, and there is a storm on each node beside the threads.
//   - The init of tools/demo is a process in Linux with a thread on each CPU, for servers with RDMA between them. Most
//     rounds begin by the clock there, too, and delays are up to what a page took when the guest measured it.
//
// The simulator (engine/sim) holds simulated vCPUs against the same model, which itself stands on the standard library
// alone.
package litmus
