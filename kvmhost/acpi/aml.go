package acpi

import "slices"

// AML opcodes and prefixes (ACPI 6.3, 20.2). Terms are byte strings, and a term is made by a function named
// after it.
const (
	opZero    = 0x00
	opOne     = 0x01
	opName    = 0x08
	opByte    = 0x0a
	opWord    = 0x0b
	opDWord   = 0x0c
	opQWord   = 0x0e
	opScope   = 0x10
	opBuffer  = 0x11
	opPackage = 0x12
	opExt     = 0x5b
	opExtDev  = 0x82
)

func join(terms ...[]byte) []byte { return slices.Concat(terms...) }

// integer encodes a constant in its shortest form.
func integer(v uint64) []byte {
	switch {
	case v == 0:
		return []byte{opZero}
	case v == 1:
		return []byte{opOne}
	case v < 1<<8:
		return []byte{opByte, byte(v)}
	case v < 1<<16:
		return le.AppendUint16([]byte{opWord}, uint16(v))
	case v < 1<<32:
		return le.AppendUint32([]byte{opDWord}, uint32(v))
	}
	return le.AppendUint64([]byte{opQWord}, v)
}

// packageLength puts the length, which counts itself, in front of the body.
func packageLength(body []byte) []byte {
	for width := 1; ; width++ {
		n := len(body) + width
		if width == 1 && n < 1<<6 {
			return append([]byte{byte(n)}, body...)
		}
		if width > 1 && n < 1<<(4+8*(width-1)) {
			out := []byte{byte(width-1)<<6 | byte(n&0xf)}
			for n >>= 4; len(out) < width; n >>= 8 {
				out = append(out, byte(n))
			}
			return append(out, body...)
		}
	}
}

// name declares an object; seg has four characters.
func name(seg string, value []byte) []byte { return join([]byte{opName}, []byte(seg), value) }

// scope opens a named scope; path is one segment, or one behind a root prefix.
func scope(path string, terms ...[]byte) []byte {
	return join([]byte{opScope}, packageLength(join([]byte(path), join(terms...))))
}

func device(seg string, terms ...[]byte) []byte {
	return join([]byte{opExt, opExtDev}, packageLength(join([]byte(seg), join(terms...))))
}

// pack is a package of the elements.
func pack(elements ...[]byte) []byte {
	return join([]byte{opPackage}, packageLength(join([]byte{byte(len(elements))}, join(elements...))))
}

func buffer(data []byte) []byte {
	return join([]byte{opBuffer}, packageLength(join(integer(uint64(len(data))), data)))
}

// eisaID compresses an ID such as PNP0501: three letters of five bits, four hexadecimal digits, big endian.
func eisaID(id string) []byte {
	v := uint32(id[0]-'@')<<26 | uint32(id[1]-'@')<<21 | uint32(id[2]-'@')<<16
	for i, c := range []byte(id[3:7]) {
		digit := uint32(c - '0')
		if c >= 'A' {
			digit = uint32(c-'A') + 10
		}
		v |= digit << (12 - 4*i)
	}
	return []byte{opDWord, byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)}
}

// resources is a resource template: descriptors and the end tag, whose checksum 0 stands for none.
func resources(descriptors ...[]byte) []byte {
	return buffer(join(join(descriptors...), []byte{0x79, 0}))
}

// ioPorts is an I/O port descriptor that decodes 16 bits (ACPI 6.3, 6.4.2.5).
func ioPorts(base, size uint16) []byte {
	b := []byte{0x47, 1}
	b = le.AppendUint16(b, base)
	b = le.AppendUint16(b, base)
	return append(b, 1, byte(size))
}

// edgeInterrupt is an extended interrupt descriptor: consumer, edge, active high, exclusive (ACPI 6.3, 6.4.3.6).
func edgeInterrupt(gsi uint32) []byte {
	return le.AppendUint32([]byte{0x89, 6, 0, 0x03, 1}, gsi)
}
