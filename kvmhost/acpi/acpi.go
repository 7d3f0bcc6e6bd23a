// Package acpi builds the tables that tell the guest what machine it is on: which processors and interrupt
// controllers there are, which memory is near to which of them, where the serial port is, and how to power
// off.
//
// The machine is a hardware-reduced one (ACPI 6.3, 4.1): no PM timer, no SCI, no fixed power button, and sleep and
// reset registers that the platform chooses. All tables lie in one piece of guest memory, which the caller
// reports to the guest as ACPI memory:
//
//	RSDP -> XSDT -> FADT (FACP) -> DSDT
//	             -> MADT (APIC)
//	             -> SRAT
//	             -> SLIT
//
// Every node of the VM is a proximity domain of its number.
//
// # Not supported
//
//   - PCI root bridges, and devices other than COM1 and the RTC in the DSDT;
//   - x2APIC entries: APIC IDs end at 254;
//   - processor objects, C- and P-states, hot-plug;
//   - interrupt source overrides: ISA interrupts are the GSIs of the same number, edge triggered.
package acpi

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"ironspan/kvmhost/apic"
)

// VCPU is a processor: its local APIC's ID and the node it runs on.
type VCPU struct {
	APICID uint32
	Node   int
}

// Memory is a range of RAM, in bytes of guest-physical address, and its home node. A node may have several.
type Memory struct {
	GPA, Size uint64
	Node      int
}

// Config describes the machine.
type Config struct {
	VCPUs  []VCPU
	Memory []Memory
	// Distances[i][j] is the SLIT's relative distance of node j from node i: 10 to itself, more to others.
	// Nil stands for 20 between any two.
	Distances [][]uint8
}

const (
	distanceLocal  = 10
	distanceRemote = 20

	oemID      = "IRNSPN"
	oemTableID = "IRONSPAN"
	creatorID  = "IRSP"
	revision   = 1

	headerSize = 36
	align      = 64
)

// ErrConfig is wrapped by every error of Build.
var ErrConfig = errors.New("acpi: bad machine description")

// Tables are the machine's tables, ready to be copied to guest memory.
type Tables struct {
	Base  uint64 // guest-physical address of Bytes
	RSDP  uint64 // guest-physical address of the RSDP, for the boot parameters
	Bytes []byte
}

// Build lays out the tables from guest-physical address base on, which must be aligned to 64 bytes and leave
// the tables below 4 GiB.
func Build(base uint64, c Config) (*Tables, error) {
	nodes, err := c.check()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if base%align != 0 {
		return nil, fmt.Errorf("%w: base %#x is not aligned to %d", ErrConfig, base, align)
	}
	t := &Tables{Base: base, RSDP: base, Bytes: make([]byte, align)} // RSDP comes last, but lies first
	addrDSDT := t.add("DSDT", 2, dsdt())
	roots := []uint64{
		t.add("FACP", fadtRevision, fadt(addrDSDT)),
		t.add("APIC", 4, madt(c.VCPUs)),
		t.add("SRAT", 3, srat(c.VCPUs, c.Memory)),
		t.add("SLIT", 1, slit(nodes, c.Distances)),
	}
	xsdt := t.add("XSDT", 1, words(roots))
	copy(t.Bytes, rsdp(xsdt))
	if end := base + uint64(len(t.Bytes)); end > 1<<32 || end < base {
		return nil, fmt.Errorf("%w: tables at %#x end above 4 GiB", ErrConfig, base)
	}
	return t, nil
}

// check returns the number of nodes.
func (c *Config) check() (nodes int, err error) {
	if len(c.VCPUs) == 0 || len(c.Memory) == 0 {
		return 0, errors.New("no vcpus or no memory")
	}
	seen := [apic.MaxID + 1]bool{}
	for i, v := range c.VCPUs {
		switch {
		case v.APICID > apic.MaxID:
			return 0, fmt.Errorf("vcpu %d: apic id %d: ids end at %d", i, v.APICID, apic.MaxID)
		case seen[v.APICID]:
			return 0, fmt.Errorf("vcpu %d: apic id %d is taken", i, v.APICID)
		case v.Node < 0 || v.Node > math.MaxUint8:
			return 0, fmt.Errorf("vcpu %d: node %d", i, v.Node)
		}
		seen[v.APICID] = true
		nodes = max(nodes, v.Node+1)
	}
	for i, m := range c.Memory {
		if m.Node < 0 || m.Node > math.MaxUint8 {
			return 0, fmt.Errorf("memory %d: node %d", i, m.Node)
		}
		if m.Size == 0 || m.GPA+m.Size < m.GPA {
			return 0, fmt.Errorf("memory %d: empty or wrapping range %#x+%#x", i, m.GPA, m.Size)
		}
		for j, o := range c.Memory[:i] {
			if m.GPA < o.GPA+o.Size && o.GPA < m.GPA+m.Size {
				return 0, fmt.Errorf("memory %d overlaps memory %d at %#x", i, j, max(m.GPA, o.GPA))
			}
		}
		nodes = max(nodes, m.Node+1)
	}
	return nodes, checkDistances(nodes, c.Distances)
}

func checkDistances(nodes int, d [][]uint8) error {
	if d == nil {
		return nil
	}
	if len(d) != nodes {
		return fmt.Errorf("distances for %d nodes, there are %d", len(d), nodes)
	}
	for i, row := range d {
		if len(row) != nodes {
			return fmt.Errorf("distances of node %d: %d of %d", i, len(row), nodes)
		}
		for j, v := range row {
			if (i == j) != (v == distanceLocal) || v < distanceLocal {
				return fmt.Errorf("distance %d from node %d to %d: it is %d to itself and more to others", v, i, j, distanceLocal)
			}
		}
	}
	return nil
}

// add appends a table with its header and returns its address.
func (t *Tables) add(signature string, rev uint8, body []byte) uint64 {
	for len(t.Bytes)%align != 0 {
		t.Bytes = append(t.Bytes, 0)
	}
	at := len(t.Bytes)
	b := append(t.Bytes, signature...)
	b = binary.LittleEndian.AppendUint32(b, uint32(headerSize+len(body)))
	b = append(b, rev, 0) // checksum
	b = append(b, oemID...)
	b = append(b, oemTableID...)
	b = binary.LittleEndian.AppendUint32(b, revision)
	b = append(b, creatorID...)
	b = binary.LittleEndian.AppendUint32(b, revision)
	b = append(b, body...)
	b[at+9] = checksum(b[at:])
	t.Bytes = b
	return t.Base + uint64(at)
}

// checksum is the byte that makes the sum of all zero.
func checksum(b []byte) uint8 {
	var sum uint8
	for _, v := range b {
		sum += v
	}
	return -sum
}

func words(v []uint64) []byte {
	var b []byte
	for _, w := range v {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	return b
}
