//go:build linux

package main

import (
	"io"
	"strconv"

	"golang.org/x/sys/unix"
)

// marker starts each line for programs; package report on the host side looks for it.
const marker = "IRONSPAN-DEMO "

// console is where the guest says what it does. One thread writes to it, the one on CPU 0.
type console struct {
	w io.Writer
}

// say prints a line for people.
func (c *console) say(words ...string) {
	line := "demo:"
	for _, word := range words {
		line += " " + word
	}
	io.WriteString(c.w, line+"\n")
}

// record is one line for programs, under construction: a flat JSON object.
type record struct {
	c    *console
	line []byte
}

// event starts a record. Every record carries the guest's time since boot in seconds.
func (c *console) event(name string) *record {
	r := &record{c: c, line: append(make([]byte, 0, 512), marker+`{"event":`...)}
	r.line = strconv.AppendQuote(r.line, name)
	return r.seconds("uptime", uptime())
}

func (r *record) key(name string) {
	r.line = append(r.line, ',')
	r.line = strconv.AppendQuote(r.line, name)
	r.line = append(r.line, ':')
}

func (r *record) num(name string, value int64) *record {
	r.key(name)
	r.line = strconv.AppendInt(r.line, value, 10)
	return r
}

// seconds records a number of nanoseconds as seconds.
func (r *record) seconds(name string, ns int64) *record {
	r.key(name)
	r.line = strconv.AppendFloat(r.line, float64(ns)/1e9, 'f', 3, 64)
	return r
}

func (r *record) nums(name string, values []int64) *record {
	r.key(name)
	r.line = append(r.line, '[')
	for i, value := range values {
		if i > 0 {
			r.line = append(r.line, ',')
		}
		r.line = strconv.AppendInt(r.line, value, 10)
	}
	r.line = append(r.line, ']')
	return r
}

// str records text; what JSON and Go quote differently (control characters) becomes a space.
func (r *record) str(name, value string) *record {
	clean := []byte(value)
	for i, b := range clean {
		if b < ' ' || b > '~' {
			clean[i] = ' '
		}
	}
	r.key(name)
	r.line = strconv.AppendQuote(r.line, string(clean))
	return r
}

func (r *record) yes(name string, value bool) *record {
	r.key(name)
	r.line = strconv.AppendBool(r.line, value)
	return r
}

func (r *record) print() {
	r.c.w.Write(append(r.line, '}', '\n'))
}

// uptime is the guest's time since boot, in nanoseconds.
func uptime() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return ts.Nano()
}
