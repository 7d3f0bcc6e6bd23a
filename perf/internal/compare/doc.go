// Package compare tells whether two runs of the same benchmarks differ by more than chance.
//
// The observations are rounds, not samples: the median of a round, and its 99th percentile where a round has samples
// enough for one. Two sets of rounds are held against each other by the Mann-Whitney U test, exact as long as they are
// small, which assumes nothing of how the rounds are distributed. How far they are apart is the estimate of Hodges and
// Lehmann, the median of all differences between a round of one and a round of the other, with the interval that
// belongs to the test. Values that are all positive are compared by their logarithms, so that the difference is a
// percentage.
//
// With many series some differ by chance. The p values are adjusted by the procedure of Benjamini and Hochberg: if
// nothing changed, the probability that anything is named is alpha; if much did, alpha of what is named is expected to
// be wrong. (Benjamini, Hochberg: Controlling the False Discovery Rate, J. R. Statist. Soc. B 57, 1995.)
//
// What the test cannot see is what hits all rounds of one run alike: another kernel, a neighbour on the same host. So
// machines are compared, too, several runs of each side can be pooled (result.Pool), and series that do not depend on
// Ironspan at all, the raw device and the kernel, are controls: they are never named as regressions, and where they
// moved, everything may have.
package compare
