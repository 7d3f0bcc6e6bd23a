// Package plots draws a run of benchmarks: latency distributions, what faults are made of, and curves over the labels
// that are numbers (sizes, vCPUs, shards, tenures). Which figures there are follows from the series:
//
//   - ratios: how far each ratio is from its bound.
//   - cdf-*: the distributions of all series with samples, those of one folder of names together; and those that a
//     ratio holds against each other. The share of samples has a scale of nines, so that the tail has room.
//   - stages-*: a bar for each series with stages.
//   - over-*: a curve for each name whose series differ in one label with numbers, at least three of them.
//
// Each figure becomes an SVG and a PNG.
package plots
