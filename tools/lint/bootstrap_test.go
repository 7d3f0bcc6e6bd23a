package lint

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The backports entry is the machine's own, with another suite: mirror, keys and options stay.
func TestBootstrapDerivesBackportsFromTheMachinesSources(t *testing.T) {
	script := filepath.Join(project(t).root, "tools", "bootstrap.sh")
	if _, err := exec.LookPath("bash"); err != nil {
		t.Skip("no bash")
	}
	for _, test := range []struct{ name, file, text, want string }{
		{"plain list", "a.list", "# deb cdrom\ndeb http://mirror.example/d bookworm main contrib\n",
			"deb http://mirror.example/d bookworm-backports main\n"},
		{"list with options", "a.list", "deb [ arch=amd64 signed-by=/k.gpg ] http://mirror.example/d bookworm main\n",
			"deb [ arch=amd64 signed-by=/k.gpg ] http://mirror.example/d bookworm-backports main\n"},
		{"list by name of the release", "a.list", "deb cdrom:[x]/ stable main\ndeb-src http://no.example/d bookworm main\ndeb http://mirror.example/d oldstable main\n",
			"deb http://mirror.example/d bookworm-backports main\n"},
		{"only others in the list", "a.list", "deb http://mirror.example/d bookworm-security main\ndeb http://other.example/x nodistro main\n", ""},
		{"sources", "a.sources", "Types: deb deb-src\n# a comment\nURIs: http://mirror.example/d\nSuites: bookworm bookworm-updates\nComponents: main\n contrib\nSigned-By: /k.gpg\n\n" +
			"Types: deb\nURIs: http://security.example/d\nSuites: bookworm-security\nComponents: main\n",
			"Types: deb\nURIs: http://mirror.example/d\nSuites: bookworm-backports\nComponents: main\nSigned-By: /k.gpg\n"},
		{"sources with a key inside", "a.sources", "Types: deb\nURIs: http://mirror.example/d\nSuites: bookworm\nComponents: main\nSigned-By:\n -----BEGIN\n .\n abc\n",
			"Types: deb\nURIs: http://mirror.example/d\nSuites: bookworm-backports\nComponents: main\nSigned-By:\n -----BEGIN\n .\n abc\n"},
		{"sources switched off", "a.sources", "Enabled: no\nTypes: deb\nURIs: http://mirror.example/d\nSuites: bookworm\nComponents: main\n\n" +
			"Types: deb-src\nURIs: http://source.example/d\nSuites: bookworm\nComponents: main\n", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), test.file)
			if err := os.WriteFile(file, []byte(test.text), 0o644); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command(script, "--backports-of", "bookworm", file).Output()
			if string(out) != test.want || (err == nil) != (test.want != "") {
				t.Errorf("derived %q (%v), want %q", out, err, test.want)
			}
		})
	}
}

// Kernels and QEMU are fetched with apt; without it, what is here has to do.
func TestBootstrapProbesTheLabWithoutApt(t *testing.T) {
	script := filepath.Join(project(t).root, "tools", "bootstrap.sh")
	const noKernel, noQEMU = "has none yet", "QEMU 7.2 or newer"
	for _, test := range []struct {
		name    string
		tools   []string // that there are, too
		version string   // of the machine's own QEMU
		cached  []string
		want    string
	}{
		{"apt", []string{"apt-get", "apt-cache", "dpkg-deb"}, "", nil, ""},
		{"half an apt", []string{"apt-get", "apt-cache"}, "10.0.2", nil, noKernel},
		{"nothing", nil, "", nil, noKernel},
		{"a kernel", nil, "", []string{"kernel/6.12/6.12.1-amd64/vmlinuz"}, noQEMU},
		{"another kernel", nil, "10.0.2", []string{"kernel/6.1/6.1.1-amd64/vmlinuz"}, noKernel},
		{"kernel and old QEMU", nil, "6.2.0", []string{"kernel/6.12/6.12.1-amd64/vmlinuz"}, noQEMU},
		{"kernel and QEMU", nil, "10.0.2", []string{"kernel/6.12/6.12.1-amd64/vmlinuz"}, ""},
		{"both fetched before", nil, "", []string{"kernel/6.12/6.12.1-amd64/vmlinuz", "qemu/7.2-7/qemu-system-x86_64"}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			bin, cache := t.TempDir(), t.TempDir()
			for _, tool := range []string{"awk", "dirname", "head", "paste", "sed", "sort", "uname"} {
				path, err := exec.LookPath(tool)
				if err != nil {
					t.Skip(err)
				}
				if err := os.Symlink(path, filepath.Join(bin, tool)); err != nil {
					t.Fatal(err)
				}
			}
			write := func(file, text string) {
				if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, []byte(text), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			for _, tool := range test.tools {
				write(filepath.Join(bin, tool), "#!/bin/sh\n")
			}
			if test.version != "" {
				write(filepath.Join(bin, "qemu-system-x86_64"), "#!/bin/sh\necho QEMU emulator version "+test.version+"\n")
			}
			for _, file := range test.cached {
				write(filepath.Join(cache, "ironspan", file), "")
			}
			cmd := exec.Command(script, "--probe-lab")
			cmd.Env = []string{"PATH=" + bin, "XDG_CACHE_HOME=" + cache}
			// The status depends on this machine's packages, too.
			out, _ := cmd.Output()
			for _, reason := range []string{noKernel, noQEMU} {
				if got := strings.Contains(string(out), reason); got != (reason == test.want) {
					t.Errorf("%q is said: %v; all of it: %s", reason, got, out)
				}
			}
		})
	}
}
