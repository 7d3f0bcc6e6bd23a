// Package micro has the microbenchmarks: what one access, one interrupt or one exit costs a guest.
//
// The guests are mini-guests (package minivm) that read the processor's time stamp counter around each access and keep
// the difference in pages of their own, which never move; when they have ended the harness reads these through the
// service view. So a sample is all that a guest notices, from the instruction to the one behind it, and nothing that the
// harness does is in it.
//
// A [Bench] is measured in rounds. Each round is a [Trial]: new nodes, and a program for each vCPU, in batches. Within a
// batch the vCPUs meet, at the host, between the phases that put pages where the benchmark wants them and the phase that
// is timed. Trials run on nodes in this process ([Local]), or on nodes of several servers ([Lead], [Serve]), where both
// sides make the same trial from the name of its benchmark.
package micro
