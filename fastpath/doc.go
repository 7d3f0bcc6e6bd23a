// Package fastpath serves the guest's page faults. A [Shard] is one thread that drives one coherence.Agent: it
// takes messages from its lane (fastpath/fabric) and faults from its userfaultfd (fastpath/uffd), feeds the
// agent, and performs the agent's actions on the node's memory (fastpath/ram). Guest memory is striped over the
// shards by address, so all work for a page happens on one thread of each node, without a lock or a handover.
//
// # The loop
//
// Each round polls the lane, then reads faults, then ticks the agent if a tenure has ended; actions are
// performed, in order, after every single input, because the agent demands it. That a page is parked, or fetched, is an
// input like a message, from the node's own lane. What may wait is the installation of
// pages that nobody waits for: those that lie together are gathered, and installed by one call before anything is done
// that knows of them, and before the next flush. Posts are flushed after every few messages, after the last, and after
// the faults of a round. Nothing in the loop allocates, takes a lock, uses a channel, logs
// or builds a string; what it counts are atomics.
//
// A round without work either polls again or sleeps, as [PollMode] says. To sleep, it arms the lane, which tells
// peers to ring, and waits for {userfaultfd, lane, eventfd} until the next tenure ends. No wake-up is lost: a
// lane that has something refuses to be armed, and what comes to it later is an edge; a userfaultfd with an event and an
// eventfd with a count are readable when the wait begins. With fewer cores than threads a shard sleeps at once, but for
// fetches while no vCPU needs a core: see [VCPUs].
//
// # Threads
//
// A thread that returns from a system call in which it slept needs one of the Go scheduler's processors to go on. If
// all of them are taken, be it by threads that sleep themselves and whose processor the scheduler has not yet taken
// back, it waits for tens of microseconds, now and then for milliseconds. So a process should have at least as many
// processors (runtime.GOMAXPROCS) as cores and threads of this kind together: shards, lanes, vCPUs. [PrepareRuntime]
// sees to it. With shards that
// sleep, on 2 busy cores, that took the median of a remote fault from 100 us to 40 us and the 99th percentile from
// milliseconds to 0.2 ms. A shard that polls holds a processor all the time.
//
// # Memory
//
// Go code never touches the guest view: it would wait for a fault that only this thread can serve, and the
// garbage collector would wait with it. Page contents are read and written through the service view, after
// the guest's right to the page has been taken away: OpProtect and OpUnmap are done when their system call
// returns, because the kernel has then flushed the TLBs of the host's and of KVM's mappings. Home frames are mapped in
// blocks of 2 MiB; a block is split before the first right to a page of it goes.
//
// # The kernel's opinion
//
// The agent's state and the kernel's page tables can differ in harmless ways, which are mended where they show:
//
//   - A frame that should not be there when a page is installed (EEXIST) is freed first, so that stale bytes
//     never survive.
//   - A mapping that should be there but is not (the kernel took it away, to swap or to migrate the page) shows
//     as a fault that the agent calls stale; then the mapping is made again in the mode that the agent says. If it
//     was that of a whole block, all the block's pages are mapped again, one by one.
//   - A frame of a page held in S or M that is gone cannot be mended: Run ends with an error.
package fastpath
