// Package apt fetches packages from the distribution this machine is configured for, without touching
// what the machine has installed: lists and archives are private, only the mirror is borrowed.
package apt

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

// Source is one entry of apt's configuration: "deb" lines of .list files and stanzas of .sources files
// come to the same.
type Source struct {
	File       string
	URIs       []string
	Suites     []string
	Components []string
	// Fields are the options, by their deb822 names: Signed-By, Trusted and so on. A value may have
	// several lines (an inline key).
	Fields map[string]string
}

// Sources reads all enabled binary sources below an /etc/apt, in apt's order.
func Sources(etc string) ([]Source, error) {
	files := []string{filepath.Join(etc, "sources.list")}
	for _, pattern := range []string{"*.list", "*.sources"} {
		more, err := filepath.Glob(filepath.Join(etc, "sources.list.d", pattern))
		if err != nil {
			return nil, fmt.Errorf("apt: %w", err)
		}
		files = append(files, more...)
	}
	sort.Strings(files[1:])
	var out []Source
	for _, f := range files {
		b, err := os.ReadFile(f)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("apt: %w", err)
		}
		var found []Source
		if strings.HasSuffix(f, ".sources") {
			found = parseStanzas(string(b))
		} else {
			found = parseLines(string(b))
		}
		for i := range found {
			found[i].File = f
		}
		out = append(out, found...)
	}
	return out, nil
}

// parseLines reads the one-line format: deb [ option=value ... ] uri suite [component ...]
func parseLines(text string) []Source {
	var out []Source
	for s := bufio.NewScanner(strings.NewReader(text)); s.Scan(); {
		line, _, _ := strings.Cut(s.Text(), "#")
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "deb")
		if !ok || rest == "" || !strings.ContainsAny(rest[:1], " \t[") {
			continue
		}
		rest = strings.TrimSpace(rest)
		fields := map[string]string{}
		if strings.HasPrefix(rest, "[") {
			options, after, ok := strings.Cut(rest[1:], "]")
			if !ok {
				continue
			}
			for _, o := range strings.Fields(options) {
				if name, value, ok := strings.Cut(o, "="); ok {
					fields[canonical(name)] = strings.ReplaceAll(value, ",", " ")
				}
			}
			rest = after
		}
		w := strings.Fields(rest)
		if len(w) < 2 {
			continue
		}
		out = append(out, Source{URIs: w[:1], Suites: w[1:2], Components: w[2:], Fields: fields})
	}
	return out
}

// canonical spells a one-line option as deb822 does.
func canonical(option string) string {
	option = strings.TrimRight(strings.ToLower(option), "+-")
	switch option {
	case "arch":
		return "Architectures"
	case "lang":
		return "Languages"
	case "target":
		return "Targets"
	}
	words := strings.Split(option, "-")
	for i, w := range words {
		if w != "" {
			words[i] = strings.ToUpper(w[:1]) + w[1:]
		}
	}
	return strings.Join(words, "-")
}

// parseStanzas reads deb822.
func parseStanzas(text string) []Source {
	var out []Source
	fields, last := map[string]string{}, ""
	flush := func() {
		if s, ok := stanza(fields); ok {
			out = append(out, s)
		}
		fields, last = map[string]string{}, ""
	}
	for s := bufio.NewScanner(strings.NewReader(text)); s.Scan(); {
		line := s.Text()
		switch {
		case strings.HasPrefix(line, "#"):
		case strings.TrimSpace(line) == "":
			flush()
		case line[0] == ' ' || line[0] == '\t':
			if last != "" {
				fields[last] += "\n" + line
			}
		default:
			name, value, ok := strings.Cut(line, ":")
			if !ok {
				continue
			}
			last = fieldName(name)
			fields[last] = strings.TrimSpace(value)
		}
	}
	flush()
	return out
}

func fieldName(s string) string {
	s = strings.ToLower(strings.TrimSpace(s))
	switch s {
	case "uris":
		return "URIs"
	}
	return canonical(s)
}

func stanza(f map[string]string) (Source, bool) {
	binary := false
	for _, t := range strings.Fields(f["Types"]) {
		binary = binary || t == "deb"
	}
	enabled := strings.ToLower(f["Enabled"])
	if !binary || enabled == "no" || enabled == "false" {
		return Source{}, false
	}
	s := Source{
		URIs: strings.Fields(f["URIs"]), Suites: strings.Fields(f["Suites"]), Components: strings.Fields(f["Components"]),
		Fields: map[string]string{},
	}
	for name, value := range f {
		switch name {
		case "Types", "URIs", "Suites", "Components", "Enabled":
		default:
			s.Fields[name] = value
		}
	}
	return s, len(s.URIs) > 0 && len(s.Suites) > 0
}

// Mirror finds the source that carries the main archive of a release: the one to ask for the archive's
// other suites.
func Mirror(sources []Source, codename string) (Source, error) {
	best, score := Source{}, 0
	for _, s := range sources {
		if !has(s.Components, "main") {
			continue
		}
		for _, suite := range s.Suites {
			n := 0
			base, pocket, _ := strings.Cut(suite, "-")
			switch {
			case pocket == "security" || strings.Contains(suite, "/"):
			case suite == codename:
				n = 4
			case base == codename:
				n = 3
			case suite == "stable" || suite == "oldstable" || suite == "testing":
				n = 2
			}
			if n > score && !strings.HasPrefix(s.URIs[0], "cdrom:") {
				best, score = s, n
			}
		}
	}
	if score == 0 {
		return Source{}, fmt.Errorf("apt: no source in this machine's configuration carries %s main: the lab takes kernels and QEMU from Debian's archive; add one to /etc/apt/sources.list.d", codename)
	}
	return best, nil
}

// find returns the source of a suite's main component.
func find(sources []Source, suite string) (Source, bool) {
	for _, s := range sources {
		if has(s.Suites, suite) && has(s.Components, "main") {
			return s, true
		}
	}
	return Source{}, false
}

func has(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

// Codename reads VERSION_CODENAME of an os-release file.
func Codename(file string) (string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("apt: %w", err)
	}
	for s := bufio.NewScanner(strings.NewReader(string(b))); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), "VERSION_CODENAME="); ok {
			return strings.Trim(v, `"'`), nil
		}
	}
	return "", fmt.Errorf("apt: %s names no release", file)
}
