package layers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tiercache/tiercache/internal/borrowed"
)

// ErrUnreachable says that the key's master is known to be unreachable: nobody waited for it. It is asked again by a probe about
// once a second; until that is answered every call ends with this error at once.
var ErrUnreachable = errors.New("layers: redis is unreachable")

// ErrTimeout says that the call's budget (RedisOptions.ReadTimeout or WriteTimeout) is over. What became of a script is unknown:
// it may have run, may still run, or may never run.
var ErrTimeout = errors.New("layers: redis did not answer in time")

var errRedisClosed = errors.New("layers: redis tier is closed")

const (
	defaultReadTimeout  = 100 * time.Millisecond // chosen; not tuned
	defaultWriteTimeout = 200 * time.Millisecond // chosen; not tuned
	defaultPrefix       = "tc"
	closeTime           = 2 * time.Second // chosen; not tuned
)

// RedisOptions are the options of NewRedis. The zero value means the defaults.
type RedisOptions struct {
	Prefix       string        // begins every key and channel; "tc"; no braces, spaces or control bytes
	ReadTimeout  time.Duration // the budget of a GET, at least 1 ms; 0: 100 ms
	WriteTimeout time.Duration // the budget of a script, at least 1 ms; 0: 200 ms
	Logger       *slog.Logger  // nil: slog.Default()
}

// RedisStats are counts since NewRedis.
type RedisStats struct {
	RoundTrips   uint64 // pipelines sent
	Commands     uint64 // commands in them, TIME included
	Gets         uint64 // GETs that were sent, each key of an MGET being one
	Joined       uint64 // GETs answered by one that was under way already
	Redirected   uint64 // keys and scripts asked again because their slot had moved
	Timeouts     uint64 // budgets overrun
	StateChanges uint64 // masters that became unreachable or reachable again
	BreakerTrips uint64 // times that a master's breaker opened
	Breaker      uint64 // gauge: of the master that is worst: 0 closed, 1 reads come back (half-open), 2 no key is read there (open)
}

// Redis is the shared tier: one per process and set of Redis servers, for any number of caches. It sends through the client it was
// given and lets concurrent callers share round trips. All methods are safe for concurrent use.
type Redis struct {
	rdb          redis.UniversalClient
	prefix       string
	readTimeout  time.Duration
	writeTimeout time.Duration
	log          *slog.Logger
	born         time.Time

	// onState is told each change of a master between reachable and not, in order, once a change; onPhase that some master's phase is
	// another. They must not block. Set before the first call.
	onState func(reachable bool, m *master)
	onPhase func()
	bus     *bus

	// Where keys are asked. Exactly one of single and cluster is set, or neither: then everything goes through any.
	single  *master
	cluster *redis.ClusterClient
	any     *master // through rdb itself, whatever it is; for a cluster, only what moved
	masters masters // cluster only

	counts struct {
		trips, commands, gets, joined, redirected, timeouts, changes, opened atomic.Uint64
	}

	life   sync.Mutex // guards closed, and the order of work.Add before work.Wait
	closed bool
	work   sync.WaitGroup
	ended  atomic.Bool // closed, for those who need not be exact
}

// NewRedis returns the shared tier on rdb, which stays the caller's: it is never closed here. No living server is needed.
// Supported are *redis.Client (also a failover client) and *redis.ClusterClient; any other implementation works more slowly, one
// script a key instead of an MGET. Everything is sent through rdb itself, so its hooks see it; only the subscription's connection, and a look
// whether a server that is late still takes connections, are made with rdb's options (its Dialer, its credentials) but without its hooks.
//
// Callers never wait longer than the budgets of o, whatever rdb's own time-outs are; the few goroutines that send for them may hang
// for as long as rdb lets them. Where rdb lets no call hang for longer than a budget (ContextTimeoutEnabled, or ReadTimeout and
// WriteTimeout of at most o.ReadTimeout), a lone GET under a context that cannot end is sent on its caller's goroutine, which is faster.
//
// Errors, joined: a nil client, a Ring (its shards lose keys when one fails), replica routing (ReadOnly, RouteByLatency,
// RouteRandomly: an invalidated value could be read again from a replica), options out of range. ctx ends only the making.
func NewRedis(ctx context.Context, rdb redis.UniversalClient, o RedisOptions) (*Redis, error) {
	if ctx == nil {
		return nil, errors.New("layers: NewRedis: nil context")
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("layers: NewRedis: %w", endOf(ctx))
	}
	if err := errors.Join(borrowed.CheckClient("layers: NewRedis", rdb), o.check()); err != nil {
		return nil, err
	}
	r := &Redis{
		rdb: rdb, prefix: o.Prefix, readTimeout: o.ReadTimeout, writeTimeout: o.WriteTimeout, log: o.Logger,
		born: time.Now(), onState: func(bool, *master) {}, onPhase: func() {},
	}
	if r.prefix == "" {
		r.prefix = defaultPrefix
	}
	if r.readTimeout == 0 {
		r.readTimeout = defaultReadTimeout
	}
	if r.writeTimeout == 0 {
		r.writeTimeout = defaultWriteTimeout
	}
	if r.log == nil {
		r.log = slog.Default()
	}
	switch c := rdb.(type) {
	case *redis.Client:
		r.single = newMaster(r, c.Options().Addr)
		r.single.setNode(c)
	case *redis.ClusterClient:
		r.cluster = c
		r.any = newMaster(r, "cluster")
		r.any.moved = true
	default:
		r.any = newMaster(r, "redis")
	}
	r.bus = newBus(r)
	return r, nil
}

// Locks returns the client, and a prefix for locks beside the caches of r: no cache's name leads to keys of it.
func (r *Redis) Locks() (rdb redis.UniversalClient, prefix string) { return r.rdb, r.prefix + "::lock" }

// check says what is wrong with the options, all of it.
func (o RedisOptions) check() error {
	var errs []error
	if err := borrowed.CheckPrefix("layers: NewRedis", o.Prefix); err != nil {
		errs = append(errs, err)
	}
	for _, t := range []struct {
		name string
		d    time.Duration
	}{{"ReadTimeout", o.ReadTimeout}, {"WriteTimeout", o.WriteTimeout}} {
		if t.d != 0 && t.d < time.Millisecond {
			errs = append(errs, fmt.Errorf("layers: NewRedis: %s is %v: it must be at least 1ms, or 0 for the default", t.name, t.d))
		}
	}
	return errors.Join(errs...)
}

// Stats returns the counts since NewRedis.
func (r *Redis) Stats() RedisStats {
	c := &r.counts
	return RedisStats{
		RoundTrips: c.trips.Load(), Commands: c.commands.Load(), Gets: c.gets.Load(), Joined: c.joined.Load(),
		Redirected: c.redirected.Load(), Timeouts: c.timeouts.Load(), StateChanges: c.changes.Load(),
		BreakerTrips: c.opened.Load(), Breaker: uint64(r.breakerState()),
	}
}

// Close ends the bus and every goroutine, and waits for them. A call to a server that hangs ends with the client's own time-outs:
// Close waits for it for at most two seconds, then says so in its error; the goroutine ends with its call. Callers that wait get an error at once. Close does not close the client.
// It may be called again.
func (r *Redis) Close() error {
	r.life.Lock()
	first := !r.closed
	r.closed = true
	r.ended.Store(true)
	r.life.Unlock()
	if first {
		r.bus.close()
		for _, m := range r.known() {
			m.drop(errRedisClosed)
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.work.Wait()
	}()
	timer := time.NewTimer(closeTime)
	defer timer.Stop()
	select {
	case <-done:
		return nil
	case <-timer.C:
		return errors.New("layers: closed, but calls to Redis still hang in the client: they end with its time-outs")
	}
}

// spawn runs f on a goroutine of its own, which Close waits for; false: closed already, f does not run.
func (r *Redis) spawn(f func()) bool {
	r.life.Lock()
	if r.closed {
		r.life.Unlock()
		return false
	}
	r.work.Add(1)
	r.life.Unlock()
	go func() {
		defer r.work.Done()
		f()
	}()
	return true
}

// endOf is the error of a caller whose ctx has ended: it matches both ctx.Err and the cause.
func endOf(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if cause == nil || errors.Is(cause, err) {
		return err
	}
	return fmt.Errorf("%w: %w", err, cause)
}
