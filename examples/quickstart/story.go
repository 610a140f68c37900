package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tiercache/tiercache"
)

// processes is how many caches play processes.
const processes = 4

// options is the size of a run.
type options struct {
	redisAddr      string
	databaseFile   string
	rows           int       // of a table that is built
	callers        int       // at once, spread over the processes
	hotRequests    int       // of each caller for the hot key
	absentRequests int       // of each caller for absent keys
	progress       io.Writer // of the steps; never part of the result
}

// run tells the story: a stampede, keys that do not exist, and a write; the first two also without the cache, for comparison.
func run(ctx context.Context, o options) (r *report, err error) {
	note := newNotes(o.progress)
	defer note.close()

	prefix := fmt.Sprintf("tc-quickstart-%016x", rand.Uint64()) // every run starts cold
	addr, stopRedis, err := startRedis(ctx, o.redisAddr, prefix)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stopRedis()) }()

	build := note.step("building the products table", o.rows)
	shop, err := openShop(ctx, o.databaseFile, o.rows, build.set)
	if err != nil {
		return nil, err
	}
	build.done()
	defer func() { err = errors.Join(err, shop.close()) }()

	fleet, err := newFleet(ctx, processes, addr, prefix, shop)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, fleet.close()) }()

	t := &teller{options: o, shop: shop, fleet: fleet, note: note, report: &report{rows: shop.rows, callers: o.callers}}
	for _, part := range []func(context.Context) error{t.hotKey, t.absentKeys, t.update} {
		if err := part(ctx); err != nil {
			return nil, err
		}
	}
	return t.report, nil
}

// teller is a run under way.
type teller struct {
	options
	shop   *shop
	fleet  fleet
	note   *notes
	report *report
}

// hotKey has all callers ask for one product at the same moment, as after a link to it went round. No process has it yet.
func (t *teller) hotKey(ctx context.Context) error {
	const id = 1
	direct := func(ctx context.Context, _, _ int) error {
		_, err := t.shop.product(ctx, id)
		return err
	}
	cached := func(ctx context.Context, caller, _ int) error {
		_, err := t.fleet.get(ctx, caller, id)
		return err
	}
	return errors.Join(
		t.measure(ctx, "one hot product", "no cache", t.hotRequests, direct),
		t.measure(ctx, "one hot product", "four caches", t.hotRequests, cached),
	)
}

// absentKeys has the callers ask for ids that no row has, as a scanner does. Each id is asked four times, by whichever caller comes by.
// A cache alone can only remember the answers; the filter knows most of them beforehand.
func (t *teller) absentKeys(ctx context.Context) error {
	last, err := t.shop.lastID(ctx)
	if err != nil {
		return err
	}
	ids := int64(max(1, t.callers*t.absentRequests/4))
	pick := func(block, caller, i int) int64 { // of the ids above the last one; each measurement has a block of its own
		n := int64(i*t.callers + caller)
		round := n / ids
		return last + 1 + int64(block)*ids + (n+round)%ids // the next round's caller, and so its process, is another
	}
	direct := func(ctx context.Context, caller, i int) error {
		_, err := t.shop.product(ctx, pick(0, caller, i))
		return err
	}
	cached := func(block int) func(ctx context.Context, caller, i int) error {
		return func(ctx context.Context, caller, i int) error {
			_, err := t.fleet.get(ctx, caller, pick(block, caller, i))
			return err
		}
	}
	if err := t.measure(ctx, "absent products", "no cache", t.absentRequests, direct); err != nil {
		return err
	}
	if err := t.measure(ctx, "absent products", "four caches", t.absentRequests, cached(1)); err != nil {
		return err
	}
	if err := t.buildFilter(ctx); err != nil {
		return err
	}
	return t.measure(ctx, "absent products", "four caches, filter", t.absentRequests, cached(2))
}

// buildFilter has the first process build the filter, and waits until the others use it too.
func (t *teller) buildFilter(ctx context.Context) error {
	bar := t.note.step("building the filter", t.shop.rows)
	built, err := t.fleet[0].buildFilter(ctx, t.shop, func(rows uint64) { bar.set(int(rows)) })
	if err != nil {
		return fmt.Errorf("build the filter: %w", err)
	}
	bar.done()
	t.report.filterRows, t.report.filterTook = built.Rows, built.Took

	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for i, p := range t.fleet {
		before := p.products.Stats().Filtered
		for id := int64(-1); p.products.Stats().Filtered == before; id-- { // negative ids are absent too
			if _, err := p.products.Get(ctx, id); !errors.Is(err, tiercache.ErrNotFound) {
				return fmt.Errorf("process %d does not use the filter: %w", i+1, err)
			}
			if err := pause(ctx, time.Millisecond); err != nil {
				return fmt.Errorf("process %d does not use the filter: %w", i+1, err)
			}
		}
	}
	return nil
}

// update changes the hot product through the first process, then looks how long each of the four still answers the old price.
func (t *teller) update(ctx context.Context) error {
	const id = 1
	old, err := t.fleet.get(ctx, 0, id)
	if err != nil {
		return err
	}
	for caller := range t.fleet { // every process holds the old one
		if _, err := t.fleet.get(ctx, caller, id); err != nil {
			return err
		}
	}
	price, reads := old.Cents+100, t.shop.reads.Load()
	began := time.Now()
	if err := t.fleet[0].setPrice(ctx, t.shop, id, price); err != nil {
		return fmt.Errorf("update: %w", err)
	}
	returned := time.Now()
	t.report.oldCents, t.report.newCents, t.report.updateTook = old.Cents, price, returned.Sub(began)

	t.report.seen = make([]time.Duration, len(t.fleet))
	look, ctx := errgroup.WithContext(ctx)
	for i := range t.fleet {
		look.Go(func() error {
			for {
				p, err := t.fleet.get(ctx, i, id)
				if err != nil {
					return err
				}
				took := time.Since(returned)
				if p.Cents == price {
					t.report.seen[i] = took
					return nil
				}
				if took > 5*time.Second {
					return fmt.Errorf("process %d still answers the old price after %v", i+1, took)
				}
				if err := pause(ctx, 50*time.Microsecond); err != nil {
					return err
				}
			}
		})
	}
	err = look.Wait()
	t.report.updateReads = t.shop.reads.Load() - reads
	return err
}

// pause waits for d, or until ctx ends, which is its error.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
