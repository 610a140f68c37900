package redistest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
)

// Server is one Redis as one test sees it. Its methods may be called by several goroutines.
type Server struct {
	Addr string // host:port

	tb     testing.TB
	proc   *process             // nil: embedded
	mini   *miniredis.Miniredis // nil: a process
	shared bool                 // other tests use it too
}

// Option changes how a server or a cluster is started.
type Option func(*settings)

type settings struct {
	args     []string
	replicas int
}

// Args adds arguments of redis-server's command line, such as "--maxmemory", "1mb".
func Args(args ...string) Option {
	return func(s *settings) { s.args = append(s.args, args...) }
}

func settingsOf(o []Option) (s settings) {
	for _, set := range o {
		set(&s)
	}
	return s
}

// Start returns a redis-server of the test's own, which answers already; it is killed when the test ends.
// Without the binary the test is skipped (see the package's comment).
func Start(tb testing.TB, o ...Option) *Server {
	tb.Helper()
	return start(tb, false, o...)
}

func start(tb testing.TB, bus bool, o ...Option) *Server {
	tb.Helper()
	need(tb)
	p, err := launch(tb.TempDir(), bus, settingsOf(o).args...)
	if err != nil {
		tb.Fatalf("redistest: start a server: %v", err)
	}
	tb.Cleanup(p.kill)
	return &Server{Addr: p.addr(), tb: tb, proc: p}
}

// Shared returns the server that all tests of this binary share. It is started by the first who asks and ended by Main.
// Without the binary it is an embedded imitation: see Embedded.
func Shared(tb testing.TB) *Server {
	tb.Helper()
	fleet.mu.Lock()
	defer fleet.mu.Unlock()
	if fleet.proc == nil && fleet.mini == nil {
		if err := fleet.startServer(installed(tb)); err != nil {
			tb.Fatalf("redistest: start the shared server: %v", err)
		}
	}
	s := &Server{tb: tb, proc: fleet.proc, mini: fleet.mini, shared: true}
	if s.mini != nil {
		s.Addr = s.mini.Addr()
		note(tb, "runs against miniredis, not against a real server")
	} else {
		s.Addr = s.proc.addr()
	}
	return s
}

// Embedded reports whether s is miniredis, an imitation inside this process: it knows no processes, no configuration, and keeps
// no time of its own.
func (s *Server) Embedded() bool { return s.mini != nil }

// Client returns a client of s with the options of go-redis, after each set was applied to them; it is closed when the test ends.
// The test may close it earlier.
func (s *Server) Client(tb testing.TB, set ...func(*redis.Options)) *redis.Client {
	tb.Helper()
	o := &redis.Options{Addr: s.Addr}
	for _, f := range set {
		f(o)
	}
	c := redis.NewClient(o)
	tb.Cleanup(func() { _ = c.Close() }) // an error says that the test has closed it already
	return c
}

// Kill ends s at once, as a crash does, and returns when it is gone.
func (s *Server) Kill() {
	s.tb.Helper()
	s.own("Kill")
	s.proc.kill()
}

// Restart kills s if it runs and starts it again on the same port, empty (a node of a cluster keeps its slots). It returns when
// s answers.
func (s *Server) Restart() {
	s.tb.Helper()
	s.own("Restart")
	s.restart(nil)
}

// restart kills s and starts it again with what the dump holds; nil: with nothing.
func (s *Server) restart(dump []byte) {
	s.tb.Helper()
	s.proc.kill()
	err := os.Remove(s.proc.dump()) // a Save, or a replica's first copy, has left one
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err == nil && dump != nil {
		err = os.WriteFile(s.proc.dump(), dump, 0o600)
	}
	if err == nil {
		err = restart(s.proc)
	}
	if err != nil {
		s.tb.Fatalf("redistest: restart %s: %v", s.Addr, err)
	}
}

// restart starts p on its old port. While p was dead the system may have lent that port to somebody's outgoing connection, which
// gives it back.
func restart(p *process) (err error) {
	tick := time.NewTicker(10 * pollEvery)
	defer tick.Stop()
	for range 10 * portTries {
		if err = p.start(); err == nil {
			return nil
		}
		<-tick.C
	}
	return err
}

// Stop freezes s (SIGSTOP): it accepts connections, since the kernel does, and answers nothing until Continue.
func (s *Server) Stop() {
	s.tb.Helper()
	s.own("Stop")
	if err := s.proc.signal(true); err != nil {
		s.tb.Fatalf("redistest: stop %s: %v", s.Addr, err)
	}
}

// Continue lets a stopped s run on; it works off what it was sent meanwhile.
func (s *Server) Continue() {
	s.tb.Helper()
	s.own("Continue")
	if err := s.proc.signal(false); err != nil {
		s.tb.Fatalf("redistest: continue %s: %v", s.Addr, err)
	}
}

// Config sets one of s's settings (CONFIG SET).
func (s *Server) Config(tb testing.TB, name, value string) {
	tb.Helper()
	s.own("Config")
	if err := s.Client(tb).ConfigSet(tb.Context(), name, value).Err(); err != nil {
		tb.Fatalf("redistest: CONFIG SET %s %q: %v", name, value, err)
	}
}

// own ends the test unless s is a process of its own: what is done to a shared server happens to its neighbours.
func (s *Server) own(method string) {
	s.tb.Helper()
	if s.mini != nil {
		skip(s.tb, "Server."+method+" needs a real server")
	}
	if s.shared {
		s.tb.Fatalf("redistest: %s on the shared server: take one of your own with Start", method)
	}
}

// Name returns a name for a cache or a prefix of keys that no other test of this binary has.
func Name(tb testing.TB) string {
	name := strings.Map(func(r rune) rune {
		if r < 0x80 && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9') {
			return r
		}
		return '-'
	}, tb.Name())
	const most = 60 // of the test's own name, so that keys stay readable in a log
	return fmt.Sprintf("%s-%d", name[:min(len(name), most)], names.Add(1))
}

var names atomic.Uint64

// need ends the test if there is no redis-server.
func need(tb testing.TB) {
	tb.Helper()
	if !installed(tb) {
		skip(tb, "there is no redis-server on PATH")
	}
}

// installed reports whether there is a redis-server. Where one is required, the test ends if there is none.
func installed(tb testing.TB) bool {
	tb.Helper()
	_, err := exec.LookPath("redis-server")
	if err != nil && os.Getenv("TIERCACHE_REQUIRE_REDIS") == "1" {
		tb.Fatalf("redistest: TIERCACHE_REQUIRE_REDIS=1 and %v; %s", err, howToInstall())
	}
	return err == nil
}

func skip(tb testing.TB, why string) {
	tb.Helper()
	note(tb, "SKIPPED: "+why)
	tb.Skipf("redistest: SKIPPED: %s; %s", why, howToInstall())
}

// note adds a line to the file that TIERCACHE_SKIP_LOG names.
func note(tb testing.TB, what string) {
	tb.Helper()
	path := os.Getenv("TIERCACHE_SKIP_LOG")
	if path == "" {
		return
	}
	noting.Lock()
	defer noting.Unlock()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		tb.Logf("redistest: TIERCACHE_SKIP_LOG: %v", err)
		return
	}
	defer f.Close() //nolint:errcheck // the line is a courtesy
	if _, err := fmt.Fprintf(f, "%s %s: %s\n", filepath.Base(os.Args[0]), tb.Name(), what); err != nil {
		tb.Logf("redistest: TIERCACHE_SKIP_LOG: %v", err)
	}
}

var noting sync.Mutex

func howToInstall() string {
	if runtime.GOOS == "darwin" {
		return "install it with: brew install redis"
	}
	return "install it with: apt-get install redis-server, apk add redis or dnf install redis (`make test` tries this itself)"
}
