package spec

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// maxFile bounds a span.yaml; 64 nodes with everything spelled out need a tenth of it.
const maxFile = 64 << 10

// pos is a place in the file, counted from 1; the zero pos is no place.
type pos struct{ line, col int }

// Error is what is wrong with a span.yaml, and where.
type Error struct {
	File      string
	Line, Col int    // from 1
	Text      string // the line
	Problem   string // what is wrong
	Allowed   string // what would be right
}

// Error returns the problem in the form
//
//	span.yaml:7:13: memory is not a multiple of 2MiB
//	    7 |     memory: 513KiB
//	      |             ^
//	    allowed: sizes like 512MiB or 1G
func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s:%d:%d: %s", e.File, e.Line, e.Col, e.Problem)
	if e.Line > 0 {
		// The caret stands below the column; tabs are kept so that it does in a terminal, too.
		lead := []rune(e.Text)
		lead = lead[:min(max(e.Col-1, 0), len(lead))]
		for i, r := range lead {
			if r != '\t' {
				lead[i] = ' '
			}
		}
		num := strconv.Itoa(e.Line)
		fmt.Fprintf(&b, "\n    %s | %s\n    %*s | %s^", num, e.Text, len(num), "", string(lead))
	}
	if e.Allowed != "" {
		fmt.Fprintf(&b, "\n    allowed: %s", e.Allowed)
	}
	return b.String()
}

// source is a file being read.
type source struct {
	file  string
	lines []string
}

// errorf makes an Error at a place. A nil source makes one without a place.
func (s *source) errorf(at pos, problem, allowed string, args ...any) error {
	e := &Error{File: "spec", Line: at.line, Col: at.col, Problem: problem, Allowed: fmt.Sprintf(allowed, args...)}
	if s != nil {
		e.File = s.file
		if at.line >= 1 && at.line <= len(s.lines) {
			e.Text = printable(s.lines[at.line-1])
		}
	}
	return e
}

// printable makes a line of the file fit for a terminal.
func printable(s string) string {
	const most = 200
	n := 0
	return strings.Map(func(r rune) rune {
		n++
		switch {
		case n > most:
			return -1
		case r == '\t':
			return r
		case r == utf8.RuneError || !strconv.IsPrint(r):
			return '?'
		}
		return r
	}, s)
}

// Load reads a span.yaml. Relative paths of boot images are taken from the file's directory.
func Load(path string) (*Spec, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("spec: %w", err)
	}
	defer f.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(&limited{f: f, left: maxFile + 1}); err != nil {
		return nil, fmt.Errorf("spec: %w", err)
	}
	s, err := Parse(path, b.Bytes())
	if err != nil {
		return nil, err
	}
	dir := filepath.Dir(path)
	for _, p := range []*string{&s.Kernel, &s.Initrd} {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
	return s, nil
}

// Parse reads the text of a span.yaml; file is its name for messages. Paths stay as they are.
func Parse(file string, text []byte) (*Spec, error) {
	src := &source{file: file, lines: strings.Split(string(text), "\n")}
	for i := range src.lines {
		src.lines[i] = strings.TrimSuffix(src.lines[i], "\r")
	}
	if len(text) > maxFile {
		return nil, src.errorf(pos{1, 1}, fmt.Sprintf("the file has more than %d bytes", maxFile), "a span.yaml")
	}
	if !utf8.Valid(text) || bytes.IndexByte(text, 0) >= 0 {
		return nil, src.errorf(src.firstBad(), "this is no UTF-8 text", "a span.yaml")
	}
	root, err := src.parse(text)
	if err != nil {
		return nil, err
	}
	s := defaults()
	s.File, s.src = file, src
	if err := src.spec(root, &s); err != nil {
		return nil, err
	}
	if err := s.checkTotals(); err != nil {
		return nil, err
	}
	return &s, nil
}

// firstBad finds the place of the first byte that is no text.
func (s *source) firstBad() pos {
	for i, l := range s.lines {
		for col, r := range l {
			if r == utf8.RuneError || r == 0 {
				return pos{i + 1, utf8.RuneCountInString(l[:col]) + 1}
			}
		}
	}
	return pos{1, 1}
}

// parse turns the text into the root mapping of its only document.
func (s *source) parse(text []byte) (root *ast.MappingNode, err error) {
	defer func() {
		// The YAML parser panics on a few malformed inputs; to the user that is a syntax error like others.
		if r := recover(); r != nil {
			root, err = nil, s.errorf(pos{1, 1}, "this is not YAML", "a mapping of keys to values")
		}
	}()
	f, err := parser.ParseBytes(text, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		var ye yaml.Error
		if errors.As(err, &ye) && ye.GetToken() != nil {
			return nil, s.errorf(s.posOf(ye.GetToken()), ye.GetMessage(), "YAML")
		}
		return nil, s.errorf(pos{1, 1}, firstLine(err.Error()), "YAML")
	}
	var body ast.Node
	for _, d := range f.Docs {
		if d.Body == nil {
			continue
		}
		if body != nil {
			return nil, s.errorf(s.at(d.Body), "a second document", "one VM in one file")
		}
		body = d.Body
	}
	if body == nil {
		return nil, s.errorf(pos{1, 1}, "the file is empty", "kernel: and nodes: at least")
	}
	m, ok := body.(*ast.MappingNode)
	if !ok {
		return nil, s.errorf(s.at(body), kindOf(body)+" in place of a mapping", "keys like kernel: and nodes:")
	}
	return m, nil
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}

func (s *source) posOf(t *token.Token) pos {
	if t == nil || t.Position == nil {
		return pos{1, 1}
	}
	return pos{min(max(t.Position.Line, 1), len(s.lines)), max(t.Position.Column, 1)}
}

func (s *source) at(n ast.Node) pos {
	if m, ok := n.(*ast.MappingNode); ok && !m.IsFlowStyle && len(m.Values) > 0 {
		return s.at(m.Values[0].Key)
	}
	return s.posOf(n.GetToken())
}

func kindOf(n ast.Node) string {
	switch n.(type) {
	case *ast.MappingNode:
		return "a mapping"
	case *ast.SequenceNode:
		return "a list"
	case *ast.NullNode:
		return "nothing"
	case *ast.AnchorNode, *ast.AliasNode, *ast.MergeKeyNode, *ast.TagNode:
		return "an anchor, alias or tag"
	}
	return "a single value"
}

// field is what one key of a mapping takes.
type field struct {
	key  string
	read func(ast.Node) error
}

// mapping reads a node that must be a mapping with none but the given keys, each at most once.
func (s *source) mapping(n ast.Node, what string, fields []field) error {
	m, ok := n.(*ast.MappingNode)
	if !ok {
		return s.errorf(s.at(n), fmt.Sprintf("%s is %s", what, kindOf(n)), "the keys %s", keys(fields))
	}
	seen := map[string]pos{}
	for _, v := range m.Values {
		at := s.at(v.Key)
		key, ok := scalar(v.Key)
		i := slices.IndexFunc(fields, func(f field) bool { return f.key == key })
		if !ok || i < 0 {
			return s.errorf(at, fmt.Sprintf("unknown key %q in %s%s", printable(key), what, suggest(key, fields)), "%s", keys(fields))
		}
		if first, dup := seen[key]; dup {
			return s.errorf(at, fmt.Sprintf("%s is given twice", key), "once: line %d has it already", first.line)
		}
		seen[key] = at
		if err := fields[i].read(v.Value); err != nil {
			return err
		}
	}
	return nil
}

func keys(fields []field) string {
	var k []string
	for _, f := range fields {
		k = append(k, f.key)
	}
	return strings.Join(k, ", ")
}

// suggest finds the key that was probably meant.
func suggest(key string, fields []field) string {
	best, dist := "", 3
	for _, f := range fields {
		if d := editDistance(strings.ToLower(key), f.key); d < dist {
			best, dist = f.key, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(": is %s meant?", best)
}

func editDistance(a, b string) int {
	if len(a) > 32 {
		return 32
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diag
			if a[i] != b[j] {
				cost = 1 + min(diag, row[j], row[j+1])
			}
			diag, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}

// scalar returns the text of a single value as it stands in the file.
func scalar(n ast.Node) (string, bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.LiteralNode:
		return strings.TrimRight(n.Value.Value, "\n"), true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
		return strings.TrimSpace(n.GetToken().Value), true
	}
	return "", false
}

// text reads a single value; check says what is wrong with it, or nothing.
func (s *source) text(dst *string, what, allowed string, check func(string) string) func(ast.Node) error {
	return func(n ast.Node) error {
		v, ok := scalar(n)
		if !ok {
			return s.errorf(s.at(n), fmt.Sprintf("%s is %s", what, kindOf(n)), "%s", allowed)
		}
		if problem := check(v); problem != "" {
			return s.errorf(s.at(n), fmt.Sprintf("%s %s", what, problem), "%s", allowed)
		}
		*dst = v
		return nil
	}
}

// integer reads a whole number in a range, or the word auto where there is one.
func (s *source) integer(dst *int, what string, lo, hi int, auto *int) func(ast.Node) error {
	allowed := fmt.Sprintf("a number from %d to %d", lo, hi)
	if auto != nil {
		allowed = "auto, or " + allowed
	}
	return func(n ast.Node) error {
		v, _ := scalar(n)
		if auto != nil && v == "auto" {
			*dst = *auto
			return nil
		}
		i, err := strconv.Atoi(v)
		if err != nil || i < lo || i > hi {
			return s.errorf(s.at(n), fmt.Sprintf("%s is %s", what, quote(n, v)), "%s", allowed)
		}
		*dst = i
		return nil
	}
}

func (s *source) duration(dst *Duration, what string, lo, hi time.Duration) func(ast.Node) error {
	return func(n ast.Node) error {
		v, _ := scalar(n)
		d, err := time.ParseDuration(v)
		if err != nil || d < lo || d > hi {
			return s.errorf(s.at(n), fmt.Sprintf("%s is %s", what, quote(n, v)), "a duration from %v to %v, like 250ms or 5s", lo, hi)
		}
		*dst = Duration(d)
		return nil
	}
}

func quote(n ast.Node, v string) string {
	if _, ok := scalar(n); ok {
		return strconv.Quote(v)
	}
	return kindOf(n)
}

// word reads one of a few words.
func word[T ~string](s *source, dst *T, what string, words ...T) func(ast.Node) error {
	return func(n ast.Node) error {
		v, _ := scalar(n)
		if !slices.Contains(words, T(v)) {
			var all []string
			for _, w := range words {
				all = append(all, string(w))
			}
			return s.errorf(s.at(n), fmt.Sprintf("%s is %s", what, quote(n, v)), "%s", strings.Join(all, ", "))
		}
		*dst = T(v)
		return nil
	}
}

func isName(v string) bool {
	ok := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.'
	}
	return v != "" && len(v) <= 63 && strings.IndexFunc(v, func(r rune) bool { return !ok(r) }) < 0 && v[0] != '-' && v[0] != '.'
}

// ValidName reports whether a node or a VM may be called v: 1 to 63 letters, digits, dots, dashes and
// underscores, or an IP address.
func ValidName(v string) bool { return isName(v) || net.ParseIP(v) != nil }

func nameProblem(v string) string {
	if ValidName(v) {
		return ""
	}
	return fmt.Sprintf("%q is no name", printable(v))
}

const nameAllowed = "1 to 63 letters, digits, dots, dashes and underscores"

func pathProblem(v string) string {
	if v == "" {
		return "is empty"
	}
	return ""
}

func appendProblem(v string) string {
	if len(v) > MaxAppend {
		return fmt.Sprintf("has %d bytes", len(v))
	}
	if strings.IndexFunc(v, func(r rune) bool { return r < ' ' || r > '~' }) >= 0 {
		return "is not one line of ASCII text"
	}
	return ""
}

// addrProblem checks host:port.
func addrProblem(v string) string {
	host, port, err := net.SplitHostPort(v)
	if err != nil {
		return fmt.Sprintf("%q is not host:port", printable(v))
	}
	if p, err := strconv.Atoi(port); err != nil || p < 1 || p > 65535 {
		return fmt.Sprintf("%q has no port from 1 to 65535", printable(v))
	}
	// An IPv6 address may have a zone, which no certificate has: it is not part of the name.
	bare, _, _ := strings.Cut(host, "%")
	if !ValidName(bare) {
		return fmt.Sprintf("%q has no host", printable(v))
	}
	return ""
}

// spec reads the whole file.
func (s *source) spec(root *ast.MappingNode, sp *Spec) error {
	auto := 0
	fields := []field{
		{"name", s.text(&sp.Name, "name", nameAllowed, nameProblem)},
		{"kernel", func(n ast.Node) error {
			sp.kernelAt = s.at(n)
			return s.text(&sp.Kernel, "kernel", "the path of a bzImage", pathProblem)(n)
		}},
		{"initrd", func(n ast.Node) error {
			sp.initrdAt = s.at(n)
			return s.text(&sp.Initrd, "initrd", "the path of an initrd, or no initrd: line", pathProblem)(n)
		}},
		{"append", s.text(&sp.Append, "append", fmt.Sprintf("one line of at most %d bytes for the guest's kernel", MaxAppend), appendProblem)},
		{"nodes", func(n ast.Node) error { return s.nodes(n, sp) }},
		{"fabric", word(s, &sp.Fabric, "fabric", FabricVerbs, FabricSHM)},
		{"shards", s.integer(&sp.Shards, "shards", 1, MaxShards, &auto)},
		{"cache", func(n ast.Node) error {
			sp.cacheAt = s.at(n)
			return s.cache(n, &sp.Cache)
		}},
		{"poll", word(s, &sp.Poll, "poll", PollAuto, PollBusy, PollAdaptive, PollEvent)},
		{"dilate", func(n ast.Node) error { return s.dilate(n, sp) }},
		{"tenure", func(n ast.Node) error { return s.tenure(n, sp) }},
		{"console", word(s, &sp.Console, "console", ConsoleSerial)},
		{"timeouts", func(n ast.Node) error { return s.timeouts(n, sp) }},
	}
	if err := s.mapping(root, "the file", fields); err != nil {
		return err
	}
	if sp.Kernel == "" {
		return s.errorf(s.at(root), "no kernel", "kernel: with the path of a bzImage, such as a distribution's /boot/vmlinuz-*")
	}
	if sp.Name == "" {
		sp.Name = nameFromFile(s.file)
	}
	return nil
}

func nameFromFile(file string) string {
	base := filepath.Base(file)
	if base = strings.TrimSuffix(base, filepath.Ext(base)); isName(base) {
		return base
	}
	return "vm"
}

func (s *source) nodes(n ast.Node, sp *Spec) error {
	const allowed = "a list with an entry such as `- addr: server-a:7440` for each node"
	l, ok := n.(*ast.SequenceNode)
	if !ok {
		return s.errorf(s.at(n), "nodes is "+kindOf(n), allowed)
	}
	if len(l.Values) == 0 {
		return s.errorf(s.at(n), "nodes is empty", allowed)
	}
	if len(l.Values) > MaxNodes {
		return s.errorf(s.at(l.Values[MaxNodes]), fmt.Sprintf("%d nodes", len(l.Values)), "at most %d", MaxNodes)
	}
	for i, v := range l.Values {
		node, err := s.node(v, fmt.Sprintf("node %d", i))
		if err != nil {
			return err
		}
		sp.Nodes = append(sp.Nodes, node)
	}
	return nil
}

func (s *source) node(n ast.Node, what string) (Node, error) {
	node := DefaultNode()
	node.at = s.at(n)
	auto := GIDAuto
	var cpusAt ast.Node
	err := s.mapping(n, what, []field{
		{"addr", s.text(&node.Addr, "addr", "host:port where `ironspan node` listens, such as server-a:7440", addrProblem)},
		{"name", s.text(&node.Name, "name", nameAllowed+": the name in the node's certificate", nameProblem)},
		{"vcpus", s.integer(&node.VCPUs, "vcpus", 0, MaxVCPUs, nil)},
		{"memory", func(n ast.Node) error { return s.memory(n, &node.Memory) }},
		{"cache", func(n ast.Node) error {
			node.cacheAt = s.at(n)
			return s.cache(n, &node.Cache)
		}},
		{"device", s.text(&node.Device, "device", "auto, or an RDMA device such as rxe0", nameProblem)},
		{"gid", s.integer(&node.GID, "gid", 0, 255, &auto)},
		{"cpus", func(n ast.Node) error { cpusAt = n; return s.cpus(n, &node.CPUs) }},
	})
	if err != nil {
		return node, err
	}
	if cpusAt != nil && len(node.CPUs) < node.VCPUs {
		return node, s.errorf(s.at(cpusAt), fmt.Sprintf("%d cpus for %d vCPUs", len(node.CPUs), node.VCPUs),
			"a host CPU for each vCPU, then for shards; or no cpus: line")
	}
	if node.Name == "" && node.Addr != "" {
		host, _, _ := net.SplitHostPort(node.Addr)
		node.Name, _, _ = strings.Cut(host, "%")
	}
	return node, nil
}

func (s *source) cache(n ast.Node, dst *uint64) error {
	v, _ := scalar(n)
	size, err := ParseSize(v)
	if err != nil || size > MaxMemory {
		return s.errorf(s.at(n), fmt.Sprintf("cache is %s", quote(n, v)),
			"a size like 256MiB or 1G, up to %s; 0, or no cache: line, for no bound", FormatSize(MaxMemory))
	}
	*dst = size
	return nil
}

func (s *source) memory(n ast.Node, dst *uint64) error {
	allowed := fmt.Sprintf("a multiple of %s, like 512MiB or 1G", FormatSize(MemoryAlign))
	v, _ := scalar(n)
	size, err := ParseSize(v)
	switch {
	case err != nil:
		return s.errorf(s.at(n), fmt.Sprintf("memory is %s, which is no size", quote(n, v)), "%s", allowed)
	case size == 0:
		return s.errorf(s.at(n), "memory is 0", "%s", allowed)
	case size%MemoryAlign != 0:
		return s.errorf(s.at(n), fmt.Sprintf("memory is %s", v), "%s", allowed)
	case size > MaxMemory:
		return s.errorf(s.at(n), fmt.Sprintf("memory is %s", v), "at most %s over all nodes", FormatSize(MaxMemory))
	}
	*dst = size
	return nil
}

func (s *source) cpus(n ast.Node, dst *[]int) error {
	const allowed = "a list of host CPU numbers, like [2, 3], each once"
	l, ok := n.(*ast.SequenceNode)
	if !ok {
		return s.errorf(s.at(n), "cpus is "+kindOf(n), allowed)
	}
	for _, v := range l.Values {
		var c int
		if err := s.integer(&c, "a host CPU", 0, 8191, nil)(v); err != nil {
			return err
		}
		if slices.Contains(*dst, c) {
			return s.errorf(s.at(v), fmt.Sprintf("host CPU %d is listed twice", c), allowed)
		}
		*dst = append(*dst, c)
	}
	return nil
}

func (s *source) dilate(n ast.Node, sp *Spec) error {
	v, _ := scalar(n)
	f, err := strconv.ParseFloat(v, 64)
	if err != nil || math.IsNaN(f) || f < 1 || f > MaxDilate {
		return s.errorf(s.at(n), "dilate is "+quote(n, v), "a number from 1 to %d; it is for labs, where a machine is slower than its clock", MaxDilate)
	}
	sp.Dilate = f
	return nil
}

func (s *source) tenure(n ast.Node, sp *Spec) error {
	err := s.mapping(n, "tenure", []field{
		{"base", s.duration(&sp.Tenure.Base, "base", 0, time.Second)},
		{"max", s.duration(&sp.Tenure.Max, "max", 0, 10*time.Second)},
	})
	if err == nil && sp.Tenure.Base > sp.Tenure.Max {
		return s.errorf(s.at(n), fmt.Sprintf("tenure grows from %v to at most %v", sp.Tenure.Base, sp.Tenure.Max), "base up to max")
	}
	return err
}

func (s *source) timeouts(n ast.Node, sp *Spec) error {
	t := &sp.Timeouts
	err := s.mapping(n, "timeouts", []field{
		{"connect", s.duration(&t.Connect, "connect", 100*time.Millisecond, time.Hour)},
		{"prepare", s.duration(&t.Prepare, "prepare", time.Second, 24*time.Hour)},
		{"heartbeat", s.duration(&t.Heartbeat, "heartbeat", 10*time.Millisecond, time.Minute)},
		{"lost", s.duration(&t.Lost, "lost", 30*time.Millisecond, time.Hour)},
		{"stop", s.duration(&t.Stop, "stop", 100*time.Millisecond, time.Hour)},
	})
	if err == nil && t.Lost < 3*t.Heartbeat {
		return s.errorf(s.at(n), fmt.Sprintf("lost is %v, heartbeat is %v", t.Lost, t.Heartbeat), "lost of at least three heartbeats")
	}
	return err
}

// limited reads at most left bytes and no more, so that a device file given by mistake does not fill memory.
type limited struct {
	f    *os.File
	left int
}

func (l *limited) Read(b []byte) (int, error) {
	if l.left == 0 {
		return 0, errTooLong
	}
	n, err := l.f.Read(b[:min(len(b), l.left)])
	l.left -= n
	return n, err
}

var errTooLong = fmt.Errorf("the file has more than %d bytes", maxFile)
