package tiercache_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache"
	"github.com/tiercache/tiercache/internal/faulty"
	"github.com/tiercache/tiercache/internal/redistest"
	"github.com/tiercache/tiercache/layers"
)

// source is a database of strings by string keys that counts what reaches it and does what a test tells it to.
type source struct {
	mu   sync.Mutex
	rows map[string]string
	// onLoad is called with each key before its row is read; the error it returns is the load's.
	onLoad func(ctx context.Context, key string) error
	// afterRead is called with each key after its row was read and before it is given back: a load that is overtaken by a write.
	afterRead func(key string)

	loads   atomic.Int64
	running atomic.Int64
	most    atomic.Int64 // loads at once, at most
}

func newSource(rows map[string]string) *source {
	s := &source{rows: map[string]string{}}
	for k, v := range rows {
		s.rows[k] = v
	}
	return s
}

func (s *source) load(ctx context.Context, key string) (string, error) {
	s.loads.Add(1)
	now := s.running.Add(1)
	defer s.running.Add(-1)
	for most := s.most.Load(); now > most && !s.most.CompareAndSwap(most, now); most = s.most.Load() {
	}
	s.mu.Lock()
	before, after := s.onLoad, s.afterRead
	s.mu.Unlock()
	if before != nil {
		if err := before(ctx, key); err != nil {
			return "", err
		}
	}
	s.mu.Lock()
	row, ok := s.rows[key]
	s.mu.Unlock()
	if after != nil {
		after(key)
	}
	if !ok {
		return "", fmt.Errorf("select %q: %w", key, tiercache.ErrNotFound)
	}
	return row, nil
}

func (s *source) write(key, row string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rows[key] = row
}

func (s *source) remove(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.rows, key)
}

// before sets what happens before a row is read; nil: nothing.
func (s *source) before(f func(ctx context.Context, key string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onLoad = f
}

// after sets what happens after a row was read; nil: nothing.
func (s *source) after(f func(key string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.afterRead = f
}

// process is what one process of a fleet has: a client, the shared tier on it, and a cache.
type process struct {
	*tiercache.Cache[string, string]
	rdb    redis.UniversalClient
	shared *layers.Redis
}

// options are those of a test's cache over s.
func options(name string, s *source) tiercache.Options[string, string] {
	return tiercache.Options[string, string]{Name: name, Load: s.load, Jitter: -1}
}

// patient are budgets that no slow machine overruns, for tests in which Redis answers.
var patient = layers.RedisOptions{ReadTimeout: 20 * time.Second, WriteTimeout: 20 * time.Second}

// openProcess opens a cache of its own process on rdb.
func openProcess(t *testing.T, rdb redis.UniversalClient, o tiercache.Options[string, string]) *process {
	t.Helper()
	p := &process{rdb: rdb}
	var err error
	p.shared, err = layers.NewRedis(t.Context(), rdb, patient)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.shared.Close()) })
	o.Shared = p.shared
	p.Cache, err = tiercache.New(o)
	require.NoError(t, err)
	t.Cleanup(func() { _ = p.Close() }) // a test that cares closes it itself
	return p
}

// onRedis runs a test against a standalone server and against a Cluster of three masters; client makes one process's client.
func onRedis(t *testing.T, test func(t *testing.T, client func(t *testing.T) redis.UniversalClient)) {
	t.Helper()
	t.Run("standalone", func(t *testing.T) {
		server := redistest.Shared(t)
		test(t, func(t *testing.T) redis.UniversalClient { t.Helper(); return server.Client(t) })
	})
	t.Run("cluster", func(t *testing.T) {
		cluster := redistest.SharedCluster(t)
		test(t, func(t *testing.T) redis.UniversalClient { t.Helper(); return cluster.Client(t) })
	})
}

// scriptText is one of the library's scripts as it is sent.
func scriptText(t *testing.T, name string) string {
	t.Helper()
	text, err := faulty.Text("layers/lua", name)
	require.NoError(t, err)
	return text
}

// scriptHash is the SHA-1 under which Redis knows one of the library's scripts.
func scriptHash(t *testing.T, name string) string {
	t.Helper()
	hash, err := faulty.Script("layers/lua", name)
	require.NoError(t, err)
	return hash
}
