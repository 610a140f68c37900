package rebuild_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/tiercache/tiercache/rebuild"
)

// account is a resource with a fence: it refuses what comes with an older token than it has seen. In SQL that is a column and
// "UPDATE … SET balance = $1, fence = $2 WHERE id = $3 AND fence <= $2", where no row updated means: refused.
type account struct {
	mu      sync.Mutex
	balance int
	fence   uint64
}

var errFenced = errors.New("refused: an older token")

func (a *account) set(balance int, token uint64) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if token < a.fence {
		return errFenced
	}
	a.balance, a.fence = balance, token
	return nil
}

// connect returns a client. In these examples it is that of a small Redis inside the process; yours has the address of your server.
func connect() (rdb *redis.Client, closeBoth func()) {
	server := miniredis.NewMiniRedis()
	if err := server.Start(); err != nil {
		panic(err)
	}
	rdb = redis.NewClient(&redis.Options{Addr: server.Addr()})
	return rdb, func() { _ = rdb.Close(); server.Close() }
}

// The lock keeps others out; the token lets the account refuse a holder that was paused for so long that it lost the lock.
func ExampleMutex() {
	rdb, done := connect()
	defer done()
	locks, err := rebuild.NewMutex(rdb, rebuild.MutexOptions{LeaseTime: 10 * time.Second})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer locks.Close() //nolint:errcheck // an example has nobody to tell

	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second) // how long to wait for the lock
	defer cancel()
	lease, err := locks.Lock(ctx, "account:7")
	if err != nil {
		fmt.Println("not locked:", err)
		return
	}
	_, err = locks.TryLock(ctx, "account:7")
	fmt.Println("a second one:", errors.Is(err, rebuild.ErrLocked))

	row := &account{}
	fmt.Println("write:", row.set(100, lease.Token())) // work under lease.Context() in earnest
	if err := lease.Unlock(ctx); errors.Is(err, rebuild.ErrLeaseLost) {
		fmt.Println("somebody else may have had the lock meanwhile")
	}

	next, err := locks.TryLock(ctx, "account:7")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("write of the next:", row.set(200, next.Token()))
	fmt.Println("late write of the first:", row.set(100, lease.Token()))
	fmt.Println(next.Unlock(ctx))
	// Output:
	// a second one: true
	// write: <nil>
	// write of the next: <nil>
	// late write of the first: refused: an older token
	// <nil>
}

// Two accounts are locked together; callers who name them in the other order do not deadlock.
func ExampleMutex_LockMany() {
	rdb, done := connect()
	defer done()
	locks, err := rebuild.NewMutex(rdb, rebuild.MutexOptions{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer locks.Close() //nolint:errcheck // an example has nobody to tell

	ctx := context.Background()
	rows := map[string]*account{"account:7": {balance: 50}, "account:8": {}}
	var transfers sync.WaitGroup
	for _, names := range [][]string{{"account:7", "account:8"}, {"account:8", "account:7"}} {
		transfers.Go(func() {
			leases, err := locks.LockMany(ctx, names...)
			if err != nil {
				fmt.Println(err)
				return
			}
			from, to := rows[names[0]], rows[names[1]]
			tokens := leases.Tokens()
			err = errors.Join(from.set(from.balance-10, tokens[names[0]]), to.set(to.balance+10, tokens[names[1]]))
			if err := errors.Join(err, leases.Unlock(ctx)); err != nil {
				fmt.Println(err)
			}
		})
	}
	transfers.Wait()
	fmt.Println(rows["account:7"].balance, rows["account:8"].balance)
	// Output: 50 0
}

// Do unlocks whatever happens, and tells if the lock was lost meanwhile. The code that writes takes the token from its context.
func ExampleDo() {
	rdb, done := connect()
	defer done()
	locks, err := rebuild.NewMutex(rdb, rebuild.MutexOptions{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer locks.Close() //nolint:errcheck // an example has nobody to tell

	row := &account{}
	err = rebuild.Do(context.Background(), locks, "account:7", func(ctx context.Context) error {
		token, ok := rebuild.TokenOf(ctx, "account:7")
		if !ok {
			return rebuild.ErrLeaseLost
		}
		return row.set(100, token)
	})
	fmt.Println(row.balance, err)
	// Output: 100 <nil>
}

// Readers go together; a writer goes alone, and may go on reading.
func ExampleRWMutex() {
	rdb, done := connect()
	defer done()
	locks, err := rebuild.NewRWMutex(rdb, rebuild.MutexOptions{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer locks.Close() //nolint:errcheck // an example has nobody to tell

	ctx := context.Background()
	one, err1 := locks.RLock(ctx, "catalogue")
	two, err2 := locks.RLock(ctx, "catalogue")
	_, err = locks.TryLock(ctx, "catalogue")
	fmt.Println("two readers:", err1, err2, "- a writer beside them:", errors.Is(err, rebuild.ErrLocked))
	fmt.Println(one.Unlock(ctx), two.Unlock(ctx))

	writer, err := locks.Lock(ctx, "catalogue")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("downgraded:", writer.Downgrade(ctx))
	_, err = locks.TryRLock(ctx, "catalogue")
	fmt.Println("a reader beside it:", err)
	// Output:
	// two readers: <nil> <nil> - a writer beside them: true
	// <nil> <nil>
	// downgraded: <nil>
	// a reader beside it: <nil>
}

// Two permits for all processes together.
func ExampleSemaphore() {
	rdb, done := connect()
	defer done()
	permits, err := rebuild.NewSemaphore(rdb, rebuild.SemaphoreOptions{Limit: 2})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer permits.Close() //nolint:errcheck // an example has nobody to tell

	ctx := context.Background()
	one, err1 := permits.Acquire(ctx, "reports")
	_, err2 := permits.Acquire(ctx, "reports")
	_, err3 := permits.TryAcquire(ctx, "reports")
	fmt.Println(err1, err2, errors.Is(err3, rebuild.ErrLocked))
	fmt.Println(one.Unlock(ctx))
	_, err = permits.TryAcquire(ctx, "reports")
	fmt.Println(err)
	// Output:
	// <nil> <nil> true
	// <nil>
	// <nil>
}

// As a gate for the loads of all processes it goes on while Redis is away, with this process's share.
func ExampleSemaphore_Enter() {
	rdb, done := connect()
	permits, err := rebuild.NewSemaphore(rdb, rebuild.SemaphoreOptions{Limit: 64, Processes: 8})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx := context.Background()
	load := func() error {
		leave, err := permits.Enter(ctx, "database")
		if err != nil {
			return err
		}
		defer leave()
		return nil // read the database here
	}
	fmt.Println(load())
	_ = permits.Close() // while Redis answers: nothing waits then
	done()

	rdb = redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"}) // nobody is there
	defer rdb.Close()                                          //nolint:errcheck // an example has nobody to tell
	permits, err = rebuild.NewSemaphore(rdb, rebuild.SemaphoreOptions{Limit: 64, Processes: 8})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer permits.Close() //nolint:errcheck // an example has nobody to tell
	fmt.Println(load())
	// Output:
	// <nil>
	// <nil>
}
