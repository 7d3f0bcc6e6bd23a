package acpi

import (
	"encoding/binary"

	"ironspan/kvmhost/apic"
	"ironspan/kvmhost/devices"
)

var le = binary.LittleEndian

// rsdp is the root pointer (ACPI 6.3, 5.2.5.3), with no RSDT.
func rsdp(xsdt uint64) []byte {
	b := make([]byte, 36)
	copy(b[0:], "RSD PTR ")
	copy(b[9:], oemID)
	b[15] = 2
	le.PutUint32(b[20:], uint32(len(b)))
	le.PutUint64(b[24:], xsdt)
	b[8] = checksum(b[:20])
	b[32] = checksum(b)
	return b
}

const (
	fadtRevision = 6
	fadtMinor    = 3
	fadtSize     = 276

	bootLegacyDevices = 1 << 0
	bootNoVGA         = 1 << 2

	fadtWBINVD        = 1 << 0
	fadtC1            = 1 << 2
	fadtNoPowerButton = 1 << 4 // no fixed one
	fadtNoSleepButton = 1 << 5
	fadtResetReg      = 1 << 10
	fadtHeadless      = 1 << 12
	fadtAPICPhysical  = 1 << 19
	fadtHWReduced     = 1 << 20

	profileServer = 4
)

// fadt is the fixed description (ACPI 6.3, 5.2.9). Its boot flags say that there is no 8042 and no VGA, and,
// by what they leave out, that there is an RTC. Physical destinations are asked for because an IPI with one
// goes to one server, where a logical one has to be told to all.
func fadt(dsdt uint64) []byte {
	table := make([]byte, fadtSize)
	le.PutUint32(table[40:], uint32(dsdt))
	table[45] = profileServer
	table[108] = devices.RTCCentury
	le.PutUint16(table[109:], bootLegacyDevices|bootNoVGA)
	le.PutUint32(table[112:], fadtWBINVD|fadtC1|fadtNoPowerButton|fadtNoSleepButton|
		fadtResetReg|fadtHeadless|fadtAPICPhysical|fadtHWReduced)
	copy(table[116:], register(devices.ACPIReset))
	table[128] = devices.ACPIResetValue
	table[131] = fadtMinor
	le.PutUint64(table[140:], dsdt)
	copy(table[244:], register(devices.SleepControl))
	copy(table[256:], register(devices.SleepStatus))
	copy(table[268:], oemTableID) // hypervisor vendor
	return table[headerSize:]
}

// register is a generic address structure for a byte-wide I/O port.
func register(port uint64) []byte {
	const systemIO, byteAccess = 1, 1
	return le.AppendUint64([]byte{systemIO, 8, 0, byteAccess}, port)
}

const (
	madtLAPIC    = 0
	madtIOAPIC   = 1
	madtLAPICNMI = 4
	allVCPUs     = 0xff
	enabled      = 1
)

// madt lists the interrupt controllers (ACPI 6.3, 5.2.12). There is no 8259 pair.
func madt(vcpus []VCPU) []byte {
	b := le.AppendUint32(nil, apic.LAPICBase)
	b = le.AppendUint32(b, 0)
	for i, v := range vcpus {
		b = append(b, madtLAPIC, 8, uint8(i), uint8(v.APICID))
		b = le.AppendUint32(b, enabled)
	}
	b = append(b, madtIOAPIC, 12, IOAPICID, 0)
	b = le.AppendUint32(b, apic.IOAPICBase)
	b = le.AppendUint32(b, 0) // first GSI
	return append(b, madtLAPICNMI, 6, allVCPUs, 0, 0, 1)
}

// IOAPICID is the ID that the MADT gives for the IOAPIC.
const IOAPICID = 0

const (
	sratProcessor = 0
	sratMemory    = 1
)

// srat says to which node processors and memory belong (ACPI 6.3, 5.2.16).
func srat(vcpus []VCPU, memory []Memory) []byte {
	b := le.AppendUint32(nil, 1)
	b = append(b, make([]byte, 8)...)
	for _, v := range vcpus {
		b = append(b, sratProcessor, 16, uint8(v.Node), uint8(v.APICID))
		b = le.AppendUint32(b, enabled)
		b = append(b, make([]byte, 8)...)
	}
	for _, m := range memory {
		b = append(b, sratMemory, 40)
		b = le.AppendUint32(b, uint32(m.Node))
		b = append(b, 0, 0)
		b = le.AppendUint64(b, m.GPA)
		b = le.AppendUint64(b, m.Size)
		b = le.AppendUint32(b, 0)
		b = le.AppendUint32(b, enabled)
		b = append(b, make([]byte, 8)...)
	}
	return b
}

// slit has the distances between nodes (ACPI 6.3, 5.2.17).
func slit(nodes int, distances [][]uint8) []byte {
	b := le.AppendUint64(nil, uint64(nodes))
	for i := range nodes {
		for j := range nodes {
			switch {
			case distances != nil:
				b = append(b, distances[i][j])
			case i == j:
				b = append(b, distanceLocal)
			default:
				b = append(b, distanceRemote)
			}
		}
	}
	return b
}

// dsdt has what enumeration cannot find: the sleep type of S5, COM1 and the RTC.
func dsdt() []byte {
	return join(
		name("_S5_", pack(integer(devices.SleepTypeS5), integer(0), integer(0), integer(0))),
		scope(`\_SB_`,
			device("COM1",
				name("_HID", eisaID("PNP0501")),
				name("_UID", integer(1)),
				name("_CRS", resources(
					ioPorts(devices.COM1, devices.COM1Size),
					edgeInterrupt(devices.COM1IRQ),
				)),
			),
			device("RTC0",
				name("_HID", eisaID("PNP0B00")),
				name("_CRS", resources(ioPorts(devices.RTCBase, devices.RTCSize))),
			),
		),
	)
}
