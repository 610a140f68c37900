package tiercache_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The house rules: what a linter of the market does not know. Each rule is a function from sources to findings, so that the test of
// a rule can show it a breach.

// sources are the repository's files: slash-separated path -> text.
type sources map[string]string

// maxLines is how long a file may be that is not a test. Chosen: what one reads in one sitting.
const maxLines = 500

// Every package, of every module, has exactly one package comment.
func TestHouseEveryPackageHasOneComment(t *testing.T) {
	t.Parallel()
	require.Empty(t, packageComments(tree(t)))
	require.Len(t, packageComments(sources{"a/x.go": "package a", "b/x.go": "// Package b is.\npackage b", "b/y.go": "// Package b.\npackage b"}), 2)
}

func packageComments(src sources) (found []string) {
	count := map[string]int{}
	for name, text := range src {
		if !code(name) {
			continue
		}
		f := parse(name, text)
		key := path.Dir(name) + " (package " + f.Name.Name + ")"
		count[key] += 0
		if f.Doc != nil {
			count[key]++
		}
	}
	for _, key := range slices.Sorted(maps.Keys(count)) {
		if count[key] != 1 {
			found = append(found, fmt.Sprintf("%s has %d package comments", key, count[key]))
		}
	}
	return found
}

// Every Lua script opens with a comment that names its KEYS, its ARGV, what it returns and why it must be atomic. A file that takes
// nothing is no script but a part that scripts share: it only has to say what it is.
func TestHouseLuaFilesOpenWithTheirContract(t *testing.T) {
	t.Parallel()
	src := tree(t)
	require.Empty(t, luaHeaders(src))
	require.NotEmpty(t, luaFiles(src), "the scripts are where the rule looks for them")
	good := "-- KEYS 1 value. ARGV 1 token. Returns: 1.\n-- Atomic because: it says so.\nreturn KEYS[1]\n"
	require.Empty(t, luaHeaders(sources{"a.lua": good}))
	require.NotEmpty(t, luaHeaders(sources{"a.lua": "local x = 1\n" + good}), "a header that does not come first is none")
	require.Len(t, luaHeaders(sources{"a.lua": strings.Replace(good, "ARGV", "args", 1)}), 1)
	require.Len(t, luaHeaders(sources{"a.lua": strings.Replace(good, "Atomic", "It", 1)}), 1)
	require.Empty(t, luaHeaders(sources{"a.lua": "-- The head of every script.\nlocal x = 1\n"}))
	require.Len(t, luaHeaders(sources{"a.lua": "local x = 1\n"}), 1)
}

func luaFiles(src sources) (names []string) {
	for name := range src {
		if strings.HasSuffix(name, ".lua") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func luaHeaders(src sources) (found []string) {
	for _, name := range luaFiles(src) {
		var header, body strings.Builder
		into := &header
		for line := range strings.Lines(src[name]) {
			if !strings.HasPrefix(line, "--") {
				into = &body
			}
			into.WriteString(line)
		}
		want := []string{`\w`}
		if regexp.MustCompile(`\b(KEYS|ARGV)\b`).MatchString(body.String()) {
			want = []string{"KEYS", "ARGV", "(?i)returns", "(?i)atomic"}
		}
		for _, w := range want {
			if !regexp.MustCompile(w).MatchString(header.String()) {
				found = append(found, fmt.Sprintf("%s: its opening comment does not match %q", name, w))
			}
		}
	}
	return found
}

// Nobody leaves a note to self: what is open is an issue, not a comment.
func TestHouseNothingIsLeftForLater(t *testing.T) {
	t.Parallel()
	require.Empty(t, leftForLater(tree(t)))
	require.Len(t, leftForLater(sources{"a.go": "package a // TO" + "DO: later"}), 1)
	require.Len(t, leftForLater(sources{"a.lua": "-- FIX" + "ME"}), 1)
}

var laterMarks = regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XX` + `X|HA` + `CK)\b`)

func leftForLater(src sources) (found []string) {
	for name, text := range src {
		for i, line := range strings.Split(text, "\n") {
			if laterMarks.MatchString(line) {
				found = append(found, fmt.Sprintf("%s:%d: %s", name, i+1, strings.TrimSpace(line)))
			}
		}
	}
	return found
}

// A file that is read from top to bottom is not longer than maxLines; tests may be.
func TestHouseFilesAreShort(t *testing.T) {
	t.Parallel()
	require.Empty(t, longFiles(tree(t)))
	long := strings.Repeat("\n", maxLines+1)
	require.Len(t, longFiles(sources{"a.go": long, "a_test.go": long, "b.go": long[1:]}), 1)
}

func longFiles(src sources) (found []string) {
	for name, text := range src {
		if n := strings.Count(text, "\n"); n > maxLines && (code(name) || strings.HasSuffix(name, ".lua")) {
			found = append(found, fmt.Sprintf("%s has %d lines; the limit is %d", name, n, maxLines))
		}
	}
	return found
}

// Every exported function and method of the root has an Example of its own; every exported type, variable and constant has one or
// appears in one.
func TestHouseExportedRootSymbolsHaveExamples(t *testing.T) {
	t.Parallel()
	require.Empty(t, withoutExample(tree(t)))
	src := sources{
		"a.go":            "package tiercache\ntype A struct{}\nfunc (A) Get() {}\nfunc (A) Error() string\nfunc New() {}\nvar ErrB, ErrC error\n",
		"example_test.go": "package tiercache_test\nfunc ExampleA_Get() { _ = tiercache.ErrB }\nfunc ExampleNew_second() {}\n",
	}
	require.Equal(t, []string{"ErrC"}, withoutExample(src))
	src["example_test.go"] = "package tiercache_test\nfunc ExampleErrC() {}\n"
	require.Equal(t, []string{"A", "A_Get", "ErrB", "New"}, withoutExample(src))
}

func withoutExample(src sources) (found []string) {
	own, shown := map[string]bool{}, map[string]bool{}
	symbols := map[string]bool{} // -> whether it needs an Example of its own
	for name, text := range src {
		if path.Dir(name) != "." || !strings.HasSuffix(name, ".go") {
			continue
		}
		f := parse(name, text)
		if strings.HasSuffix(name, "_test.go") {
			collectExamples(f, own, shown)
		} else {
			collectSymbols(f, symbols)
		}
	}
	for _, s := range slices.Sorted(maps.Keys(symbols)) {
		if !own[s] && (symbols[s] || !shown[s]) {
			found = append(found, s)
		}
	}
	return found
}

// collectExamples adds the symbols whose Examples f has, and those that appear in the body of any.
func collectExamples(f *ast.File, own, shown map[string]bool) {
	for _, d := range f.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || fn.Recv != nil || !strings.HasPrefix(fn.Name.Name, "Example") {
			continue
		}
		name := strings.TrimPrefix(fn.Name.Name, "Example")
		parts := strings.Split(name, "_")
		if last := parts[len(parts)-1]; last != "" && last[0] >= 'a' && last[0] <= 'z' {
			parts = parts[:len(parts)-1] // the suffix that tells two Examples of one symbol apart
		}
		own[strings.Join(parts, "_")] = true
		own[parts[0]] = true // ExampleCache_Get shows Cache as well
		ast.Inspect(fn, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok {
				if x, ok := sel.X.(*ast.Ident); ok && x.Name == "tiercache" {
					shown[sel.Sel.Name] = true
				}
			}
			return true
		})
	}
}

// collectSymbols adds f's exported symbols, methods as Type_Method, with whether an Example of their own is due. Error and Unwrap
// belong to the errors package's way of asking and have none.
func collectSymbols(f *ast.File, symbols map[string]bool) {
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			name := d.Name.Name
			if !d.Name.IsExported() {
				continue
			}
			if d.Recv != nil {
				recv := receiver(d.Recv.List[0].Type)
				if !ast.IsExported(recv) || name == "Error" || name == "Unwrap" {
					continue
				}
				name = recv + "_" + name
			}
			symbols[name] = true
		case *ast.GenDecl:
			for _, s := range d.Specs {
				switch s := s.(type) {
				case *ast.TypeSpec:
					if s.Name.IsExported() {
						symbols[s.Name.Name] = false
					}
				case *ast.ValueSpec:
					for _, n := range s.Names {
						if n.IsExported() {
							symbols[n.Name] = false
						}
					}
				}
			}
		}
	}
}

// receiver is the name of a method's receiver type, without pointer and type parameters.
func receiver(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return receiver(e.X)
	case *ast.IndexExpr:
		return receiver(e.X)
	case *ast.IndexListExpr:
		return receiver(e.X)
	case *ast.Ident:
		return e.Name
	}
	return ""
}

// Every promise P1 to P13 stands in doc.go with the names of its tests, and these tests exist.
func TestHousePromisesNameTestsThatExist(t *testing.T) {
	t.Parallel()
	require.Empty(t, brokenPromises(tree(t), 13))
	src := sources{
		"doc.go":    "// Package a is.\n//\n//\tP1  one: TestOne, TestTwo.\n//\tP2  two, see P1:\n//\t    TestThree\npackage a",
		"a_test.go": "package a\nfunc TestOne(t *testing.T) {}\nfunc TestThree(t *testing.T) {}\n",
	}
	require.Equal(t, []string{"P1 names TestTwo, which does not exist"}, brokenPromises(src, 2))
	require.Contains(t, brokenPromises(src, 3), "doc.go does not state P3")
	src["doc.go"] = "// Package a is.\n//\n// P1 one: none.\npackage a"
	require.Equal(t, []string{"P1 names no test"}, brokenPromises(src, 1))
}

var (
	promiseStart = regexp.MustCompile(`(?m)^[\s|*-]*P(\d+)\b`)
	testName     = regexp.MustCompile(`\b(?:Test|Fuzz)[A-Z]\w*`)
)

func brokenPromises(src sources, promises int) (found []string) {
	tests := map[string]bool{}
	for name, text := range src {
		if strings.HasSuffix(name, "_test.go") {
			for _, d := range parse(name, text).Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
					tests[fn.Name.Name] = true
				}
			}
		}
	}
	doc := parse("doc.go", src["doc.go"]).Doc.Text()
	stated := map[string]string{}
	starts := promiseStart.FindAllStringSubmatchIndex(doc, -1)
	for i, at := range starts {
		end := len(doc)
		if i+1 < len(starts) {
			end = starts[i+1][0]
		}
		stated["P"+doc[at[2]:at[3]]] += doc[at[3]:end]
	}
	for i := range promises {
		p := fmt.Sprintf("P%d", i+1)
		text, ok := stated[p]
		if !ok {
			found = append(found, "doc.go does not state "+p)
			continue
		}
		names := testName.FindAllString(text, -1)
		if len(names) == 0 {
			found = append(found, p+" names no test")
		}
		for _, name := range names {
			if !tests[name] {
				found = append(found, p+" names "+name+", which does not exist")
			}
		}
	}
	return found
}

// Every package of the library that has tests looks for leaked goroutines when they are done.
func TestHouseTestsEndWithALeakCheck(t *testing.T) {
	t.Parallel()
	require.Empty(t, withoutLeakCheck(tree(t)))
	require.Len(t, withoutLeakCheck(sources{"a/a_test.go": "package a\nfunc TestA(t *testing.T) {}", "examples/x/a_test.go": "package a"}), 1)
	require.Empty(t, withoutLeakCheck(sources{"a/main_test.go": "package a\nfunc TestMain(m *testing.M) { redistest.Main(m) }"}))
}

var leakCheck = regexp.MustCompile(`(?m)func TestMain\(m \*testing\.M\)[^}]*?(redistest\.Main|\bMain|goleak\.VerifyTestMain)\(m`)

func withoutLeakCheck(src sources) (found []string) {
	checked := map[string]bool{}
	for name, text := range src {
		if strings.HasSuffix(name, "_test.go") && !otherModule(name) {
			dir := path.Dir(name)
			checked[dir] = checked[dir] || leakCheck.MatchString(text)
		}
	}
	for _, dir := range slices.Sorted(maps.Keys(checked)) {
		if !checked[dir] {
			found = append(found, dir+": no TestMain that calls redistest.Main or goleak.VerifyTestMain")
		}
	}
	return found
}

// No type is a manager, a helper, a util, an impl or a base: such a name says nothing of what the thing is.
func TestHouseTypesAreNamedForWhatTheyAre(t *testing.T) {
	t.Parallel()
	require.Empty(t, emptyNames(tree(t)))
	require.Len(t, emptyNames(sources{"a.go": "package a\ntype cacheManager struct{}\ntype Manage struct{}"}), 1)
}

var emptyName = regexp.MustCompile(`(?i)(manager|helper|utils?|impl|base)$`)

func emptyNames(src sources) (found []string) {
	for name, text := range src {
		if !code(name) {
			continue
		}
		ast.Inspect(parse(name, text), func(n ast.Node) bool {
			if s, ok := n.(*ast.TypeSpec); ok && emptyName.MatchString(s.Name.Name) {
				found = append(found, name+": "+s.Name.Name)
			}
			return true
		})
	}
	return found
}

// `make help` names every target that the house has promised.
func TestHouseMakefileHasItsTargets(t *testing.T) {
	t.Parallel()
	makefile := tree(t)["Makefile"]
	for target := range strings.FieldsSeq("help fmt lint test race integration fuzz bench bench-compare cover docs tools hooks check") {
		require.Regexp(t, `(?m)^`+target+`:.* ## \w`, makefile, "target %s with its line for make help", target)
	}
}

// tree reads the repository's text files. Built things and hidden directories, but for .ci, are none of it.
func tree(t *testing.T) sources {
	t.Helper()
	src := sources{}
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := d.Name()
		if d.IsDir() {
			if name != "." && (base == "bin" || base == "testdata" || base == "results" || strings.HasPrefix(base, ".") && base != ".ci") {
				return filepath.SkipDir
			}
			return nil
		}
		switch filepath.Ext(base) {
		case ".go", ".lua", ".md", ".sh", ".yml", ".mod", "":
		default:
			return nil
		}
		if !d.Type().IsRegular() {
			return nil
		}
		text, err := os.ReadFile(name)
		src[filepath.ToSlash(name)] = string(text)
		return err
	})
	require.NoError(t, err)
	require.Contains(t, src, "go.mod", "the test runs at the root of the repository")
	return src
}

// code reports whether name is a Go file that is not a test.
func code(name string) bool {
	return strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go")
}

// otherModule reports whether name belongs to a module beside the library's.
func otherModule(name string) bool {
	for _, dir := range []string{"bench/", "examples/", "contrib/", "internal/tools/"} {
		if strings.HasPrefix(name, dir) {
			return true
		}
	}
	return false
}

// parse is the syntax of a Go file; one that does not parse breaks the build long before these rules.
func parse(name, text string) *ast.File {
	f, err := parser.ParseFile(token.NewFileSet(), name, text, parser.ParseComments)
	if err != nil && f == nil {
		return &ast.File{Name: ast.NewIdent("unreadable"), Doc: &ast.CommentGroup{}}
	}
	return f
}
