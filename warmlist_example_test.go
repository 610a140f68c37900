package tiercache_test

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/tiercache/tiercache"
	"github.com/tiercache/tiercache/layers"
)

func ExampleCache_WarmFromList() {
	server, err := miniredis.Run() // stands for Redis
	if err != nil {
		fmt.Println(err)
		return
	}
	defer server.Close()
	ctx, db := context.Background(), newProducts()
	process := func(work func(*tiercache.Cache[int64, string])) {
		rdb := redis.NewClient(&redis.Options{Addr: server.Addr()})
		defer func() { _ = rdb.Close() }()
		shared, err := layers.NewRedis(ctx, rdb, layers.RedisOptions{Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			fmt.Println(err)
			return
		}
		defer func() { _ = shared.Close() }()
		cache, err := tiercache.New(tiercache.Options[int64, string]{Name: "products", Shared: shared, Load: db.Load, WarmList: 1000})
		if err != nil {
			fmt.Println(err)
			return
		}
		defer func() { _ = cache.Close() }()
		work(cache)
	}

	process(func(cache *tiercache.Cache[int64, string]) {
		_, _ = cache.Get(ctx, 2)
		_ = cache.Clear(ctx) // or a night, in which everything expired
	})
	process(func(cache *tiercache.Cache[int64, string]) { // the next deployment
		report, err := cache.WarmFromList(ctx, tiercache.WarmOptions{})
		fmt.Println(report.Loaded, "of", report.Total, "loaded", err)
		fmt.Println(cache.Get(ctx, 2))
	})
	// Output:
	// database: read 2
	// database: read 2
	// 1 of 1 loaded <nil>
	// bellows <nil>
}
