package rebuild

import (
	"context"
	"math/rand/v2"
	"time"
)

// How long a caller waits before it asks again whether another process's rebuild is done, should no event wake it: chosen; not tuned.
const (
	firstPoll  = 200 * time.Millisecond
	longest    = time.Second
	pollGrowth = 1.5
	pollJitter = 0.25                  // a pause is longer or shorter by up to this fraction, so that processes do not ask in step
	leftJitter = 20 * time.Millisecond // added to the end of the lease in the way, for the same reason
)

// Verdict says what came of asking for a lease. The zero Verdict is none.
type Verdict uint8

// The verdicts.
const (
	Granted Verdict = iota + 1 // the lease is the caller's: load, and fill or release
	Found                      // somebody filled the entry: there is nothing to rebuild
	Held                       // another process has the lease
	BackOff                    // nobody has it, but the last loads failed: do not load yet
)

// Answer is what came of one Acquire.
type Answer struct {
	Verdict Verdict
	Left    time.Duration // Held: of the lease in the way. BackOff: of the pause
}

// Claim is one caller's claim to the lease of one key (or of a batch). Obtain uses it from one goroutine.
type Claim interface {
	// Listen begins to hear that the lease may be free or the entry filled, and returns how to end that. What happens after Listen
	// returned MUST wake: ready gets a value (it needs room for one, more are not needed) and MUST NOT be closed. It does not block.
	// The caller tolerates waking for nothing.
	Listen() (ready <-chan struct{}, stop func())

	// Acquire looks again whether the entry is there and, if it is not, asks for the lease: one step, one round trip. A second
	// Acquire MUST name the same token, so that a grant whose reply was lost is found again. With poll it need not fetch a stale value
	// once more. It MUST return when ctx ends. What it fetched stays with the Claim.
	Acquire(ctx context.Context, poll bool) (Answer, error)
}

// Obtain returns the answer to a claim: Granted, Found or BackOff, or, if the caller is not patient (it has something stale to
// answer), Held. If it is patient, Held means waiting: for the event, for the next poll, or for the end of the lease in the way,
// whichever comes first; then it asks again.
//
// It takes at most limit, which is to be positive: then it returns context.DeadlineExceeded; if ctx ends before, an error that matches
// ctx.Err() and its cause. Any other error of Acquire is returned as it is, at once; the lease may be the caller's all the same.
//
// It listens before it asks, for else the wake-up could be missed:
//
//  1. B acquires: held by A.
//  2. A fills; ready is published.
//  3. B begins to listen: it hears nothing and sleeps until its next poll.
func Obtain(ctx context.Context, c Claim, limit time.Duration, patient bool) (Answer, error) {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ready, stop := c.Listen()
	defer stop()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	pause := firstPoll
	for poll := false; ; poll = true {
		a, err := c.Acquire(limited, poll)
		switch {
		case err != nil && limited.Err() != nil:
			return a, over(ctx)
		case err != nil || a.Verdict != Held || !patient:
			return a, err
		}
		timer.Reset(untilNext(pause, a.Left))
		select {
		case <-ready:
		case <-timer.C:
		case <-limited.Done():
			return a, over(ctx)
		}
		pause = min(time.Duration(float64(pause)*pollGrowth), longest)
	}
}

// over returns why a context limited under ctx is over: ctx's own end, or else the limit.
func over(ctx context.Context) error {
	if ctx.Err() != nil {
		return ended(ctx)
	}
	return context.DeadlineExceeded
}

// untilNext returns how long to wait before asking again: the jittered pause, or until shortly after the lease in the way has ended.
func untilNext(pause, left time.Duration) time.Duration {
	factor := 1 + pollJitter*(2*rand.Float64()-1)
	end := max(left, 0) + time.Millisecond + rand.N(leftJitter) // a millisecond at least: Redis ends a lease by whole ones
	return min(time.Duration(float64(pause)*factor), end)
}
