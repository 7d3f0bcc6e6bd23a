package verbs

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
)

// Sentinel errors, for errors.Is.
var (
	// ErrNoDevice says that the machine has no RDMA device (or none of that name).
	ErrNoDevice = errors.New("no rdma device")
	// ErrNoGID says that a port has no GID that fits what was asked for.
	ErrNoGID = errors.New("no fitting gid")
	// ErrClosed says that the object, or one it was made from, is closed.
	ErrClosed = errors.New("closed")
	// ErrInvalid says that an argument was refused before the device saw it.
	ErrInvalid = errors.New("invalid argument")
	// ErrExists says that an rxe link or device of that name, or on that netdev, is there already.
	ErrExists = errors.New("exists already")
)

// OpError is what a failed operation returns.
type OpError struct {
	Op     string        // "create qp", "post send"
	Device string        // device, or empty
	Errno  syscall.Errno // kernel's or library's errno, or 0
	Status Status        // status of the completion, for a failed work request
	Err    error         // cause when it is neither of them, or one of the sentinels
	Hint   string        // what the user can do about it, or empty
}

// Error says operation, device, cause and mend on one line.
func (e *OpError) Error() string {
	var b strings.Builder
	b.WriteString("verbs: ")
	b.WriteString(e.Op)
	if e.Device != "" {
		b.WriteString(" on ")
		b.WriteString(e.Device)
	}
	for _, cause := range e.causes() {
		b.WriteString(": ")
		b.WriteString(cause.Error())
	}
	if e.Hint != "" {
		b.WriteString(" (")
		b.WriteString(e.Hint)
		b.WriteString(")")
	}
	return b.String()
}

// Unwrap gives errors.Is and errors.As the causes.
func (e *OpError) Unwrap() []error { return e.causes() }

func (e *OpError) causes() []error {
	c := make([]error, 0, 3)
	if e.Err != nil {
		c = append(c, e.Err)
	}
	if e.Errno != 0 {
		c = append(c, e.Errno)
	}
	if e.Status != StatusSuccess {
		c = append(c, e.Status)
	}
	return c
}

// opErrno makes an OpError of an errno and looks up the mend.
func opErrno(op, device string, errno syscall.Errno) *OpError {
	return &OpError{Op: op, Device: device, Errno: errno, Hint: errnoHint(op, errno)}
}

// opInvalid refuses an argument.
func opInvalid(op, device, format string, args ...any) *OpError {
	return &OpError{Op: op, Device: device, Err: ErrInvalid, Hint: fmt.Sprintf(format, args...)}
}

func opClosed(op, device string) *OpError { return &OpError{Op: op, Device: device, Err: ErrClosed} }

// errnoHint says what the user can do about an errno of an operation.
func errnoHint(op string, errno syscall.Errno) string {
	switch errno {
	case syscall.ENOMEM:
		switch op {
		case "register mr", "create cq", "create qp":
			return "memory must be pinned: raise the locked-memory limit, ulimit -l unlimited or LimitMEMLOCK=infinity; " +
				"if it is raised, a resource of the device is used up: see `rdma resource`"
		case "post send", "post recv":
			return "the work queue is full: poll completions first, or create the qp with a deeper queue"
		}
	case syscall.EACCES, syscall.EPERM:
		switch op {
		case opCreateRxe, opDeleteRxe:
			return "run it as root or with CAP_NET_ADMIN"
		case "open device":
			return "the user needs read and write access to /dev/infiniband/uverbs*: join its group or set a udev rule"
		}
	case syscall.EFAULT:
		if op == "register mr" {
			return "the whole range must be mapped, and writable when the access includes a write"
		}
	case syscall.EINVAL:
		switch op {
		case "modify qp to RTR":
			return "the device refused the path: the peer's gid must be reachable from the chosen gid's netdev, " +
				"and both must be of the same address family"
		case opCreateRxe:
			return "the netdev must be a plain, existing ethernet device"
		case opDeleteRxe:
			return "only soft devices can be deleted"
		}
	case syscall.ENETUNREACH, syscall.EHOSTUNREACH, syscall.ETIMEDOUT:
		if op == "modify qp to RTR" {
			return "no route or no neighbour for the peer's gid: check the netdev's address with `ip addr`, and ping the peer"
		}
	case syscall.EPROTONOSUPPORT:
		return "the kernel has no rdma core: modprobe ib_core, or use a kernel built with CONFIG_INFINIBAND"
	case syscall.EOPNOTSUPP:
		if op == opCreateRxe {
			return "the kernel has no soft-roce: modprobe rdma_rxe"
		}
	case syscall.ENOENT:
		if op == opCreateRxe {
			return "the kernel has no soft-roce: modprobe rdma_rxe"
		}
	case syscall.EBUSY:
		return "something that was made from it is still in use"
	}
	return ""
}
