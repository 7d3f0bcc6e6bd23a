package verbs

import (
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"
)

func TestOpErrorText(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		want string
		is   error
	}{
		{
			"errno with a mend", opErrno("register mr", "rxe0", syscall.ENOMEM),
			"verbs: register mr on rxe0: cannot allocate memory (memory must be pinned: raise the locked-memory limit, " +
				"ulimit -l unlimited or LimitMEMLOCK=infinity; if it is raised, a resource of the device is used up: see `rdma resource`)",
			syscall.ENOMEM,
		},
		{"errno without one", opErrno("create qp", "rxe0", syscall.ENOSYS), "verbs: create qp on rxe0: function not implemented", syscall.ENOSYS},
		{"without device", opErrno(opCreateRxe, "", syscall.EPERM),
			"verbs: create rxe link: operation not permitted (run it as root or with CAP_NET_ADMIN)", syscall.EPERM},
		{"argument", opInvalid("create cq", "mlx5_0", "size %d is too small", 0), "verbs: create cq on mlx5_0: invalid argument (size 0 is too small)", ErrInvalid},
		{"closed", opClosed("poll cq", "rxe0"), "verbs: poll cq on rxe0: closed", ErrClosed},
		{"cause", &OpError{Op: "x", Err: io.ErrUnexpectedEOF}, "verbs: x: unexpected EOF", io.ErrUnexpectedEOF},
		{"completion", (&WC{Status: StatusRemoteAccess, QPN: 17, VendorErr: 0x89}).Err("write page"),
			"verbs: write page: qp 17, vendor error 0x89: remote access error (wrong rkey, address out of the peer's region, " +
				"or access that the peer's region or qp does not give)", StatusRemoteAccess},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := c.err.Error(); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
			if !errors.Is(c.err, c.is) {
				t.Errorf("is not %v", c.is)
			}
		})
	}
}

func TestSuccessfulCompletionIsNoError(t *testing.T) {
	if err := (&WC{Opcode: OpSend}).Err("send"); err != nil {
		t.Error(err)
	}
	if errors.Is((&WC{Status: StatusFlushed}).Err("send"), StatusSuccess) {
		t.Error("a failure is taken for success")
	}
}

func TestNames(t *testing.T) {
	for s := StatusSuccess; s <= StatusGeneral; s++ {
		if s.Error() == "" || strings.HasPrefix(s.Error(), "completion status") {
			t.Errorf("status %d has no text", uint32(s))
		}
	}
	for _, c := range []struct{ got, want string }{
		{Status(99).String(), "completion status 99"}, {OpRecvImm.String(), "RECV RDMA WITH IMM"}, {Opcode(77).String(), "Opcode(77)"},
		{StateRTS.String(), "RTS"}, {QPState(9).String(), "QPState(9)"}, {PortActive.String(), "active"}, {MTU4096.String(), "4096"},
		{MTU(9).String(), "MTU(9)"}, {GIDRoCEv2.String(), "RoCE v2"}, {LinkEthernet.String(), "Ethernet"},
		{Event{Type: EventQPFatal, QPN: 18}.String(), "qp fatal error (qp 18)"}, {Event{Type: EventPortDown, Port: 1}.String(), "port down (port 1)"},
		{Event{Type: 99}.String(), "event 99"},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
}
