// Package uffd is the kernel boundary for userfaultfd(2): it resolves the page faults of a shared-memory
// (memfd) mapping in user space.
//
// It covers what Ironspan's guest view needs and no more: shmem mappings registered for missing, minor and
// write-protect faults; [FD.Copy] and [FD.Continue], either of them installing the page write-protected if
// wanted; [FD.WriteProtect]; [FD.Wake]; and events read in batches.
//
// An FD's ioctls use argument blocks inside the FD, so that a page fault costs no allocation. All methods
// therefore belong to one thread at a time. They return the kernel's errno, 0 for success, as a status;
// [Error] turns one into an error worth reading.
//
// What the errnos mean here (ioctl_userfaultfd(2), and mm/userfaultfd.c):
//
//	EEXIST  Copy: the memfd has a page there already. Continue: the mapping has one.
//	EFAULT  Continue: the memfd has no page there.
//	EAGAIN  the address space is changing; the call is repeated here a bounded number of times
//	ENOENT  the range is not mapped, or not registered with this FD
//	ENOMEM  no memory for the page or its page table
//	ESRCH   the process is exiting
package uffd
