package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/alecthomas/kong"

	"ironspan/engine/spec"
	"ironspan/tools/lab/internal/lab"
)

func parse(t *testing.T, args ...string) (*cli, error) {
	t.Helper()
	var c cli
	p, err := kong.New(&c, kong.Exit(func(int) { t.Fatal("exit") }))
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.Parse(args)
	return &c, err
}

func TestCommandLine(t *testing.T) {
	t.Setenv("IRONSPAN_LAB_NAME", "")
	c, err := parse(t, "-n", "x", "exec", "-C", "/tmp", "-e", "A=b,c", "1", "--", "ls", "-l", "--color")
	if err != nil {
		t.Fatal(err)
	}
	if c.Name != "x" || c.Exec.Server != 1 || c.Exec.Dir != "/tmp" || !reflect.DeepEqual(c.Exec.Env, []string{"A=b,c"}) {
		t.Errorf("%+v", c.Exec)
	}
	if got := strings.TrimPrefix(strings.Join(c.Exec.Cmd, " "), "-- "); got != "ls -l --color" {
		t.Errorf("command %q", got)
	}
	c, err = parse(t, "run", "--servers", "3", "--vcpus", "1,2,1", "--mem", "512M,1G,512", "--append", "a b,c", "--timeout", "9", "--spec", "poll: busy", "--spec", "tenure: {base: 1ms, max: 2ms}")
	if err != nil {
		t.Fatal(err)
	}
	r := c.Run
	if !reflect.DeepEqual(r.Vcpus, counts{1, 2, 1}) || !reflect.DeepEqual(r.Mem, sizes{512, 1024, 512}) || r.Append != "a b,c" || r.Timeout != 9 || len(r.Spec) != 2 || r.Dilate != "" {
		t.Errorf("%+v", r)
	}
	for _, bad := range [][]string{{"run", "--mem", "1T"}, {"run", "--vcpus", "one"}, {"run", "--fabric", "tcp"}, {"up", "--accel", "hvf"}, {"dance"}} {
		if _, err := parse(t, bad...); err == nil {
			t.Errorf("accepted %v", bad)
		}
	}
}

func TestMebibytes(t *testing.T) {
	tests := []struct {
		in   string
		want mebibytes
	}{{"512", 512}, {"512M", 512}, {"512MiB", 512}, {"2g", 2048}, {"1GiB", 1024}, {"0", 0}, {"-1M", 0}, {"1T", 0}, {"", 0}, {"99999999G", 0}}
	for _, tt := range tests {
		var m mebibytes
		err := m.UnmarshalText([]byte(tt.in))
		if m != tt.want || (err == nil) != (tt.want != 0) {
			t.Errorf("%q: %d, %v", tt.in, m, err)
		}
	}
}

func TestSpread(t *testing.T) {
	if got, err := spread("x", nil, 2, 7); err != nil || !reflect.DeepEqual(got, []int{7, 7}) {
		t.Error(got, err)
	}
	if got, err := spread("x", []int{3}, 2, 7); err != nil || !reflect.DeepEqual(got, []int{3, 3}) {
		t.Error(got, err)
	}
	if got, err := spread("x", []int{3, 4}, 2, 7); err != nil || !reflect.DeepEqual(got, []int{3, 4}) {
		t.Error(got, err)
	}
	if _, err := spread("x", []int{3, 4}, 3, 7); err == nil {
		t.Error("two values for three servers")
	}
}

func TestSplitTestArgs(t *testing.T) {
	tests := []struct{ in, packages, flags string }{
		{"./a ./b", "./a ./b", ""},
		{"./a -- -run X -v", "./a", "-run X -v"},
		{"./a -v", "./a", "-v"},
		{"-- -v", "", "-v"},
		{"", "", ""},
	}
	for _, tt := range tests {
		p, f := splitTestArgs(strings.Fields(tt.in))
		if strings.Join(p, " ") != tt.packages || strings.Join(f, " ") != tt.flags {
			t.Errorf("%q: %v, %v", tt.in, p, f)
		}
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("IRONSPAN_X", "1")
	t.Setenv("IRONSPAN_LAB_NAME", "not this")
	t.Setenv("SECRET_TOKEN", "nor this")
	t.Setenv("WANTED", "w")
	env, err := environment([]string{"A=b", "WANTED", "NOT_SET_ANYWHERE"})
	if err != nil {
		t.Fatal(err)
	}
	all := "\n" + strings.Join(env, "\n") + "\n"
	for _, want := range []string{"IRONSPAN_X=1", "A=b", "WANTED=w", "PATH=" + os.Getenv("PATH")} {
		if !strings.Contains(all, "\n"+want+"\n") {
			t.Errorf("%s is missing", want)
		}
	}
	for _, not := range []string{"IRONSPAN_LAB_NAME", "SECRET_TOKEN", "NOT_SET_ANYWHERE"} {
		if strings.Contains(all, not) {
			t.Errorf("%s was passed on", not)
		}
	}
	if _, err := environment([]string{"=x"}); err == nil {
		t.Error("accepted a variable without a name")
	}
}

func TestRedirect(t *testing.T) {
	t.Setenv(lab.EnvDir, t.TempDir())
	d, err := lab.Open("x")
	if err != nil {
		t.Skip(err) // a path too long for a socket
	}
	if err := os.MkdirAll(d.Share(), 0o700); err != nil {
		t.Fatal(err)
	}
	wanted := filepath.Join(t.TempDir(), "cover.out")
	o, err := redirect(d, []string{"x.test", "-test.v=true", "-test.coverprofile=" + wanted, "-test.gocoverdir=/somewhere"})
	if err != nil {
		t.Fatal(err)
	}
	if o.args[1] != "-test.v=true" || strings.Contains(o.args[2], wanted) || strings.Contains(o.args[3], "somewhere") {
		t.Errorf("%v", o.args)
	}
	_, inside, _ := strings.Cut(o.args[2], "=")
	outside := filepath.Join(d.Share(), strings.TrimPrefix(inside, lab.ShareMount))
	if err := os.WriteFile(outside, []byte("mode: set\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := o.collect(); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(wanted); err != nil || string(b) != "mode: set\n" {
		t.Errorf("%q, %v", b, err)
	}
	o.remove()
	if left, _ := os.ReadDir(d.Share()); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}

func TestDilation(t *testing.T) {
	for _, tt := range []struct{ syscall, fault, want float64 }{
		{nominalSyscall, nominalPageFault, minDilate},
		{nominalSyscall * 40, nominalPageFault * 40, 40},
		{nominalSyscall * 1000, nominalPageFault * 1000, maxDilate},
	} {
		if got := dilation(tt.syscall, tt.fault); got != tt.want {
			t.Errorf("%v: %v", tt, got)
		}
	}
}

func TestTail(t *testing.T) {
	l := &tail{prefix: "> "}
	for range tailLines {
		l.Write([]byte("old\n"))
	}
	l.Write([]byte("one\ntw"))
	l.Write([]byte("o\nunfinished"))
	got := strings.Split(strings.TrimSpace(l.String()), "\n")
	if len(got) != tailLines || got[tailLines-2] != "> one" || got[tailLines-1] != "> two" {
		t.Errorf("%q", got)
	}
}

// What run writes must be a spec that the nodes accept.
func TestSpan(t *testing.T) {
	dir := t.TempDir()
	for _, f := range []string{"vmlinuz", "initrd", "ironspan"} {
		if err := os.WriteFile(filepath.Join(dir, f), []byte("x"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, fabric := range []string{"verbs", "shm"} {
		c, err := parse(t, "run", "--servers", "3", "--vcpus", "2,1,1", "--mem", "512M", "--fabric", fabric,
			"--kernel", filepath.Join(dir, "vmlinuz"), "--initrd", filepath.Join(dir, "initrd"), "--append", `quiet x="a: b"`,
			"--ironspan", filepath.Join(dir, "ironspan"), "--spec", "shards: 2")
		if err != nil {
			t.Fatal(err)
		}
		v, err := c.Run.plan(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		text, err := v.text()
		if err != nil {
			t.Fatal(err)
		}
		sp, err := spec.Parse("span.yaml", text)
		if err != nil {
			t.Fatalf("%s: %v\n%s", fabric, err, text)
		}
		if fabric == "verbs" {
			err = sp.CheckCluster()
		} else {
			err = sp.Local(3)
		}
		if err != nil {
			t.Errorf("%s: %v", fabric, err)
		}
		if len(sp.Nodes) != 3 || sp.Nodes[0].VCPUs != 2 || sp.Nodes[2].Memory != 512<<20 || sp.Append != `quiet x="a: b"` || sp.Shards != 2 {
			t.Errorf("%s: %+v", fabric, sp)
		}
		if want := map[string]int{"verbs": 3, "shm": 1}[fabric]; v.servers != want {
			t.Errorf("%s: %d servers", fabric, v.servers)
		}
	}
}

func TestPlanRefuses(t *testing.T) {
	dir := t.TempDir()
	k := filepath.Join(dir, "vmlinuz")
	os.WriteFile(k, []byte("x"), 0o644)
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"--servers", "0"}, "--servers"},
		{[]string{"--vcpus", "1,1,1"}, "3 values for 2 servers"},
		{[]string{"--dilate", "never"}, "--dilate"},
		{[]string{"--dilate", "0.5"}, "--dilate"},
		{[]string{"--initrd", filepath.Join(dir, "gone")}, "--initrd"},
		{[]string{"--initrd", dir}, "is a directory"},
		{[]string{"--report", filepath.Join(dir, "no", "r.json")}, "--report"},
		{[]string{"--ironspan", filepath.Join(dir, "gone")}, "--ironspan"},
		{[]string{"--timeout=-1"}, "--timeout"},
	} {
		c, err := parse(t, append([]string{"run", "--kernel", k, "--ironspan=" + k}, tt.args...)...)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Run.plan(t.Context()); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v: %v", tt.args, err)
		}
	}
}
