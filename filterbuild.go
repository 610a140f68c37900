package tiercache

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/tiercache/tiercache/bloom"
	"github.com/tiercache/tiercache/layers"
	"github.com/tiercache/tiercache/rebuild"
)

// errNoFilter is what BuildFilter returns where Options.Filter is zero.
var errNoFilter = errors.New("tiercache: the cache has no Filter")

// BuildFilter builds the filter from a scan of all keys that exist, and believes it from then on: keys that are neither in it nor announced
// since are answered ErrNotFound without asking the source. Until it returned nil, and whenever the filter is in doubt, everything passes.
//
// Rows that come into being while it runs must be announced, as always. An error of rows ends the build; what was believed before stays. It
// takes as long as the scan.
//
// With Redis one process builds: it holds a lock, and stores the filter for the others, who fetch it by themselves. A BuildFilter that had to
// wait for another, in whatever process, believes what that one stored, without a scan: BuildReport.Adopted says so. If that one failed, died,
// or could not renew its lock for ten seconds, the next of those who wait scans. Whoever lost the lock ends with rebuild.ErrLeaseLost, and
// stores nothing over a filter whose scan began later. Redis that cannot be asked when the call begins is an error; later it is waited for
// until ctx ends. Close ends it with ErrClosed.
//
// A filter in Redis (bloom.InRedis) is built under the same lock, and no process fetches anything. If Redis loses a part of it meanwhile the build ends
// with bloom.ErrSegmentLost.
func (c *Cache[K, V]) BuildFilter(ctx context.Context, rows iter.Seq2[K, error], o bloom.BuildOptions) (bloom.BuildReport, error) {
	if err := c.mayBuild(ctx, rows != nil); err != nil {
		return bloom.BuildReport{}, err
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
	return c.build(ctx, func(ctx context.Context) (bloom.BuildReport, error) {
		if c.segments != nil {
			return c.segments.Build(ctx, ids, o)
		}
		return c.filter.Build(ctx, ids, o, c.filterStore())
	})
}

// BuildFilterFrom is BuildFilter from a scan that can be gone on with: pages returns some of the keys that come after a place in the source, and the
// place behind them, as bloom.Pages says. A page is asked for when the one before is in the filter, so the source may be let be between them.
//
// With Redis a build that was cut off is gone on with by the next one, in whatever process, from its last checkpoint: whatever ended it, a source
// that failed, a process that died, a lock that was lost. Rows announced since are in the filter too; where Redis has lost their announcements, and
// after an hour, the scan begins anew. BuildReport.Resumed says from how many rows on. Checkpoints are stored every BuildOptions.Checkpoint, and take
// up to twice the filter's bytes in Redis; next to nothing with a filter in Redis (bloom.InRedis). Without Redis each build begins anew.
func (c *Cache[K, V]) BuildFilterFrom(
	ctx context.Context, pages func(ctx context.Context, after string) (keys []K, next string, err error), o bloom.BuildOptions,
) (bloom.BuildReport, error) {
	if err := c.mayBuild(ctx, pages != nil); err != nil {
		return bloom.BuildReport{}, err
	}
	ids := func(ctx context.Context, after string) (ids []string, next string, err error) {
		keys, next, err := pages(ctx, after)
		if err != nil {
			return nil, "", err
		}
		ids = make([]string, len(keys))
		for i, key := range keys {
			if ids[i], err = c.keys.id(key); err != nil {
				return nil, "", err
			}
		}
		return ids, next, nil
	}
	return c.build(ctx, func(ctx context.Context) (bloom.BuildReport, error) {
		if c.segments != nil {
			return c.segments.BuildFrom(ctx, ids, o)
		}
		return c.filter.BuildFrom(ctx, ids, o, c.filterStore())
	})
}

// mayBuild says why a filter cannot be built.
func (c *Cache[K, V]) mayBuild(ctx context.Context, rows bool) error {
	if err := c.usable(ctx); err != nil {
		return err
	}
	if !c.o.Filter.Enabled() {
		return errNoFilter
	}
	if !rows {
		return errors.New("tiercache: nil rows")
	}
	return nil
}

// build builds a filter by scan.
func (c *Cache[K, V]) build(ctx context.Context, scan filterBuild) (bloom.BuildReport, error) {
	defer c.tellFilter()
	if c.shared == nil {
		return scan(ctx)
	}
	return c.buildShared(ctx, scan)
}

type filterBuild func(context.Context) (bloom.BuildReport, error)

// buildShared is BuildFilter for a fleet.
//
//  1. A holds the lock and builds. 2. B looks which filter stands: the one before A's, or A's. 3. A stores its filter and lets go. 4. B has the
//     lock. It looks again: a later filter stands than at 2, so B's caller has what it waited for. If the same does, A failed, or had
//     stored its filter before B was called: B builds. So it does where an earlier one does, which a failover brought back.
func (c *Cache[K, V]) buildShared(ctx context.Context, scan filterBuild) (report bloom.BuildReport, err error) {
	ctx, done := c.untilClosed(ctx)
	defer done()
	before, _, err := c.standing(ctx)
	if err != nil {
		return report, fmt.Errorf("tiercache: building the filter of %q: %w", c.o.Name, err)
	}
	rdb, prefix := c.o.Shared.Locks()
	locks, err := rebuild.NewMutex(rdb, rebuild.MutexOptions{Prefix: prefix})
	if err != nil {
		return report, err
	}
	defer func() { _ = locks.Close() }() // what it could not give back ends by itself
	err = rebuild.Do(ctx, locks, c.o.Name, func(ctx context.Context) (err error) {
		if stands, doubted, err := c.standing(ctx); err != nil {
			return err
		} else if stands > before && !doubted && c.adoptFilter(ctx) == nil {
			report.Adopted = true
			return nil
		}
		report, err = scan(ctx)
		if errors.Is(err, bloom.ErrSuperseded) {
			err = c.adoptFilter(ctx)
			report.Adopted = err == nil
		}
		return err
	})
	if c.closed.Load() && err != nil {
		err = errors.Join(ErrClosed, err)
	}
	return report, err
}

// standing returns which filter stands: of two, the later one has the greater. 0 also for what is none, since a build replaces it.
func (c *Cache[K, V]) standing(ctx context.Context) (which uint64, doubted bool, err error) {
	if c.segments != nil {
		which, err = c.segments.Adopt(ctx)
		return which, which == 0, err
	}
	which, doubted, err = c.shared.StandingFilter(ctx)
	if errors.Is(err, layers.ErrFilterForeign) {
		err = nil
	}
	return which, doubted, err
}

// adoptFilter believes the filter that stands.
func (c *Cache[K, V]) adoptFilter(ctx context.Context) error {
	if c.segments != nil {
		return nil // since it was looked for
	}
	return c.filter.Adopt(ctx, c.filterStore())
}

// untilClosed is ctx until the cache is closed. done frees what it has.
func (c *Cache[K, V]) untilClosed(ctx context.Context) (within context.Context, done func()) {
	within, cancel := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-c.idle:
			cancel(ErrClosed)
		case <-within.Done():
		}
	}()
	return within, func() { cancel(nil); <-ended }
}
