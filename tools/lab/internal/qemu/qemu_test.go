package qemu

import (
	"encoding/binary"
	"strings"
	"testing"
)

func TestParseVersion(t *testing.T) {
	tests := []struct {
		in           string
		major, minor int
		ok           bool
	}{
		{"QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright", 10, 0, true},
		{"QEMU emulator version 7.2.17", 7, 2, true},
		{"bash: not found", 0, 0, false},
	}
	for _, tt := range tests {
		major, minor, err := parseVersion(tt.in)
		if major != tt.major || minor != tt.minor || (err == nil) != tt.ok {
			t.Errorf("%q: %d.%d, %v", tt.in, major, minor, err)
		}
	}
}

func TestArgs(t *testing.T) {
	m := Machine{QEMU: QEMU{Major: 10}, Accel: TCG, VCPUs: 2, MemoryMiB: 512, Console: "/a,b", Port: "p", MTU: 9000, Append: "extra", WireFD: 3, AgentFD: 4,
		Exports: []Export{{Tag: "root", Path: "/", ReadOnly: true}, {Tag: "w", Path: "/x,y"}}}
	line := strings.Join(m.args(), " ")
	for _, want := range []string{
		"-accel tcg,thread=multi", "-smp 2", "-m 512M", "path=/a,,b", "host_mtu=9000", " extra ",
		"addr.type=fd,addr.str=3", "socket,id=agent,fd=4", "name=p",
		"id=fs0,path=/,security_model=none,multidevs=remap,readonly=on", "path=/x,,y,", "mount_tag=w",
	} {
		if !strings.Contains(line, want) {
			t.Errorf("%q is missing in %s", want, line)
		}
	}
	for _, tt := range []struct {
		q     QEMU
		vcpus int
		want  string
	}{
		{QEMU{Major: 7, Minor: 2}, 1, "thread=multi"}, {QEMU{Major: 7, Minor: 2}, 2, "thread=single"}, {QEMU{Major: 8}, 2, "thread=multi"},
	} {
		m.QEMU, m.VCPUs = tt.q, tt.vcpus
		if line = strings.Join(m.args(), " "); !strings.Contains(line, tt.want) {
			t.Errorf("%v, %d CPUs: no %s in %s", tt.q, tt.vcpus, tt.want, line)
		}
	}
	m.Accel = KVM
	if line = strings.Join(m.args(), " "); !strings.Contains(line, "-accel kvm -cpu host") {
		t.Errorf("kvm: %s", line)
	}
}

func TestNested(t *testing.T) {
	entry := func(function, ecx uint32) []byte {
		e := make([]byte, cpuidEntry)
		binary.LittleEndian.PutUint32(e, function)
		binary.LittleEndian.PutUint32(e[20:], ecx)
		return e
	}
	tests := []struct {
		name          string
		function, ecx uint32
		want          bool
	}{
		{"vmx", 1, 1 << 5, true},
		{"svm", 0x80000001, 1 << 2, true},
		{"hypervisor bit only", 1, 1 << 31, false},
		{"other leaf", 7, 1<<5 | 1<<2, false},
	}
	for _, tt := range tests {
		buf := make([]byte, cpuidHeader+cpuidEntries*cpuidEntry)
		binary.LittleEndian.PutUint32(buf, 2)
		copy(buf[cpuidHeader+cpuidEntry:], entry(tt.function, tt.ecx))
		if got, why := nested(buf); got != tt.want || why == "" {
			t.Errorf("%s: %v, %s", tt.name, got, why)
		}
	}
}
