package redistest

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"go.uber.org/goleak"
)

// fleet is what the tests of this binary share; ended by Main.
var fleet servers

type servers struct {
	mu    sync.Mutex
	proc  *process
	mini  *miniredis.Miniredis
	nodes []*process // of the shared cluster
	dirs  []string
}

func (f *servers) startServer(installed bool) (err error) {
	if !installed {
		f.mini, err = miniredis.Run()
		return err
	}
	dir, err := f.dir()
	if err != nil {
		return err
	}
	f.proc, err = launch(dir, false)
	return err
}

func (f *servers) dir() (string, error) {
	dir, err := os.MkdirTemp("", "tiercache-redis-")
	if err == nil {
		f.dirs = append(f.dirs, dir)
	}
	return dir, err
}

// end stops everything that is shared and removes its files.
func (f *servers) end() (err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mini != nil {
		f.mini.Close()
	}
	for _, p := range append(f.nodes, f.proc) {
		if p != nil {
			p.kill()
		}
	}
	for _, dir := range f.dirs {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	f.proc, f.mini, f.nodes, f.dirs = nil, nil, nil, nil
	return err
}

// leakTime is how long a goroutine that is on its way out may take; chosen, not tuned: it is reached only by a real leak.
const leakTime = 20 * time.Second

// Main runs the tests of a package, ends the shared servers, fails if a goroutine is left, and exits. A package's main_test.go is
//
//	func TestMain(m *testing.M) { redistest.Main(m) }
func Main(m *testing.M) {
	code := m.Run()
	if err := fleet.end(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	if code == 0 {
		if err := leaks(leakTime); err != nil {
			fmt.Fprintln(os.Stderr, "redistest: goroutines were left behind:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// leaks returns an error that shows the goroutines that are still there when patience is over.
func leaks(patience time.Duration) error {
	for end := time.Now().Add(patience); ; {
		err := goleak.Find()
		if err == nil || time.Now().After(end) {
			return err
		}
	}
}
