package lint

import (
	"os"
	"os/exec"
	"path/filepath"
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
