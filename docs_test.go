package tiercache_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/stretchr/testify/require"
)

// Code in Markdown comes from code that is compiled and tested. A line before the block says from where:
//
//	<!-- code: examples/quickstart/main.go -->        the whole file
//	<!-- code: example_test.go ExampleCache_Get -->   the body of a function; `func ExampleCache_Get` means all of it
//
// `make docs` writes the blocks anew.
var codeBlock = regexp.MustCompile("(?m)^<!-- code: (\\S+)(?: (func )?(\\w+))? -->\n```(\\w*)\n((?s:.*?))^```$")

// Every claimed code block in a Markdown file is equal to the code it names.
func TestDocsCodeComesFromTheTree(t *testing.T) {
	t.Parallel()
	src := tree(t)
	for name, text := range markdown(src) {
		fresh, err := withFreshCode(src, text)
		require.NoError(t, err, name)
		if fresh == text {
			continue
		}
		if os.Getenv("TIERCACHE_UPDATE_DOCS") == "1" {
			require.NoError(t, os.WriteFile(name, []byte(fresh), 0o644)) //nolint:gosec // documents are for everybody
			continue
		}
		require.Equal(t, fresh, text, "%s: a code block differs from the code it comes from; run `make docs`", name)
	}
}

// The rule above can fail: a block that differs is replaced, and one that names nothing is an error.
func TestDocsStaleCodeIsFound(t *testing.T) {
	t.Parallel()
	src := sources{"x_test.go": "package x\n\nfunc ExampleX() {\n\tif true {\n\t\tdone()\n\t}\n\t// Output: 1\n}\n"}
	block := "a\n<!-- code: x_test.go ExampleX -->\n```go\nif true {\n\tdone()\n}\n// Output: 1\n```\nb\n"
	fresh, err := withFreshCode(src, block)
	require.NoError(t, err)
	require.Equal(t, block, fresh)
	fresh, err = withFreshCode(src, strings.Replace(block, "true", "false", 1))
	require.NoError(t, err)
	require.Equal(t, block, fresh)
	_, err = withFreshCode(src, strings.Replace(block, "ExampleX", "ExampleY", 1))
	require.Error(t, err)
	_, err = withFreshCode(src, strings.Replace(block, "x_test.go", "y_test.go", 1))
	require.Error(t, err)
	whole := "<!-- code: x_test.go func ExampleX -->\n```go\n" + strings.TrimPrefix(src["x_test.go"], "package x\n\n") + "```\n"
	fresh, err = withFreshCode(src, whole)
	require.NoError(t, err)
	require.Equal(t, whole, fresh)
}

// Every Go block of the README says where it comes from.
func TestDocsReadmeShowsOnlyCodeThatRuns(t *testing.T) {
	t.Parallel()
	readme := tree(t)["README.md"]
	require.NotEmpty(t, readme)
	require.Empty(t, unclaimed(readme))
	require.Len(t, unclaimed("a\n```go\nx\n```\n<!-- code: a.go -->\n```go\n```\n"), 1)
}

func unclaimed(text string) (found []string) {
	before := ""
	for i, line := range strings.Split(text, "\n") {
		if strings.HasPrefix(line, "```go") && !strings.HasPrefix(before, "<!-- code: ") {
			found = append(found, fmt.Sprintf("line %d: a Go block without a comment that says where it comes from", i+1))
		}
		before = line
	}
	return found
}

// Every link from one of our documents to another of our files leads there, to a heading of that name where it says so.
func TestDocsLinksLeadSomewhere(t *testing.T) {
	t.Parallel()
	src := tree(t)
	require.Empty(t, deadLinks(src, onDisk))
	have := func(name string) bool { return name == "docs/b.md" || name == "docs" }
	text := "# A b: `C`!\n[x](docs/b.md) [x](docs/) [x](#a-b-c) [x](docs/b.md#d)\n[y]: docs/b.md\n`[code](no.md)`\n```\n[code](no.md)\n```\n"
	require.Empty(t, deadLinks(sources{"a.md": text, "docs/b.md": "## D\n[up](../docs)"}, have))
	for _, bad := range []string{"[x](c.md)", "![x](c.png)", "[x](#nothing)", "[x](docs/b.md#e)", "[y]: c.md", "[x](http://example.org)"} {
		require.Len(t, deadLinks(sources{"a.md": text + bad, "docs/b.md": "## D"}, have), 1, bad)
	}
}

func onDisk(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// A document that a comment in the code points to is one of ours: a reader can open it.
func TestDocsThatCommentsNameExist(t *testing.T) {
	t.Parallel()
	require.Empty(t, unknownDocuments(tree(t)))
	src := sources{
		"docs/wire.md": "",
		"a.go":         "// Package a: see docs/wire.md and wire.md.\npackage a\n\nconst x = `other.md`\n",
	}
	require.Empty(t, unknownDocuments(src))
	src["b.go"] = "package a\n\n// B is by paper.md.\nconst B = 1\n"
	src["c.lua"] = "-- by docs/paper.md\n"
	require.Len(t, unknownDocuments(src), 2)
}

var documentName = regexp.MustCompile(`[\w./-]+\.md\b`)

func unknownDocuments(src sources) (found []string) {
	for name, text := range src {
		comments := ""
		switch {
		case strings.HasSuffix(name, ".go"):
			for _, c := range parse(name, text).Comments {
				comments += c.Text()
			}
		case strings.HasSuffix(name, ".lua"):
			comments = text
		}
		for _, named := range documentName.FindAllString(comments, -1) {
			known := func(ours string) bool { return ours == named || strings.HasSuffix(ours, "/"+named) }
			if !slices.ContainsFunc(slices.Collect(maps.Keys(src)), known) {
				found = append(found, name+": a comment names "+named+", which is not here")
			}
		}
	}
	slices.Sort(found)
	return found
}

// Every decision record has the sections that make one, and the index lists it.
func TestDocsDecisionsAreComplete(t *testing.T) {
	t.Parallel()
	src := tree(t)
	require.Empty(t, incompleteDecisions(src))
	require.NotEmpty(t, decisions(src))
	whole := "# 0001. A\n## Context\n## Decision\n## Consequences\n## Rejected\n## How we would know it was wrong\n"
	index := "docs/adr/README.md"
	require.Empty(t, incompleteDecisions(sources{"docs/adr/0001-a.md": whole, index: "[A](0001-a.md)"}))
	require.Len(t, incompleteDecisions(sources{"docs/adr/0001-a.md": whole, index: ""}), 1)
	require.Len(t, incompleteDecisions(sources{"docs/adr/0001-a.md": strings.Replace(whole, "## Rej", "### Rej", 1), index: "0001-a.md"}), 1)
	require.Len(t, incompleteDecisions(sources{"docs/adr/0001-a.md": whole, "docs/adr/0001-b.md": whole, index: "0001-a.md 0001-b.md"}), 1, "a number is given once")
}

var decisionName = regexp.MustCompile(`^docs/adr/(\d{4})-[a-z0-9-]+\.md$`)

func decisions(src sources) (names []string) {
	for name := range src {
		if decisionName.MatchString(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func incompleteDecisions(src sources) (found []string) {
	numbers := map[string]bool{}
	for _, name := range decisions(src) {
		for _, want := range []string{"Context", "Decision", "Consequences", "Rejected", "How we would know it was wrong"} {
			if !regexp.MustCompile(`(?m)^## ` + want).MatchString(src[name]) {
				found = append(found, name+": no section "+want)
			}
		}
		if !strings.Contains(src["docs/adr/README.md"], path.Base(name)) {
			found = append(found, name+" is not in docs/adr/README.md")
		}
		number := decisionName.FindStringSubmatch(name)[1]
		if numbers[number] {
			found = append(found, name+": there is another decision of this number")
		}
		numbers[number] = true
	}
	return found
}

func markdown(src sources) sources {
	m := maps.Clone(src)
	maps.DeleteFunc(m, func(name, _ string) bool { return !strings.HasSuffix(name, ".md") })
	return m
}

// withFreshCode is a Markdown text with every claimed code block written anew.
func withFreshCode(src sources, text string) (fresh string, err error) {
	fresh = codeBlock.ReplaceAllStringFunc(text, func(block string) string {
		m := codeBlock.FindStringSubmatch(block)
		code, e := excerpt(src, m[1], m[3], m[2] != "")
		if e != nil {
			err = e
			return block
		}
		head, _, _ := strings.Cut(block, "\n")
		return head + "\n```" + m[4] + "\n" + code + "```"
	})
	return fresh, err
}

// excerpt is a file of the tree, a function of it, or the body of that function with its indent taken off.
func excerpt(src sources, name, function string, whole bool) (string, error) {
	text, ok := src[name]
	if !ok {
		return "", fmt.Errorf("there is no file %s", name)
	}
	if function == "" {
		return text, nil
	}
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, name, text, parser.ParseComments)
	if err != nil {
		return "", err
	}
	for _, d := range f.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || fn.Recv != nil || fn.Name.Name != function {
			continue
		}
		if whole {
			return text[fset.Position(fn.Pos()).Offset:fset.Position(fn.End()).Offset] + "\n", nil
		}
		body := text[fset.Position(fn.Body.Lbrace).Offset+1 : fset.Position(fn.Body.Rbrace).Offset]
		return regexp.MustCompile(`(?m)^\t`).ReplaceAllString(strings.TrimLeft(body, "\n"), ""), nil
	}
	return "", fmt.Errorf("%s has no function %s", name, function)
}

var (
	link      = regexp.MustCompile(`\]\(([^()\s]+)\)|(?m:^\[[^\]]+\]:\s+(\S+))`)
	codeSpan  = regexp.MustCompile("(?ms)^```.*?^```[ \\t]*$|`[^`\n]*`")
	heading   = regexp.MustCompile(`(?m)^#{1,6}\s+(.+?)\s*$`)
	fenceOnly = regexp.MustCompile("(?ms)^```.*?^```[ \\t]*$")
)

// deadLinks names the links that lead nowhere; have tells which files and directories there are.
func deadLinks(src sources, have func(string) bool) (found []string) {
	for name, text := range markdown(src) {
		for _, m := range link.FindAllStringSubmatch(codeSpan.ReplaceAllString(text, ""), -1) {
			to := m[1] + m[2]
			switch {
			case strings.HasPrefix(to, "https://"), strings.HasPrefix(to, "mailto:"):
				continue
			case strings.Contains(to, "://"):
				found = append(found, name+": "+to+" is not https")
				continue
			}
			file, anchor, anchored := strings.Cut(to, "#")
			target := name
			if file != "" {
				target = path.Join(path.Dir(name), file)
				if !have(target) {
					found = append(found, name+": "+to+": there is no "+target)
					continue
				}
			}
			if anchored && !slices.Contains(anchors(src[target]), anchor) {
				found = append(found, name+": "+to+": there is no such heading")
			}
		}
	}
	slices.Sort(found)
	return found
}

// anchors are the names under which the headings of a Markdown text can be linked to, as the usual hosts make them.
func anchors(text string) (names []string) {
	seen := map[string]int{}
	for _, m := range heading.FindAllStringSubmatch(fenceOnly.ReplaceAllString(text, ""), -1) {
		slug := strings.Map(func(r rune) rune {
			switch {
			case unicode.IsLetter(r), unicode.IsDigit(r), r == '-', r == '_':
				return unicode.ToLower(r)
			case r == ' ':
				return '-'
			}
			return -1
		}, m[1])
		if n := seen[slug]; n > 0 {
			names = append(names, fmt.Sprintf("%s-%d", slug, n))
		} else {
			names = append(names, slug)
		}
		seen[slug]++
	}
	return names
}
