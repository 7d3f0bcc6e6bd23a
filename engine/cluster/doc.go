// Package cluster brings the nodes of one VM together and watches that they stay: identities and mutual TLS,
// the listener that a node's daemon has, and the mesh of connections between the nodes of a VM.
//
// # Identities
//
// A cluster has one certificate authority. Every node has a certificate with its name, and whoever runs VMs has
// a client certificate; an [Identity] is such a certificate with its key and the authority's certificate. TLS is
// 1.3 only, both sides always show a certificate, and sessions are never resumed, so that every connection
// is checked. [Role] tells nodes from clients: a node's certificate opens no control plane, a client's no mesh.
//
// # Listener
//
// A daemon listens on one port. [Listener] does the TLS handshake and tells the two protocols apart by ALPN: h2
// is the control plane's (Control gives a net.Listener for an HTTP server), ironspan-mesh/1 is the mesh's.
//
// # Mesh
//
// Join connects a node to every other member of its VM: each dials the members with lower numbers and is dialled
// by the higher ones. Both sides say who they are, which VM, epoch and plan they mean; what does not fit is
// refused with a reason that is logged here and sent there, and the others go on. Then the nodes exchange opaque
// offers (queue pair numbers, rkeys) with Exchange and wait for each other with Barrier.
//
// The connections stay open as the members' signs of life. A peer that dies, goes silent for too long, or says
// goodbye is reported once on Lost. Silence is counted in this node's own heartbeats, so that a node which was
// itself stopped for a while does not blame its peers.
//
// A frame of the mesh is an 8-byte header (magic "IM", type, zero, length of the payload, big endian) and a
// payload. The handshake is
//
//	dialler             acceptor
//	hello       ->
//	            <-      hello, or refuse
//	ready       ->                            or refuse
//
// after which both sides send exchange, ping and goodbye frames as they like.
package cluster
