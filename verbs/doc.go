// Package verbs is Ironspan's view of RDMA: devices and ports, protection domains, memory regions, completion
// queues and reliable-connection (RC) queue pairs of libibverbs, discovery of the network devices under them,
// and the making of soft-RoCE (rxe) links.
//
// It is the only package of the project that contains cgo, and it imports nothing else of the project.
//
// # From a device to a connected queue pair
//
//	dev, err := verbs.Open("")                       // "" picks the first device with an active port
//	pd, err := dev.AllocPD()
//	mem, err := verbs.AllocMemory(1 << 20)           // or any mmap'd range, by address
//	mr, err := pd.RegMemory(mem, verbs.LocalWrite|verbs.RemoteWrite)
//	ch, err := dev.CreateChannel()
//	cq, err := dev.CreateCQ(256, ch)
//	qp, err := pd.CreateQP(verbs.QPConfig{SendCQ: cq, RecvCQ: cq, SendWR: 128, RecvWR: 128, MaxInline: 64})
//	err = qp.Init(verbs.PortConfig{})                // port and GID: RoCE v2 chosen by itself
//	local := qp.Endpoint()                           // give this to the peer, get its own
//	err = qp.Connect(remote)                         // RTR, then RTS
//
// Close may be called in any order and more than once: an object first closes what was made from it, so
// closing a [Device] frees everything that was made on it. After Close the methods fail with [ErrClosed].
//
// # Posting and polling
//
// Every queue pair owns one [Batch] for sends and one [RecvBatch] for receives. A batch writes work
// requests, in place, into arrays in C memory that live as long as the queue pair; Post hands the whole
// chain to the device in one call and one doorbell. Nothing on this path allocates, locks or, but for
// soft devices whose doorbell is a system call, enters the kernel:
//
//	b := qp.Batch()
//	b.Write(id, 0, mr.SGE(0, 4096), verbs.Remote{Addr: peer.Addr, RKey: peer.RKey})
//	b.SendInline(id, verbs.Signaled, msg[:])
//	n, err := b.Post()
//	n, err = cq.Poll(wcs[:])                         // wcs is the caller's own []verbs.WC
//
// A batch and its queue pair belong to one goroutine at a time; different queue pairs, and the polling of a
// completion queue, may be used by different ones. The device keeps no more than QPConfig.SendWR requests
// between post and completion: how many are out is the caller's to count.
//
// # Sleeping
//
// To sleep without losing an event: [CQ.Arm], then Poll until the queue is empty, then wait for
// [Channel.FD] to be readable; on waking, [Channel.Drain], and the same again. Arm and Drain concern
// all events of the channel, so after a Drain every completion queue on that channel has to be armed and
// polled.
//
// # Errors
//
// Set-up calls return [*OpError]: operation, device, errno, and what to do where the user can mend it. A
// completion carries a [Status]; [WC.Err] makes an OpError of it. errors.Is works with a Status, with a
// [syscall.Errno] and with the sentinel errors of the package:
//
//	errors.Is(err, verbs.StatusRetryExceeded)
//	errors.Is(err, syscall.ENOMEM)
//	errors.Is(err, verbs.ErrNoDevice)
//
// Nothing waits for ever: retry counts and timers are bounded ([Retry]), the count that means "for ever" is
// refused.
//
// # Memory
//
// Registered memory must not move and must not be Go's: use [AllocMemory] or a mapping of your own. Work
// requests name memory by address and key only. Go's garbage collector knows nothing of them.
//
// Sources: InfiniBand Architecture Specification vol. 1 (RC transport, work completions, timers), annex
// A17 (RoCE v2), the manual pages of rdma-core, and Linux include/uapi/rdma.
package verbs
