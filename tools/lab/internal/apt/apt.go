package apt

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

var errInterrupted = errors.New("apt: interrupted")

const (
	etc       = "/etc/apt"
	osRelease = "/etc/os-release"
	// archiveKeys has the keys of all releases; a source's own Signed-By may name one release's only.
	archiveKeys = "/usr/share/keyrings/debian-archive-keyring.gpg"
)

// Archive is a suite of this machine's mirror, with private lists and downloads.
type Archive struct {
	Suite    string
	dir      string
	lock     *os.File // held from Open to Close: apt, and the caches filled from here, are for one process at a time
	progress func(format string, args ...any)
}

// Package is one version of a package in the archive.
type Package struct {
	Name    string
	Version string
	Depends []string // names, alternatives and versions dropped
	Size    int64    // of the .deb
}

// Open prepares a suite for this process alone, waiting for others that use it. progress is told what takes time.
func Open(ctx context.Context, suite string, progress func(format string, args ...any)) (*Archive, error) {
	for _, tool := range []string{"apt-get", "apt-cache", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, fmt.Errorf("apt: %s is missing: kernels and QEMU come from Debian packages", tool)
		}
	}
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	a := &Archive{Suite: suite, dir: filepath.Join(cache, "apt", suite), progress: progress}
	for _, d := range []string{"sources", "lists/partial", "cache/archives/partial", "debs"} {
		if err := os.MkdirAll(filepath.Join(a.dir, d), 0o755); err != nil {
			return nil, fmt.Errorf("apt: %w", err)
		}
	}
	if a.lock, err = os.OpenFile(a.dir+".lock", os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return nil, fmt.Errorf("apt: %w", err)
	}
	err = a.wait(ctx)
	if err == nil {
		err = a.configure()
	}
	if err != nil {
		a.Close()
		return nil, err
	}
	return a, nil
}

// Close lets other processes have the suite.
func (a *Archive) Close() error { return a.lock.Close() }

// wait takes the lock.
func (a *Archive) wait(ctx context.Context) error {
	if unix.Flock(int(a.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		return nil
	}
	a.progress("another process is fetching from %s; waiting", a.Suite)
	got := make(chan error, 1)
	go func() { got <- unix.Flock(int(a.lock.Fd()), unix.LOCK_EX) }()
	select {
	case err := <-got:
		return err
	case <-ctx.Done():
		return errInterrupted
	}
}

// configure writes apt's configuration for the suite, derived from the machine's.
func (a *Archive) configure() error {
	codename, err := Codename(osRelease)
	if err != nil {
		return err
	}
	sources, err := Sources(etc)
	if err != nil {
		return err
	}
	mirror, err := Mirror(sources, codename)
	if err != nil {
		return err
	}
	if _, err := os.Stat(archiveKeys); err == nil && !strings.Contains(mirror.Fields["Signed-By"], "\n") && mirror.Fields["Trusted"] == "" {
		mirror.Fields["Signed-By"] = archiveKeys
	}
	text := render(mirror, a.Suite)
	// Security updates come from a place of their own, if this machine knows one.
	if security, ok := find(sources, a.Suite+"-security"); ok {
		text += "\n" + render(security, a.Suite+"-security")
	}
	if err := os.WriteFile(filepath.Join(a.dir, "sources", "lab.sources"), []byte(text), 0o644); err != nil {
		return fmt.Errorf("apt: %w", err)
	}
	if err := os.WriteFile(filepath.Join(a.dir, "apt.conf"), []byte(a.conf()), 0o644); err != nil {
		return fmt.Errorf("apt: %w", err)
	}
	return nil
}

// render writes a stanza for another suite of the same mirror.
func render(mirror Source, suite string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nTargets: Packages\n",
		strings.Join(mirror.URIs, " "), suite)
	var names []string
	for n := range mirror.Fields {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		switch n {
		case "Targets", "Languages", "Architectures", "Pdiffs":
		default:
			fmt.Fprintf(&b, "%s: %s\n", n, mirror.Fields[n])
		}
	}
	return b.String()
}

// conf keeps the machine's proxies and credentials, and drops hooks that are about the machine's own
// packages.
func (a *Archive) conf() string {
	q := func(s string) string { return `"` + filepath.Join(a.dir, s) + `"` }
	return `#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Post-Invoke;
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts ` + q("sources") + `;
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State::lists ` + q("lists") + `;
Dir::Cache ` + q("cache") + `;
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
APT::Sandbox::User "root";
APT::Default-Release "";
APT::Get::List-Cleanup "true";
Acquire::Languages "none";
Acquire::Retries "3";
`
}

func (a *Archive) command(ctx context.Context, tool string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, tool, append([]string{"-c", filepath.Join(a.dir, "apt.conf")}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	cmd.Dir = filepath.Join(a.dir, "debs")
	// Its own group: Ctrl-C is handled here, and takes apt's helpers along.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

func (a *Archive) run(ctx context.Context, tool string, args ...string) ([]byte, error) {
	cmd := a.command(ctx, tool, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if ctx.Err() != nil {
		return nil, errInterrupted
	}
	if err != nil {
		return out, fmt.Errorf("apt: %s %s: %w: %s", tool, args[0], err, lastLines(stderr.String()+string(out), 6))
	}
	return out, nil
}

func lastLines(s string, n int) string {
	l := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(l[max(0, len(l)-n):], "; ")
}

// Update gets the suite's package lists.
func (a *Archive) Update(ctx context.Context) error {
	a.progress("package lists of %s", a.Suite)
	_, err := a.run(ctx, "apt-get", "update", "-q", "--error-on=any")
	return err
}

// Names lists packages by the start of their names.
func (a *Archive) Names(ctx context.Context, prefix string) ([]string, error) {
	out, err := a.run(ctx, "apt-cache", "pkgnames", prefix)
	return strings.Fields(string(out)), err
}

// Show describes the newest version of a package in the suite.
func (a *Archive) Show(ctx context.Context, name string) (*Package, error) {
	out, err := a.run(ctx, "apt-cache", "show", "--no-all-versions", name)
	if err != nil {
		return nil, err
	}
	return parsePackage(string(out))
}

var dependRE = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+`)

func parsePackage(text string) (*Package, error) {
	p := &Package{}
	for s := bufio.NewScanner(strings.NewReader(text)); s.Scan(); {
		name, value, ok := strings.Cut(s.Text(), ": ")
		if !ok {
			continue
		}
		switch name {
		case "Package":
			p.Name = value
		case "Version":
			p.Version = value
		case "Size":
			fmt.Sscan(value, &p.Size)
		case "Pre-Depends", "Depends":
			for _, d := range strings.Split(value, ",") {
				if n := dependRE.FindString(strings.TrimSpace(d)); n != "" {
					p.Depends = append(p.Depends, n)
				}
			}
		}
	}
	if p.Name == "" || p.Version == "" {
		return nil, fmt.Errorf("apt: no package in %q", lastLines(text, 2))
	}
	return p, nil
}

// Closure lists a package and then all that it needs, recommendations left out, as for a machine that has nothing
// yet.
func (a *Archive) Closure(ctx context.Context, name string) ([]*Package, error) {
	out, err := a.run(ctx, "apt-get", "install", "-qq", "-y", "--print-uris", "--no-install-recommends",
		"-o", "Dir::State::status=/dev/null", name)
	if err != nil {
		return nil, err
	}
	return parseURIs(string(out), name)
}

// parseURIs reads what apt-get --print-uris says, the package of that name first: 'URI' NAME_VERSION_ARCH.deb SIZE HASH
func parseURIs(text, name string) ([]*Package, error) {
	var out []*Package
	for s := bufio.NewScanner(strings.NewReader(text)); s.Scan(); {
		field := strings.Fields(s.Text())
		if len(field) < 3 || !strings.HasPrefix(field[0], "'") {
			continue
		}
		part := strings.Split(field[1], "_")
		if len(part) != 3 {
			return nil, fmt.Errorf("apt: no package in %q", s.Text())
		}
		version, err := url.PathUnescape(part[1])
		if err != nil {
			return nil, fmt.Errorf("apt: no version in %q", s.Text())
		}
		size, err := strconv.ParseInt(field[2], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("apt: no size in %q", s.Text())
		}
		out = append(out, &Package{Name: part[0], Version: version, Size: size})
	}
	i := slices.IndexFunc(out, func(p *Package) bool { return p.Name == name })
	if i < 0 {
		return nil, fmt.Errorf("apt: %s is not among the packages it needs: %q", name, lastLines(text, 2))
	}
	out[0], out[i] = out[i], out[0]
	return out, nil
}

// download gets packages and returns their .debs, which are the caller's to remove.
func (a *Archive) download(ctx context.Context, packages []*Package) ([]string, error) {
	debs := filepath.Join(a.dir, "debs", "*.deb")
	old, err := filepath.Glob(debs)
	if err != nil {
		return nil, fmt.Errorf("apt: %w", err)
	}
	for _, f := range old {
		os.Remove(f)
	}
	args := []string{"download", "-q"}
	var size int64
	for _, p := range packages {
		args = append(args, p.Name+"="+p.Version)
		size += p.Size
	}
	what := packages[0].Name
	if n := len(packages) - 1; n > 0 {
		what += fmt.Sprintf(" and %d others", n)
	}
	a.progress("downloading %s, version %s, %d MB", what, packages[0].Version, size>>20)
	done := make(chan struct{})
	defer close(done)
	go a.watch(packages[0].Name, size, done)
	if _, err := a.run(ctx, "apt-get", args...); err != nil {
		return nil, err
	}
	found, err := filepath.Glob(debs)
	if err != nil || len(found) != len(packages) {
		return nil, fmt.Errorf("apt: %s: downloaded %d files, not %d: %v", what, len(found), len(packages), err)
	}
	return found, nil
}

func (a *Archive) watch(what string, size int64, done <-chan struct{}) {
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
		}
		var have int64
		for _, d := range []string{"debs", "cache/archives/partial"} {
			files, _ := filepath.Glob(filepath.Join(a.dir, d, "*.deb*"))
			for _, f := range files {
				if st, err := os.Stat(f); err == nil {
					have += st.Size()
				}
			}
		}
		a.progress("%s: %d of %d MB", what, have>>20, size>>20)
	}
}
