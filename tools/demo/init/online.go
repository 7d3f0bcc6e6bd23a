//go:build linux

package main

import (
	"errors"
	"os"
	"path/filepath"
)

// switchOn brings up the CPUs that the kernel was told to leave alone at first (maxcpus=). On a machine made of
// several servers that is the quick way to boot: while a kernel initialises itself it patches its own code and waits
// for grace periods all the time, and each of those is a round of interrupts to every CPU that is up.
func (d *demo) switchOn(sys string) error {
	files, err := filepath.Glob(filepath.Join(sys, "devices/system/cpu/cpu[0-9]*/online"))
	if err != nil {
		return err
	}
	count := int64(0)
	for _, f := range files {
		state, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		if len(state) > 0 && state[0] == '1' {
			continue
		}
		if err := os.WriteFile(f, []byte("1"), 0); err != nil {
			return errors.New("bring up " + filepath.Base(filepath.Dir(f)) + ": " + err.Error())
		}
		count++
	}
	if count > 0 {
		d.out.event("online").num("brought_up", count).print()
	}
	return nil
}
