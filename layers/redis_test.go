package layers

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache/internal/borrowed"
	"github.com/tiercache/tiercache/internal/redistest"
)

// longWait is how long a test waits for what must come; reached only by a failure.
const longWait = 20 * time.Second

// openTier returns a shared tier that is closed with the test. A budget that o leaves open is so long that no test meets it by being slow.
func openTier(t *testing.T, rdb redis.UniversalClient, o RedisOptions) *Redis {
	t.Helper()
	if o.ReadTimeout == 0 {
		o.ReadTimeout = longWait
	}
	if o.WriteTimeout == 0 {
		o.WriteTimeout = longWait
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	r, err := NewRedis(t.Context(), rdb, o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	return r
}

// awaitTrue waits for ok without depending on how fast the machine is.
func awaitTrue(t *testing.T, ok func() bool, what string) {
	t.Helper()
	require.Eventually(t, ok, longWait, time.Millisecond, what)
}

// NewRedis refuses what cannot keep the promises, and says all that is wrong at once.
func TestNewRedisRefusesWhatBreaksThePromises(t *testing.T) {
	none := "127.0.0.1:1"
	ring := redis.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": none}})
	defer func() { _ = ring.Close() }()
	for name, o := range map[string]*redis.ClusterOptions{
		"read only":     {Addrs: []string{none}, ReadOnly: true},
		"by latency":    {Addrs: []string{none}, RouteByLatency: true},
		"random routes": {Addrs: []string{none}, RouteRandomly: true},
	} {
		c := redis.NewClusterClient(o)
		_, err := NewRedis(t.Context(), c, RedisOptions{})
		require.ErrorContains(t, err, "ReadOnly", name)
		require.NoError(t, c.Close())
	}
	var noClient *redis.Client
	for _, c := range []redis.UniversalClient{nil, noClient} {
		_, err := NewRedis(t.Context(), c, RedisOptions{})
		require.ErrorContains(t, err, "nil client")
	}
	_, err := NewRedis(t.Context(), ring, RedisOptions{Prefix: "a{b", ReadTimeout: -1, WriteTimeout: time.Microsecond})
	for _, part := range []string{"Ring", "Prefix", "ReadTimeout", "WriteTimeout"} {
		require.ErrorContains(t, err, part)
	}
	ended, cancel := context.WithCancelCause(t.Context())
	why := errors.New("shutting down")
	cancel(why)
	c := redis.NewClient(&redis.Options{Addr: none})
	defer func() { require.NoError(t, c.Close()) }()
	_, err = NewRedis(ended, c, RedisOptions{})
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, err, why)
}

// Close may be called twice and ends every wait; calls after it end with an error and reach nobody. (What it leaves behind, the
// package's TestMain would find.)
func TestCloseEndsWaitsAndCallsAfterIt(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client(t)
	r, err := NewRedis(t.Context(), client, RedisOptions{ReadTimeout: longWait, WriteTimeout: longWait})
	require.NoError(t, err)
	s := borrowed.NewScript("one", "return 1")
	require.NoError(t, client.Ping(t.Context()).Err())
	server.Stop()
	var waits sync.WaitGroup
	for range 10 {
		waits.Go(func() {
			_, err := r.get(t.Context(), "k", Mark{})
			require.ErrorIs(t, err, errRedisClosed)
		})
	}
	awaitTrue(t, func() bool { return r.Stats().Joined == 9 }, "ten callers wait for one GET")
	closed := make(chan error)
	go func() { closed <- r.Close() }()
	waits.Wait()
	server.Continue()
	require.NoError(t, <-closed)
	require.NoError(t, r.Close())

	trips := r.Stats().RoundTrips
	_, err = r.get(t.Context(), "k", Mark{})
	require.ErrorIs(t, err, errRedisClosed)
	_, err = r.get(context.Background(), "k", Mark{}) //nolint:usetesting // one that cannot end goes directly
	require.ErrorIs(t, err, errRedisClosed)
	require.ErrorIs(t, r.getMany(t.Context(), []string{"k"}, make([]Mark, 1))[0].err, errRedisClosed)
	c := &scriptCall{script: s, keys: []string{"k"}}
	r.eval(t.Context(), c)
	require.ErrorIs(t, c.err, errRedisClosed)
	require.ErrorIs(t, r.single.do(t.Context(), redis.NewStatusCmd(t.Context(), "ping")), errRedisClosed)
	require.Equal(t, trips, r.Stats().RoundTrips)
	require.NoError(t, client.Ping(t.Context()).Err(), "the client is the caller's")
}

// A master's state is told once a change, in order, and each change is one line in the log.
func TestStateIsToldOnceAChange(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client(t)
	var lines atomic.Int32
	r := openTier(t, client, RedisOptions{Logger: slog.New(logLines{&lines})})
	var mu sync.Mutex
	var told []bool
	r.onState = func(reachable bool, m *master) {
		require.Same(t, r.single, m)
		mu.Lock()
		defer mu.Unlock()
		told = append(told, reachable)
	}
	server.Kill()
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			for r.reachable("k") {
				_, err := r.get(t.Context(), "k", Mark{})
				require.Error(t, err)
			}
		})
	}
	all.Wait()
	server.Restart()
	awaitTrue(t, func() bool { return r.single.do(t.Context(), redis.NewStatusCmd(t.Context(), "ping")) == nil }, "probe")
	require.True(t, r.reachable("k"))
	mu.Lock()
	defer mu.Unlock()
	require.Equal(t, []bool{false, true}, told)
	require.EqualValues(t, 2, lines.Load())
	require.EqualValues(t, 2, r.Stats().StateChanges)
}

// logLines is a log handler that counts lines.
type logLines struct{ lines *atomic.Int32 }

func (logLines) Enabled(context.Context, slog.Level) bool    { return true }
func (c logLines) Handle(context.Context, slog.Record) error { c.lines.Add(1); return nil }
func (c logLines) WithAttrs([]slog.Attr) slog.Handler        { return c }
func (c logLines) WithGroup(string) slog.Handler             { return c }

// wire is a proxy before a server whose connections can be cut after the server was sent what they carried.
type wire struct {
	net.Listener
	to  string
	all sync.WaitGroup

	cut        atomic.Bool  // what a client sends next is passed on, its answer is not: the connection is closed instead
	begun, ran atomic.Int32 // connections cut; of them, those whose commands have run

	mu   sync.Mutex
	deaf map[net.Conn]bool // clients' connections; true: nothing that is sent on it arrives
}

func newWire(t *testing.T, to string) *wire {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	w := &wire{Listener: l, to: to, deaf: make(map[net.Conn]bool)}
	w.all.Go(w.accept)
	t.Cleanup(func() {
		_ = l.Close()
		w.all.Wait()
	})
	return w
}

func (w *wire) accept() {
	for {
		c, err := w.Accept()
		if err != nil {
			return
		}
		s, err := net.Dial("tcp", w.to) //nolint:noctx // a test's proxy
		if err != nil {
			_ = c.Close()
			continue
		}
		w.mu.Lock()
		w.deaf[c] = false
		w.mu.Unlock()
		drained := make(chan struct{})
		w.all.Go(func() { w.pass(c, s, drained) })
		w.all.Go(func() {
			defer close(drained)
			_, _ = io.Copy(c, s)
			_, _ = io.Copy(io.Discard, s) // what c did not take
			_ = c.Close()
		})
	}
}

func (w *wire) pass(c, s net.Conn, drained <-chan struct{}) {
	defer func() { _ = s.Close() }()
	buf := make([]byte, 64<<10)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		w.mu.Lock()
		deaf := w.deaf[c]
		w.mu.Unlock()
		if deaf {
			continue
		}
		cut := w.cut.CompareAndSwap(true, false)
		if cut {
			w.begun.Add(1)
			_ = c.Close() // first, so that no answer gets through
		}
		if _, err := s.Write(buf[:n]); err != nil {
			return
		}
		if cut {
			_ = s.(*net.TCPConn).CloseWrite() // the server answers what it has, then hangs up
			<-drained
			w.ran.Add(1)
			return
		}
	}
}

// deafen lets nothing pass any more on the connections there are.
func (w *wire) deafen() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.deaf {
		w.deaf[c] = true
	}
}

// hangUp closes them.
func (w *wire) hangUp() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c, deaf := range w.deaf {
		if deaf {
			_ = c.Close()
		}
	}
}
