package bench

import (
	"context"
	"errors"
	"time"

	"github.com/bsm/redislock"
	"github.com/go-redsync/redsync/v4"
	"github.com/go-redsync/redsync/v4/redis/goredis/v9"
	"github.com/redis/go-redis/v9"

	"github.com/tiercache/tiercache/rebuild"
)

// locker is one library's lock by name over processes. What it turned on is printed beside its figures. All have one client of go-redis a process, with
// its defaults, and leases of ten seconds.
type locker struct {
	name, setup string
	open        func(rdb *redis.Client) (*openLocker, error)
}

// openLocker is a locker in one process. lock may be called concurrently; it blocks until the lock is had or ctx ends.
type openLocker struct {
	lock  func(ctx context.Context, name string) (unlock func(context.Context) error, err error)
	close func() error
}

const lockerLease = 10 * time.Second

// lockers are ours, as it comes and fair, and other libraries on one Redis. Those wait by asking again: one of them as its README has it, and as often as
// would make it as quick as ours. rueidislock did not come from the module proxy where this was written; Redisson is not written in Go.
func lockers() []locker {
	return []locker{
		{"tiercache", "Mutex as it comes: waiters are woken by events", openMutex(false)},
		{"tiercache, fair", "MutexOptions.Fair: granted in the order of arrival", openMutex(true)},
		{"redislock, 100 ms", "LinearBackoff of 100 ms, as in its README", openRedislock(100 * time.Millisecond)},
		{"redislock, 1 ms", "LinearBackoff of 1 ms", openRedislock(time.Millisecond)},
		{"redsync", "its own delays of 50 to 250 ms; one server; as many tries as it takes", openRedsync},
	}
}

func openMutex(fair bool) func(*redis.Client) (*openLocker, error) {
	return func(rdb *redis.Client) (*openLocker, error) {
		m, err := rebuild.NewMutex(rdb, rebuild.MutexOptions{LeaseTime: lockerLease, Fair: fair})
		if err != nil {
			return nil, err
		}
		return &openLocker{func(ctx context.Context, name string) (func(context.Context) error, error) {
			lease, err := m.Lock(ctx, name)
			if err != nil {
				return nil, err
			}
			return lease.Unlock, nil
		}, m.Close}, nil
	}
}

func openRedislock(pause time.Duration) func(*redis.Client) (*openLocker, error) {
	return func(rdb *redis.Client) (*openLocker, error) {
		c := redislock.New(rdb)
		return &openLocker{func(ctx context.Context, name string) (func(context.Context) error, error) {
			lock, err := c.Obtain(ctx, name, lockerLease, &redislock.Options{RetryStrategy: redislock.LinearBackoff(pause)})
			if err != nil {
				return nil, err
			}
			return lock.Release, nil
		}, func() error { return nil }}, nil
	}
}

func openRedsync(rdb *redis.Client) (*openLocker, error) {
	r := redsync.New(goredis.NewPool(rdb))
	return &openLocker{func(ctx context.Context, name string) (func(context.Context) error, error) {
		m := r.NewMutex(name, redsync.WithExpiry(lockerLease), redsync.WithTries(1<<30))
		if err := m.LockContext(ctx); err != nil {
			return nil, err
		}
		return func(ctx context.Context) error {
			if ok, err := m.UnlockContext(ctx); err != nil || !ok {
				return errors.Join(err, errors.New("redsync: the lock was lost"))
			}
			return nil
		}, nil
	}, func() error { return nil }}, nil
}
