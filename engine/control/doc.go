// Package control is the control plane between `ironspan run` and the node daemons: JSON over HTTP/2 over mutual
// TLS.
//
// # Node side
//
// A [Server] holds at most one VM at a time and drives a [Machine] through its life:
//
//	GET    /v1/info              what the node has to offer
//	POST   /v1/vms               take a job; answers with the stream of the VM's events: the lease
//	PUT    /v1/vms/{id}/kernel   boot image, for node 0
//	PUT    /v1/vms/{id}/initrd
//	POST   /v1/vms/{id}/prepare  answers when the VM could start
//	POST   /v1/vms/{id}/start
//	POST   /v1/vms/{id}/console  bytes both ways
//	POST   /v1/vms/{id}/stop     ends the VM, keeps its counters
//	GET    /v1/vms/{id}/report
//	GET    /v1/vms/{id}/losses   once it has ended: which pages were lost with other nodes, named by of=N,...
//	DELETE /v1/vms/{id}          gives the VM back; the event stream ends when everything is released
//
// The event stream is the lease: when it breaks, because the client died, was interrupted, or went silent for
// too long, the node stops its share of the VM and releases it. So nothing outlives the client that wanted it,
// and the node is ready for the next.
//
// # Client side
//
// [Client] is one node's control plane. [Run] takes a whole VM through its life on all of its nodes and decides
// how it ended.
package control
