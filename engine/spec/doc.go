// Package spec reads the description of a VM, span.yaml, and derives from it the [Plan] that its nodes agree on.
//
// A span.yaml names the guest's boot images and lists the nodes that the VM spans:
//
//	name: demo                    # default: the file's name without its ending
//	kernel: vmlinuz               # bzImage, read where `ironspan run` runs; relative to this file
//	initrd: initrd.img            # optional
//	append: console=ttyS0         # the guest's command line
//	nodes:
//	  - addr: server-a:7440       # where `ironspan node` listens
//	    vcpus: 2                  # default 1; 0 gives memory only, except for the first node
//	    memory: 4GiB              # default 512MiB; a multiple of 2MiB
//	  - addr: 10.0.0.2:7440
//	    name: server-b            # the name in its certificate, default the host of addr
//	    device: rxe0              # RDMA device, default auto
//	    gid: 1                    # index in the device's GID table, default auto
//	    cache: 1GiB               # overrides the VM's
//	    cpus: [2, 3]              # host CPUs to pin vCPUs, then shards, to
//	fabric: verbs                 # or shm, for nodes on one host
//	shards: auto                  # 1 to 64
//	cache: 256MiB                 # what each node may hold of the others' memory; default: no bound
//	poll: auto                    # busy, adaptive, event
//	tenure: {base: 2ms, max: 50ms}
//	console: serial
//	timeouts: {connect: 10s, prepare: 5m, heartbeat: 1s, lost: 10s, stop: 15s}
//	dilate: 1                     # labs only: the guest is told a TSC this many times faster
//
// The file is strict: a key that is not known, a value out of range or a key given twice is an error, and every
// error says in which line and column, quotes the line, and says what is allowed.
package spec
