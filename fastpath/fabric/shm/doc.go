// Package shm is the fabric between processes of one host: a lane over shared memory.
//
// Each node has, for each lane, a *board*: a memfd with one ring of messages for every peer, which that peer
// alone writes. A page is written straight into the memory of the node that asked for it, and read from that of
// its home: peers map each other's slots and home frames, by opening /proc/PID/fd/N of the other process, which
// takes the same user (or root) and the same PID namespace, and nothing else. Such a copy is over when the post
// returns. A node that sleeps says so in its rings; then who sends rings the *bell*, a pipe of the sleeper that is
// opened in the same way, because an eventfd cannot be.
//
// A ring, little endian words in cache lines of their own, by who writes them:
//
//	  0 tail      producer: messages ever put in
//	  4 closed    producer: 1 if no more will come
//	 64 head      consumer: messages ever taken out
//	128 sleeping  consumer sets it before it sleeps; who clears it, either side, has to wake or is awake
//	192 waiting   producer sets it when it needs room; the consumer that clears it rings the producer's bell
//	256 nonce     consumer, once: the proof that the producer has mapped what the offer meant
//	4096          entries of wire.Size bytes; message i is entry i modulo their number
//
// All of these words are accessed atomically (sequentially consistent, as sync/atomic is), so a producer's
// plain stores, of pages and entries, come before the tail that announces them. The two sides of a sleep are
// Dekker's: the consumer stores sleeping and then loads tail, the producer stores tail and then loads sleeping,
// so one of them sees the other.
//
// What is in a board comes from another process and is not trusted: indices are checked before use, messages
// decoded from a copy, and the memory itself is sealed against shrinking. The worst a peer can do is to be lost,
// or to write nonsense into what it may write by design: this node's slots and home frames.
//
// A peer's death is seen through a pidfd, when the lane sleeps at once and when it polls every few thousand polls.
package shm
