package rebuild

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
)

const (
	// manyNames is how many names LockMany takes at most. Chosen; not tuned.
	manyNames = 1000
	// triesAtOnce are the calls under way while LockMany tries. Chosen; not tuned.
	triesAtOnce = 16
)

// Leases are several leases that were got together, of different names. All methods may be called concurrently.
type Leases struct {
	all []*Lease        // by name
	ctx context.Context //nolint:containedctx // Context's: it lives as long as the leases
	end context.CancelCauseFunc
}

// LockMany returns leases of all names, of which there may be 1,000; one that is given twice counts once. It blocks until nobody else has
// any of them; errors are as those of Lock, and then none is held, but for what was not released yet when ctx ended.
//
// Two that ask for the same names in different order do not wait for each other for ever: all are tried at once, and those that follow a
// refused one, by name, are let go before it is waited for. For the same reason a name that comes before one that ctx carries as a
// lease of this Mutex is only tried: ErrLocked.
//
// As many round trips as names at most where all are free, 16 of them at a time.
func (m *Mutex) LockMany(ctx context.Context, names ...string) (*Leases, error) {
	names = slices.Clone(names)
	slices.Sort(names)
	names = slices.Compact(names)
	if len(names) == 0 || len(names) > manyNames {
		return nil, fmt.Errorf("rebuild: LockMany of %d names, 1 to %d are possible", len(names), manyNames)
	}
	for _, name := range names {
		if err := checkName(name); err != nil {
			return nil, err
		}
	}
	got := m.tryMany(ctx, names)
	highest := m.book.highestCarried(ctx)
	for i, name := range names {
		if got[i] != nil {
			continue
		}
		try := name < highest
		if !try { // nobody waits while he holds what comes after the name that he waits for
			letGo(got[i:])
			clear(got[i:])
		} // who only tries keeps it: tried again, it could be refused by its own release, which is not answered yet
		l, err := m.lockNext(ctx, got[:i], name, try)
		if err != nil {
			giveUp(ctx, got)
			return nil, err
		}
		got[i] = l
	}
	leases := m.book.bundle(ctx, got)
	if err := leases.Check(); err != nil { // lost, or closed, while the others were waited for
		giveUp(ctx, got)
		return nil, err
	}
	return leases, nil
}

// tryMany tries all names at once; nil stands for what was not granted. Why it was not is asked again in order.
func (m *Mutex) tryMany(ctx context.Context, names []string) []*Lease {
	got := make([]*Lease, len(names))
	places := make(chan struct{}, triesAtOnce)
	var trying sync.WaitGroup
	for i, name := range names {
		places <- struct{}{}
		trying.Go(func() {
			defer func() { <-places }()
			if l, err := m.TryLock(ctx, name); err == nil {
				got[i] = l
			}
		})
	}
	trying.Wait()
	return got
}

// lockNext waits for name, or only tries it. It gives up when one of those that are held is lost meanwhile.
func (m *Mutex) lockNext(ctx context.Context, held []*Lease, name string, try bool) (*Lease, error) {
	if try {
		return m.TryLock(ctx, name)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	for _, l := range held {
		stop := context.AfterFunc(l.Context(), func() { cancel(context.Cause(l.Context())) })
		defer stop()
	}
	return m.Lock(ctx, name)
}

// letGo begins the release of leases, of which some are nil, and does not wait for it.
func letGo(leases []*Lease) {
	for _, l := range leases {
		if l != nil {
			_, _ = l.book.unlock(l)
		}
	}
}

// giveUp releases leases, of which some are nil, and waits for the answers until ctx ends: who was told that he has nothing may try the same names
// next, and must not be refused by his own.
func giveUp(ctx context.Context, leases []*Lease) {
	letGo(leases)
	for _, l := range leases {
		if l != nil {
			_ = l.Unlock(ctx)
		}
	}
}

// highestCarried returns the last of the names that ctx carries as held leases of b; empty: there is none.
func (b *lockbook) highestCarried(ctx context.Context) (name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := carriedBy(ctx); c != nil; c = c.before {
		if c.lease.book == b && !b.expireLocked(c.lease.h, thisMoment()) {
			name = max(name, c.lease.Name())
		}
	}
	return name
}

// bundle returns leases as Leases, with a context that carries all of them and ends with the first that ends.
func (b *lockbook) bundle(ctx context.Context, all []*Lease) *Leases {
	carrying := context.WithoutCancel(ctx)
	for _, l := range all {
		carrying = carry(carrying, l) //nolint:fatcontext // one more for each lease, of which there are manyNames at most
	}
	leases := &Leases{all: all}
	leases.ctx, leases.end = context.WithCancelCause(carrying)
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range all {
		l.also = leases.end
		if cause := context.Cause(l.ctx); cause != nil {
			leases.end(cause)
		}
	}
	return leases
}

// Context returns a context that carries all the leases, and ends as Lease.Context does when the first of them ends.
func (l *Leases) Context() context.Context { return l.ctx }

// Check returns nil while all are held, else what Lease.Check says of one that is not.
func (l *Leases) Check() error {
	for _, one := range l.all {
		if err := one.Check(); err != nil {
			return err
		}
	}
	return nil
}

// Token returns the token of the lease of name; false if that is not among them.
func (l *Leases) Token(name string) (uint64, bool) {
	for _, one := range l.all {
		if one.Name() == name {
			return one.Token(), true
		}
	}
	return 0, false
}

// Tokens returns the tokens of all leases by name. The map is the caller's.
func (l *Leases) Tokens() map[string]uint64 {
	tokens := make(map[string]uint64, len(l.all))
	for _, one := range l.all {
		tokens[one.Name()] = one.Token()
	}
	return tokens
}

// Unlock unlocks all leases, at once, and waits for the answers as Lease.Unlock does. Their errors are joined.
func (l *Leases) Unlock(ctx context.Context) error {
	letGo(l.all)
	var errs []error
	for _, one := range l.all {
		if err := one.Unlock(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%q: %w", one.Name(), err))
		}
	}
	return errors.Join(errs...)
}
