package tiercache_test

import (
	"context"
	"crypto/sha1" //nolint:gosec // the name Redis gives a script
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache"
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

// process is what one process of a fleet has: a client, the shared tier on it, a cache, and the means to watch and hold its commands.
type process struct {
	*tiercache.Cache[string, string]
	rdb    redis.UniversalClient
	shared *layers.Redis
	holds  *holds
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
	p := &process{rdb: rdb, holds: holdsOn(rdb)}
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

// holds stops a process between two of its steps: when a script it sent has been answered, and before it can act on the answer.
type holds struct {
	mu   sync.Mutex
	held map[string]*hold // by the script's hash
}

// hold is one script's next answer.
type hold struct {
	reached chan struct{} // closed when the answer is here
	resume  chan struct{} // the process goes on when this is closed
}

func holdsOn(rdb redis.UniversalClient) *holds {
	h := &holds{held: map[string]*hold{}}
	cluster, ok := rdb.(*redis.ClusterClient)
	if !ok {
		rdb.AddHook(h)
		return h
	}
	cluster.OnNewNode(func(node *redis.Client) { node.AddHook(h) })
	return h
}

// after makes the process stop behind the next answer of the script: reached is closed then, and resume lets it go on.
func (h *holds) after(t *testing.T, script string) (reached <-chan struct{}, resume func()) {
	t.Helper()
	one := &hold{reached: make(chan struct{}), resume: make(chan struct{})}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.held[scriptHash(t, script)] = one
	once := sync.OnceFunc(func() { close(one.resume) })
	t.Cleanup(once)
	return one.reached, once
}

func (h *holds) seen(cmds ...redis.Cmder) {
	for _, cmd := range cmds {
		if len(cmd.Args()) < 2 || cmd.Err() != nil {
			continue
		}
		name := fmt.Sprint(cmd.Args()[1])
		if cmd.Name() == "eval" {
			sum := sha1.Sum([]byte(name)) //nolint:gosec // as above
			name = hex.EncodeToString(sum[:])
		}
		h.mu.Lock()
		one := h.held[name]
		delete(h.held, name)
		h.mu.Unlock()
		if one != nil {
			close(one.reached)
			<-one.resume
		}
	}
}

// DialHook leaves dialling alone.
func (h *holds) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

// ProcessHook sees single commands.
func (h *holds) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		h.seen(cmd)
		return err
	}
}

// ProcessPipelineHook sees pipelines.
func (h *holds) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := next(ctx, cmds)
		h.seen(cmds...)
		return err
	}
}

// scriptHash is the SHA-1 under which Redis knows one of the library's scripts.
func scriptHash(t *testing.T, name string) string {
	t.Helper()
	guard, err := os.ReadFile("layers/lua/guard.lua")
	require.NoError(t, err)
	own, err := os.ReadFile("layers/lua/" + name + ".lua")
	require.NoError(t, err)
	sum := sha1.Sum(append(guard, own...)) //nolint:gosec // as above
	return hex.EncodeToString(sum[:])
}
