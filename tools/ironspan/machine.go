package main

import (
	"ironspan/engine"
	"ironspan/engine/control"
)

// newMachine makes the machine that a node daemon drives. Tests put one without a VM in its place.
var newMachine = func(opts engine.Options) control.Machine { return engine.New(opts) }
