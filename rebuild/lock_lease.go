package rebuild

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

var (
	// errLate is the error of a grant whose answer took nearly as long as the lease.
	errLate = fmt.Errorf("%w: the grant came too late", ErrUnavailable)
	// errNoAnswer is that of a release that Close did not wait for any longer.
	errNoAnswer = errors.New("no answer in time")
	// errUnclear is that of a release whose first copy was not answered, and whose repeat found nothing to release. Either the first one did it,
	// or the lease had been lost before. The backend knows only who gave the name back last, and that was another one by then.
	errUnclear = fmt.Errorf("%w: released or lost before, a repeat found nothing", ErrUnavailable)
)

// holding is what the backend granted to this process once; a lease, or several nested ones, stand on it. Guarded by the lockbook's mu
// but for what says otherwise.
type holding struct {
	name     string // as claim has it. It never changes, and is read without the lock
	claim    LockClaim
	token    uint64
	burn     time.Duration // for its release: > 0 if something that its owner asked for was never answered
	from     moment        // before the request was sent whose answer counts
	life     time.Duration // from then on; 0: until a ping fails
	timer    *time.Timer   // at the end of life; nil without one
	changing bool          // a Downgrade is under way: it is not renewed
	open     []*Lease      // not unlocked, outer ones first

	released chan struct{} // closed when it is over and answer stands
	answer   error         // of Unlock; written before released is closed
}

// Lease is the right to a name for as long as it is renewed: from a Mutex, an RWMutex or a Semaphore, whose watchdog renews it. It ends
// with Unlock, or by being lost. All methods may be called concurrently.
//
// A lease is advice with a deadline. This process stops trusting it before the backend gives the name to anybody else, as far as clocks run
// at the same speed; but nothing here stops a write that was on its way already when the lease was lost, or a goroutine that paused between
// its last look at the lease and its write. Only the resource can, by refusing what comes with an older Token than one it has seen. And a
// backend that loses data (a flush, an eviction, a failover before replication) grants the name to another at once; this holder learns of
// it at its next renewal, within a third of LeaseTime.
//
// A lease that nobody unlocks is renewed for as long as the process lives, or until Close. Time that the machine slept counts against it,
// by the wall clock; one that is set ahead looks the same, and may end leases early.
type Lease struct {
	book  *lockbook
	h     *holding
	outer *Lease          // that it is nested in; nil: none
	ctx   context.Context //nolint:containedctx // Context's: it lives as long as the lease
	end   context.CancelCauseFunc

	// Guarded by book.mu.
	also   context.CancelCauseFunc // ends with it; nil: nothing
	over   bool                    // Unlock was called
	last   bool                    // its Unlock has the answer of h
	answer error                   // else this one
}

// Name returns the name that was locked.
func (l *Lease) Name() string { return l.h.name }

// Token returns the fence: a number greater than that of any grant of the name before. Give it to the resource with every write, and let
// that refuse a smaller one than it has seen. After the backend lost its data it still grows, unless the backend's clock is behind the last
// grant and nobody who asks knows of that grant. Nested leases have the token of the outer one; after Downgrade it is another one.
func (l *Lease) Token() uint64 {
	l.book.mu.Lock()
	defer l.book.mu.Unlock()
	return l.h.token
}

// Context returns a context that ends with the lease: the cause is context.Canceled after Unlock, ErrLeaseLost if it was lost, ErrClosed
// after Close of what it is from. It has the values of the context given to Lock, but not its end, which only bounded the wait. It
// carries the lease: see TokenOf and MutexOptions.Reentrant.
//
// It ends by a timer. After a pause of the whole process code may run before that does: Check tells.
func (l *Lease) Context() context.Context { return l.ctx }

// Check returns nil while the lease is held, as far as this process can know without asking: it compares clocks. After that it
// returns the cause with which Context ended. It costs no round trip; call it before a write that cannot be fenced.
func (l *Lease) Check() error {
	l.book.mu.Lock()
	defer l.book.mu.Unlock()
	l.book.expireLocked(l.h, thisMoment())
	return context.Cause(l.ctx)
}

// Unlock ends Context and releases the lease. It blocks until the release is answered, or until nobody can tell any more what became of it;
// ctx bounds only this wait: the release is sent whatever ctx says, and goes on in the background. One round trip.
//
// It returns nil; ErrLeaseLost if the lease had been lost before, whatever was done under it since; an error that matches ErrUnavailable if
// the release was not answered in time, so that the lease ends by itself, or if only a repeat of it was answered and found nothing any more:
// then the name is free of this lease, and nobody can tell whether it was released or had been lost; or, if ctx ended first, one that matches
// ctx.Err(). It may be called again, and gives the same answer once there is one. Of nested leases the last Unlock releases; that of an outer
// one also ends the contexts of those in it.
func (l *Lease) Unlock(ctx context.Context) error {
	if last, err := l.book.unlock(l); !last {
		return err
	}
	select {
	case <-l.h.released:
		return l.h.answer
	default:
	}
	select {
	case <-l.h.released:
		return l.h.answer
	case <-ctx.Done():
		return fmt.Errorf("rebuild: %q is being released in the background: %w", l.Name(), ended(ctx))
	}
}

// hold books what w was granted, and returns its first lease.
func (b *lockbook) hold(ctx context.Context, w *lockwaiter, g LockGrant, sent moment) (*Lease, error) {
	h := &holding{name: w.claim.Name, claim: w.claim, token: g.Token, released: make(chan struct{})}
	if w.unanswered {
		h.burn = b.burnTime()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		b.orphans.add(orphan{claim: h.claim, token: h.token, burn: h.burn})
		return nil, ErrClosed
	}
	b.held[h] = struct{}{}
	b.armLocked(h, g, sent)
	b.guardLocked()
	return b.openLocked(ctx, h, nil), nil
}

// openLocked adds a lease to h, with a context that carries it.
func (b *lockbook) openLocked(ctx context.Context, h *holding, outer *Lease) *Lease {
	l := &Lease{book: b, h: h, outer: outer}
	l.ctx, l.end = context.WithCancelCause(carry(context.WithoutCancel(ctx), l))
	h.open = append(h.open, l)
	return l
}

// armLocked sets the deadline of h by an answer to what was sent at that moment. It counts from before the sending, and not by what the
// lease was to be but by what the backend says is left of it: a repeated request may have been granted long before.
func (b *lockbook) armLocked(h *holding, g LockGrant, sent moment) {
	if h.timer != nil {
		h.timer.Stop()
	}
	h.token, h.from, h.life, h.timer = g.Token, sent, 0, nil
	if g.Left == 0 {
		return
	}
	h.life = max(g.Left-b.margin(), 1)
	h.timer = time.AfterFunc(h.life-thisMoment().since(sent), func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		// Not over yet: it was renewed meanwhile, or the wall clock ran ahead when the timer was set, and was set back since.
		if now := thisMoment(); !b.expireLocked(h, now) && h.life > 0 {
			h.timer.Reset(h.life - now.since(h.from))
		}
	})
}

// expireLocked reports whether h is over, and ends it if its deadline is past.
func (b *lockbook) expireLocked(h *holding, now moment) bool {
	if _, here := b.held[h]; !here {
		return true
	}
	if h.life == 0 || now.since(h.from) < h.life {
		return false
	}
	b.loseLocked(h, true)
	return true
}

// loseLocked ends h as lost. If the backend may still count it as held, it is given back.
func (b *lockbook) loseLocked(h *holding, remains bool) {
	b.dropLocked(h)
	h.endLocked(ErrLeaseLost)
	h.answer = ErrLeaseLost
	close(h.released)
	if remains || h.burn > 0 {
		b.orphans.add(orphan{claim: h.claim, token: h.token, burn: h.burn})
	}
}

// dropLocked disarms h: it is not renewed any more.
func (b *lockbook) dropLocked(h *holding) {
	delete(b.held, h)
	if h.timer != nil {
		h.timer.Stop()
	}
}

// endLocked ends the contexts of all leases on h.
func (h *holding) endLocked(cause error) {
	for _, l := range h.open {
		l.endLocked(cause)
	}
}

func (l *Lease) endLocked(cause error) {
	l.end(cause)
	if l.also != nil {
		l.also(cause)
	}
}

// unlock ends l, and if it is the last one on its holding starts the release of that. If last is true, the holding's answer is l's.
func (b *lockbook) unlock(l *Lease) (last bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if l.over {
		return l.last, l.answer
	}
	l.over = true
	h := l.h
	lost := b.expireLocked(h, thisMoment())
	for _, inner := range h.open {
		if inner.within(l) {
			inner.endLocked(context.Canceled)
		}
	}
	h.open = slices.DeleteFunc(h.open, func(other *Lease) bool { return other == l })
	switch {
	case lost: // or Close releases it
		l.last = true
	case len(h.open) == 0:
		l.last = true
		b.releaseLocked(h)
	}
	return l.last, nil
}

// within reports whether l is outer or nested in it.
func (l *Lease) within(outer *Lease) bool {
	for ; l != nil; l = l.outer {
		if l == outer {
			return true
		}
	}
	return false
}

// releaseLocked disarms h and sends its release in the background: repeated until answered or until the lease is over by itself.
func (b *lockbook) releaseLocked(h *holding) {
	b.dropLocked(h)
	ctx, leave, err := b.releases.join(context.Background())
	if err != nil {
		h.answer = err
		close(h.released)
		return
	}
	left := b.lease
	if h.life > 0 {
		left = h.life - thisMoment().since(h.from)
	}
	b.leaving[h] = struct{}{}
	o := orphan{claim: h.claim, token: h.token, burn: h.burn, until: time.Now().Add(left)}
	go func() {
		defer leave()
		err := b.sendRelease(ctx, o)
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.leaving, h)
		h.answer = err
		close(h.released)
	}()
}
