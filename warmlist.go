package tiercache

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/tiercache/tiercache/layers"
)

// The warm list: which keys are read most, remembered by Redis while no process is there. Every process counts its own reads by samples and
// notes the keys it read most, once a minute and at Close, with one script; the list keeps the best of all.
const (
	warmListMost   = 10_000           // keys of a list: so many are noted in some 40 ms of Redis's time; chosen; not tuned
	warmListEvery  = time.Minute      // chosen; not tuned: what a crash loses
	warmListApart  = 10 * time.Second // and up to so much more, so that processes that began together do not write together
	warmListPlaces = 4                // places of the count for each key of the list; chosen; not tuned
)

var errNoWarmList = errors.New("tiercache: the cache has no WarmList")

// WarmFromList is Warm with the keys that were read most before this process was there, first the most: what Options.WarmList had Redis
// remember of all processes of the fleet. A process that begins, however many begin with it, calls it before or while it takes traffic: memory
// gets what Redis has, and what Redis lacks is loaded once in the fleet. WarmReport.Total is the length of the list.
//
// An empty list is no error: it is empty in a fleet that never had one, after a flush until a minute later, and a day after the last process
// has ended. Redis that cannot be asked is an error, and nothing is warmed. Texts in the list that are no key's string form are passed over, and the error
// says how many. Without Options.WarmList it is an error. One round trip, then those of Warm.
//
// A key is on the list by its rate, a minute's average in the process that read it most, which counts half after an hour; one that was noted
// long ago is gone after a day or two. The list holds string forms, as the keys in Redis do: where these are personal data, so is the list. String
// forms over 1 KiB are left out.
func (c *Cache[K, V]) WarmFromList(ctx context.Context, o WarmOptions) (WarmReport, error) {
	if err := c.usable(ctx); err != nil {
		return WarmReport{}, err
	}
	if c.o.WarmList == 0 {
		return WarmReport{}, errNoWarmList
	}
	ids, err := c.shared.WarmKeys(ctx, c.o.WarmList)
	switch {
	case err != nil && c.closed.Load():
		return WarmReport{}, ErrClosed
	case err != nil && ctx.Err() != nil:
		return WarmReport{}, contextError(ctx)
	case err != nil:
		c.sharedFailed("warm list", err)
		return WarmReport{}, fmt.Errorf("tiercache: warming %q: %w", c.o.Name, err)
	}
	keys := make([]K, 0, len(ids))
	for _, id := range ids {
		if key, ok := c.keys.key(id); ok {
			keys = append(keys, key)
		}
	}
	o.Total = uint64(len(keys))
	report, err := c.Warm(ctx, slices.Values(keys), o)
	if foreign := len(ids) - len(keys); foreign > 0 {
		err = errors.Join(err, fmt.Errorf("tiercache: warming %q: %d of %d texts in the warm list are no keys of this cache", c.o.Name, foreign, len(ids)))
	}
	return report, err
}

// beginWarmList has reads counted for the list.
func (c *Cache[K, V]) beginWarmList() {
	if c.o.WarmList > 0 {
		c.hot.Tally(warmListPlaces * c.o.WarmList)
		c.warmListDue(time.Now())
	}
}

// warmListDue sets when the list is to be written again.
func (c *Cache[K, V]) warmListDue(now time.Time) {
	c.warmDue.Store(now.Add(warmListEvery + time.Duration(random()*float64(warmListApart))).UnixNano())
}

// keepWarmList is the chore that writes the list, when that is due.
func (c *Cache[K, V]) keepWarmList(ctx context.Context) {
	now := time.Now()
	if c.o.WarmList == 0 || now.UnixNano() < c.warmDue.Load() {
		return
	}
	c.warmListDue(now)
	c.noteWarmKeys(ctx, c.warmKeys())
}

// warmKeys are the keys read most since it was last called.
func (c *Cache[K, V]) warmKeys() []layers.WarmKey {
	if c.o.WarmList == 0 {
		return nil
	}
	top := c.hot.TakeTally(c.o.WarmList)
	keys := make([]layers.WarmKey, len(top))
	for i, k := range top {
		keys[i] = layers.WarmKey{ID: k.ID, Rate: k.Rate}
	}
	return keys
}

// noteWarmKeys writes keys into the list. What Redis does not take is lost: a minute of many.
func (c *Cache[K, V]) noteWarmKeys(ctx context.Context, keys []layers.WarmKey) {
	if len(keys) == 0 {
		return
	}
	if err := c.shared.NoteWarmKeys(ctx, c.o.WarmList, keys); err != nil {
		c.sharedFailed("warm list", err)
	}
}
