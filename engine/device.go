package engine

import (
	"fmt"

	"ironspan/engine/spec"
	"ironspan/fastpath/fabric/rdma"
	"ironspan/verbs"
)

// openAdapter opens a node's RDMA device, as the plan names it.
func openAdapter(me *spec.PlanNode) (*rdma.Adapter, error) {
	opt := rdma.Options{}
	if me.Device != spec.DeviceAuto {
		opt.Device = me.Device
	}
	if me.GID != spec.GIDAuto {
		opt.GID = verbs.GIDSelect{ByIndex: true, Index: me.GID}
	}
	a, err := rdma.Open(opt)
	if err != nil {
		return nil, fmt.Errorf("engine: %w (ironspan doctor --fix sets up soft-RoCE; nodes of one host can do with fabric: shm)", err)
	}
	return a, nil
}
