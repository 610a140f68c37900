package rebuild

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

// RWMutex is a lock by name that many readers or one writer have, over all processes that use the same backend and prefix. Nobody is
// passed: a reader enters if no writer holds the name or waits ahead, and readers who wait in front of a second writer enter together, so
// that neither kind is starved. Each reader has a lease and an end of its own. What is said of Mutex and Lease holds here; every grant has
// a new token, a reader's too. All methods may be called concurrently.
type RWMutex struct{ book *lockbook }

// NewRWMutex returns an RWMutex on Redis, as NewMutex does. Fair changes nothing.
func NewRWMutex(rdb redis.UniversalClient, o MutexOptions) (*RWMutex, error) {
	b, err := redisFor(rdb, "tc-rw", o.Prefix, o.LeaseTime, o.Replicas)
	if err != nil {
		return nil, err
	}
	return NewRWMutexOn(b, o)
}

// NewRWMutexOn returns an RWMutex on a Backend of any kind, as NewMutexOn does.
func NewRWMutexOn(b Backend, o MutexOptions) (*RWMutex, error) {
	book, err := newLockbook(b, o.LeaseTime, true, o.Reentrant)
	if err != nil {
		return nil, err
	}
	book.sharing = true
	return &RWMutex{book}, nil
}

// Lock returns a write lease of name. It blocks, and fails, as Mutex.Lock does. Where ctx carries a read lease of the same name it fails at
// once with ErrLocked, whatever Reentrant says: two readers who waited to become the writer would wait for each other.
func (m *RWMutex) Lock(ctx context.Context, name string) (*Lease, error) {
	return m.book.lock(ctx, want{name: name, kind: exclusive})
}

// TryLock returns a write lease of name, or ErrLocked at once if anybody else has a lease of it or waits for one.
func (m *RWMutex) TryLock(ctx context.Context, name string) (*Lease, error) {
	return m.book.lock(ctx, want{name: name, kind: exclusive, try: true})
}

// RLock returns a read lease of name. It blocks while a writer has the name or waits ahead, and fails as Mutex.Lock does. Under a lease of
// the same name it is nested if Reentrant is set, else ErrLocked at once: behind a writer who waits for that lease it would wait for
// itself. Nested in a write lease it is as exclusive as that.
func (m *RWMutex) RLock(ctx context.Context, name string) (*Lease, error) {
	return m.book.lock(ctx, want{name: name, kind: shared})
}

// TryRLock returns a read lease of name, or ErrLocked at once where RLock would have to wait.
func (m *RWMutex) TryRLock(ctx context.Context, name string) (*Lease, error) {
	return m.book.lock(ctx, want{name: name, kind: shared, try: true})
}

// Close is Mutex.Close.
func (m *RWMutex) Close() error { return m.book.close() }

// Downgrade makes a write lease of an RWMutex a read lease, without a moment in between in which another writer could enter. Context goes
// on; Token is a new one. It blocks until that is answered or ctx ends; one round trip. There is no way back.
//
// It fails, with the lease as it was, for a lease that is no write lease of an RWMutex, for one that others are nested in, after its end
// (as Check says), and with errors.ErrUnsupported on a Backend that cannot. If the backend does not answer until ctx ends nobody knows
// which of the two the lease is: it counts as lost then, and the error matches ErrLeaseLost; at Close it is released, and the error is
// ErrClosed. While it blocks, Lock under this lease fails with ErrLocked.
func (l *Lease) Downgrade(ctx context.Context) error {
	b := l.book
	backend, ok := b.backend.(Downgrader)
	if !ok {
		return fmt.Errorf("rebuild: this backend cannot downgrade: %w", errors.ErrUnsupported)
	}
	if ctx.Err() != nil {
		return ended(ctx)
	}
	ctx, leave, err := b.work.join(ctx) // Close waits for it, since what becomes of the lease is to be released too
	if err != nil {
		return err
	}
	defer leave()
	c, token, err := b.beginDowngrade(l)
	if err != nil {
		return err
	}
	after := b.claim(want{name: c.Name, kind: shared})
	unanswered := false
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		limited, cancel := context.WithTimeout(ctx, callTime(b.lease))
		sent := thisMoment()
		g, err := backend.Downgrade(limited, c, token, after.Owner)
		err = ours(ctx, limited, err)
		cancel()
		if err == nil {
			return b.downgraded(l, after, g, sent, unanswered)
		}
		if ctx.Err() != nil || !repeatable(ctx, err) || l.Check() != nil {
			return b.undecided(l.h, after, err)
		}
		unanswered = true
		timer.Reset(b.retryTime())
		select {
		case <-timer.C:
		case <-ctx.Done():
		case <-l.ctx.Done():
		}
	}
}

// beginDowngrade checks that l can be downgraded, and keeps the watchdog off it: the token that it would renew may be over already.
func (b *lockbook) beginDowngrade(l *Lease) (LockClaim, uint64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	h := l.h
	switch {
	case b.expireLocked(h, thisMoment()) || context.Cause(l.ctx) != nil:
		return LockClaim{}, 0, context.Cause(l.ctx)
	case !b.sharing || h.kind() != exclusive:
		return LockClaim{}, 0, fmt.Errorf("rebuild: the lease of %q is no write lease of an RWMutex", l.Name())
	case len(h.open) > 1 || h.changing:
		return LockClaim{}, 0, fmt.Errorf("rebuild: other leases are nested in that of %q, or it is being downgraded", l.Name())
	}
	h.changing = true
	return h.claim, h.token, nil
}

// downgraded books that l is the grant g of after's owner now; unless it was lost or released meanwhile.
func (b *lockbook) downgraded(l *Lease, after LockClaim, g LockGrant, sent moment, unanswered bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.noteLocked(g)
	h := l.h
	h.changing = false
	burn := time.Duration(0)
	if unanswered {
		burn = b.burnTime()
	}
	if b.expireLocked(h, thisMoment()) {
		b.orphans.add(orphan{claim: after, burn: burn})
		return context.Cause(l.ctx)
	}
	if h.burn > 0 { // something that the write owner asked for was never answered: a late copy of it is not to be granted
		b.orphans.add(orphan{claim: h.claim, burn: h.burn})
	}
	h.claim, h.burn = after, burn
	b.armLocked(h, g, sent)
	return nil
}

// undecided gives up h, of which nobody knows whose it is.
func (b *lockbook) undecided(h *holding, after LockClaim, err error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	h.changing = false
	b.orphans.add(orphan{claim: after, burn: b.burnTime()})
	if _, here := b.held[h]; here {
		h.burn = b.burnTime()
		if !b.closed { // else it is for Close to release, and to say so if it cannot
			b.loseLocked(h, true)
		}
	}
	if b.closed {
		return ErrClosed
	}
	if errors.Is(err, ErrLeaseLost) {
		return ErrLeaseLost
	}
	return errors.Join(ErrLeaseLost, err)
}
