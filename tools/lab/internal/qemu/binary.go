package qemu

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// program is looked for in PATH.
const program = "qemu-system-x86_64"

// QEMU is a QEMU on this machine. The zero QEMU is none.
type QEMU struct {
	Path  string `json:"path"`  // the program, or the folder of one that was fetched
	Major int    `json:"major"` // version
	Minor int    `json:"minor"`
	// Fetched ones bring their libraries along and run with nothing of this machine's.
	Fetched bool `json:"fetched"`
}

func (q QEMU) String() string {
	if q.Path == "" {
		return "no QEMU"
	}
	return fmt.Sprintf("QEMU %d.%d (%s)", q.Major, q.Minor, q.Path)
}

func (q QEMU) atLeast(major, minor int) bool {
	return q.Major > major || q.Major == major && q.Minor >= minor
}

// usable: 7.2 brought the stream sockets of the wire.
func (q QEMU) usable() bool { return q.atLeast(7, 2) }

// ShadowPaging says whether KVM in a server that this QEMU emulates can run guests with shadow paging
// (kvm_amd.npt=0). From 9.1 on QEMU takes a guest's reads of CR3, CR4 and CR8 for reads of CR0 when it looks whether
// they are intercepted, so that the guest sees the CR3 of the shadow instead of its own.
func (q QEMU) ShadowPaging() bool { return q.usable() && !q.atLeast(9, 1) }

func (q QEMU) command(ctx context.Context, args ...string) *exec.Cmd {
	if !q.Fetched {
		return exec.CommandContext(ctx, q.Path, args...)
	}
	in := func(name string) string { return filepath.Join(q.Path, name) }
	loader := []string{"--library-path", in(libraries), "--argv0", program, in(program), "-L", in(firmware)}
	cmd := exec.CommandContext(ctx, in(loaderFile), append(loader, args...)...)
	// Accelerators are plug-ins, and QEMU takes only those of its own build.
	cmd.Env = append(cmd.Environ(), "QEMU_MODULE_DIR="+in(plugins))
	return cmd
}

// probe asks a QEMU for its version.
func (q QEMU) probe(ctx context.Context) (QEMU, error) {
	out, err := q.command(ctx, "--version").Output()
	if ctx.Err() != nil {
		return QEMU{}, errors.New("qemu: interrupted")
	}
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
		}
		return QEMU{}, fmt.Errorf("qemu: %s --version: %w", q.Path, err)
	}
	if q.Major, q.Minor, err = parseVersion(string(out)); err != nil {
		return QEMU{}, err
	}
	if !q.usable() {
		return QEMU{}, fmt.Errorf("qemu: %s is %d.%d, and the lab needs 7.2 or newer", q.Path, q.Major, q.Minor)
	}
	return q, nil
}

var versionRE = regexp.MustCompile(`QEMU emulator version (\d+)\.(\d+)`)

// parseVersion reads the first line of qemu --version.
func parseVersion(out string) (major, minor int, err error) {
	m := versionRE.FindStringSubmatch(out)
	if m == nil {
		return 0, 0, fmt.Errorf("qemu: no version in %q", out)
	}
	major, _ = strconv.Atoi(m[1])
	minor, _ = strconv.Atoi(m[2])
	return major, minor, nil
}

// Installed returns the QEMU that this machine itself has in PATH, if it is new enough.
func Installed(ctx context.Context) (QEMU, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		return QEMU{}, fmt.Errorf("qemu: %s is not installed", program)
	}
	return QEMU{Path: path}.probe(ctx)
}

// Usable returns a QEMU that is on this machine already; if there is none, it says why.
func Usable(ctx context.Context) (q QEMU, reason string) {
	q, err := Cached(ctx)
	if err == nil {
		return q, ""
	}
	if q, err = Installed(ctx); err != nil {
		return QEMU{}, err.Error()
	}
	return q, ""
}
