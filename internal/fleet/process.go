package fleet

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/redis/go-redis/v9"

	"github.com/tiercache/tiercache"
	"github.com/tiercache/tiercache/layers"
)

// process is one process of the fleet: a client, a shared tier, a memory and a cache of its own.
type process struct {
	number int // unlike that of any other of the run
	rdb    redis.UniversalClient
	shared *layers.Redis
	cache  *tiercache.Cache[string, string]
	hears  atomic.Bool     // the bus
	ctx    context.Context //nolint:containedctx // its end is the process's
	die    context.CancelFunc
	before func() // the end: lets go what is held up
	once   sync.Once
	err    error
}

// openProcess opens a process on rdb, which is closed with it; before is called when that begins.
func openProcess(rdb redis.UniversalClient, before func(), budgets layers.RedisOptions, o tiercache.Options[string, string]) (*process, error) {
	p := &process{rdb: rdb, before: before}
	p.ctx, p.die = context.WithCancel(context.Background())
	quiet := slog.New(slog.DiscardHandler)
	budgets.Logger, o.Logger = quiet, quiet
	var err error
	if p.shared, err = layers.NewRedis(p.ctx, rdb, budgets); err != nil {
		return nil, err
	}
	o.Shared = p.shared
	o.Hooks = &tiercache.Hooks{Bus: func(up bool) { p.hears.Store(up) }}
	if p.cache, err = tiercache.New(o); err != nil {
		return nil, errors.Join(err, p.shared.Close(), rdb.Close())
	}
	return p, nil
}

// alive reports whether the process has not died yet.
func (p *process) alive() bool { return p.ctx.Err() == nil }

// close ends the process in peace, or takes away what its death left. What is pending is lost with it, which is no error here. It may be
// called again.
func (p *process) close() error {
	p.once.Do(func() {
		p.die()
		p.before()
		_ = p.cache.Close()
		p.err = p.shared.Close()
		_ = p.rdb.Close() // a connection that a fault has closed cannot be closed again
	})
	return p.err
}
