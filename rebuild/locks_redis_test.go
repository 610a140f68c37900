package rebuild

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache/internal/redistest"
)

// soon is how long a test waits for what is to happen by an event; chosen generously, for what it waits for takes milliseconds.
const soon = 20 * time.Second

// onRedis runs test against a standalone server and against a cluster.
func onRedis(t *testing.T, test func(t *testing.T, client func() redis.UniversalClient)) {
	t.Helper()
	t.Run("standalone", func(t *testing.T) {
		s := redistest.Shared(t)
		if s.Embedded() {
			t.Skip("the imitation of Redis keeps no time of its own")
		}
		test(t, func() redis.UniversalClient { return s.Client(t) })
	})
	t.Run("cluster", func(t *testing.T) {
		c := redistest.SharedCluster(t)
		test(t, func() redis.UniversalClient { return c.Client(t) })
	})
}

// redisMutex returns a Mutex of a process of its own.
func redisMutex(t *testing.T, rdb redis.UniversalClient, o MutexOptions) *Mutex {
	t.Helper()
	m, err := NewMutex(rdb, o)
	require.NoError(t, err)
	t.Cleanup(func() { _ = m.Close() })
	return m
}

// fenced is a resource that refuses older tokens than it has seen.
type fenced struct {
	mu     sync.Mutex
	newest uint64
	inside int
	writes int
}

func (f *fenced) enter(token uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.inside++
	if f.inside > 1 || token <= f.newest {
		return fmt.Errorf("%d inside, token %d after %d", f.inside, token, f.newest)
	}
	f.newest = token
	f.writes++
	return nil
}

func (f *fenced) leave() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.inside--
}

// Property: on a real server, of the callers of three processes one at a time holds a name, plain and fair, with ever higher tokens.
// Broken by: obtain, `case errors.Is(err, ErrLocked)` returning g, sent, nil.
func TestRedisLockIsHeldByOneAtATime(t *testing.T) {
	onRedis(t, func(t *testing.T, client func() redis.UniversalClient) {
		for _, fair := range []bool{false, true} {
			prefix := redistest.Name(t)
			var resource fenced
			var all sync.WaitGroup
			for range 3 {
				m := redisMutex(t, client(), MutexOptions{Prefix: prefix, Fair: fair})
				for range 8 {
					all.Go(func() {
						for range 5 {
							l, err := m.Lock(t.Context(), "n")
							if err != nil {
								t.Errorf("Lock: %v", err)
								return
							}
							if err := resource.enter(l.Token()); err != nil {
								t.Errorf("fair %v: %v", fair, err)
							}
							resource.leave()
							if err := l.Unlock(t.Context()); err != nil {
								t.Errorf("Unlock: %v", err)
							}
						}
					})
				}
			}
			all.Wait()
			require.Equal(t, 120, resource.writes)
		}
	})
}

// Property: on a real server, a waiter is woken by the release: a hundred turns between two processes take no polls, which come a second
// apart, so less than ten seconds in all by far.
// Broken by: wake, w.rouse().
func TestRedisHandOverIsByEvent(t *testing.T) {
	onRedis(t, func(t *testing.T, client func() redis.UniversalClient) {
		prefix := redistest.Name(t)
		holder, waiter := redisMutex(t, client(), MutexOptions{Prefix: prefix}), redisMutex(t, client(), MutexOptions{Prefix: prefix})
		var took []time.Duration
		for range 100 {
			l := mustLock(t, holder.Lock, "n")
			got := make(chan time.Time, 1)
			go func() {
				l, err := waiter.Lock(t.Context(), "n")
				got <- time.Now()
				if err == nil {
					_ = l.Unlock(t.Context())
				}
			}()
			awaitQueue(t, waiter.book, "n")
			released := time.Now()
			require.NoError(t, l.Unlock(t.Context()))
			took = append(took, (<-got).Sub(released))
		}
		slices.Sort(took)
		t.Logf("hand-over: median %v, 90th %v", took[50], took[90])
		require.Less(t, took[50], refreshTime/2, "median of the hand-overs: polls come a second apart")
	})
}

// awaitQueue blocks until somebody waits for name in b with a place in the backend's queue.
func awaitQueue(t *testing.T, b *lockbook, name string) {
	t.Helper()
	require.Eventually(t, func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		q := b.queues[name]
		return q != nil && q.front().entered
	}, soon, time.Millisecond)
}

// Property: on a real server, a name that is waited for and handed over costs commands by processes: forty callers of a process send what one
// does, two processes send it each. Time that passes meanwhile costs a poll a second and process.
// Broken by: obtain, `!b.ordered && !b.first(w)`.
func TestRedisCommandsGrowWithProcessesNotWaiters(t *testing.T) {
	const ofOne = 8 // a process's commands: to take a place, to be told, to be granted the lease; some are repeated
	onRedis(t, func(t *testing.T, client func() redis.UniversalClient) {
		for _, c := range []struct{ processes, waiters int }{{1, 1}, {1, 40}, {2, 20}} {
			prefix := redistest.Name(t)
			holder := redisMutex(t, client(), MutexOptions{Prefix: prefix})
			l := mustLock(t, holder.Lock, "n")
			ctx, cancel := context.WithCancel(t.Context())
			began := time.Now()
			granted := make(chan *Lease, c.processes*c.waiters)
			var all sync.WaitGroup
			var sent []*redistest.Counter
			for range c.processes {
				rdb := client()
				m := redisMutex(t, rdb, MutexOptions{Prefix: prefix})
				sent = append(sent, redistest.Count(rdb))
				for range c.waiters {
					all.Go(func() {
						if l, err := m.Lock(ctx, "n"); err == nil {
							granted <- l
						}
					})
				}
				awaitQueue(t, m.book, "n")
				awaitWaiters(t, m.book, "n", c.waiters)
			}
			require.NoError(t, l.Unlock(t.Context()))
			l = <-granted
			total := 0
			for _, n := range sent {
				total += n.Sent("eval", "evalsha")
			}
			polls := 2 * c.processes * int(time.Since(began)/refreshTime+1)
			require.LessOrEqual(t, total, ofOne*c.processes+polls, "scripts of %d processes with %d waiters each", c.processes, c.waiters)
			cancel()
			all.Wait()
			require.NoError(t, l.Unlock(t.Context()))
		}
	})
}

// awaitWaiters blocks until so many callers of a process wait for name.
func awaitWaiters(t *testing.T, b *lockbook, name string, n int) {
	t.Helper()
	require.Eventually(t, func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		q := b.queues[name]
		return q != nil && q.waiters.Len() == n
	}, soon, time.Millisecond)
}

// Property: on a real server, fair: those who wait have the lock in the order of their entry, over processes.
// Broken by: claim, Ordered: b.ordered.
func TestRedisFairLockIsGrantedInOrder(t *testing.T) {
	onRedis(t, func(t *testing.T, client func() redis.UniversalClient) {
		prefix := redistest.Name(t)
		var all []*Mutex
		for range 3 {
			all = append(all, redisMutex(t, client(), MutexOptions{Prefix: prefix, Fair: true}))
		}
		l := mustLock(t, all[0].Lock, "n")
		var mu sync.Mutex
		var order []int
		var waiting sync.WaitGroup
		for i := range 12 {
			m := all[i%3]
			waiting.Go(func() {
				l, err := m.Lock(t.Context(), "n")
				if err != nil {
					t.Errorf("Lock: %v", err)
					return
				}
				mu.Lock()
				order = append(order, i)
				mu.Unlock()
				_ = l.Unlock(t.Context())
			})
			require.Eventually(t, func() bool {
				m.book.mu.Lock()
				defer m.book.mu.Unlock()
				entered := 0
				if q := m.book.queues["n"]; q != nil {
					for e := q.waiters.Front(); e != nil; e = e.Next() {
						if w, _ := e.Value.(*lockwaiter); w.entered {
							entered++
						}
					}
				}
				return entered == i/3+1
			}, soon, time.Millisecond)
		}
		require.NoError(t, l.Unlock(t.Context()))
		waiting.Wait()
		require.True(t, slices.IsSorted(order), "order of the grants: %v", order)
	})
}

// Property: on a real server, LockMany over names of many slots in random order gets everybody through.
// Broken by: LockMany, slices.Sort (callers then wait for each other until the test's deadline).
func TestRedisLockManyDoesNotDeadlock(t *testing.T) {
	onRedis(t, func(t *testing.T, client func() redis.UniversalClient) {
		prefix := redistest.Name(t)
		names := []string{"a", "b", "c", "d", "e", "f"}
		ctx, cancel := context.WithTimeout(t.Context(), 2*soon)
		defer cancel()
		var all sync.WaitGroup
		for range 2 {
			m := redisMutex(t, client(), MutexOptions{Prefix: prefix})
			for range 4 {
				all.Go(func() {
					for range 10 {
						mine := slices.Clone(names)
						rand.Shuffle(len(mine), func(i, j int) { mine[i], mine[j] = mine[j], mine[i] })
						ls, err := m.LockMany(ctx, mine[:1+rand.N(len(mine))]...)
						if err != nil {
							t.Errorf("LockMany: %v", err)
							return
						}
						if err := ls.Unlock(ctx); err != nil {
							t.Errorf("Unlock: %v", err)
						}
					}
				})
			}
		}
		all.Wait()
	})
}

// Property: on a real server, a waiter whose subscription was cut while the lock was released has it all the same.
// Broken by: deafen and pause both without asking again.
func TestRedisCutSubscriptionForgetsNobody(t *testing.T) {
	s := redistest.Start(t)
	o := MutexOptions{LeaseTime: time.Hour} // nobody's end is waited for
	m, other := redisMutex(t, s.Client(t), o), redisMutex(t, s.Client(t), o)
	l := mustLock(t, m.Lock, "n")
	got := make(chan error, 1)
	go func() {
		_, err := other.Lock(t.Context(), "n")
		got <- err
	}()
	awaitQueue(t, other.book, "n")
	rdb := s.Client(t)
	require.NoError(t, rdb.ClientKillByFilter(t.Context(), "TYPE", "pubsub").Err())
	require.NoError(t, l.Unlock(t.Context()))
	select {
	case err := <-got:
		require.NoError(t, err)
	case <-time.After(soon):
		t.Fatal("the waiter was forgotten")
	}
}

// Property: on a real server, a flush is noticed at the next renewal; the token of the next grant is higher all the same, and nothing is
// left without an expiry.
// Broken by: renew, `case errors.Is(err, ErrLeaseLost)`.
func TestRedisFlushIsNoticedAndTokensGrow(t *testing.T) {
	s := redistest.Start(t)
	m := redisMutex(t, s.Client(t), MutexOptions{LeaseTime: time.Hour})
	l := mustLock(t, m.Lock, "n")
	rdb := s.Client(t)
	require.NoError(t, rdb.FlushAll(t.Context()).Err())
	m.book.renewNow()
	select {
	case <-l.Context().Done():
		require.ErrorIs(t, context.Cause(l.Context()), ErrLeaseLost)
	case <-time.After(soon):
		t.Fatal("the holder was not told")
	}
	next := mustLock(t, m.Lock, "n")
	require.Greater(t, next.Token(), l.Token())
	keys, err := rdb.Keys(t.Context(), "*").Result()
	require.NoError(t, err)
	require.NotEmpty(t, keys)
	for _, key := range keys {
		ttl, err := rdb.PTTL(t.Context(), key).Result()
		require.NoError(t, err)
		require.Positive(t, ttl, "expiry of %q", key)
	}
	require.NoError(t, next.Unlock(t.Context()))
}

// Property: a caller who gives up while the server hangs leaves nothing: when the server goes on the lock is free, long before the lease
// would have ended.
// Broken by: abandon, `case w.unanswered`.
func TestRedisOrphanGrantOfAHungServerIsReleased(t *testing.T) {
	s := redistest.Start(t)
	m, other := redisMutex(t, s.Client(t), MutexOptions{LeaseTime: time.Hour}), redisMutex(t, s.Client(t), MutexOptions{LeaseTime: time.Hour})
	require.NoError(t, mustLock(t, m.Lock, "n").Unlock(t.Context())) // connections and scripts are there
	s.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := m.Lock(ctx, "n")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	s.Continue()
	limited, stop := context.WithTimeout(t.Context(), soon)
	defer stop()
	l, err := other.Lock(limited, "n")
	require.NoError(t, err, "the lock is free again")
	require.NoError(t, l.Unlock(t.Context()))
}

// Property: while the server is down Lock waits, and has the lock when it is back; a lease that could not be renewed is lost in time.
// Broken by: obtain, the last case returning the error.
func TestRedisOutageIsSatOut(t *testing.T) {
	s := redistest.Start(t)
	m := redisMutex(t, s.Client(t), MutexOptions{LeaseTime: 500 * time.Millisecond})
	l := mustLock(t, m.Lock, "a")
	s.Kill()
	got := make(chan error, 1)
	go func() {
		_, err := m.Lock(t.Context(), "b")
		got <- err
	}()
	select {
	case <-l.Context().Done():
		require.ErrorIs(t, context.Cause(l.Context()), ErrLeaseLost)
	case <-time.After(soon):
		t.Fatal("the holder was not told")
	}
	require.Empty(t, got)
	s.Restart()
	select {
	case err := <-got:
		require.NoError(t, err)
	case <-time.After(soon):
		t.Fatal("the waiter was forgotten")
	}
}

// Property: on a real server, readers are in together, a writer alone, and a downgrade lets readers in.
// Broken by: RLock, kind: exclusive.
func TestRedisReadersAndWriters(t *testing.T) {
	onRedis(t, func(t *testing.T, client func() redis.UniversalClient) {
		prefix := redistest.Name(t)
		var all []*RWMutex
		for range 2 {
			m, err := NewRWMutex(client(), MutexOptions{Prefix: prefix})
			require.NoError(t, err)
			t.Cleanup(func() { _ = m.Close() })
			all = append(all, m)
		}
		r1, r2 := mustLock(t, all[0].RLock, "n"), mustLock(t, all[1].TryRLock, "n")
		_, err := all[0].TryLock(t.Context(), "n")
		require.ErrorIs(t, err, ErrLocked)
		require.NoError(t, r1.Unlock(t.Context()))
		require.NoError(t, r2.Unlock(t.Context()))

		var readers, writers atomic.Int32
		var work sync.WaitGroup
		for _, m := range all {
			for range 6 {
				work.Go(func() {
					for i := range 8 {
						lock, mine := m.RLock, &readers
						if i%4 == 0 {
							lock, mine = m.Lock, &writers
						}
						l, err := lock(t.Context(), "n")
						if err != nil {
							t.Errorf("lock: %v", err)
							return
						}
						mine.Add(1)
						if w, r := writers.Load(), readers.Load(); w > 1 || w == 1 && r > 0 {
							t.Errorf("%d writers and %d readers", w, r)
						}
						mine.Add(-1)
						if err := l.Unlock(t.Context()); err != nil {
							t.Errorf("Unlock: %v", err)
						}
					}
				})
			}
		}
		work.Wait()

		w := mustLock(t, all[0].Lock, "n")
		before := w.Token()
		require.NoError(t, w.Downgrade(t.Context()))
		require.Greater(t, w.Token(), before)
		require.NoError(t, mustLock(t, all[1].RLock, "n").Unlock(t.Context()))
		require.NoError(t, w.Unlock(t.Context()))
	})
}

// Property: on a real server, no more holders than permits, resized too; as a fleet gate the backend counts the processes.
// Broken by: want, limit: s.limit.
func TestRedisSemaphore(t *testing.T) {
	onRedis(t, func(t *testing.T, client func() redis.UniversalClient) {
		prefix := redistest.Name(t)
		var all []*Semaphore
		for range 2 {
			s, err := NewSemaphore(client(), SemaphoreOptions{Prefix: prefix, Limit: 3})
			require.NoError(t, err)
			t.Cleanup(func() { _ = s.Close() })
			all = append(all, s)
		}
		for _, limit := range []int32{3, 5} {
			if limit != 3 {
				require.NoError(t, all[0].Resize(t.Context(), "n", int(limit)))
			}
			var inside, most atomic.Int32
			var work sync.WaitGroup
			for _, s := range all {
				for range 8 {
					work.Go(func() {
						for range 5 {
							leave, err := s.Enter(t.Context(), "n")
							if err != nil {
								t.Errorf("Enter: %v", err)
								return
							}
							n := inside.Add(1)
							for was := most.Load(); n > was && !most.CompareAndSwap(was, n); was = most.Load() {
							}
							inside.Add(-1)
							leave()
						}
					})
				}
			}
			work.Wait()
			require.LessOrEqual(t, most.Load(), limit, "loads at once")
		}
		all[0].fleet.mu.Lock()
		defer all[0].fleet.mu.Unlock()
		require.Equal(t, 2, all[0].fleet.names["n"].processes, "processes, as the backend counted")
	})
}

// Property: NewMutex and its like refuse what cannot be made to work.
// Broken by: redisFor, `Prefix: …`; newLockbook, `lease < minLeaseTime`.
func TestNewMutexRefusesWhatCannotWork(t *testing.T) {
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	defer func() { _ = rdb.Close() }()
	for _, o := range []MutexOptions{{LeaseTime: 99 * time.Millisecond}, {LeaseTime: -time.Second}, {Replicas: -1}, {Prefix: "{"}} {
		_, err := NewMutex(rdb, o)
		require.Error(t, err, "%+v", o)
		_, err = NewRWMutex(rdb, o)
		require.Error(t, err, "%+v", o)
	}
	m, err := NewMutex(rdb, MutexOptions{})
	require.NoError(t, err, "no living server is needed")
	require.NoError(t, m.Close())
}

// Property: without a Prefix the three kinds of locks have names of their own, so that one does not meet another's data.
// Broken by: NewRWMutex, "tc-lock" for "tc-rw".
func TestKindsOfLocksHavePrefixesOfTheirOwn(t *testing.T) {
	s := redistest.Start(t)
	m := redisMutex(t, s.Client(t), MutexOptions{})
	rw, err := NewRWMutex(s.Client(t), MutexOptions{})
	require.NoError(t, err)
	defer func() { require.NoError(t, rw.Close()) }()
	sem, err := NewSemaphore(s.Client(t), SemaphoreOptions{Limit: 1})
	require.NoError(t, err)
	defer func() { require.NoError(t, sem.Close()) }()
	for _, lock := range []func(context.Context, string) (*Lease, error){m.TryLock, rw.TryLock, sem.TryAcquire} {
		mustLock(t, lock, "n")
	}
	keys, err := s.Client(t).Keys(t.Context(), "*").Result()
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"tc-lock:{n}", "tc-rw:{n}", "tc-sem:{n}"}, keys)
}

// Property: a grant that too few replicas confirmed is none: the error says so at once, and the lock is free for those who ask for no
// replicas.
// Broken by: redisFor, `Replicas: replicas`.
func TestRedisGrantWithoutItsReplicasIsRefused(t *testing.T) {
	s := redistest.Start(t) // it has no replica
	careful, careless := redisMutex(t, s.Client(t), MutexOptions{Replicas: 1}), redisMutex(t, s.Client(t), MutexOptions{})
	_, err := careful.Lock(t.Context(), "n")
	require.ErrorIs(t, err, ErrReplicas)
	mustLock(t, careless.TryLock, "n")
}

// Property: as a fleet gate on a real server: loads go on, in this process's share, while the server is away, and with permits when it is
// back.
// Broken by: outcomeOf, `return outcomeAway`.
func TestRedisFleetGateGoesOnWithoutTheServer(t *testing.T) {
	s := redistest.Start(t)
	gate, err := NewSemaphore(s.Client(t), SemaphoreOptions{Limit: 2})
	require.NoError(t, err)
	defer func() { _ = gate.Close() }()
	enter := func() func() {
		ctx, cancel := context.WithTimeout(t.Context(), soon)
		defer cancel()
		leave, err := gate.Enter(ctx, "db")
		require.NoError(t, err)
		return leave
	}
	enter()()
	s.Kill()
	first, second := enter(), enter()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = gate.Enter(ctx, "db")
	require.ErrorIs(t, err, context.DeadlineExceeded, "a third load of two")
	first()
	second()
	s.Restart()
	require.Eventually(t, func() bool {
		defer enter()()
		n, err := s.Client(t).Exists(t.Context(), "tc-sem:{db}").Result()
		return err == nil && n == 1
	}, soon, 10*time.Millisecond, "permits again")
}

// Property: while the master has too few replicas (min-replicas-to-write) its refusals are errors that pass by themselves: a release is sent again
// until it is taken.
// Broken by: passing, "NOREPLICAS ".
func TestRedisMissingReplicasAreSatOut(t *testing.T) {
	s := redistest.Start(t)
	m := redisMutex(t, s.Client(t), MutexOptions{LeaseTime: 5 * time.Second})
	l := mustLock(t, m.Lock, "n")
	s.Config(t, "min-replicas-to-write", "1")
	_, err := m.TryLock(t.Context(), "other")
	require.ErrorIs(t, err, ErrUnavailable)
	require.ErrorContains(t, err, "NOREPLICAS")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, l.Unlock(ctx), context.DeadlineExceeded, "it goes on in the background")
	s.Config(t, "min-replicas-to-write", "0")
	require.NoError(t, l.Unlock(t.Context()))
	mustLock(t, m.TryLock, "n")
}

// refusalError is what a server says.
type refusalError string

func (e refusalError) Error() string { return string(e) }

func (refusalError) RedisError() {}

// Property: which refusals of the server pass by themselves, and which do not.
// Broken by: passing, each of its beginnings.
func TestRefusalsThatPass(t *testing.T) {
	for said, passes := range map[string]bool{
		"READONLY You can't write against a read only replica.":  true,
		"ERR Error running script: -READONLY You can't write.":   true,
		"LOADING Redis is loading the dataset in memory":         true,
		"TRYAGAIN Multiple keys request during rehashing":        true,
		"CLUSTERDOWN The cluster is down":                        true,
		"MASTERDOWN Link with MASTER is down":                    true,
		"NOREPLICAS Not enough good replicas to write.":          true,
		"BUSY Redis is busy running a script.":                   true,
		"ERR max number of clients reached":                      true,
		"BUSYKEY Target key name already exists.":                false,
		"NOPERM this user has no permissions":                    false,
		"OOM command not allowed when used memory > 'maxmemory'": false,
		"ERR unknown command":                                    false,
	} {
		require.Equal(t, passes, transient(refusalError(said)), said)
	}
}
