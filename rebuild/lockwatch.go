package rebuild

import (
	"context"
	"math/rand/v2"
	"time"
)

// Pauses before a broken subscription is made again, doubled by each failure in a row, less up to a half at random: chosen; not tuned.
const (
	firstRewatch = 50 * time.Millisecond
	lastRewatch  = 2 * time.Second
)

// watch starts to hear wake-ups, once for the life of the lockbook.
func (b *lockbook) watch() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.watching {
		return
	}
	ctx, leave, err := b.work.join(context.Background())
	if err != nil {
		b.settleLocked()
		return
	}
	b.watching = true
	go func() {
		defer leave()
		b.keepWatch(ctx)
	}()
}

// keepWatch hears wake-ups until ctx ends, through as many subscriptions as that takes.
func (b *lockbook) keepWatch(ctx context.Context) {
	for pause := firstRewatch; ; pause = min(2*pause, lastRewatch) {
		_ = b.backend.Watch(ctx, b.process, b.hear, b.wake) // whatever ended it: what is to be done is the same
		if b.deafen() {
			pause = firstRewatch
		}
		timer := time.NewTimer(pause/2 + rand.N(pause/2))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// hear is called when a subscription is confirmed. Those who have a place in the queue ask: their wake-up may have been sent before.
func (b *lockbook) hear() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sound = true
	b.askAgainLocked()
	b.settleLocked()
}

// deafen is called when a subscription is over, and reports whether it had been confirmed. The first of each queue asks, and polls from
// then on. The watchdog renews at once: it was the connection that broke, perhaps, because the master is another one now.
func (b *lockbook) deafen() (was bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	was, b.sound = b.sound, false
	b.settleLocked()
	if was {
		b.askAgainLocked()
		b.renewNow()
	}
	return was
}

func (b *lockbook) settleLocked() {
	if !b.once {
		b.once = true
		close(b.settled)
	}
}

// askAgainLocked makes the first of each queue ask, and then the places of the others are kept.
func (b *lockbook) askAgainLocked() {
	for _, q := range b.queues {
		if w := q.front(); w.queued {
			q.refreshAt = time.Time{}
			w.rouse()
		}
	}
}

// wake makes the waiter ask whom a wake-up names. It may have left.
func (b *lockbook) wake(_, owner string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if w := b.waiters[owner]; w != nil {
		w.rouse()
	}
}
