// Package devices has the platform devices a PC guest cannot do without: a serial port, a real-time clock,
// ACPI's sleep and reset registers, and answers at the ports of hardware that is not there.
//
// Every device is a bus.Device, locks for itself, and may be called from any thread. Callbacks are called on
// the thread that made the access; an IRQ callback with the device's lock held, so it must not come back
// into the device (an IOAPIC's SetPin does not).
//
// # Not supported
//
//   - serial: line timing (a character takes no time), break, parity and framing errors, the modem's own inputs
//     (CTS, DSR and DCD are always on), DMA mode;
//   - RTC: alarm, periodic and update interrupts (IRQ 8), square wave, daylight saving;
//   - PIT, PIC, PCI configuration mechanism 1, DMA controller, keyboard controller: absent, but answering so
//     that a guest finds that out quickly; the speaker's gate at port 0x61 is a latch;
//   - sleep states other than S5.
package devices
