package qemu

import (
	"context"
	"fmt"
)

// Choose finds the QEMU for servers that run by accel, given the machine's own or none. Emulated servers get one that
// has ShadowPaging; only where it cannot be fetched, the machine's own must do, and progress is told.
func Choose(ctx context.Context, accel Accel, own QEMU, progress func(string, ...any)) (QEMU, error) {
	return choose(ctx, accel, own, func() (QEMU, error) { return get(ctx, progress) }, progress)
}

func choose(ctx context.Context, accel Accel, own QEMU, fetched func() (QEMU, error), progress func(string, ...any)) (QEMU, error) {
	if own.ShadowPaging() || accel == KVM && own.usable() {
		return own, nil
	}
	q, err := fetched()
	switch {
	case err == nil:
		return q, nil
	case ctx.Err() != nil:
		return QEMU{}, err
	case !own.usable():
		return QEMU{}, fmt.Errorf("qemu: none is here, and none can be fetched: %w; let apt reach Debian's archive, or install %s 7.2 or newer", err, packageName)
	}
	progress("warning: %v", err)
	progress("warning: %v runs the servers instead: no shadow paging there (kvm_amd.npt=0), for from 9.1 on QEMU misjudges "+
		"a guest's reads of CR3; once `lab fetch` works it brings a QEMU that can", own)
	return own, nil
}
