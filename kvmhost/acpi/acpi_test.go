package acpi

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"ironspan/kvmhost/apic"
)

const testBase = 0xe0000

func twoNodes() Config {
	return Config{
		VCPUs: []VCPU{{0, 0}, {1, 0}, {2, 1}, {3, 1}},
		Memory: []Memory{
			{0, 3 << 30, 0}, {4 << 30, 1 << 30, 0}, {5 << 30, 4 << 30, 1},
		},
	}
}

// tables follows the pointers from the RSDP, and checks checksums and bounds on its way.
func tables(t *testing.T, built *Tables) map[string][]byte {
	t.Helper()
	at := func(gpa uint64, n int) []byte {
		off := gpa - built.Base
		if off > uint64(len(built.Bytes)) || off+uint64(n) > uint64(len(built.Bytes)) {
			t.Fatalf("%#x+%#x is outside of the tables", gpa, n)
		}
		return built.Bytes[off:][:n:n]
	}
	root := at(built.RSDP, 36)
	if string(root[:8]) != "RSD PTR " || checksum(root[:20]) != 0 || checksum(root) != 0 || root[15] != 2 {
		t.Fatalf("bad RSDP % x", root)
	}
	found := map[string][]byte{}
	table := func(gpa uint64) []byte {
		if gpa%align != 0 {
			t.Errorf("table at %#x", gpa)
		}
		b := at(gpa, int(le.Uint32(at(gpa, headerSize)[4:])))
		if checksum(b) != 0 {
			t.Errorf("%s: checksum", b[:4])
		}
		found[string(b[:4])] = b
		return b
	}
	for list := table(le.Uint64(root[24:]))[headerSize:]; len(list) > 0; list = list[8:] {
		table(le.Uint64(list))
	}
	table(le.Uint64(found["FACP"][140:]))
	return found
}

func TestTables(t *testing.T) {
	built, err := Build(testBase, twoNodes())
	if err != nil {
		t.Fatal(err)
	}
	got := tables(t, built)
	for _, want := range []string{"XSDT", "FACP", "DSDT", "APIC", "SRAT", "SLIT"} {
		if got[want] == nil {
			t.Errorf("no %s", want)
		}
	}
	f := got["FACP"]
	if len(f) != 276 || f[8] != 6 {
		t.Errorf("FADT: length %d, revision %d", len(f), f[8])
	}
	if flags := le.Uint32(f[112:]); flags&(1<<20) == 0 || flags&(1<<10) == 0 {
		t.Errorf("FADT flags %#x: not hardware-reduced with reset register", flags)
	}
	if arch := le.Uint16(f[109:]); arch&(1<<1|1<<5) != 0 || arch&(1<<2) == 0 {
		t.Errorf("FADT boot flags %#x: want no 8042, no VGA, an RTC", arch)
	}
	if le.Uint64(f[248:]) != 0x600 || le.Uint64(f[260:]) != 0x601 || le.Uint64(f[120:]) != 0x602 {
		t.Errorf("FADT registers % x, % x, % x", f[244:256], f[256:268], f[116:128])
	}
	m := got["APIC"]
	if le.Uint32(m[36:]) != apic.LAPICBase || len(m) != 44+4*8+12+6 {
		t.Errorf("MADT % x", m)
	}
	if want := []byte{0, 8, 2, 2, 1, 0, 0, 0}; !bytes.Equal(m[60:68], want) {
		t.Errorf("MADT third entry % x, want % x", m[60:68], want)
	}
	s := got["SRAT"]
	if last := s[len(s)-40:]; last[0] != 1 || le.Uint32(last[2:]) != 1 || le.Uint64(last[8:]) != 5<<30 || le.Uint64(last[16:]) != 4<<30 {
		t.Errorf("SRAT's last memory % x", last)
	}
	if want := []byte{2, 0, 0, 0, 0, 0, 0, 0, 10, 20, 20, 10}; !bytes.Equal(got["SLIT"][36:], want) {
		t.Errorf("SLIT % x", got["SLIT"][36:])
	}
}

func TestDistances(t *testing.T) {
	c := twoNodes()
	c.Distances = [][]uint8{{10, 17}, {18, 10}}
	built, err := Build(testBase, c)
	if err != nil {
		t.Fatal(err)
	}
	if got := tables(t, built)["SLIT"][44:]; !bytes.Equal(got, []byte{10, 17, 18, 10}) {
		t.Errorf("SLIT % d", got)
	}
}

func TestRefused(t *testing.T) {
	for name, spoil := range map[string]func(*Config){
		"no vcpu":             func(c *Config) { c.VCPUs = nil },
		"no memory":           func(c *Config) { c.Memory = nil },
		"broadcast id":        func(c *Config) { c.VCPUs[1].APICID = 255 },
		"same id":             func(c *Config) { c.VCPUs[1].APICID = 0 },
		"negative node":       func(c *Config) { c.VCPUs[1].Node = -1 },
		"memory without size": func(c *Config) { c.Memory[0].Size = 0 },
		"memory wraps":        func(c *Config) { c.Memory[2].Size = 1<<64 - 1 },
		"memory overlaps":     func(c *Config) { c.Memory[0].Size = 5 << 30 },
		"memory's node":       func(c *Config) { c.Memory[0].Node = 256 },
		"few distances":       func(c *Config) { c.Distances = [][]uint8{{10}} },
		"short distances":     func(c *Config) { c.Distances = [][]uint8{{10, 20}, {20}} },
		"far from itself":     func(c *Config) { c.Distances = [][]uint8{{10, 20}, {20, 11}} },
		"near to others":      func(c *Config) { c.Distances = [][]uint8{{10, 10}, {20, 10}} },
		"nearer than near":    func(c *Config) { c.Distances = [][]uint8{{10, 9}, {20, 10}} },
	} {
		c := twoNodes()
		spoil(&c)
		if _, err := Build(testBase, c); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, base := range []uint64{testBase + 1, 1<<32 - 64, 1 << 32} {
		if _, err := Build(base, twoNodes()); !errors.Is(err, ErrConfig) {
			t.Errorf("base %#x: %v", base, err)
		}
	}
}

func TestMaximum(t *testing.T) {
	c := Config{}
	for i := range apic.MaxID + 1 {
		c.VCPUs = append(c.VCPUs, VCPU{uint32(i), i % 64})
	}
	for i := range uint64(64) {
		c.Memory = append(c.Memory, Memory{i << 34, 1 << 34, int(i)})
	}
	built, err := Build(testBase, c)
	if err != nil {
		t.Fatal(err)
	}
	if tables(t, built); testBase+len(built.Bytes) > 0x100000 {
		t.Errorf("%d bytes do not fit below 1 MiB", len(built.Bytes))
	}
}

func TestPackageLength(t *testing.T) {
	for _, c := range []struct {
		body int
		want []byte
	}{
		{0, []byte{0x01}},
		{62, []byte{0x3f}},
		{63, []byte{0x41, 0x04}},
		{4093, []byte{0x4f, 0xff}},
		{4094, []byte{0x81, 0x00, 0x01}},
		{1<<20 - 4, []byte{0x8f, 0xff, 0xff}},
		{1<<20 - 3, []byte{0xc1, 0x00, 0x00, 0x01}},
	} {
		got := packageLength(make([]byte, c.body))
		if !bytes.Equal(got[:len(got)-c.body], c.want) {
			t.Errorf("body of %d: % x, want % x", c.body, got[:len(got)-c.body], c.want)
		}
	}
}

func TestInteger(t *testing.T) {
	for v, want := range map[uint64][]byte{
		0: {0}, 1: {1}, 5: {0x0a, 5}, 0x3f8: {0x0b, 0xf8, 3}, 1 << 16: {0x0c, 0, 0, 1, 0},
		1 << 32: {0x0e, 0, 0, 0, 0, 1, 0, 0, 0},
	} {
		if got := integer(v); !bytes.Equal(got, want) {
			t.Errorf("%#x: % x, want % x", v, got, want)
		}
	}
	if got, want := eisaID("PNP0A03"), []byte{0x0c, 0x41, 0xd0, 0x0a, 0x03}; !bytes.Equal(got, want) {
		t.Errorf("PNP0A03: % x, want % x", got, want)
	}
}

// TestDisassemble has the reference implementation read every table, and compile the DSDT's source again.
func TestDisassemble(t *testing.T) {
	iasl, err := exec.LookPath("iasl")
	if err != nil {
		t.Skip("no iasl: apt-get install acpica-tools")
	}
	c := twoNodes()
	c.Distances = [][]uint8{{10, 30}, {30, 10}}
	built, err := Build(testBase, c)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	run := func(args ...string) string {
		cmd := exec.Command(iasl, args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("iasl %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	for sig, b := range tables(t, built) {
		file := strings.ToLower(sig)
		if err := os.WriteFile(filepath.Join(dir, file+".aml"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		run("-d", file+".aml")
		source, err := os.ReadFile(filepath.Join(dir, file+".dsl"))
		if err != nil {
			t.Fatal(err)
		}
		for _, bad := range []string{"Error", "Invalid", "incorrect checksum", "Incorrect checksum", "Unknown", "Warning", "****"} {
			if i := strings.Index(string(source), bad); i >= 0 {
				t.Errorf("%s: %s:\n%s", sig, bad, source)
			}
		}
		out := run("-p", file+"-again", file+".dsl")
		if strings.Contains(out, " Errors,") && !strings.Contains(out, " 0 Errors,") {
			t.Errorf("%s does not compile again:\n%s", sig, out)
		}
	}
	source, _ := os.ReadFile(filepath.Join(dir, "dsdt.dsl"))
	for _, want := range []string{`EisaId ("PNP0501")`, `EisaId ("PNP0B00")`, "0x03F8,", "Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive", "Name (_S5"} {
		if !strings.Contains(string(source), want) {
			t.Errorf("DSDT has no %s:\n%s", want, source)
		}
	}
}
