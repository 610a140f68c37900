package tiercache_test

import (
	"context"
	"crypto/sha1" //nolint:gosec // the name Redis gives a script
	"encoding/hex"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache"
)

// patience ends a wait for what should have happened long ago. No test passes or fails by coming near it.
const patience = 30 * time.Second

// eventually waits until ok.
func eventually(t *testing.T, ok func() bool, why string, args ...any) {
	t.Helper()
	require.Eventually(t, ok, patience, 2*time.Millisecond, fmt.Sprintf(why, args...))
}

// await waits until c is closed or gives something, which it returns.
func await[T any](t *testing.T, c <-chan T, why string) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patience):
		require.FailNow(t, "waited in vain", why)
	}
	return v
}

// wire is what one process sends to Redis, seen from its client: the operations by name, in round trips, each of which may be stopped.
// A script goes by the library's name for it; the generation script that moves the generation is "clear", the hot script that tells of keys "told".
type wire struct {
	scripts map[string]string // names by hash

	mu    sync.Mutex
	trips [][]operation
	stops []*stop
}

// operation is one command: what it is and, of a script, its first key and the arguments behind the keys.
type operation struct {
	name, key string
	argv      []any
}

// stop is a place at which a process is held: before an operation is sent, after it was answered, or between two of one pipeline.
type stop struct {
	name    string
	when    when
	reached chan struct{} // closed when the process stands there
	resume  chan struct{} // it goes on when this is closed
}

type when uint8

const (
	before when = iota
	after
	between
)

// scripts are the library's.
var scripts = []string{"acquire", "fill", "release", "renew", "invalidate", "generation", "segment", "segments", "warmlist", "hot", "copy"}

// teach has every master know the scripts, so that none is sent twice: a process stopped behind the answer "no such script" would stand at
// another place than its test believes.
func teach(t *testing.T, rdb redis.UniversalClient) {
	t.Helper()
	for _, name := range scripts {
		text := scriptText(t, name)
		masters(t, rdb, func(ctx context.Context, node *redis.Client) error { return node.ScriptLoad(ctx, text).Err() })
	}
}

// watch sees all that rdb sends from now on. The process must be opened after it.
func watch(t *testing.T, rdb redis.UniversalClient) *wire {
	t.Helper()
	w := &wire{scripts: map[string]string{}}
	for _, name := range scripts {
		w.scripts[scriptHash(t, name)] = name
	}
	if cluster, ok := rdb.(*redis.ClusterClient); ok {
		cluster.OnNewNode(func(node *redis.Client) { node.AddHook(w) })
		return w
	}
	rdb.AddHook(w)
	return w
}

// hold stops the process at its next operation of this name. It reports when that is reached; resume lets it go on.
func (w *wire) hold(t *testing.T, at when, name string) (reached <-chan struct{}, resume func()) {
	t.Helper()
	s := &stop{name: name, when: at, reached: make(chan struct{}), resume: make(chan struct{})}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stops = append(w.stops, s)
	once := sync.OnceFunc(func() { close(s.resume) })
	t.Cleanup(once)
	return s.reached, once
}

// wait stops the process if a stop of this kind waits for one of the operations.
func (w *wire) wait(at when, ops []operation) {
	w.mu.Lock()
	var here *stop
	for i, s := range w.stops {
		if s.when == at && count(ops, s.name) > 0 && (at != between || count(ops, s.name) > 1) {
			here = s
			w.stops = append(w.stops[:i:i], w.stops[i+1:]...)
			break
		}
	}
	w.mu.Unlock()
	if here != nil {
		close(here.reached)
		<-here.resume
	}
}

func (w *wire) waitsBetween(ops []operation) (name string, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.stops {
		if s.when == between && count(ops, s.name) > 1 {
			return s.name, true
		}
	}
	return "", false
}

func count(ops []operation, name string) (n int) {
	for _, o := range ops {
		if o.name == name {
			n++
		}
	}
	return n
}

// upkeep are the operations that a process sends by itself, each second or so, whatever a test does: probes and beats of the bus, the
// generation's renewal, the filter's upkeep, renewals of leases that take long, and what sets up a connection. TIME belongs to the MGET
// in its pipeline. They are neither counted as commands nor, alone, as a round trip; where one shares a pipeline with something that is
// counted, that is one round trip all the same.
var upkeep = map[string]bool{
	"publish": true, "info": true, "generation": true, "time": true, "renew": true, "ping": true, "segment": true, "segments": true, "told": true,
	"xrange": true, "xlen": true, "pexpire": true, "getrange": true,
	"hello": true, "client": true, "command": true, "cluster": true, "readonly": true, "auth": true, "select": true,
	"multi": true, "exec": true, "script": true,
}

func (w *wire) saw(ops []operation) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.trips = append(w.trips, ops)
}

// reset forgets what was sent so far.
func (w *wire) reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.trips = nil
}

// sent returns the commands by name, upkeep aside, and the round trips in which they went. A pipeline to one master is one trip.
func (w *wire) sent() (commands map[string]int, trips int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	commands = map[string]int{}
	for _, ops := range w.trips {
		counted := false
		for _, o := range ops {
			if !upkeep[o.name] {
				commands[o.name]++
				counted = true
			}
		}
		if counted {
			trips++
		}
	}
	return commands, trips
}

// count returns how often an operation was sent, on the key of this string form if one is given.
func (w *wire) count(name string, id ...string) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, ops := range w.trips {
		for _, o := range ops {
			if o.name == name && (len(id) == 0 || strings.Contains(o.key, "{"+id[0]+"}")) {
				n++
			}
		}
	}
	return n
}

// last returns the newest operation of a name; its zero value if there is none.
func (w *wire) last(name string) (last operation) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, ops := range w.trips {
		for _, o := range ops {
			if o.name == name {
				last = o
			}
		}
	}
	return last
}

// operations names the commands of a pipeline.
func (w *wire) operations(cmds []redis.Cmder) []operation {
	ops := make([]operation, len(cmds))
	for i, cmd := range cmds {
		ops[i] = w.operation(cmd)
	}
	return ops
}

func (w *wire) operation(cmd redis.Cmder) operation {
	o := operation{name: cmd.Name()}
	args := cmd.Args()
	if o.name != "evalsha" && o.name != "eval" || len(args) < 4 {
		return o
	}
	hash := fmt.Sprint(args[1])
	if o.name == "eval" {
		sum := sha1.Sum([]byte(hash)) //nolint:gosec // as above
		hash = hex.EncodeToString(sum[:])
	}
	if name, known := w.scripts[hash]; known {
		o.name = name
		switch key := args[3].(type) {
		case *string:
			o.key = *key
		default:
			o.key = fmt.Sprint(key)
		}
		if keys, ok := args[2].(int); ok {
			o.argv = args[3+keys:]
		}
		if name == "generation" && len(args) > 5 && fmt.Sprint(args[5]) == "1" {
			o.name = "clear"
		}
		if name == "hot" && len(o.argv) > 4 {
			o.name = "told"
		}
	}
	return o
}

// DialHook leaves dialling alone.
func (w *wire) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

// ProcessHook sees single commands.
func (w *wire) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		return w.send([]redis.Cmder{cmd}, func(cmds []redis.Cmder) error { return next(ctx, cmds[0]) })
	}
}

// ProcessPipelineHook sees pipelines.
func (w *wire) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		return w.send(cmds, func(cmds []redis.Cmder) error { return next(ctx, cmds) })
	}
}

// send sends cmds with the stops on the way. A stop between two operations sends those up to the first one before it, the rest behind it.
func (w *wire) send(cmds []redis.Cmder, next func([]redis.Cmder) error) error {
	ops := w.operations(cmds)
	w.saw(ops)
	w.wait(before, ops)
	if name, ok := w.waitsBetween(ops); ok {
		first := 0
		for ops[first].name != name {
			first++
		}
		err := next(cmds[:first+1])
		w.wait(between, ops)
		if rest := next(cmds[first+1:]); err == nil {
			err = rest
		}
		w.wait(after, ops)
		return err
	}
	err := next(cmds)
	w.wait(after, ops)
	return err
}

// peer is a process whose wire is watched and that hears the others.
type peer struct {
	*process
	wire    *wire
	hearing atomic.Bool
}

// lasting are the options of a cache over s whose loads and leases end by no clock: a test that stops a process may take its time.
func lasting(name string, s *source) tiercache.Options[string, string] {
	o := options(name, s)
	o.LoadTimeout, o.LeaseTime = 2*time.Minute, 2*time.Minute
	return o
}

// openPeer opens a process and returns when it hears the bus, so that its memory is trusted.
func openPeer(t *testing.T, rdb redis.UniversalClient, o tiercache.Options[string, string]) *peer {
	t.Helper()
	p := &peer{wire: watch(t, rdb)}
	teach(t, rdb)
	var hooks tiercache.Hooks
	if o.Hooks != nil {
		hooks = *o.Hooks
	}
	told := hooks.Bus
	hooks.Bus = func(up bool) {
		p.hearing.Store(up)
		if told != nil {
			told(up)
		}
	}
	o.Hooks = &hooks
	p.process = openProcess(t, rdb, o)
	eventually(t, p.hearing.Load, "the bus is heard")
	return p
}

// openPeers opens n processes of the same options.
func openPeers(t *testing.T, n int, client func(*testing.T) redis.UniversalClient, o tiercache.Options[string, string]) []*peer {
	t.Helper()
	peers := make([]*peer, n)
	for i := range peers {
		peers[i] = openPeer(t, client(t), o)
	}
	return peers
}

// result is what a call ended with.
type result struct {
	value string
	err   error
}

// get begins a Get and returns where its result will be.
func (p *peer) get(ctx context.Context, key string) <-chan result {
	c := make(chan result, 1)
	go func() {
		v, err := p.Get(ctx, key)
		c <- result{v, err}
	}()
	return c
}

// requireGet fails unless p answers want for key, and does so without waiting for anything that stands still.
func requireGet(t *testing.T, p *peer, key, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	v, err := p.Get(ctx, key)
	require.NoError(t, err)
	require.Equal(t, want, v)
}

// requireAbsent fails unless p answers that there is no row of key.
func requireAbsent(t *testing.T, p *peer, key string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err := p.Get(ctx, key)
	require.ErrorIs(t, err, tiercache.ErrNotFound)
}

// heard waits until events for n keys in all have arrived in p and done their work.
func (p *peer) heard(t *testing.T, n uint64) {
	t.Helper()
	eventually(t, func() bool { return p.Stats().Events >= n }, "%d events heard", n)
}

// holdRead stops the next load of key between the reading of its row and its return; later loads pass.
func (s *source) holdRead(t *testing.T, key string) (read <-chan struct{}, resume func()) {
	t.Helper()
	reached, resumed := make(chan struct{}), make(chan struct{})
	var first atomic.Bool
	s.after(func(k string) {
		if k == key && first.CompareAndSwap(false, true) {
			close(reached)
			<-resumed
		}
	})
	once := sync.OnceFunc(func() { close(resumed) })
	t.Cleanup(once)
	return reached, once
}

// valueKey is where Redis keeps the value of a plain key (one that needs no escaping).
func valueKey(name, key string) string { return "tc:" + name + ":{" + key + "}" }

// redisTime is the server's clock in milliseconds, at the master of a Redis key.
func redisTime(t *testing.T, rdb redis.UniversalClient, key string) int64 {
	t.Helper()
	now, err := masterOf(t, rdb, key).Time(t.Context()).Result()
	require.NoError(t, err)
	return now.UnixMilli()
}

// masterOf is the client of the server that has a Redis key.
func masterOf(t *testing.T, rdb redis.UniversalClient, key string) *redis.Client {
	t.Helper()
	switch c := rdb.(type) {
	case *redis.Client:
		return c
	case *redis.ClusterClient:
		node, err := c.MasterForKey(t.Context(), key)
		require.NoError(t, err)
		return node
	}
	require.FailNow(t, "a client of another kind")
	return nil
}

// masters calls f for every master.
func masters(t *testing.T, rdb redis.UniversalClient, f func(ctx context.Context, node *redis.Client) error) {
	t.Helper()
	if c, ok := rdb.(*redis.ClusterClient); ok {
		require.NoError(t, c.ForEachMaster(t.Context(), f))
		return
	}
	node, ok := rdb.(*redis.Client)
	require.True(t, ok)
	require.NoError(t, f(t.Context(), node))
}

// together returns n keys whose values lie on one master.
func together(t *testing.T, rdb redis.UniversalClient, n int) []string {
	t.Helper()
	var keys []string
	var home string
	for i := 0; len(keys) < n; i++ {
		key := "k" + strconv.Itoa(i)
		addr := masterOf(t, rdb, key).Options().Addr
		if home == "" {
			home = addr
		}
		if addr == home {
			keys = append(keys, key)
		}
	}
	return keys
}

// ttl is the life that Redis has left for a key, in milliseconds; -1: no expiry, -2: no such key.
func ttl(t *testing.T, rdb redis.UniversalClient, key string) int64 {
	t.Helper()
	left, err := rdb.Do(t.Context(), "PTTL", key).Int64()
	require.NoError(t, err)
	return left
}

// gone waits until Redis has dropped a key.
func gone(t *testing.T, rdb redis.UniversalClient, key string) {
	t.Helper()
	eventually(t, func() bool { return rdb.Exists(context.WithoutCancel(t.Context()), key).Val() == 0 }, "Redis drops %s", key)
}

// fields are a guard's, in the order of guard.lua.
func guardFields(t *testing.T, rdb redis.UniversalClient, key string) []string {
	t.Helper()
	raw, err := rdb.Get(t.Context(), key+":g").Result()
	require.NoError(t, err)
	return strings.Split(raw, "|")
}

// leaseEnd is when the lease of a key ends, by the server's clock.
func leaseEnd(t *testing.T, rdb redis.UniversalClient, key string) int64 {
	t.Helper()
	ms, err := strconv.ParseInt(guardFields(t, rdb, key)[2], 10, 64)
	require.NoError(t, err)
	return ms
}
