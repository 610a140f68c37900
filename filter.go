package tiercache

import (
	"context"
	"errors"
	"iter"
	"time"

	"github.com/tiercache/tiercache/bloom"
)

// filterKeptFor is how often the expiries of snapshot and stream, which are a day, are renewed. Chosen; not tuned.
const filterKeptFor = time.Minute

// errNoFilter is what BuildFilter returns where Options.Filter is zero.
var errNoFilter = errors.New("tiercache: the cache has no Filter")

// BuildFilter builds the filter from a scan of all keys that exist, and believes it from then on: keys that are neither in it nor announced
// since are answered ErrNotFound without asking the source. Until it returned nil, and whenever the filter is in doubt, everything passes.
//
// Rows that come into being while it runs must be announced, as always. The filter is stored in Redis, from where the other processes fetch
// it: one of them builds. An error of rows ends the build; what was believed before stays. It takes as long as the scan.
func (c *Cache[K, V]) BuildFilter(ctx context.Context, rows iter.Seq2[K, error], o bloom.BuildOptions) (bloom.BuildReport, error) {
	if err := c.usable(ctx); err != nil {
		return bloom.BuildReport{}, err
	}
	if c.filter == nil {
		return bloom.BuildReport{}, errNoFilter
	}
	if rows == nil {
		return bloom.BuildReport{}, errors.New("tiercache: nil rows")
	}
	ids := func(yield func(string, error) bool) {
		for key, err := range rows {
			var id string
			if err == nil {
				id, err = c.keys.id(key)
			}
			if !yield(id, err) {
				return
			}
		}
	}
	return c.filter.Build(ctx, ids, o, c.filterStore())
}

// filterStore is where the filter's snapshot and the announcements are kept; nil without Redis.
func (c *Cache[K, V]) filterStore() bloom.Store {
	if c.shared == nil {
		return nil
	}
	return c.shared.Space
}

// certainlyAbsent is step 4: the filter knows that the source has no such row. It is asked only
// after Redis was (unless FilterFirst): an announced row that this process has not heard of yet has its marker there.
func (c *Cache[K, V]) certainlyAbsent(id string, why cause) bool {
	if c.filter == nil || why.marked {
		return false
	}
	if c.shared != nil && !why.asked && !c.o.FilterFirst {
		return false
	}
	if !c.filter.Absent(id) {
		return false
	}
	c.count.filtered.Add(1)
	return true
}

// keepFilter reads what other processes announced, fetches a new snapshot if there is one, and keeps both from expiring. It is called each
// second while Redis answers; where it is not called for bloom.MaxLag the filter says nothing any more.
func (c *Cache[K, V]) keepFilter(ctx context.Context) {
	store := c.filterStore()
	if c.newFilter.Swap(false) {
		if err := c.filter.Adopt(ctx, store); err != nil && !errors.Is(err, bloom.ErrNoSnapshot) {
			c.filterFailed(ctx, err)
			if !errors.Is(err, bloom.ErrBehind) && !errors.Is(err, bloom.ErrSnapshot) {
				c.newFilter.Store(true) // not fetched: again with the next tick
			}
		}
	}
	if err := c.filter.CatchUp(ctx, store); err != nil {
		c.filterFailed(ctx, err)
	}
	if time.Since(c.filterKept) < filterKeptFor {
		return
	}
	if err := c.shared.KeepFilter(ctx); err != nil {
		c.filterFailed(ctx, err)
		return
	}
	c.filterKept = time.Now()
	if !c.filter.Believed() { // perhaps somebody built it anew while this process was deaf
		c.newFilter.Store(true)
	}
}

func (c *Cache[K, V]) filterFailed(ctx context.Context, err error) {
	if ctx.Err() == nil {
		c.sharedFailed("filter", err)
	}
}

// appendAnnounced tells the stream that filters follow, where this cache has one.
func (c *Cache[K, V]) appendAnnounced(ctx context.Context, ids []string) error {
	if c.filter == nil || len(ids) == 0 {
		return nil
	}
	err := c.shared.AppendAnnounced(ctx, ids...)
	if err != nil {
		c.sharedFailed("announce", err)
	}
	return err
}
