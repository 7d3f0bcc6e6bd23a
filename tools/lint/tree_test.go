package lint

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// module is the path that our own imports begin with.
const module = "ironspan"

// tree is the project as it would be committed: what git tracks or would add.
type tree struct {
	root  string
	files []string // below root, with slashes
}

var load = sync.OnceValues(func() (*tree, error) {
	root, err := filepath.Abs("../..")
	if err != nil {
		return nil, err
	}
	t := &tree{root: root}
	list := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	list.Dir = root
	out, err := list.Output()
	if err != nil { // an unpacked archive, or no git
		t.files, err = walk(root)
		return t, err
	}
	for _, file := range strings.Split(strings.TrimRight(string(out), "\x00"), "\x00") {
		if st, err := os.Stat(filepath.Join(root, file)); err == nil && st.Mode().IsRegular() { // not deleted
			t.files = append(t.files, file)
		}
	}
	return t, nil
})

func walk(root string) ([]string, error) {
	var files []string
	err := filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		switch {
		case entry.IsDir() && (rel == ".git" || rel == "bin" || rel == "build"):
			return filepath.SkipDir
		case entry.Type().IsRegular():
			files = append(files, filepath.ToSlash(rel))
		}
		return nil
	})
	return files, err
}

func project(t *testing.T) *tree {
	t.Helper()
	tree, err := load()
	if err != nil {
		t.Fatal(err)
	}
	if len(tree.files) < 10 {
		t.Fatalf("only %d files found below %s", len(tree.files), tree.root)
	}
	return tree
}

func (t *tree) read(tb testing.TB, file string) string {
	tb.Helper()
	data, err := os.ReadFile(filepath.Join(t.root, file))
	if err != nil {
		tb.Fatal(err)
	}
	return string(data)
}

func (t *tree) exists(file string) bool {
	_, err := os.Stat(filepath.Join(t.root, file))
	return err == nil
}

// source is what the rules look at in a Go file, whatever its build constraints.
type source struct {
	file    string // below the root
	dir     string // the same without the last element: the package's room
	pkg     string
	doc     string // the package comment
	imports []string
}

func (s source) test() bool { return strings.HasSuffix(s.file, "_test.go") }

// sources parses all Go files outside testdata.
func (t *tree) sources(tb testing.TB) []source {
	tb.Helper()
	var all []source
	for _, file := range t.files {
		if !strings.HasSuffix(file, ".go") || strings.Contains("/"+file, "/testdata/") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(t.root, file), nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			tb.Error(err)
			continue
		}
		s := source{file: file, dir: path.Dir(file), pkg: f.Name.Name, doc: f.Doc.Text()}
		for _, spec := range f.Imports {
			s.imports = append(s.imports, importPath(spec))
		}
		all = append(all, s)
	}
	return all
}

func importPath(spec *ast.ImportSpec) string { return strings.Trim(spec.Path.Value, "`\"") }
