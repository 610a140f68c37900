package bloom

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tiercache/tiercache/internal/segment"
)

// sharedFeed is what a SharedGuard knows of change feeds: up to when they have told of all commits. The feed's word is a number beside the head and its
// lag, by the time when it came there. A word that is met at one reading of the head and was not there at the one before came after that began.
type sharedFeed struct {
	bound   time.Duration // 0: all writers announce their rows
	started time.Time     // moments count from here, on the monotonic clock: from before the guard was made, so that 0 is none of them
	until   atomic.Int64  // up to when all commits were told; 0: not known yet

	mu    sync.Mutex    // guards what follows
	read  time.Duration // when the head was last read with success, or rather before that; 0: never, which is so long ago that no word counts
	words uint64        // that it knew of
}

// RelyOnFeed makes the guard's word depend on a change feed, as that of a Guard: see [Guard.RelyOnFeed]. It is called before the guard is used.
func (g *SharedGuard) RelyOnFeed(bound time.Duration) {
	g.feed.bound, g.feed.started = bound, time.Now().Add(-dayBefore)
}

// Fed says to the fleet that every row committed longer than lag ago has been announced by a change feed. One round trip.
func (g *SharedGuard) Fed(ctx context.Context, lag time.Duration) error {
	if _, _, err := g.store.TurnSegments(ctx, segment.Turn{How: segment.Feed, Lag: lag}); err != nil {
		return fmt.Errorf("bloom: telling of a change feed: %w", err)
	}
	return nil
}

// Told is as [Guard.Told].
func (g *SharedGuard) Told(at time.Time) bool {
	until := g.feed.known()
	return g.feed.bound == 0 || until != 0 && until >= at.Sub(g.feed.started)
}

func (f *sharedFeed) now() time.Duration { return time.Since(f.started) }

// heard takes what a head says that was asked for at that moment. Fewer words than before are of another head, since Redis lost the one before: what
// is there was told nobody knows when.
func (f *sharedFeed) heard(asked time.Duration, words uint64, lag time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if words > f.words {
		f.until.Store(max(f.until.Load(), int64(f.read-lag)))
	}
	f.read, f.words = asked, words
}

func (f *sharedFeed) known() time.Duration { return time.Duration(f.until.Load()) }

// young reports whether all that was committed longer than the bound ago has been told, if it was told until then.
func (f *sharedFeed) young(until time.Duration) bool {
	return f.bound == 0 || until != 0 && f.now()-until <= f.bound
}
