package tiercache_test

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache"
	"github.com/tiercache/tiercache/internal/redistest"
	"github.com/tiercache/tiercache/layers"
)

func BenchmarkRedisHit(b *testing.B) {
	srv := redistest.Start(b)
	ballast := make([]byte, 128<<20)
	_ = ballast
	sh, err := layers.NewRedis(b.Context(), srv.Client(b), layers.RedisOptions{})
	require.NoError(b, err)
	defer sh.Close()
	val := strings.Repeat("x", 300)
	c, err := tiercache.New(tiercache.Options[string, string]{Name: "b", Shared: sh, MemoryTTL: -1, Load: func(context.Context, string) (string, error) { return val, nil }})
	require.NoError(b, err)
	defer c.Close()
	keys := make([]string, 10000)
	for i := range keys {
		keys[i] = "product:" + strconv.Itoa(i)
	}
	_, err = c.GetMany(b.Context(), keys)
	require.NoError(b, err)
	for _, g := range []int{1, 8, 64, 256} {
		b.Run(strconv.Itoa(g), func(b *testing.B) {
			b.ReportAllocs()
			var n atomic.Int64
			var wg sync.WaitGroup
			for w := range g {
				wg.Add(1)
				go func() {
					defer wg.Done()
					ctx := context.Background()
					for i := w * 31; n.Add(1) <= int64(b.N); i += 7 {
						if _, err := c.Get(ctx, keys[i%len(keys)]); err != nil {
							b.Error(err)
						}
					}
				}()
			}
			wg.Wait()
		})
	}
}
