package tiercache

import (
	"context"
	"fmt"
	"time"
)

// minFilterFeed is the least bound on a change feed: announcements are read each second.
const minFilterFeed = 2 * time.Second

// Feed announces rows that a change feed tells of (a binlog, a replication slot), for writers that cannot call Announce; and it says that every
// row committed longer than lag ago has been told by now. It may be called without keys: where nothing changes, a word each second or so keeps
// the filters believed. With Options.FilterFeed each process believes its filter only while it has heard such a word that is young enough.
//
// A row may be called absent from its commit until its announcement was heard: FilterFeed at most. One process feeds; where several share the
// work, lag is the slowest one's. It returns what Announce returns, or that Redis did not take the word, or that there is no Filter; then feed
// the same again. It is one round trip more than Announce, and may be called concurrently.
func (c *Cache[K, V]) Feed(ctx context.Context, lag time.Duration, keys ...K) error {
	if err := c.usable(ctx); err != nil {
		return err
	}
	switch {
	case !c.o.Filter.Enabled():
		return errNoFilter
	case lag < 0:
		return fmt.Errorf("tiercache: the lag of a change feed is negative: %v", lag)
	}
	began := time.Now() // what commits from here on is not among what was told
	if err := c.Announce(ctx, keys...); err != nil {
		return err
	}
	lag += time.Since(began)
	if c.shared == nil {
		c.filter.Fed(lag)
		c.refute(c.suspects.take(c.filter.Told))
		c.tellFilter()
		return nil
	}
	fed := c.shared.AppendFed
	if c.segments != nil {
		fed = c.segments.Fed
	}
	if err := fed(ctx, lag); err != nil {
		c.sharedFailed("feed", err)
		return err
	}
	return nil
}
