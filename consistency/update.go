package consistency

import (
	"context"
	"errors"
	"time"
)

// Invalidator deletes the keys of one update, for DoubleDelete. Each method MUST return within a budget of its own, also if ctx does
// not end, and MUST remember by itself what it could not send (then its error says so). DoubleDelete calls End once, after the last
// Renew has returned, and Renew and Begin never at the same time.
type Invalidator interface {
	// Begin deletes the keys, revokes the rebuilds under way and opens a time in which what is loaded lives only briefly.
	Begin(ctx context.Context) error
	// Renew keeps that time open while the write runs.
	Renew(ctx context.Context) error
	// End deletes the keys again and opens the last delete window.
	End(ctx context.Context) error
}

// DoubleDelete runs write between two deletes: Begin, write, End, with a Renew every `every` while write runs (zero or negative:
// none). The delayed second delete is not a timer of this process: what Begin and End opened bounds the life of whatever a lagging
// replica gives, so a crash at any point leaves nothing to do.
//
// write is called once whatever Begin returned, with ctx as it is. End is sent whatever became of write, for it may have committed,
// and also after ctx has ended: after an error, a panic (which goes on with its value afterwards) and a runtime.Goexit. An error of
// Renew is not reported: an End that succeeded made it good, one that failed has its own.
//
// It returns the errors of write, Begin and End, joined if there are several, and blocks as long as these take.
func DoubleDelete(ctx context.Context, inv Invalidator, every time.Duration, write func(context.Context) error) (err error) {
	detached := context.WithoutCancel(ctx)
	begun := inv.Begin(ctx)
	stop := renewEvery(every, func() { _ = inv.Renew(detached) })
	defer func() { // no recover: a panic passes with its value and its stack
		stop()
		err = join(err, begun, inv.End(detached))
	}()
	return write(ctx)
}

// renewEvery calls renew in the background until stop, which waits for the renewal under way. It does not interrupt it: a renewal that
// reached the shared tier after the End would open again what End closed.
func renewEvery(every time.Duration, renew func()) (stop func()) {
	if every <= 0 {
		return func() {}
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		for {
			select {
			case <-quit:
				return
			case <-ticker.C:
				renew()
			}
		}
	}()
	return func() {
		close(quit)
		<-done
	}
}

// join is errors.Join that returns a single error as it is.
func join(errs ...error) error {
	var single error
	for _, err := range errs {
		if err == nil {
			continue
		}
		if single != nil {
			return errors.Join(errs...)
		}
		single = err
	}
	return single
}
