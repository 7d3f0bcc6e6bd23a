package peers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	nqn       = "nqn.2014-08.org.nvmexpress:ironspan-perf"
	nvmePort  = "4420"
	configfs  = "/sys/kernel/config"
	nvmet     = configfs + "/nvmet"
	fabrics   = "/dev/nvme-fabrics"
	ramDisk   = "/dev/ram0"
	nvmeClass = "/sys/class/nvme"
)

// nvmetServe offers the RAM disk by NVMe over RDMA at addr, until its input ends.
func nvmetServe(ctx context.Context, addr string, serve func()) (err error) {
	undo := &undo{}
	defer func() { err = undo.all(err) }()
	if _, err := os.Stat(nvmet); err != nil {
		if err := unix.Mount("configfs", configfs, "configfs", 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("peers: mount configfs: %w", err)
		}
	}
	subsystem, port := filepath.Join(nvmet, "subsystems", nqn), filepath.Join(nvmet, "ports", "1")
	namespace, link := filepath.Join(subsystem, "namespaces", "1"), filepath.Join(port, "subsystems", nqn)
	for _, step := range []struct{ file, value string }{
		{subsystem, ""},
		{filepath.Join(subsystem, "attr_allow_any_host"), "1"},
		{namespace, ""},
		{filepath.Join(namespace, "device_path"), ramDisk},
		{filepath.Join(namespace, "enable"), "1"},
		{port, ""},
		{filepath.Join(port, "addr_trtype"), "rdma"},
		{filepath.Join(port, "addr_adrfam"), "ipv4"},
		{filepath.Join(port, "addr_traddr"), addr},
		{filepath.Join(port, "addr_trsvcid"), nvmePort},
	} {
		if step.value != "" {
			err = os.WriteFile(step.file, []byte(step.value), 0o644)
		} else if err = os.Mkdir(step.file, 0o755); err == nil {
			undo.add(func() error { return os.Remove(step.file) })
		}
		if err != nil {
			return fmt.Errorf("peers: nvmet: %w", err)
		}
	}
	if err := os.Symlink(subsystem, link); err != nil {
		return fmt.Errorf("peers: nvmet: it does not listen: %w", err)
	}
	undo.add(func() error { return os.Remove(link) })
	serve()
	return ctx.Err()
}

// nvmeConnect attaches what nvmetServe offers at addr and returns the block device.
func nvmeConnect(ctx context.Context, addr string, undo *undo) (string, error) {
	before, err := nvmeDisks()
	if err != nil {
		return "", err
	}
	f, err := os.OpenFile(fabrics, os.O_RDWR, 0)
	if err != nil {
		return "", fmt.Errorf("peers: nvme: %w", err)
	}
	defer f.Close()
	// With a limit to reconnecting, a target that has gone is an error of the program over it, and not one that never ends.
	const options = "transport=rdma,traddr=%s,trsvcid=%s,nqn=%s,reconnect_delay=2,ctrl_loss_tmo=20"
	if _, err := fmt.Fprintf(f, options, addr, nvmePort, nqn); err != nil {
		return "", fmt.Errorf("peers: nvme: connect: %w (the kernel's log says why)", err)
	}
	answer, err := io.ReadAll(f)
	if err != nil {
		return "", fmt.Errorf("peers: nvme: %w", err)
	}
	var instance int
	if _, err := fmt.Sscanf(string(answer), "instance=%d", &instance); err != nil {
		return "", fmt.Errorf("peers: nvme: no instance in %q: %w", answer, err)
	}
	undo.add(func() error {
		return os.WriteFile(fmt.Sprintf("%s/nvme%d/delete_controller", nvmeClass, instance), []byte("1"), 0o644)
	})
	// The disk appears when the controller's namespaces have been read.
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		now, err := nvmeDisks()
		if err != nil {
			return "", err
		}
		for disk := range now {
			if !before[disk] {
				return disk, awaitNode(ctx, disk)
			}
		}
		if time.Now().After(deadline) {
			return "", errors.New("peers: nvme: the controller has no disk")
		}
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
	}
}

// nvmeDisks are the block devices of NVMe controllers; paths of a disk that has several are hidden.
func nvmeDisks() (map[string]bool, error) {
	names, err := filepath.Glob("/sys/block/nvme*")
	if err != nil {
		return nil, fmt.Errorf("peers: nvme: %w", err)
	}
	disks := map[string]bool{}
	for _, name := range names {
		hidden, err := os.ReadFile(filepath.Join(name, "hidden"))
		if err == nil && strings.TrimSpace(string(hidden)) == "0" {
			disks["/dev/"+filepath.Base(name)] = true
		}
	}
	return disks, nil
}

// awaitNode waits until a block device can be opened.
func awaitNode(ctx context.Context, device string) error {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		f, err := os.Open(device)
		if err == nil {
			return f.Close()
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return fmt.Errorf("peers: %w", err)
		}
	}
}
