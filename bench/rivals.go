package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	gocache "github.com/go-redis/cache/v9"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidisaside"
	"github.com/viccon/sturdyc"
	"golang.org/x/sync/singleflight"

	"github.com/tiercache/tiercache"
	"github.com/tiercache/tiercache/rebuild"
)

// rival is one way to read through Redis, in one process of a fleet. What it turned on is printed beside its figures. All rivals have
// one client of go-redis with its defaults, no memory of their own, rows that live for ten minutes, and one load function.
type rival struct {
	name  string
	setup string
	open  func(ctx context.Context, addr, name string, load loadFunc) (*opened, error)
}

// loadFunc asks the source.
type loadFunc func(ctx context.Context, key string) (string, error)

// opened is a rival that runs. get may be called concurrently.
type opened struct {
	get   func(ctx context.Context, key string) (string, error)
	close func() error
}

const (
	rivalLife = 10 * time.Minute
	fleetSize = 4 // processes, here as many instances with a client each
)

// rivals are ours without memory and with a gate of so many loads a process, and what people write by hand: cache-aside as the textbook
// has it, and the same behind singleflight.
func rivals(gate int) []rival {
	return []rival{
		ours(gate, 0),
		{"cache-aside", "GET, load, SET; the caller's context throughout", openAside},
		{"singleflight", "cache-aside in a singleflight group a process; a flight has its first caller's values and 3 s of its own", openFlights},
	}
}

// ours is tiercache with a gate of so many loads a process, whose memory has room for so many rows; zero: it is off.
func ours(gate, memory int) rival {
	name, setup := "tiercache", fmt.Sprintf("memory for %d rows a process", memory)
	if memory == 0 {
		name, setup = "tiercache without memory", "memory off"
	}
	setup += fmt.Sprintf(", gate of %d loads a process, all else as it comes", gate)
	return rival{name, setup, func(ctx context.Context, addr, name string, load loadFunc) (*opened, error) {
		return openOurs(ctx, addr, name, gate, memory, load)
	}}
}

func openOurs(ctx context.Context, addr, name string, gate, memory int, load loadFunc) (*opened, error) {
	shared, stop, err := connect(ctx, addr)
	if err != nil {
		return nil, err
	}
	o := tiercache.Options[string, string]{
		Name: name, Shared: shared, Load: load, TTL: rivalLife, MemoryTTL: -1, Gate: rebuild.GateOptions{Loads: gate},
		Logger: slog.New(slog.DiscardHandler), // what a scenario does to Redis it knows
	}
	if memory > 0 {
		o.MemoryTTL, o.MemoryBytes, o.SizeOf = 0, int64(memory)<<10, func(string, string) int { return 1 << 10 } // a row of a KiB, as far as memory knows
	}
	cache, err := tiercache.New(o)
	if err != nil {
		return nil, errors.Join(err, stop())
	}
	return &opened{cache.Get, func() error { return errors.Join(cache.Close(), stop()) }}, nil
}

// aside is cache-aside: look, load, store.
func aside(rdb *redis.Client, name string, load loadFunc) func(context.Context, string) (string, error) {
	return func(ctx context.Context, key string) (string, error) {
		v, err := rdb.Get(ctx, name+":"+key).Result()
		if err == nil {
			return v, nil
		}
		if v, err = load(ctx, key); err != nil {
			return "", err
		}
		_ = rdb.Set(ctx, name+":"+key, v, rivalLife).Err() // the row is there all the same
		return v, nil
	}
}

func openAside(_ context.Context, addr, name string, load loadFunc) (*opened, error) {
	rdb := redis.NewClient(&redis.Options{Addr: addr, ContextTimeoutEnabled: true})
	return &opened{aside(rdb, name, load), rdb.Close}, nil
}

func openFlights(_ context.Context, addr, name string, load loadFunc) (*opened, error) {
	rdb := redis.NewClient(&redis.Options{Addr: addr, ContextTimeoutEnabled: true})
	var flights singleflight.Group
	read := aside(rdb, name, load)
	get := func(ctx context.Context, key string) (string, error) {
		flight := flights.DoChan(key, func() (any, error) {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
			defer cancel()
			return read(ctx, key)
		})
		select {
		case r := <-flight:
			v, _ := r.Val.(string)
			return v, r.Err
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}
	return &opened{get, rdb.Close}, nil
}

// libraries are other libraries that read through Redis. Those that are not here did not come from the module proxy where this was written
// (rockscache, jetcache-go, eko/gocache) or are not written in Go (FusionCache, Redisson).
func libraries() []rival {
	return []rival{
		{"go-redis/cache", "Once; no local cache", openGoRedisCache},
		{"rueidisaside", "as it comes: a lock in Redis, client-side caching", openRueidisAside},
		{"sturdyc", "GetOrFetch with Redis as distributed storage; memory of a thousand entries, which it cannot be without", openSturdyc},
	}
}

func openGoRedisCache(_ context.Context, addr, name string, load loadFunc) (*opened, error) {
	rdb := redis.NewClient(&redis.Options{Addr: addr, ContextTimeoutEnabled: true})
	cache := gocache.New(&gocache.Options{Redis: rdb})
	return &opened{
		get: func(ctx context.Context, key string) (v string, err error) {
			err = cache.Once(&gocache.Item{
				Ctx: ctx, Key: name + ":" + key, Value: &v, TTL: rivalLife,
				Do: func(*gocache.Item) (any, error) { return load(ctx, key) },
			})
			return v, err
		},
		close: rdb.Close,
	}, nil
}

func openRueidisAside(_ context.Context, addr, name string, load loadFunc) (*opened, error) {
	client, err := rueidisaside.NewClient(rueidisaside.ClientOption{ClientOption: rueidis.ClientOption{InitAddress: []string{addr}}})
	if err != nil {
		return nil, err
	}
	return &opened{
		get: func(ctx context.Context, key string) (string, error) {
			return client.Get(ctx, rivalLife, name+":"+key, func(ctx context.Context, _ string) (string, error) { return load(ctx, key) })
		},
		close: func() error { client.Close(); return nil },
	}, nil
}

func openSturdyc(_ context.Context, addr, name string, load loadFunc) (*opened, error) {
	rdb := redis.NewClient(&redis.Options{Addr: addr, ContextTimeoutEnabled: true})
	cache := sturdyc.New[string](1000, 16, rivalLife, 10, sturdyc.WithDistributedStorage(sturdycStorage{rdb, name}))
	return &opened{
		get: func(ctx context.Context, key string) (string, error) {
			return cache.GetOrFetch(ctx, key, func(ctx context.Context) (string, error) { return load(ctx, key) })
		},
		close: rdb.Close,
	}, nil
}

// sturdycStorage is Redis as sturdyc asks for it.
type sturdycStorage struct {
	rdb  *redis.Client
	name string
}

func (s sturdycStorage) Get(ctx context.Context, key string) ([]byte, bool) {
	v, err := s.rdb.Get(ctx, s.name+":"+key).Bytes()
	return v, err == nil
}

func (s sturdycStorage) Set(ctx context.Context, key string, value []byte) {
	_ = s.rdb.Set(ctx, s.name+":"+key, value, rivalLife).Err() // it has nobody to tell
}

func (s sturdycStorage) GetBatch(ctx context.Context, keys []string) map[string][]byte {
	found := make(map[string][]byte, len(keys))
	for _, key := range keys {
		if v, ok := s.Get(ctx, key); ok {
			found[key] = v
		}
	}
	return found
}

func (s sturdycStorage) SetBatch(ctx context.Context, records map[string][]byte) {
	for key, v := range records {
		s.Set(ctx, key, v)
	}
}

// rivalFleet is a rival in all processes of a fleet over one source.
type rivalFleet struct {
	members []*opened
	turn    atomic.Uint64
	src     *source
	free    atomic.Bool // loads are answered at once and not counted: to fill
}

func openFleet(ctx context.Context, r rival, addr, name string, src *source) (*rivalFleet, error) {
	f := &rivalFleet{src: src}
	load := func(ctx context.Context, key string) (string, error) {
		if f.free.Load() {
			return "row of " + key, nil
		}
		return f.src.load(ctx, key)
	}
	for range fleetSize {
		m, err := r.open(ctx, addr, name, load)
		if err != nil {
			return nil, errors.Join(err, f.close())
		}
		f.members = append(f.members, m)
	}
	return f, nil
}

// get asks the members in turn. An answer that is not the key's row is an error that says so.
func (f *rivalFleet) get(ctx context.Context, key string) error {
	v, err := f.members[f.turn.Add(1)%fleetSize].get(ctx, key)
	if err == nil && v != "row of "+key {
		return fmt.Errorf("%w: %q for %s", errWrongRow, v, key)
	}
	return err
}

var errWrongRow = errors.New("a wrong row")

// fill has every key read once, without the source.
func (f *rivalFleet) fill(ctx context.Context, n int, key func(int) string) error {
	f.free.Store(true)
	defer f.free.Store(false)
	const fillers = 3 // fewer than any gate has
	var done sync.WaitGroup
	errs := make([]error, fillers*fleetSize)
	for w := range errs {
		done.Go(func() {
			for i := w; i < n && errs[w] == nil; i += len(errs) {
				_, errs[w] = f.members[w%fleetSize].get(ctx, key(i))
			}
		})
	}
	done.Wait()
	return errors.Join(errs...)
}

func (f *rivalFleet) close() error {
	var errs []error
	for _, m := range f.members {
		errs = append(errs, m.close())
	}
	return errors.Join(errs...)
}
