//go:build linux

// Command init is the demonstration guest's only user program: it runs as process 1, checks that the
// virtual machine behaves as one coherent multiprocessor, and powers it off.
//
// What it expects stands on the kernel command line, as ironspan.demo=KEY:VALUE,... (see Params).
// CPUs that the kernel left alone at first (maxcpus=) are brought up before anything else.
//
// It checks the number of CPUs and NUMA nodes and their sizes, then runs one thread pinned to each
// CPU through these phases, all of which verify what they did:
//
//	atomics     counters that every CPU increments
//	messages    a token with data around the ring of CPUs both ways, publication, mutual exclusion and
//	            store buffering
//	clock       monotonic time handed from CPU to CPU, sleeps
//	interrupts  thread migration, membarrier and TLB shootdown, with the kernel's own counts
//	litmus      the programs of engine/litmus, as machine code, on pages of all nodes: each round must end as
//	            x86-TSO allows
//	memory      a pattern over most of each node's RAM, written by one CPU, verified and rewritten
//	            by a CPU of another node, and verified again at home
//
// Each step prints a line for people and one for programs, IRONSPAN-DEMO followed by a JSON object.
// The last such line is the event "done", with "ok" true or false; either way the machine powers off.
//
// The machine below may be slow by orders of magnitude and move memory a page at a time, so the
// program keeps still: no garbage collection, runtime threads kept on CPU 0, progress counters on
// pages of their own, records without a formatting library.
package main
