package lab

import "testing"

func TestWithPaging(t *testing.T) {
	tests := []struct {
		words  string
		shadow bool
		want   string
	}{
		{"", true, "kvm_amd.npt=0"},
		{"quiet", true, "quiet kvm_amd.npt=0"},
		{"quiet", false, "quiet"},
		{"kvm_amd.npt=1 quiet", true, "kvm_amd.npt=1 quiet"},
		{"kvm-amd.npt=1", true, "kvm-amd.npt=1"},
		{"xkvm_amd.npt=1", true, "xkvm_amd.npt=1 kvm_amd.npt=0"},
	}
	for _, tt := range tests {
		if got := withPaging(tt.words, tt.shadow); got != tt.want {
			t.Errorf("%q, %v: %q, want %q", tt.words, tt.shadow, got, tt.want)
		}
	}
}
