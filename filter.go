package tiercache

import (
	"context"
	"errors"
	"time"

	"github.com/tiercache/tiercache/bloom"
)

// filterKeptFor is how often the expiries of snapshot and stream, which are a day, are renewed. Chosen; not tuned.
const filterKeptFor = time.Minute

// filterStore is where the filter's snapshot and the announcements are kept; nil without Redis.
func (c *Cache[K, V]) filterStore() bloom.Store {
	if c.shared == nil {
		return nil
	}
	return c.shared.Space
}

// certainlyAbsent is step 4: the filter knows that the source has no such row. It is asked only
// after Redis was (unless FilterFirst): an announced row that this process has not heard of yet has its marker there.
func (c *Cache[K, V]) certainlyAbsent(ctx context.Context, id string, why *cause) bool {
	if !c.mayFilter(why) {
		return false
	}
	c.count.filterChecks.Add(1)
	switch {
	case c.segments != nil:
		return c.filteredBy(c.segments.Absent(ctx, id)[0], why)
	case !c.filter.Absent(id):
		if !c.filter.Believed() {
			c.count.filterOpen.Add(1)
		}
		return false
	case c.audits(why):
		return false
	}
	c.count.filtered.Add(1)
	return true
}

// mayFilter reports whether the filter may be asked of a key.
func (c *Cache[K, V]) mayFilter(why *cause) bool {
	return c.o.Filter.Enabled() && !why.marked && !why.audited && (c.shared == nil || why.asked || c.o.FilterFirst)
}

// keepFilter reads what other processes announced, fetches a new snapshot if there is one, and keeps both from expiring. It is called each
// second while Redis answers; where it is not called for bloom.MaxLag the filter says nothing any more.
func (c *Cache[K, V]) keepFilter(ctx context.Context) {
	if c.segments != nil {
		c.keepSegments(ctx)
		return
	}
	store := c.filterStore()
	if c.oldData.Swap(false) {
		c.filter.DoubtStored()
	}
	if c.newFilter.Swap(false) {
		if err := c.filter.Adopt(ctx, store); err != nil && !saysNoFilter(err) {
			c.filterFailed(ctx, err)
			if !errors.Is(err, bloom.ErrBehind) && !errors.Is(err, bloom.ErrSnapshot) && !errors.Is(err, bloom.ErrTooLarge) {
				c.newFilter.Store(true) // not fetched: again with the next tick
			}
		}
	}
	suspects := c.suspects.take(c.filter.Told)
	if err := c.filter.CatchUp(ctx, store); err != nil {
		c.filterFailed(ctx, err)
	} else if c.refute(suspects) {
		_ = c.filter.CatchUp(ctx, store) // tells the fleet; else the next does
	}
	c.tellFilter()
	if time.Since(c.filterKept) < filterKeptFor {
		return
	}
	if err := c.shared.KeepFilter(ctx); err != nil {
		c.filterFailed(ctx, err)
		return
	}
	c.filterKept = time.Now()
	c.newFilter.Store(true) // perhaps somebody built it anew, or doubts it, and the event was lost
}

// saysNoFilter reports whether err of Adopt is no failure: there is nothing to believe.
func saysNoFilter(err error) bool {
	return errors.Is(err, bloom.ErrNoSnapshot) || errors.Is(err, bloom.ErrDoubted)
}

func (c *Cache[K, V]) filterFailed(ctx context.Context, err error) {
	if ctx.Err() == nil {
		c.sharedFailed("filter", err)
	}
}

// appendAnnounced tells the stream that filters follow, where this cache has one.
func (c *Cache[K, V]) appendAnnounced(ctx context.Context, ids []string) error {
	if !c.o.Filter.Enabled() || len(ids) == 0 {
		return nil
	}
	announce := c.shared.AppendAnnounced
	if c.segments != nil {
		announce = c.segments.Announce
	}
	err := announce(ctx, ids...)
	if err != nil {
		c.sharedFailed("announce", err)
	}
	return err
}
