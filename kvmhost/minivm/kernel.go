package minivm

import "encoding/binary"

// Kernel returns a bzImage, as boot loads it, whose 64-bit entry is the given code. It runs at level 0, on the loader's
// identity mapping, which it must not change.
func Kernel(code []byte) []byte {
	const sectors = 3
	const payload = 8 << 10
	b := make([]byte, (sectors+1)*512+payload)
	le := binary.LittleEndian
	b[0x1f1] = sectors                  // setup_sects
	le.PutUint32(b[0x1f4:], payload/16) // syssize
	le.PutUint16(b[0x1fe:], 0xaa55)     // boot_flag
	b[0x200], b[0x201] = 0xeb, 0x6a     // jump
	copy(b[0x202:], "HdrS")             // header
	le.PutUint16(b[0x206:], 0x020f)     // version
	b[0x211] = 1                        // loadflags: high
	le.PutUint32(b[0x22c:], 0x7fffffff) // initrd_addr_max
	le.PutUint32(b[0x230:], 2<<20)      // kernel_alignment
	b[0x234], b[0x235] = 1, 21          // relocatable, min_alignment
	le.PutUint16(b[0x236:], 1)          // xloadflags: 64-bit entry
	le.PutUint32(b[0x238:], 2047)       // cmdline_size
	le.PutUint64(b[0x258:], 16<<20)     // pref_address
	le.PutUint32(b[0x260:], 1<<20)      // init_size
	copy(b[(sectors+1)*512+0x200:], code)
	return b
}
