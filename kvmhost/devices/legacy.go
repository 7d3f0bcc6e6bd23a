package devices

import (
	"sync/atomic"

	"ironspan/kvmhost/bus"
)

// Constant answers each read with one byte and ignores writes: hardware that is not there.
type Constant uint8

const (
	// Absent is what an ISA bus reads as where nobody drives it.
	Absent Constant = 0xff
	// Idle suits registers whose drivers wait for a bit to go off.
	Idle Constant = 0
)

// Read implements bus.Device.
func (c Constant) Read(_ uint64, data []byte) {
	for i := range data {
		data[i] = byte(c)
	}
}

// Write implements bus.Device.
func (Constant) Write(uint64, []byte) {}

// Bits of port 0x61.
const (
	portBSpeaker = 0x03 // gate of PIT counter 2, speaker
	portBRefresh = 1 << 4
	portBOut2    = 1 << 5
)

// PortB is port 0x61. Counter 2 has always run out, so that calibration loops that wait for it end at once, and
// the refresh bit toggles for those who count it.
type PortB struct{ state atomic.Uint32 }

// Read implements bus.Device.
func (p *PortB) Read(_ uint64, data []byte) {
	for i := range data {
		for {
			old := p.state.Load()
			if p.state.CompareAndSwap(old, old^portBRefresh) {
				data[i] = uint8(old) | portBOut2
				break
			}
		}
	}
}

// Write implements bus.Device.
func (p *PortB) Write(_ uint64, data []byte) {
	if len(data) == 0 {
		return
	}
	for {
		old := p.state.Load()
		if p.state.CompareAndSwap(old, old&portBRefresh|uint32(data[0])&portBSpeaker) {
			return
		}
	}
}

// PCIConfig is the window of PCI configuration mechanism 1 without a PCI bus, and the reset register amid it.
type PCIConfig struct{ reset func() }

const (
	pciConfigBase = 0xcf8
	resetControl  = 0xcf9
	resetCPU      = 1 << 2
)

// NewPCIConfig calls reset when the guest resets through port 0xcf9. Only a byte write there counts; a wider
// one addresses configuration space.
func NewPCIConfig(reset func()) *PCIConfig { return &PCIConfig{reset} }

// Read implements bus.Device.
func (*PCIConfig) Read(off uint64, data []byte) { Absent.Read(off, data) }

// Write implements bus.Device.
func (p *PCIConfig) Write(off uint64, data []byte) {
	if off == resetControl-pciConfigBase && len(data) == 1 && data[0]&resetCPU != 0 {
		p.reset()
	}
}

// Keyboard is the command port of a keyboard controller of which only the reset line is left: its input
// buffer is always free and there is never anything to read.
type Keyboard struct{ reset func() }

const keyboardReset = 0xfe

// NewKeyboard calls reset when the guest pulses the reset line.
func NewKeyboard(reset func()) *Keyboard { return &Keyboard{reset} }

// Read implements bus.Device.
func (*Keyboard) Read(off uint64, data []byte) { Idle.Read(off, data) }

// Write implements bus.Device.
func (k *Keyboard) Write(_ uint64, data []byte) {
	if len(data) > 0 && data[0] == keyboardReset {
		k.reset()
	}
}

// AddStateless adds what every node answers alike, without asking the one with the platform's devices:
// delays, and hardware that is not there.
//
// The answers are chosen for what kernels do with them. A PIC's mask that reads as all ones is the sign that
// there is none. A PIT whose counter reads 0 fails a calibration at its first look, where all ones would be
// polled 50000 times.
func AddStateless(b *bus.Bus) error {
	for _, d := range []struct {
		name string
		base uint16
		size uint32
		dev  bus.Device
	}{
		{"pic", 0x20, 2, Absent},
		{"pit", 0x40, 4, Idle},
		{"port b", 0x61, 1, new(PortB)},
		{"dma pages and delay port", 0x80, 16, Absent},
		{"secondary pic", 0xa0, 2, Absent},
		{"io delay", 0xed, 1, Absent},
		{"com4", 0x2e8, COM1Size, Absent},
		{"com2", 0x2f8, COM1Size, Absent},
		{"com3", 0x3e8, COM1Size, Absent},
		{"pic trigger mode", 0x4d0, 2, Absent},
	} {
		if err := b.AddPort(d.name, d.base, d.size, d.dev); err != nil {
			return err
		}
	}
	return nil
}

// Platform is what the node with the platform's devices has.
type Platform struct {
	Serial *Serial // COM1
	RTC    *RTC
	Off    func() // the guest has powered off
	Reset  func() // the guest wants a reset
}

// Add puts the platform's devices on the bus of their node, next to those of AddStateless.
func (p Platform) Add(b *bus.Bus) error {
	for _, d := range []struct {
		name string
		base uint16
		size uint32
		dev  bus.Device
	}{
		{"keyboard data", 0x60, 1, Idle},
		{"keyboard command", 0x64, 1, NewKeyboard(p.Reset)},
		{"rtc", RTCBase, RTCSize, p.RTC},
		{"com1", COM1, COM1Size, p.Serial},
		{"acpi power", SleepControl, PowerSize, NewPower(p.Off, p.Reset)},
		{"pci configuration", pciConfigBase, 8, NewPCIConfig(p.Reset)},
	} {
		if err := b.AddPort(d.name, d.base, d.size, d.dev); err != nil {
			return err
		}
	}
	return nil
}
