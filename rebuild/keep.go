package rebuild

import (
	"context"
	"time"
)

// Keep is the watchdog of a lease: it calls renew every `every` (a third of the lease's time is usual) in the background until renew
// returns false (the lease is lost), ctx ends or stop is called. A renewal whose outcome is unknown is to return true: the next one
// tells. renew gets a context that ends with ctx and at stop, and MUST return then.
//
// stop waits until no renewal is under way; none begins after it returned. It may be called many times, but not from renew. If every
// is zero or negative nothing is renewed.
func Keep(ctx context.Context, every time.Duration, renew func(context.Context) (held bool)) (stop func()) {
	if every <= 0 {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer cancel()
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				if ctx.Err() != nil || !renew(ctx) {
					return
				}
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}
