package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tiercache/tiercache"
	"github.com/tiercache/tiercache/bloom"
	"github.com/tiercache/tiercache/layers"
)

// process is what one process of a service holds: its Redis client, the shared tier over it, and a cache of products whose local tier
// is its own. Four of them in one program share nothing but Redis and the database, as four processes would.
type process struct {
	rdb      *redis.Client
	shared   *layers.Redis
	products *tiercache.Cache[int64, product]
}

// newProcess returns a process that caches the rows of shop in the Redis server at addr.
func newProcess(ctx context.Context, addr, prefix string, shop *shop) (*process, error) {
	rdb := redis.NewClient(&redis.Options{Addr: addr})
	shared, err := layers.NewRedis(ctx, rdb, layers.RedisOptions{
		Prefix:       prefix,
		ReadTimeout:  time.Second, // an embedded server that shares its processors with 200 callers is slower than one
		WriteTimeout: time.Second, // of its own, which the defaults of 100 and 200 ms are for
	})
	if err != nil {
		return nil, errors.Join(err, rdb.Close())
	}
	products, err := tiercache.New(tiercache.Options[int64, product]{
		Name:   "products",
		Shared: shared,
		Filter: bloom.Options{Capacity: uint64(2 * shop.rows)}, // room to grow; used once BuildFilter has run
		Load: func(ctx context.Context, id int64) (product, error) {
			p, err := shop.product(ctx, id)
			if errors.Is(err, sql.ErrNoRows) {
				return product{}, tiercache.ErrNotFound // an answer, kept like any other
			}
			return p, err
		},
	})
	if err != nil {
		return nil, errors.Join(err, shared.Close(), rdb.Close())
	}
	return &process{rdb: rdb, shared: shared, products: products}, nil
}

// setPrice changes a row so that no process goes on with the old one: the cached copies are dropped before and after the write, and for
// a while after it nothing read in between is kept for long.
func (p *process) setPrice(ctx context.Context, shop *shop, id, cents int64) error {
	return p.products.Update(ctx, id, func(ctx context.Context) error {
		return shop.setPrice(ctx, id, cents)
	})
}

// buildFilter scans the ids of the table once. The filter goes through Redis: the other processes fetch it without a scan.
func (p *process) buildFilter(ctx context.Context, shop *shop, progress func(rows uint64)) (bloom.BuildReport, error) {
	return p.products.BuildFilter(ctx, shop.ids(ctx), bloom.BuildOptions{Progress: progress})
}

// close ends the cache before the tier it uses, and that before the client.
func (p *process) close() error {
	return errors.Join(p.products.Close(), p.shared.Close(), p.rdb.Close())
}

// fleet is the processes of the service.
type fleet []*process

// newFleet returns n processes, or none and an error.
func newFleet(ctx context.Context, n int, addr, prefix string, shop *shop) (fleet, error) {
	var f fleet
	for i := range n {
		p, err := newProcess(ctx, addr, prefix, shop)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("process %d: %w", i+1, err), f.close())
		}
		f = append(f, p)
	}
	return f, nil
}

// get asks the process that the caller belongs to.
func (f fleet) get(ctx context.Context, caller int, id int64) (product, error) {
	return f[caller%len(f)].products.Get(ctx, id)
}

func (f fleet) close() error {
	var errs []error
	for _, p := range f {
		errs = append(errs, p.close())
	}
	return errors.Join(errs...)
}
