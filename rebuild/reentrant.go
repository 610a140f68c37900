package rebuild

import (
	"context"
	"fmt"
)

// carriedKey is the context key of the innermost *carried.
type carriedKey struct{}

// carried is a lease that a context carries, and those that it carried before.
type carried struct {
	lease  *Lease
	before *carried
}

// carry returns a context that carries l too.
func carry(ctx context.Context, l *Lease) context.Context {
	return context.WithValue(ctx, carriedKey{}, &carried{lease: l, before: carriedBy(ctx)})
}

func carriedBy(ctx context.Context) *carried {
	c, _ := ctx.Value(carriedKey{}).(*carried)
	return c
}

// TokenOf returns the token of the lease of name that ctx carries, for the code that writes to be told no more than its context. It is
// false if there is none, or none that is still held. Of several it is the one that was locked last; of whichever Mutex, RWMutex or
// Semaphore.
func TokenOf(ctx context.Context, name string) (uint64, bool) {
	for c := carriedBy(ctx); c != nil; c = c.before {
		if c.lease.Name() == name && c.lease.Check() == nil {
			return c.lease.Token(), true
		}
	}
	return 0, false
}

// nest answers a caller whose context carries a lease of this name on the same object: with a nested lease, or with an error where waiting
// would be for itself. If here is false there is no such lease.
func (b *lockbook) nest(ctx context.Context, w want) (lease *Lease, here bool, err error) {
	if w.counted {
		return nil, false, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	outer := b.carriedLocked(ctx, w.name)
	switch {
	case outer == nil:
		return nil, false, nil
	case w.kind == exclusive && outer.h.kind() == shared:
		return nil, true, fmt.Errorf("%w: a read lease of %q cannot become a write lease; unlock it first", ErrLocked, w.name)
	case w.kind == exclusive && outer.h.changing: // it would be a write lease of what is a read lease a moment later
		return nil, true, fmt.Errorf("%w: the write lease of %q is being downgraded", ErrLocked, w.name)
	case !b.reentrant:
		return nil, true, fmt.Errorf("%w: by the lease of %q whose context was given: it would wait for itself", ErrLocked, w.name)
	}
	return b.openLocked(ctx, outer.h, outer), true, nil
}

// carriedLocked returns the innermost lease of name that ctx carries, if it is b's and held.
func (b *lockbook) carriedLocked(ctx context.Context, name string) *Lease {
	for c := carriedBy(ctx); c != nil; c = c.before {
		if l := c.lease; l.book == b && l.Name() == name && !b.expireLocked(l.h, thisMoment()) {
			return l
		}
	}
	return nil
}

// kind is exclusive or shared.
func (h *holding) kind() string { return h.claim.Owner[:1] }
