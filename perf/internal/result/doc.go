// Package result holds what a run of benchmarks measured, and keeps it in a file.
//
// A Run is a list of Series, each the samples of one thing under one set of labels. A series is measured in rounds, and
// all series of a group take turns (Interleave), so that whatever else the machine does hits them alike. Each round
// leaves its own statistics behind: two rounds are as independent as measurements on one machine can be, two samples of
// a round are not. So ratios and comparisons take rounds for their observations, and never samples.
//
// To measure durations:
//
//	rec := run.Record("fault/read/clean-at-home", result.Latency, result.Labels{"nodes": "2"})
//	rec.Begin()           // forgets what came before: warm-up
//	rec.Add(ns)           // does not allocate
//	rec.End()             // one more round
//
// and a figure that is one number for a round, such as a bandwidth:
//
//	run.Record("scan/sequential", result.Bandwidth, nil).Value(bytes / seconds)
//
// What could not be measured is said with Run.Miss, and what the figures have to show with Run.Judge.
//
// A Run, its Series and Recorders are for one goroutine at a time. Threads that measure at once have a histogram each
// (NewHistogram), which Recorder.Merge takes in after they have ended.
package result
