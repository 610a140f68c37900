package redistest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// An own server answers as soon as Start returns, keeps nothing on disk, and allows DEBUG where its version asks for leave.
func TestStartGivesAServerThatAnswers(t *testing.T) {
	s := Start(t)
	c := s.Client(t)
	require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
	require.Equal(t, "v", c.Get(t.Context(), "k").Val())
	require.NoError(t, c.Do(t.Context(), "DEBUG", "SLEEP", "0").Err(), "DEBUG is for the loopback interface")
	saved, err := c.ConfigGet(t.Context(), "save").Result()
	require.NoError(t, err)
	require.Empty(t, saved["save"], "snapshots are off")
	require.False(t, s.Embedded())
}

// Servers that are started at once get different ports, and each test talks to its own.
func TestServersStartedTogetherAreDistinct(t *testing.T) {
	need(t)
	const n = 4
	var wg sync.WaitGroup
	addrs := make([]string, n)
	for i := range n {
		wg.Go(func() {
			p, err := launch(t.TempDir(), false)
			if err != nil {
				t.Errorf("server %d: %v", i, err)
				return
			}
			t.Cleanup(p.kill)
			addrs[i] = p.addr()
		})
	}
	wg.Wait()
	seen := map[string]bool{}
	for i, addr := range addrs {
		require.False(t, seen[addr], "server %d has %s, as another has", i, addr)
		seen[addr] = true
	}
}

// A server whose port is somebody else's is not taken for ready, though a server answers on that port.
func TestAnotherServerOnThePortIsNotTakenForOurs(t *testing.T) {
	s := Start(t)
	p := &process{binary: s.proc.binary, dir: t.TempDir(), port: s.proc.port}
	err := p.start()
	t.Cleanup(p.kill)
	require.ErrorIs(t, err, errEnded)
	require.Contains(t, err.Error(), "in use", "the error shows the server's own words")
}

// Kill refuses connections at once; Restart brings an empty server back on the same port.
func TestKillAndRestart(t *testing.T) {
	s := Start(t)
	c := s.Client(t, func(o *redis.Options) { o.MaxRetries = -1 })
	require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
	s.Kill()
	require.Error(t, c.Ping(t.Context()).Err(), "after Kill")
	s.Kill() // a second time changes nothing
	s.Restart()
	require.ErrorIs(t, s.Client(t).Get(t.Context(), "k").Err(), redis.Nil, "after Restart nothing is left")
	s.Restart() // of a running server: killed first
	require.NoError(t, s.Client(t).Ping(t.Context()).Err())
}

// A stopped server answers nothing until Continue, and then what it was sent meanwhile.
func TestStopAndContinue(t *testing.T) {
	s := Start(t)
	c := s.Client(t, func(o *redis.Options) { o.MaxRetries, o.ReadTimeout = -1, -1 })
	require.NoError(t, c.Ping(t.Context()).Err())
	s.Stop()
	sent := make(chan error, 1)
	go func() { sent <- c.Set(context.WithoutCancel(t.Context()), "k", "v", 0).Err() }()
	impatient := s.Client(t, func(o *redis.Options) { o.MaxRetries, o.ReadTimeout = -1, 50*time.Millisecond })
	require.Error(t, impatient.Ping(t.Context()).Err(), "a stopped server answers nobody")
	select {
	case err := <-sent:
		t.Fatalf("a stopped server answered SET with %v", err)
	default:
	}
	s.Continue()
	require.NoError(t, <-sent)
	s.Stop() // and what is stopped can still be ended: the clean-up kills it
}

// Config changes a setting of an own server.
func TestConfig(t *testing.T) {
	s := Start(t, Args("--maxmemory", "3mb"))
	require.Equal(t, "3145728", s.Client(t).ConfigGet(t.Context(), "maxmemory").Val()["maxmemory"])
	s.Config(t, "maxmemory", "2mb")
	require.Equal(t, "2097152", s.Client(t).ConfigGet(t.Context(), "maxmemory").Val()["maxmemory"])
}

// All tests of a binary get the same shared server, and none may hurt it.
func TestSharedIsOneServerThatNobodyMayHurt(t *testing.T) {
	a, b := Shared(t), Shared(t)
	require.Equal(t, a.Addr, b.Addr)
	require.NoError(t, a.Client(t).Ping(t.Context()).Err())
	need(t)
	for name, hurt := range map[string]func(*Server){
		"Kill": (*Server).Kill, "Restart": (*Server).Restart, "Stop": (*Server).Stop, "Continue": (*Server).Continue,
		"Config":      func(s *Server) { s.Config(t, "maxmemory", "1mb") },
		"KillClients": func(s *Server) { s.KillClients() }, "FlushAll": (*Server).FlushAll, "ScriptFlush": (*Server).ScriptFlush,
		"Save": func(s *Server) { s.Save() }, "RestartWith": func(s *Server) { s.RestartWith(nil) },
		"ReplicaOf": func(s *Server) { s.ReplicaOf(s) }, "ReplicaOfNobody": (*Server).ReplicaOfNobody, "ReadOnly": (*Server).ReadOnly,
	} {
		s := Shared(t)
		r := pretend(t, func(tb testing.TB) { s.tb = tb; hurt(s) })
		require.True(t, r.failed, "%s on the shared server", name)
		require.Contains(t, r.said, "Start", name)
	}
	require.NoError(t, b.Client(t).Ping(t.Context()).Err(), "and it lives on")
}

// Without the binary Shared imitates, what needs a process skips and says how to install it, and each leaves a line in the log.
func TestWithoutTheBinary(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	t.Setenv("TIERCACHE_REQUIRE_REDIS", "")
	log := filepath.Join(t.TempDir(), "skips")
	t.Setenv("TIERCACHE_SKIP_LOG", log)
	kept := fleet.proc
	fleet.proc = nil
	t.Cleanup(func() {
		fleet.mini.Close()
		fleet.mini, fleet.proc = nil, kept
	})

	s := Shared(t)
	require.True(t, s.Embedded())
	require.NoError(t, s.Client(t).Set(t.Context(), "k", "v", 0).Err())
	for name, f := range map[string]func(testing.TB){
		"Start":         func(tb testing.TB) { Start(tb) },
		"StartCluster":  func(tb testing.TB) { StartCluster(tb) },
		"StartSentinel": func(tb testing.TB) { StartSentinel(tb, 1) },
		"SharedCluster": func(tb testing.TB) { SharedCluster(tb) },
		"Kill":          func(tb testing.TB) { Shared(tb).Kill() },
		"Config":        func(tb testing.TB) { Shared(tb).Config(tb, "maxmemory", "1mb") },
	} {
		r := pretend(t, f)
		require.True(t, r.skipped, name)
		require.False(t, r.failed, name)
		require.Contains(t, r.said, "install", name)
	}
	lines, err := os.ReadFile(log)
	require.NoError(t, err)
	require.Equal(t, 6, strings.Count(string(lines), "SKIPPED"), "%s", lines)
	require.Contains(t, string(lines), "miniredis")
}

// Where a server is required, a missing binary is a failure, never a skip.
func TestARequiredServerThatIsMissingFails(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	t.Setenv("TIERCACHE_REQUIRE_REDIS", "1")
	kept := fleet.proc
	fleet.proc = nil
	t.Cleanup(func() { fleet.proc = kept })
	for name, f := range map[string]func(testing.TB){
		"Start":         func(tb testing.TB) { Start(tb) },
		"Shared":        func(tb testing.TB) { Shared(tb) },
		"SharedCluster": func(tb testing.TB) { SharedCluster(tb) },
	} {
		r := pretend(t, f)
		require.True(t, r.failed, name)
		require.False(t, r.skipped, name)
	}
}

// No two names are alike, and a name holds nothing that a cache would have to escape.
func TestNamesAreUniqueAndPlain(t *testing.T) {
	t.Run("a/b {c}:ü "+strings.Repeat("long", 40), func(t *testing.T) {
		a, b := Name(t), Name(t)
		require.NotEqual(t, a, b)
		require.Regexp(t, `^[A-Za-z0-9-]{1,80}$`, a)
	})
}

// A goroutine that is left behind is found.
func TestLeaksAreFound(t *testing.T) {
	stay := make(chan struct{})
	left := make(chan struct{})
	go func() {
		defer close(left)
		<-stay
	}()
	err := leaks(0)
	close(stay)
	<-left
	require.ErrorContains(t, err, "TestLeaksAreFound")
}

// pretended is a testing.TB that records how its test ended; the end is a panic that pretend recovers.
type pretended struct {
	testing.TB
	failed, skipped bool
	said            string
}

// errEnd is the panic of a pretended test's end.
var errEnd = errors.New("the pretended test ended")

func pretend(t *testing.T, f func(testing.TB)) (p *pretended) {
	t.Helper()
	p = &pretended{TB: t}
	defer func() {
		if r := recover(); r != nil && r != any(errEnd) {
			panic(r)
		}
	}()
	f(p)
	return p
}

func (p *pretended) Fatal(args ...any) {
	p.failed, p.said = true, fmt.Sprint(args...)
	panic(errEnd)
}

func (p *pretended) Fatalf(format string, args ...any) {
	p.failed, p.said = true, fmt.Sprintf(format, args...)
	panic(errEnd)
}

func (p *pretended) Skipf(format string, args ...any) {
	p.skipped, p.said = true, fmt.Sprintf(format, args...)
	panic(errEnd)
}
