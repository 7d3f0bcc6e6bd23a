package plots

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"ironspan/perf/internal/result"
)

// group is a set of series that one figure shows.
type group struct {
	name   string // the part of their names that they share, or what else they have in common
	series []*result.Series
}

// together is how many series one figure has at most, if it can be avoided.
const together = 8

// byFolder groups series by the first parts of their names: as few parts as leave no more than together in a group.
func byFolder(all []*result.Series) []group {
	return divide("", all)
}

// divide groups series whose names begin alike.
func divide(prefix string, all []*result.Series) []group {
	if len(all) == 0 {
		return nil
	}
	inner := map[string][]*result.Series{}
	var order []string
	for _, s := range all {
		name := next(prefix, s.Name)
		if inner[name] == nil {
			order = append(order, name)
		}
		inner[name] = append(inner[name], s)
	}
	fits := len(all) <= together && prefix != ""
	if fits || len(order) == 1 && order[0] == prefix {
		return []group{{prefix, all}}
	}
	var groups []group
	rest := group{name: prefix}
	for _, name := range order {
		if len(inner[name]) < 2 && prefix != "" { // alone in its folder: with the others of that kind
			rest.series = append(rest.series, inner[name]...)
			continue
		}
		groups = append(groups, divide(name, inner[name])...)
	}
	if len(rest.series) > 0 {
		groups = append(groups, rest)
	}
	return groups
}

// next is the prefix and one more part of the name, if it has one.
func next(prefix, name string) string {
	if name == prefix {
		return prefix
	}
	rest := strings.TrimPrefix(strings.TrimPrefix(name, prefix), "/")
	part, _, _ := strings.Cut(rest, "/")
	return strings.TrimPrefix(prefix+"/"+part, "/")
}

// shared are the labels that all series have with one value.
func shared(all []*result.Series) result.Labels {
	common := maps.Clone(all[0].Labels)
	for _, s := range all[1:] {
		maps.DeleteFunc(common, func(label, value string) bool { return s.Labels[label] != value })
	}
	return common
}

// title names a group: the name, and the labels that its series share.
func (g group) title(without ...string) string {
	words := []string{g.name}
	if g.oneName() {
		words[0] = g.series[0].Name
	}
	common := shared(g.series)
	for _, label := range slices.Sorted(maps.Keys(common)) {
		if !slices.Contains(without, label) {
			words = append(words, said(label, common[label]))
		}
	}
	return strings.Join(words, ", ")
}

// short names a series within its group: what the title does not say.
func (g group) short(s *result.Series, without ...string) string {
	var words []string
	if rest := strings.TrimPrefix(strings.TrimPrefix(s.Name, g.name), "/"); rest != "" && !g.oneName() {
		words = append(words, rest)
	}
	common := shared(g.series)
	for _, label := range slices.Sorted(maps.Keys(s.Labels)) {
		if _, found := common[label]; !found && !slices.Contains(without, label) {
			words = append(words, said(label, s.Labels[label]))
		}
	}
	if len(words) == 0 {
		return s.Name
	}
	return strings.Join(words, ", ")
}

// said is a label with its value, in units if it is a number of something.
func said(label, value string) string {
	if x, err := strconv.ParseFloat(value, 64); err == nil {
		value = labelFormat(label)(x)
	}
	return label + " " + value
}

func (g group) oneName() bool {
	return !slices.ContainsFunc(g.series, func(s *result.Series) bool { return s.Name != g.series[0].Name })
}

var notInFiles = regexp.MustCompile(`[^a-zA-Z0-9.]+`)

// fileName makes a name for files of words, of a hundred characters at most.
func fileName(words ...string) string {
	name := strings.ToLower(strings.Trim(notInFiles.ReplaceAllString(strings.Join(words, "-"), "-"), "-"))
	return strings.TrimRight(name[:min(len(name), 100)], "-") // all of them are ASCII
}
