package tiercache_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const modulePath = "github.com/tiercache/tiercache"

// rooms are the packages that the root imports and that know neither the root nor each other.
var rooms = []string{"layers", "rebuild", "bloom", "consistency"}

// libraryModules are all modules whose code is linked into a program that uses tiercache. A new one needs a decision in docs/adr.
var libraryModules = []string{
	"github.com/bits-and-blooms/bitset",   // of bloom
	"github.com/bits-and-blooms/bloom/v3", // the filter
	"github.com/cespare/xxhash/v2",        // of go-redis and ristretto
	"github.com/dgraph-io/ristretto/v2",   // the local tier's store
	"github.com/dustin/go-humanize",       // of ristretto
	"github.com/redis/go-redis/v9",        // the shared tier
	"github.com/sony/gobreaker/v2",        // the breakers
	"go.uber.org/atomic",                  // of go-redis
	"golang.org/x/sync",                   // flights
	"golang.org/x/sys",                    // of ristretto
}

// testModules are the modules that only our tests use.
var testModules = []string{
	"github.com/alicebob/miniredis/v2",
	"github.com/anishathalye/porcupine", // judges the history of the lock fleet
	"github.com/stretchr/testify",
	"github.com/yuin/gopher-lua", // of miniredis
	"go.uber.org/goleak",
	"go.yaml.in/yaml/v3", // of testify
}

// pkg is a package as `go list` shows it.
type pkg struct {
	ImportPath string
	ForTest    string // the package whose test variant this is
	Standard   bool
	Imports    []string
	Module     *struct{ Path string }
}

// The star: the root imports rooms; a room imports neither the root nor another room, not even through a third package.
func TestHouseRoomsDoNotKnowEachOther(t *testing.T) {
	t.Parallel()
	patterns := make([]string, 0, len(rooms)+1)
	for _, room := range rooms {
		patterns = append(patterns, "./"+room)
	}
	graph := imports(golist(t, append(patterns, ".")...))
	require.Contains(t, graph, modulePath, "the root is listed")
	for _, room := range rooms {
		require.Contains(t, graph, modulePath+"/"+room, "every room is listed")
	}
	require.Empty(t, forbiddenArrows(graph))
}

// The rule above can fail: a room that reaches the root or another room, directly or not, is found.
func TestHouseForbiddenArrowsAreFound(t *testing.T) {
	t.Parallel()
	layers, bloom, inner := modulePath+"/layers", modulePath+"/bloom", modulePath+"/internal/inner"
	require.Len(t, forbiddenArrows(map[string][]string{layers: {bloom}}), 1)
	require.Len(t, forbiddenArrows(map[string][]string{bloom: {modulePath}, modulePath: {}}), 1)
	require.Len(t, forbiddenArrows(map[string][]string{layers: {inner}, inner: {bloom}}), 1, "through a third package")
	require.Empty(t, forbiddenArrows(map[string][]string{modulePath: {layers, bloom}, layers: {"errors"}, bloom: {}}))
}

// What a user links is the library's modules and no others; what our tests link beside them is small. Nothing heavy is anywhere.
func TestHouseDependenciesAreTheOnesWeChose(t *testing.T) {
	t.Parallel()
	library := modules(golist(t, "."))
	require.Equal(t, libraryModules, library, "modules that a program with tiercache links")
	for _, m := range modules(golist(t, "-test", "./...")) {
		require.True(t, slices.Contains(libraryModules, m) || slices.Contains(testModules, m),
			"a test links %s, which is neither the library's nor one of the chosen test modules", m)
	}
}

// go.mod requires the chosen modules only: a requirement that no package of ours needs would still be every user's.
func TestHouseGoModRequiresNothingElse(t *testing.T) {
	t.Parallel()
	file := struct {
		Require []struct{ Path string }
		Replace []struct{ Old struct{ Path string } }
		Tool    []struct{ Path string }
	}{}
	require.NoError(t, json.Unmarshal(run(t, "mod", "edit", "-json"), &file))
	chosen := slices.Concat(libraryModules, testModules)
	for _, r := range file.Require {
		require.Contains(t, chosen, r.Path)
	}
	require.Empty(t, file.Replace, "a replacement does not reach users: what they get is not what we test")
	require.Empty(t, file.Tool, "tools are pinned in internal/tools/go.mod")
}

// forbiddenArrows follows the imports of each room and names those that end at the root or at another room.
func forbiddenArrows(graph map[string][]string) (found []string) {
	forbidden := map[string]bool{modulePath: true}
	for _, room := range rooms {
		forbidden[modulePath+"/"+room] = true
	}
	for _, room := range rooms {
		start := modulePath + "/" + room
		seen := map[string]bool{start: true}
		var follow func(path []string)
		follow = func(path []string) {
			for _, next := range graph[path[len(path)-1]] {
				if seen[next] {
					continue
				}
				seen[next] = true
				way := append(slices.Clone(path), next)
				if forbidden[next] {
					found = append(found, strings.Join(way, " -> "))
					continue
				}
				follow(way)
			}
		}
		follow([]string{start})
	}
	return found
}

// imports is what each package of ours imports.
func imports(pkgs []pkg) map[string][]string {
	graph := map[string][]string{}
	for _, p := range pkgs {
		if p.Module != nil && p.Module.Path == modulePath {
			graph[p.ImportPath] = p.Imports
		}
	}
	return graph
}

// modules are the modules of the packages, in order, without our own.
func modules(pkgs []pkg) []string {
	set := map[string]bool{}
	for _, p := range pkgs {
		if p.Module != nil && p.Module.Path != modulePath {
			set[p.Module.Path] = true
		}
	}
	return slices.Sorted(maps.Keys(set))
}

// golist lists packages with all they import. It leaves the workspace out of account, since a user has none.
func golist(t *testing.T, args ...string) (pkgs []pkg) {
	t.Helper()
	out := run(t, append([]string{"list", "-deps", "-json=ImportPath,ForTest,Standard,Imports,Module"}, args...)...)
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatalf("go list %v: %v", args, err)
		}
		pkgs = append(pkgs, p)
	}
}

func run(t *testing.T, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Env = append(os.Environ(), "GOWORK=off")
	out, err := cmd.Output()
	if err != nil {
		var said *exec.ExitError
		if errors.As(err, &said) {
			err = fmt.Errorf("%w: %s", err, said.Stderr)
		}
		t.Fatalf("go %v: %v", args, err)
	}
	return out
}
