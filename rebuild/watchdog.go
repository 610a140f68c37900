package rebuild

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"
)

const (
	// watchdogJitter is the fraction by which a renewal comes early at most, so that processes do not renew in step. Chosen; not tuned.
	watchdogJitter = 0.1
	// renewalsAtOnce are the calls that a backend without BatchRenewer has to bear. Chosen; not tuned.
	renewalsAtOnce = 16
)

// renewal is one grant that is due.
type renewal struct {
	h     *holding
	claim LockClaim
	token uint64
}

// guardLocked starts the watchdog unless it runs: one for all that the lockbook holds.
func (b *lockbook) guardLocked() {
	if b.guarded {
		return
	}
	ctx, leave, err := b.work.join(context.Background())
	if err != nil {
		return // closed: what is held is being released
	}
	b.guarded = true
	go func() {
		defer leave()
		b.guard(ctx)
	}()
}

// guard renews all that is held, at a third of the lease, sooner after a failure, at once when told to. It ends when nothing is held or
// ctx ends. What is held before a renewal begins is part of it, so no grant is older than that third when it is renewed first.
func (b *lockbook) guard(ctx context.Context) {
	period := func() time.Duration { return time.Duration(float64(b.lease/3) * (1 - watchdogJitter*rand.Float64())) }
	timer := time.NewTimer(period())
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-b.rouse:
		case <-ctx.Done():
			return
		}
		due, more := b.due()
		if !more {
			return
		}
		if b.renew(ctx, due) {
			timer.Reset(period())
		} else {
			timer.Reset(b.retryTime())
		}
	}
}

// renewNow makes the watchdog renew at once. It does not block.
func (b *lockbook) renewNow() {
	select {
	case b.rouse <- struct{}{}:
	default:
	}
}

// due returns what is to be renewed. If nothing is held the watchdog is told to end: the next grant starts it again.
func (b *lockbook) due() (due []renewal, more bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := thisMoment()
	for h := range b.held {
		if !b.expireLocked(h, now) && !h.changing {
			due = append(due, renewal{h, h.claim, h.token})
		}
	}
	b.guarded = len(b.held) > 0
	return due, b.guarded
}

// renew renews what is due, and reports whether all of it was answered.
func (b *lockbook) renew(ctx context.Context, due []renewal) (all bool) {
	if len(due) == 0 {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, b.lease/6)
	defer cancel()
	sent := thisMoment()
	grants, errs := b.sendRenewals(ctx, due)
	b.mu.Lock()
	defer b.mu.Unlock()
	all = true
	for i, r := range due {
		b.noteLocked(grants[i])
		if _, here := b.held[r.h]; !here || r.h.changing || r.h.token != r.token {
			continue // released or downgraded meanwhile: the answer is about something that is over
		}
		switch err := errs[i]; {
		case err == nil:
			b.armLocked(r.h, grants[i], sent)
		case errors.Is(err, ErrLeaseLost):
			b.loseLocked(r.h, false)
		case r.h.life == 0: // it stood until a ping fails
			b.loseLocked(r.h, true)
		default:
			all = false
		}
	}
	return all
}

// sendRenewals sends them together where the backend can, else some at a time. Results have the index of what is due.
func (b *lockbook) sendRenewals(ctx context.Context, due []renewal) ([]LockGrant, []error) {
	if batch, ok := b.backend.(BatchRenewer); ok {
		claims, tokens := make([]LockClaim, len(due)), make([]uint64, len(due))
		for i, r := range due {
			claims[i], tokens[i] = r.claim, r.token
		}
		return batch.RenewAll(ctx, claims, tokens)
	}
	grants, errs := make([]LockGrant, len(due)), make([]error, len(due))
	places := make(chan struct{}, renewalsAtOnce)
	var sending sync.WaitGroup
	for i, r := range due {
		places <- struct{}{}
		sending.Go(func() {
			defer func() { <-places }()
			grants[i], errs[i] = b.backend.Renew(ctx, r.claim, r.token)
		})
	}
	sending.Wait()
	return grants, errs
}
