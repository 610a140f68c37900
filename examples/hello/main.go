// Hello is the smallest service with a cache: a source, a cache over it, three reads of which one reaches the source.
package main

import (
	"context"
	"fmt"
	"log"

	"github.com/redis/go-redis/v9"

	"github.com/tiercache/tiercache"
	"github.com/tiercache/tiercache/layers"
)

func main() {
	ctx := context.Background()
	rdb := redis.NewClient(&redis.Options{Addr: "localhost:6379", ContextTimeoutEnabled: true}) // no server there? it works without
	shared, err := layers.NewRedis(ctx, rdb, layers.RedisOptions{})
	if err != nil {
		log.Fatal(err)
	}
	cache, err := tiercache.New(tiercache.Options[int64, string]{
		Name:   "users",
		Shared: shared,
		Load: func(_ context.Context, id int64) (string, error) { // SELECT name FROM users WHERE id = …
			fmt.Println("the database is asked for", id)
			return fmt.Sprint("user ", id), nil
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	for range 3 {
		fmt.Println(cache.Get(ctx, 42))
	}
	fmt.Println(cache.Close(), shared.Close(), rdb.Close())
}
