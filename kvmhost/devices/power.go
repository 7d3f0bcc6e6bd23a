package devices

// Where the power and reset registers are. The ACPI tables tell the guest.
const (
	// SleepControl and SleepStatus are the sleep registers of hardware-reduced ACPI (ACPI 6, 4.8.3.7).
	SleepControl = 0x600
	SleepStatus  = 0x601
	// ACPIReset is the FADT's reset register, ACPIResetValue what resets.
	ACPIReset      = 0x602
	ACPIResetValue = 0x01
	// PowerSize is the size of the window at SleepControl that Power answers.
	PowerSize = 3
	// SleepTypeS5 is the sleep type for _S5.
	SleepTypeS5 = 5

	sleepEnable    = 1 << 5
	sleepTypeShift = 2
	sleepTypeMask  = 7
)

// Power has ACPI's sleep control, sleep status and reset registers.
type Power struct {
	off, reset func()
}

// NewPower calls off when the guest goes to S5 and reset when it writes the reset register. Both may be
// called more than once; the guest goes on until its vCPUs are stopped.
func NewPower(off, reset func()) *Power { return &Power{off, reset} }

// Read implements bus.Device: nothing ever wakes, and the registers keep nothing.
func (p *Power) Read(_ uint64, data []byte) {
	for i := range data {
		data[i] = 0
	}
}

// Write implements bus.Device.
func (p *Power) Write(off uint64, data []byte) {
	for i, v := range data {
		switch off + uint64(i) + SleepControl {
		case SleepControl:
			if v&sleepEnable != 0 && v>>sleepTypeShift&sleepTypeMask == SleepTypeS5 {
				p.off()
			}
		case ACPIReset:
			if v == ACPIResetValue {
				p.reset()
			}
		}
	}
}
