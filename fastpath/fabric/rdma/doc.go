// Package rdma carries a lane over RDMA: it implements [fabric.Lane] with one reliable-connection queue pair
// for each peer, on package verbs.
//
// An [Adapter] is an open device with its protection domain and the registration of the node's home frames,
// which all lanes of the node share; a [Lane] has two completion queues of its own, for receives and for requests, with
// one channel, and for each peer a queue pair.
//
// # Messages
//
// The messages for a peer gather, up to eight, in a packet until Flush; the packet is a SEND, inline, into a receive that
// the peer posted beforehand. So what a round of the shard says to a peer takes one receive, one completion and
// one acknowledgement on the wire. The immediate data of the SEND returns credits:
//
//	bits  0-15  receives posted again since the last packet of this direction
//	bit     16  goodbye: the sender closes its end; nothing follows
//	bits 17-31  zero
//
// A SEND without bytes carries credits (or goodbye) only.
//
// # Brief grants
//
// What a fault waits for is mostly one page and the grant of it, which says little that its requester does not know from
// its own request. Where a packet would be that one grant, and the write before it that page, the write takes the grant
// along as immediate data: there is one request on the wire instead of two, and one acknowledgement. That is so for a
// grant that has no tenure to tell, no sharers and no covered pages.
//
//	bits  0-10  Message.Spent: the shift in bits 6-10, and what is shifted
//	bit     11  the mode: 0 shared, 1 modified
//	bits 12-15  low bits of the transaction
//	bits 16-31  the slot
//
// A lane notes what it asks for, by slot, and makes the message from that; an answer to nothing loses the peer. It takes
// a credit, and a receive, as a packet does.
//
// # Credits
//
// A sender has as many credits as the peer posted receives for packets ([Options].Depth); a packet takes
// one. The receiver posts a receive again as soon as Poll has copied the messages out, and returns the credit
// with its next packet, or, when half of them are due, by a SEND of its own. Those take no credit but one of
// a few receives on top: two can be under way before the peer has taken the first, because it needs the
// credits of the first to send what makes the third due. So a receive is always there and the
// transport's receiver-not-ready path is never taken.
//
// What finds no credit, no room in the send queue or others waiting before it, waits in a ring of fixed
// size and goes out, in order, when Poll sees credits or completions arrive. The ring's overflow loses the
// peer: nothing waits without bound.
//
// # Pages
//
// WritePage is an RDMA WRITE straight from this node's registered frame, WriteBytes one from a bounce page.
// A later Send to the same peer is behind it on the same queue pair, so its arrival proves the page's. Pages do not
// wait for the packet, so one may well be there before the messages that were sent before it. ReadPage is an RDMA READ
// into the slot. The device has sixteen of them on their way to a peer at most; further ones wait in its queue, and all
// that is behind them.
//
// Every so many-th request asks for a completion, and every one whose end is to be told. As requests complete in their
// order, a completion frees the bounce pages and the queue's slots of all before it, and makes their words due. Memory
// outside of what the peer offered, or of the slots, loses the peer before anything is posted.
//
// # Sleep
//
// A queue is asked for one event at a time, and again when that has come. Who waits for a READ hears of its end by the
// queue of requests, while the one of receives is still asked for its event: when the page is there, nothing is to be
// done before the next sleep. That queue is not asked again while no request is under way. Nobody reads the events, as
// the descriptor is watched for new ones, until many lie there. So a fetch takes one system call of the lane's, the
// doorbell, and one more where its end is not polled for; a message takes one, to ask anew.
//
// # Loss of a peer
//
// A failed completion (the peer did not acknowledge within the bound of [verbs.Retry]), a garbled message, a
// goodbye, or an overflow loses the peer: its queue pair goes to ERR, which also ends its access to this
// node's memory.
package rdma
