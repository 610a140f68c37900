package rebuild

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"
)

// MutexOptions are the options of a Mutex or an RWMutex. Zero values are the defaults.
type MutexOptions struct {
	// Prefix begins every key and channel in Redis; "tc-lock", or "tc-rw" for an RWMutex. Locks of the same prefix and name exclude each
	// other, if they are of one kind: a Mutex and an RWMutex MUST NOT share a prefix. Not used with a Backend that is given.
	Prefix string
	// LeaseTime is how long a process that died, or that cannot reach the backend any more, keeps the lock; 10 s; at least 100 ms, shorter
	// or negative is an error. While the process lives the lease is renewed at a third of it.
	LeaseTime time.Duration
	// Fair grants in the order in which callers came, among those who answer their wake-up within half a second. Without it whoever
	// comes when the lock is free may have it, which is faster. An RWMutex is always fair.
	Fair bool
	// Reentrant lets a caller lock again what the context that it gives carries as a lease: see Lease.Context. Without it that
	// is an error.
	Reentrant bool
	// Replicas is how many replicas have to acknowledge a grant before it counts, so that a failover is less likely to lose it; 0: none.
	// It is no consensus: a replica that has not acknowledged can still be promoted. Not used with a Backend that is given.
	Replicas int
}

// Mutex is a lock by name over all processes that use the same backend and prefix. Its holder has a Lease, with the limits stated there:
// fence at the resource. All methods may be called concurrently. One watchdog renews all leases of a Mutex; one subscription, made when a
// caller has to wait for the first time, hears for all its waiters: make one Mutex and use it for all names.
type Mutex struct{ book *lockbook }

// NewMutex returns a Mutex on Redis. It needs no living server: it fails for a nil client, a Ring, a client that routes reads to replicas,
// and for options that make no sense, with all mistakes in one error. It never closes rdb, which MUST stay open until Close.
func NewMutex(rdb redis.UniversalClient, o MutexOptions) (*Mutex, error) {
	b, err := redisFor(rdb, "tc-lock", o.Prefix, o.LeaseTime, o.Replicas)
	if err != nil {
		return nil, err
	}
	return NewMutexOn(b, o)
}

// NewMutexOn returns a Mutex on a Backend of any kind, which it does not close. It fails for a nil Backend and for options that make no
// sense.
func NewMutexOn(b Backend, o MutexOptions) (*Mutex, error) {
	book, err := newLockbook(b, o.LeaseTime, o.Fair, o.Reentrant)
	if err != nil {
		return nil, err
	}
	return &Mutex{book}, nil
}

// Lock returns a lease of name. It blocks until nobody else has one; ctx bounds only this wait, and its values are those of the lease's
// context. A name is any string of 1 to 8,192 bytes.
//
// It returns an error that matches ctx.Err() and its cause if ctx ends first, with the last failure of the backend in it if it had not been
// answered; ErrClosed; ErrLocked at once if ctx carries a lease of the same name from the same Mutex and Reentrant is not set, since it
// would wait for itself; or whatever else the backend says that does not pass by itself, ErrReplicas for one. Errors that do
// (ErrUnavailable) it sits out.
//
// One round trip if the lock is free. Who waits is woken by an event; without Fair the waiters of one process share one place in the queue,
// so that what is sent grows with processes. What was asked for and not answered when Lock returns is released in the background.
func (m *Mutex) Lock(ctx context.Context, name string) (*Lease, error) {
	return m.book.lock(ctx, want{name: name, kind: exclusive})
}

// TryLock returns a lease of name, or ErrLocked at once if somebody else has one; with Fair also if somebody waits for it. It is Lock in
// all else, but for one thing: every error of the backend is returned.
func (m *Mutex) TryLock(ctx context.Context, name string) (*Lease, error) {
	return m.book.lock(ctx, want{name: name, kind: exclusive, try: true})
}

// Close ends those who wait with ErrClosed, and all leases: their contexts end with the cause ErrClosed, and they are released. It blocks
// until that is answered, and the releases of Unlock are too, a second at most. If something was not released, because nothing answered or
// because the backend refused, it returns an error that matches ErrUnavailable and what the backend said; those leases end by themselves. No
// goroutine is left. It may be called again, at the same time too, and says the same. Afterwards Lock and TryLock return ErrClosed.
func (m *Mutex) Close() error { return m.book.close() }
