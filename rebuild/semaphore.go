package rebuild

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

// SemaphoreOptions are the options of a Semaphore. Zero values are the defaults, but Limit has none.
type SemaphoreOptions struct {
	// Prefix begins every key and channel in Redis; "tc-sem". Not used with a Backend that is given.
	Prefix string
	// LeaseTime is how long a process that died keeps its permits; 10 s; at least 100 ms, shorter or negative is an error.
	LeaseTime time.Duration
	// Limit is how many permits of a name there are; at least 1. Every process has to give the same; Resize overrules all of them.
	Limit int
	// Processes is how many processes there are, as Enter assumes where the backend never said; 1; negative is an error.
	Processes int
}

// Semaphore hands out a bounded number of permits by name, over all processes that use the same backend and prefix, first come, first
// served. A permit is a Lease, with the limits stated there: one whose process died comes back at its end, and a holder whose lease was
// lost may be one too many until it notices. All methods may be called concurrently.
type Semaphore struct {
	book  *lockbook
	limit int
	fleet *fleet
}

// NewSemaphore returns a Semaphore on Redis, as NewMutex does.
func NewSemaphore(rdb redis.UniversalClient, o SemaphoreOptions) (*Semaphore, error) {
	b, err := redisFor(rdb, "tc-sem", o.Prefix, o.LeaseTime, 0)
	if err != nil {
		return nil, errors.Join(err, o.check())
	}
	return NewSemaphoreOn(b, o)
}

// NewSemaphoreOn returns a Semaphore on a Backend of any kind, as NewMutexOn does.
func NewSemaphoreOn(b Backend, o SemaphoreOptions) (*Semaphore, error) {
	book, err := newLockbook(b, o.LeaseTime, true, false)
	if err := errors.Join(err, o.check()); err != nil {
		return nil, err
	}
	s := &Semaphore{book: book, limit: o.Limit, fleet: newFleet(o.Limit, max(o.Processes, 1))}
	book.fleet = s.fleet
	return s, nil
}

func (o SemaphoreOptions) check() error {
	var errs []error
	if o.Limit < 1 {
		errs = append(errs, fmt.Errorf("rebuild: SemaphoreOptions.Limit is %d, at least 1", o.Limit))
	}
	if o.Processes < 0 {
		errs = append(errs, fmt.Errorf("rebuild: SemaphoreOptions.Processes is negative: %d", o.Processes))
	}
	return errors.Join(errs...)
}

// Acquire returns a permit of name. It blocks until there is one; errors and round trips are those of Mutex.Lock. A caller whose context
// carries a permit gets a second one, and so may wait for itself.
func (s *Semaphore) Acquire(ctx context.Context, name string) (*Lease, error) {
	return s.book.lock(ctx, s.want(name))
}

// TryAcquire returns a permit of name, or ErrLocked at once if there is none or somebody waits for one.
func (s *Semaphore) TryAcquire(ctx context.Context, name string) (*Lease, error) {
	w := s.want(name)
	w.try = true
	return s.book.lock(ctx, w)
}

func (s *Semaphore) want(name string) want {
	return want{name: name, kind: shared, limit: s.limit, counted: true}
}

// Resize makes limit the number of permits of name, for all processes and instead of SemaphoreOptions.Limit, until the backend forgets the
// name (in Redis a day after it was used last); 0 ends that, negative is an error. More permits than before go to those who wait; a smaller
// number takes none away but holds as soon as enough have come back. It blocks for one round trip. It fails with errors.ErrUnsupported on a
// Backend that cannot.
func (s *Semaphore) Resize(ctx context.Context, name string, limit int) error {
	if err := checkName(name); err != nil {
		return err
	}
	if limit < 0 {
		return fmt.Errorf("rebuild: Resize of %q to %d, at least 0", name, limit)
	}
	backend, ok := s.book.backend.(Resizer)
	if !ok {
		return fmt.Errorf("rebuild: this backend cannot resize: %w", errors.ErrUnsupported)
	}
	ctx, leave, err := s.book.work.join(ctx)
	if err != nil {
		return err
	}
	defer leave()
	limited, cancel := context.WithTimeout(ctx, callTime(s.book.lease))
	defer cancel()
	if err := backend.Resize(limited, name, limit); err != nil {
		return ours(ctx, limited, err)
	}
	s.fleet.resized(name, limit)
	return nil
}

// Close is Mutex.Close.
func (s *Semaphore) Close() error { return s.book.close() }
