package plots

import (
	"fmt"
	"slices"

	"ironspan/perf/internal/result"
)

// figures are all that a run has something for.
func figures(r *result.Run) ([]*figure, error) {
	var all []*figure
	for _, find := range []func(*result.Run) ([]*figure, error){verdicts, distributions, ratios, breakdowns, overLabels} {
		found, err := find(r)
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	taken := map[string]int{}
	for _, f := range all {
		if taken[f.name]++; taken[f.name] > 1 {
			f.name = fmt.Sprintf("%s-%d", f.name, taken[f.name])
		}
	}
	return all, nil
}

// sampled are the series with samples, and with durations: distributions of other things are not worth a figure.
func sampled(all []*result.Series) []*result.Series {
	return keep(all, func(s *result.Series) bool { return s.Histogram != nil && s.Unit == result.Latency.Unit })
}

func keep(all []*result.Series, good func(*result.Series) bool) []*result.Series {
	var kept []*result.Series
	for _, s := range all {
		if good(s) {
			kept = append(kept, s)
		}
	}
	return kept
}

func distributions(r *result.Run) ([]*figure, error) {
	var all []*figure
	for _, g := range byFolder(sampled(r.Series)) {
		f, err := cdf(g, fileName("cdf", g.name))
		if err != nil {
			return nil, err
		}
		all = append(all, f)
	}
	return all, nil
}

// ratios are the distributions of what a ratio is made of.
func ratios(r *result.Run) ([]*figure, error) {
	var all []*figure
	for _, ratio := range r.Ratios {
		keys := slices.Concat(ratio.Numerator, ratio.Denominator)
		members := sampled(keep(r.Series, func(s *result.Series) bool { return slices.Contains(keys, s.Key()) }))
		if len(members) < 2 {
			continue
		}
		f, err := cdf(group{name: "", series: members}, fileName("cdf-ratio", ratio.Name))
		if err != nil {
			return nil, err
		}
		f.title = ratio.Name
		all = append(all, f)
	}
	return all, nil
}

func breakdowns(r *result.Run) ([]*figure, error) {
	var all []*figure
	staged := keep(r.Series, func(s *result.Series) bool { return len(s.Stages) > 0 && s.Count > 0 })
	for _, g := range byFolder(staged) {
		f, err := stages(g, fileName("stages", g.name))
		if err != nil {
			return nil, err
		}
		all = append(all, f)
	}
	return all, nil
}

// overLabels are the curves, those of one label, one measure and one folder together.
func overLabels(r *result.Run) ([]*figure, error) {
	var all []*figure
	for _, label := range labels(r.Series) {
		for _, m := range measures(r.Series) {
			lines := curves(keep(r.Series, func(s *result.Series) bool { return s.Measure == m }), label)
			first := map[*result.Series]curve{}
			var heads []*result.Series
			for _, c := range lines {
				first[c.series[0]] = c
				heads = append(heads, c.series[0])
			}
			for _, g := range byFolder(heads) {
				var members []curve
				for _, s := range g.series {
					members = append(members, first[s])
				}
				f, err := over(g, label, members, fileName("over", label, g.name, measureName(m)))
				if err != nil {
					return nil, err
				}
				all = append(all, f)
			}
		}
	}
	return all, nil
}

func labels(all []*result.Series) []string {
	var names []string
	for _, s := range all {
		for name := range s.Labels {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func measures(all []*result.Series) []result.Measure {
	var found []result.Measure
	for _, s := range all {
		if !slices.Contains(found, s.Measure) {
			found = append(found, s.Measure)
		}
	}
	return found
}
