package verbs

import "fmt"

// Status is the outcome of a work request (enum ibv_wc_status). It is an error, so that errors.Is can look
// for it; the zero Status is success.
type Status uint32

// The statuses, in the order of enum ibv_wc_status.
const (
	StatusSuccess Status = iota
	StatusLocalLength
	StatusLocalQPOperation
	StatusLocalEEC
	StatusLocalProtection
	StatusFlushed
	StatusWindowBind
	StatusBadResponse
	StatusLocalAccess
	StatusRemoteInvalidRequest
	StatusRemoteAccess
	StatusRemoteOperation
	StatusRetryExceeded
	StatusRNRRetryExceeded
	StatusLocalRDDViolation
	StatusRemoteInvalidRead
	StatusRemoteAborted
	StatusInvalidEECN
	StatusInvalidEECState
	StatusFatal
	StatusResponseTimeout
	StatusGeneral
)

// statusText holds for every status what happened and what it usually means.
var statusText = [...]struct{ what, hint string }{
	StatusSuccess:              {"success", ""},
	StatusLocalLength:          {"local length error", "the message is longer than the posted receive, or than the port's largest message"},
	StatusLocalQPOperation:     {"local qp operation error", "the work request is not valid for this qp"},
	StatusLocalEEC:             {"local ee context error", ""},
	StatusLocalProtection:      {"local protection error", "a scatter-gather entry lies outside its memory region, or its lkey is wrong"},
	StatusFlushed:              {"flushed", "the qp was in error before this request ran; the first failed completion tells why"},
	StatusWindowBind:           {"memory window bind error", ""},
	StatusBadResponse:          {"bad response", "the peer answered with something unexpected"},
	StatusLocalAccess:          {"local access error", "the memory region lacks the local access that the operation needs"},
	StatusRemoteInvalidRequest: {"remote invalid request", "the peer's qp does not take this operation, or its receive buffer is too small"},
	StatusRemoteAccess:         {"remote access error", "wrong rkey, address out of the peer's region, or access that the peer's region or qp does not give"},
	StatusRemoteOperation:      {"remote operation error", "the peer could not complete the request"},
	StatusRetryExceeded:        {"transport retries exceeded", "the peer does not answer: it is gone, its qp is in error, or the network between is broken"},
	StatusRNRRetryExceeded:     {"receiver-not-ready retries exceeded", "the peer posted no receive buffers in time"},
	StatusLocalRDDViolation:    {"local rdd violation", ""},
	StatusRemoteInvalidRead:    {"remote invalid read request", ""},
	StatusRemoteAborted:        {"remote aborted", ""},
	StatusInvalidEECN:          {"invalid ee context number", ""},
	StatusInvalidEECState:      {"invalid ee context state", ""},
	StatusFatal:                {"fatal error", "the device has failed"},
	StatusResponseTimeout:      {"response timeout", ""},
	StatusGeneral:              {"general error", "a transport error with no status of its own; the vendor error may tell more"},
}

// Error says what happened.
func (s Status) Error() string {
	if int(s) < len(statusText) {
		return statusText[s].what
	}
	return fmt.Sprintf("completion status %d", uint32(s))
}

// String is the same text.
func (s Status) String() string { return s.Error() }

// Hint says what a status usually means, or is empty.
func (s Status) Hint() string {
	if int(s) < len(statusText) {
		return statusText[s].hint
	}
	return ""
}

// Opcode is the kind of a completion (enum ibv_wc_opcode). It is defined only in successful ones.
type Opcode uint32

// The opcodes that an RC queue pair completes with.
const (
	OpSend        Opcode = 0
	OpWrite       Opcode = 1
	OpRead        Opcode = 2
	OpCompareSwap Opcode = 3
	OpFetchAdd    Opcode = 4
	OpRecv        Opcode = 128 // a SEND arrived
	OpRecvImm     Opcode = 129 // a WRITE_WITH_IMM arrived
)

// String names the opcode as the specification does.
func (o Opcode) String() string {
	switch o {
	case OpSend:
		return "SEND"
	case OpWrite:
		return "RDMA WRITE"
	case OpRead:
		return "RDMA READ"
	case OpCompareSwap:
		return "CMP_SWAP"
	case OpFetchAdd:
		return "FETCH_ADD"
	case OpRecv:
		return "RECV"
	case OpRecvImm:
		return "RECV RDMA WITH IMM"
	}
	return fmt.Sprintf("Opcode(%d)", uint32(o))
}

// Flags of a completion (enum ibv_wc_flags).
const (
	WithGRH uint32 = 1 << 0
	WithImm uint32 = 1 << 1 // Imm is valid
)

// WC is one completion. Its layout is that of the shim's struct, so that polling writes straight into the
// caller's slice. ID, Status, QPN and VendorErr are always valid, the rest only when Status is success.
type WC struct {
	ID        uint64
	Status    Status
	Opcode    Opcode
	Len       uint32 // bytes received, read or exchanged
	QPN       uint32 // local queue pair
	Imm       uint32 // immediate data, host order, when Flags has WithImm
	VendorErr uint32
	Flags     uint32
	_         uint32
}

// Err is nil for success, otherwise an *OpError for the operation op that the caller's ID stands for.
func (w *WC) Err(op string) error {
	if w.Status == StatusSuccess {
		return nil
	}
	e := &OpError{Op: op, Status: w.Status, Hint: w.Status.Hint()}
	if w.VendorErr != 0 {
		e.Err = fmt.Errorf("qp %d, vendor error %#x", w.QPN, w.VendorErr)
	} else {
		e.Err = fmt.Errorf("qp %d", w.QPN)
	}
	return e
}
