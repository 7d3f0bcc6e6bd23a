package main

import (
	"slices"
	"testing"
)

func TestModuleWords(t *testing.T) {
	names, parameters, err := moduleWords([]string{"brd", "rd_nr=1", "rd_size=1024", "nvmet-rdma", "a=b"})
	if err != nil || !slices.Equal(names, []string{"brd", "nvmet-rdma"}) ||
		!slices.Equal(parameters["brd"], []string{"rd_nr=1", "rd_size=1024"}) ||
		!slices.Equal(parameters["nvmet_rdma"], []string{"a=b"}) {
		t.Errorf("%q %q %v", names, parameters, err)
	}
	if _, _, err := moduleWords([]string{"rd_nr=1"}); err == nil {
		t.Error("a parameter of nothing was taken")
	}
}
