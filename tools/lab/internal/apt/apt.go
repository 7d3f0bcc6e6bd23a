package apt

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"syscall"
	"time"
)

const (
	etc       = "/etc/apt"
	osRelease = "/etc/os-release"
	// archiveKeys has the keys of all releases; a source's own Signed-By may name one release's only.
	archiveKeys = "/usr/share/keyrings/debian-archive-keyring.gpg"
)

// Archive is some suites of this machine's mirror, with private lists and downloads.
type Archive struct {
	dir      string
	Suites   []string
	Codename string // of this machine
	// Progress, if set, is told what takes time.
	Progress func(format string, args ...any)
}

// Package is one version of a package in the archive.
type Package struct {
	Name    string
	Version string
	Depends []string // names, alternatives and versions dropped
	Size    int64    // of the .deb
}

// Open prepares an archive in dir. A suite that starts with "-" is a pocket of this machine's own release
// ("-backports"), "" is the release itself.
func Open(dir string, suites ...string) (*Archive, error) {
	for _, tool := range []string{"apt-get", "apt-cache", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, fmt.Errorf("apt: %s is missing: kernels and QEMU come from Debian packages", tool)
		}
	}
	codename, err := Codename(osRelease)
	if err != nil {
		return nil, err
	}
	sources, err := Sources(etc)
	if err != nil {
		return nil, err
	}
	mirror, err := Mirror(sources, codename)
	if err != nil {
		return nil, err
	}
	a := &Archive{dir: dir, Codename: codename, Progress: func(string, ...any) {}}
	for _, s := range suites {
		if s == "" || strings.HasPrefix(s, "-") {
			s = codename + s
		}
		a.Suites = append(a.Suites, s)
	}
	for _, d := range []string{"sources", "lists/partial", "cache/archives/partial", "debs"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, fmt.Errorf("apt: %w", err)
		}
	}
	if _, err := os.Stat(archiveKeys); err == nil && !strings.Contains(mirror.Fields["Signed-By"], "\n") && mirror.Fields["Trusted"] == "" {
		mirror.Fields["Signed-By"] = archiveKeys
	}
	text := render(mirror, a.Suites)
	for _, s := range a.Suites {
		// Security updates come from a place of their own, if this machine knows one.
		if security, ok := find(sources, s+"-security"); ok {
			text += "\n" + render(security, []string{s + "-security"})
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "sources", "lab.sources"), []byte(text), 0o644); err != nil {
		return nil, fmt.Errorf("apt: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "apt.conf"), []byte(a.conf()), 0o644); err != nil {
		return nil, fmt.Errorf("apt: %w", err)
	}
	return a, nil
}

// render writes a stanza for other suites of the same mirror.
func render(mirror Source, suites []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nTargets: Packages\n",
		strings.Join(mirror.URIs, " "), strings.Join(suites, " "))
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
		return nil, errors.New("apt: interrupted")
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

// Update gets the suites' package lists.
func (a *Archive) Update(ctx context.Context) error {
	a.Progress("package lists of %s", strings.Join(a.Suites, ", "))
	out, err := a.run(ctx, "apt-get", "update", "-q", "--error-on=any")
	if err != nil {
		return fmt.Errorf("%w (%s)", err, lastLines(string(out), 3))
	}
	return nil
}

// Names lists packages by the start of their names.
func (a *Archive) Names(ctx context.Context, prefix string) ([]string, error) {
	out, err := a.run(ctx, "apt-cache", "pkgnames", prefix)
	return strings.Fields(string(out)), err
}

// Show describes the newest version of a package in the suites.
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

// Download gets a package and returns the .deb, which is the caller's to remove.
func (a *Archive) Download(ctx context.Context, p *Package) (string, error) {
	debs := filepath.Join(a.dir, "debs")
	old, err := filepath.Glob(filepath.Join(debs, p.Name+"_*"))
	if err != nil {
		return "", fmt.Errorf("apt: %w", err)
	}
	for _, f := range old {
		os.Remove(f)
	}
	a.Progress("downloading %s %s, %d MB", p.Name, p.Version, p.Size>>20)
	done := make(chan struct{})
	defer close(done)
	go a.watch(p, done)
	if _, err := a.run(ctx, "apt-get", "download", "-q", p.Name+"="+p.Version); err != nil {
		return "", err
	}
	found, err := filepath.Glob(filepath.Join(debs, p.Name+"_*.deb"))
	if err != nil || len(found) != 1 {
		return "", fmt.Errorf("apt: %s was downloaded to %d files: %v", p.Name, len(found), err)
	}
	return found[0], nil
}

func (a *Archive) watch(p *Package, done <-chan struct{}) {
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
			files, _ := filepath.Glob(filepath.Join(a.dir, d, p.Name+"_*"))
			for _, f := range files {
				if st, err := os.Stat(f); err == nil {
					have += st.Size()
				}
			}
		}
		a.Progress("%s: %d of %d MB", p.Name, have>>20, p.Size>>20)
	}
}

// Install installs packages on this machine, from the archive's last suite where it has them. It needs
// root.
func (a *Archive) Install(ctx context.Context, packages ...string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("apt: installing %s needs root: run this once with sudo, or install it from %s yourself",
			strings.Join(packages, ", "), a.Suites[len(a.Suites)-1])
	}
	a.Progress("installing %s from %s", strings.Join(packages, ", "), a.Suites[len(a.Suites)-1])
	args := append([]string{"install", "-q", "-y", "--no-install-recommends", "-t", a.Suites[len(a.Suites)-1]}, packages...)
	_, err := a.run(ctx, "apt-get", args...)
	return err
}
