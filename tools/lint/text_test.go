package lint

import (
	"bytes"
	"path"
	"regexp"
	"strings"
	"testing"
)

// forbidden is what no committed file says. The patterns are written so that they do not match themselves.
var forbidden = []struct {
	what    string
	pattern *regexp.Regexp
	except  func(file string) bool
}{
	{"a mark of unfinished work", regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XX` + `X)\b`), nil},
	{"a path of somebody's machine", regexp.MustCompile(`(^|[^\w./-])/(work|root|home|Users)/[\w.]`), nil},
	{"a fixed name in the folder for temporary files", regexp.MustCompile(`(^|[^\w./-])/tmp/[\w.]`), nil},
	{"the host of a package registry: read it from the machine's own configuration", regexp.MustCompile(
		`(?i)\b(([\w-]+\.)*debian\.` + `org/debian|deb\.debian\.` + `org|security\.debian\.` + `org|snapshot\.debian\.` + `org|` +
			`archive\.ubuntu\.` + `com|(proxy|sum)\.golang\.` + `org|docker\.` + `io|ghcr\.` + `io|quay\.` + `io|pypi\.` + `org|registry\.npmjs\.` + `org)\b`), nil},
	{"a conflict marker", regexp.MustCompile(`^(<{7}|>{7}|={7})( |$)`), nil},
	{"white space at the end of the line", regexp.MustCompile(`[ \t]$`), func(file string) bool {
		return file == "LICENSE" || path.Ext(file) == ".go" // gofmt sees to it
	}},
}

func TestFilesDoNotSay(t *testing.T) {
	tree := project(t)
	for _, file := range tree.files {
		if path.Ext(file) == ".sum" || strings.Contains("/"+file, "/testdata/") {
			continue
		}
		text := tree.read(t, file)
		if bytes.IndexByte([]byte(text), 0) >= 0 {
			continue // not text
		}
		for n, line := range strings.Split(text, "\n") {
			for _, rule := range forbidden {
				if (rule.except == nil || !rule.except(file)) && rule.pattern.MatchString(line) {
					t.Errorf("%s:%d: %s: %q", file, n+1, rule.what, rule.pattern.FindString(line))
				}
			}
		}
		if text != "" && !strings.HasSuffix(text, "\n") {
			t.Errorf("%s: the last line has no end", file)
		}
	}
}

func TestForbiddenPatterns(t *testing.T) {
	for line, wrong := range map[string]bool{
		"// TO" + "DO: later":                      true,
		"mktemp -d ironspan.XXXXXX":                false,
		`path := "/wo` + `rk/main/bin"`:            true,
		"see /ho" + "me/me/x":                      true,
		"\"/tm" + "p/lab.sock\"":                   true,
		"a fresh /tmp and /run":                    false,
		"${TMPDIR:-/tmp}/ironspan":                 false,
		"build/root/x and ../wo" + "rk/x":          false,
		"deb http://deb.debian.o" + "rg/debian x":  true,
		"GOPROXY=https://proxy." + "golang.org":    true,
		"import \"golang.org/x/sys/unix\"":         false,
		"https://www.debian.org/releases/bookworm": false,
	} {
		matched := false
		for _, rule := range forbidden {
			matched = matched || rule.pattern.MatchString(line)
		}
		if matched != wrong {
			t.Errorf("%q: forbidden is %v, want %v", line, matched, wrong)
		}
	}
}

var (
	linkPattern    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	makePattern    = regexp.MustCompile("`make ([a-z-]+)`")
	targetPattern  = regexp.MustCompile(`(?m)^([a-z-]+):`)
	headingPattern = regexp.MustCompile(`(?m)^#+ +(.+?) *#*$`)
	fencePattern   = regexp.MustCompile("(?ms)^ *```.*?^ *```")
)

func TestLinksLead(t *testing.T) {
	tree := project(t)
	for _, file := range tree.files {
		if path.Ext(file) != ".md" {
			continue
		}
		text := fencePattern.ReplaceAllString(tree.read(t, file), "")
		for _, match := range linkPattern.FindAllStringSubmatch(text, -1) {
			link := match[1]
			if strings.Contains(link, "://") || strings.HasPrefix(link, "mailto:") {
				continue
			}
			target, anchor, _ := strings.Cut(link, "#")
			to := file
			if target != "" {
				to = path.Join(path.Dir(file), target)
			}
			if strings.HasPrefix(to, "../") || !tree.exists(to) {
				t.Errorf("%s: the link to %s leads nowhere", file, link)
				continue
			}
			if anchor != "" && path.Ext(to) == ".md" && !anchors(tree.read(t, to))[anchor] {
				t.Errorf("%s: %s has no heading #%s", file, to, anchor)
			}
		}
	}
}

// anchors are the names under which a page's headings can be linked, as the common renderers make them.
func anchors(text string) map[string]bool {
	names := map[string]bool{}
	for _, match := range headingPattern.FindAllStringSubmatch(fencePattern.ReplaceAllString(text, ""), -1) {
		name := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-' || r == '_' || r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r > 127:
				return r
			}
			return -1
		}, strings.ToLower(match[1]))
		names[name] = true
	}
	return names
}

func TestAnchors(t *testing.T) {
	got := anchors("# Ironspan: a `VM`\n\n```\n# not this\n```\n## Two words, 3 tiers\n")
	for _, want := range []string{"ironspan-a-vm", "two-words-3-tiers"} {
		if !got[want] {
			t.Errorf("no anchor %s in %v", want, got)
		}
	}
	if len(got) != 2 {
		t.Errorf("anchors %v", got)
	}
}

// What the documents tell people to make can be made.
func TestDocumentedTargetsExist(t *testing.T) {
	tree := project(t)
	targets := map[string]bool{}
	for _, match := range targetPattern.FindAllStringSubmatch(tree.read(t, "Makefile"), -1) {
		targets[match[1]] = true
	}
	for _, file := range tree.files {
		if path.Ext(file) != ".md" {
			continue
		}
		for _, match := range makePattern.FindAllStringSubmatch(tree.read(t, file), -1) {
			if !targets[match[1]] {
				t.Errorf("%s: the Makefile has no target %s", file, match[1])
			}
		}
	}
}

func TestModuleStandsAlone(t *testing.T) {
	text := project(t).read(t, "go.mod")
	if !strings.HasPrefix(text, "module "+module+"\n") {
		t.Errorf("go.mod begins with %.30q", text)
	}
	for _, word := range []string{"replace", "exclude"} {
		if regexp.MustCompile(`(?m)^` + word + `\b`).MatchString(text) {
			t.Errorf("go.mod has a %s directive: others build with the modules as published", word)
		}
	}
}
