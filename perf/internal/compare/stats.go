package compare

import (
	"cmp"
	"math"
	"slices"

	"github.com/aclements/go-moremath/stats"

	"ironspan/perf/internal/result"
)

// pValue is the probability of a difference in location at least as large as that between two sets of values, if both
// come from one distribution: Mann-Whitney's U, both sides.
func pValue(old, new []float64) float64 {
	test, err := stats.MannWhitneyUTest(old, new, stats.LocationDiffers)
	if err != nil {
		return 1 // all values are equal
	}
	return min(test.P, 1)
}

// leastP is the smallest p value that sets of these sizes can have: all of one below all of the other.
func leastP(n, m int) float64 {
	a, _ := math.Lgamma(float64(n + 1))
	b, _ := math.Lgamma(float64(m + 1))
	all, _ := math.Lgamma(float64(n + m + 1))
	return min(2*math.Exp(a+b-all), 1)
}

// roundsFor is how many rounds on each side can have a p value of at most p.
func roundsFor(p float64) int {
	n := 2
	for leastP(n, n) > p {
		n++
	}
	return n
}

// shift is how much larger the new values are: Hodges and Lehmann's estimate, with its interval of 1 - alpha. With few
// values no interval has that confidence: then it is that of all differences, and the test will not say much either.
func shift(old, new []float64, alpha float64) (estimate, low, high float64) {
	var differences []float64
	for _, o := range old {
		for _, n := range new {
			differences = append(differences, n-o)
		}
	}
	slices.Sort(differences)
	outside := outsideInterval(len(old), len(new), alpha)
	return result.Median(differences), differences[outside], differences[len(differences)-1-outside]
}

// outsideInterval is how many of all differences lie outside the interval on each side: the most for which the test
// would still come to the verdict that the interval stands for. (Lehmann: Nonparametrics, 1975, section 2.6.)
func outsideInterval(n, m int, alpha float64) int {
	if n > exactInterval || m > exactInterval {
		mean := float64(n*m) / 2
		deviation := math.Sqrt(float64(n*m) * float64(n+m+1) / 12)
		return int(max(mean+deviation*stats.StdNormal.InvCDF(alpha/2)-1, 0))
	}
	u := stats.UDist{N1: n, N2: m}
	outside := 0
	for u.CDF(float64(outside)) <= alpha/2 {
		outside++
	}
	return max(outside-1, 0)
}

// exactInterval is the number of rounds beyond which the normal distribution is as good.
const exactInterval = 15

// adjust turns p values into those of Benjamini and Hochberg: at most alpha means named at alpha.
func adjust(p []float64) []float64 {
	order := make([]int, len(p))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(p[b], p[a]) })
	adjusted := make([]float64, len(p))
	least := 1.0
	for i, at := range order { // from the largest, whose rank is len(p)
		least = min(least, p[at]*float64(len(p))/float64(len(p)-i))
		adjusted[at] = least
	}
	return adjusted
}
