package agent

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Of <rdma/ib_user_verbs.h>: the write() commands, enough to ask a port for its MTU without libibverbs.
const (
	cmdGetContext  = 0
	cmdQueryPort   = 2
	portRespSize   = 40
	respActiveMTU  = 28
	cmdHeaderSize  = 8
	contextRespLen = 8
)

// activeMTU asks the first uverbs device for its port's active MTU, in bytes.
func activeMTU() (int, error) {
	f, err := os.OpenFile("/dev/infiniband/uverbs0", os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	resp, err := command(f, cmdGetContext, contextRespLen, nil)
	if err != nil {
		return 0, fmt.Errorf("uverbs: get context: %w", err)
	}
	// The answer begins with a descriptor for asynchronous events. While it is open the device cannot be deleted.
	defer unix.Close(int(binary.LittleEndian.Uint32(resp)))
	resp, err = command(f, cmdQueryPort, portRespSize, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	if err != nil {
		return 0, fmt.Errorf("uverbs: query port: %w", err)
	}
	e := resp[respActiveMTU] // enum ib_mtu: 1 is 256
	if e < 1 || e > 5 {
		return 0, fmt.Errorf("uverbs: unknown mtu %d", e)
	}
	return 128 << e, nil
}

// command writes one command whose first field is the address of its response.
func command(f *os.File, cmd uint32, respLen int, arg []byte) ([]byte, error) {
	resp := make([]byte, respLen)
	buf := make([]byte, cmdHeaderSize+8+len(arg))
	binary.LittleEndian.PutUint32(buf[0:], cmd)
	binary.LittleEndian.PutUint16(buf[4:], uint16(len(buf)/4))
	binary.LittleEndian.PutUint16(buf[6:], uint16(respLen/4))
	// The kernel writes to resp during the system call only; it is pinned until then.
	var pin runtime.Pinner
	pin.Pin(&resp[0])
	defer pin.Unpin()
	binary.LittleEndian.PutUint64(buf[8:], uint64(uintptr(unsafe.Pointer(&resp[0]))))
	copy(buf[16:], arg)
	_, err := f.Write(buf)
	return resp, err
}
