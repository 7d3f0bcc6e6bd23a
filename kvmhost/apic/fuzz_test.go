package apic

import (
	"encoding/binary"
	"testing"
)

// script reads accesses out of a fuzzer's bytes: operation, offset, width and value of each.
func script(program []byte, do func(op byte, off uint64, width int, value uint64)) {
	for len(program) >= 12 {
		off := uint64(binary.LittleEndian.Uint16(program[1:]))
		if program[0]&0x80 != 0 {
			off &= 0xff0 // mostly registers
		}
		do(program[0]&0x7, off, int(program[3]%9), binary.LittleEndian.Uint64(program[4:]))
		program = program[12:]
	}
}

func seed(f *testing.F) {
	for _, op := range []byte{0x80, 0x81, 0x82, 0x83, 0x84} {
		var program []byte
		for off := uint16(0); off < 0x400; off += 0x10 {
			program = append(program, op, byte(off), byte(off>>8), 4, 0xff, 0x01, 0x0e, 0x00, 1, 2, 3, 4)
		}
		f.Add(program)
	}
}

// FuzzLAPIC: no sequence of accesses panics, and the state stays one that hardware could be in.
func FuzzLAPIC(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, program []byte) {
		l := enabledLAPIC(t, 1, &router{})
		now, data := uint64(0), make([]byte, 8)
		script(program, func(op byte, off uint64, width int, value uint64) {
			now += value >> 40
			binary.LittleEndian.PutUint64(data, value)
			switch op {
			case 0, 1:
				l.Write(now, off, data[:width])
			case 2:
				l.Read(now, off, data[:width])
			case 3:
				l.WriteMSR(now, MSRTSCDeadline, value)
				l.ReadMSR(MSRTSCDeadline)
			case 4:
				l.Post(uint8(value), value&256 != 0)
				l.Sync()
			case 5:
				l.WriteMSR(now, MSRAPICBase, value)
			case 6:
				l.PostINIT()
				l.PostSIPI(uint8(value))
				l.Sync()
			case 7:
				l.Advance(now)
				if at, armed := l.NextDeadline(); armed && at <= now {
					t.Fatalf("deadline %d is not after %d", at, now)
				}
			}
			if v, ok := l.Pending(); ok {
				if v < 16 || v>>4 <= l.TPR()>>4 {
					t.Fatalf("vector %#x with TPR %#x", v, l.TPR())
				}
				l.Acknowledge(v)
			}
			if l.irr[0]&0xffff != 0 {
				t.Fatalf("illegal vector in the IRR: %#x", l.irr[0])
			}
		})
	})
}

// FuzzIOAPIC: no sequence of accesses and pins panics.
func FuzzIOAPIC(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, program []byte) {
		r := &recorder{}
		a, data := NewIOAPIC(0, r), make([]byte, 8)
		script(program, func(op byte, off uint64, width int, value uint64) {
			binary.LittleEndian.PutUint64(data, value)
			switch op {
			case 0:
				a.Write(off, data[:width])
			case 1:
				ioSet(a, uint8(off), uint32(value))
			case 2:
				a.Read(off, data[:width])
			case 3:
				a.SetPin(int(int8(value)), value&256 != 0)
			default:
				a.EOI(uint8(value))
			}
			for _, m := range r.got {
				if m.Trigger && !m.Mode.vectored() {
					t.Fatalf("level-triggered %v", m.Mode)
				}
			}
			r.got = r.got[:0]
		})
	})
}
