// Warmup fills a cache before it takes traffic and shows how that goes on. Interrupted, it says where it may go on: -skip.
package main

import (
	"context"
	"flag"
	"fmt"
	"iter"
	"log"
	"os"
	"os/signal"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"github.com/tiercache/tiercache"
	"github.com/tiercache/tiercache/layers"
)

func main() {
	addr := flag.String("redis", "localhost:6379", "address of Redis; without a server there it works as well")
	users := flag.Int64("users", 20_000, "rows of the database")
	rate := flag.Int("rate", 2_000, "keys a second")
	skip := flag.Uint64("skip", 0, "keys to pass over: where an earlier run was cut off")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := warmUp(ctx, *addr, *users, tiercache.WarmOptions{KeysPerSecond: *rate, Skip: *skip, Total: uint64(max(*users, 0))}); err != nil {
		log.Print(err)
	}
}

// warmUp opens a cache of users and warms it with all of them.
func warmUp(ctx context.Context, addr string, users int64, o tiercache.WarmOptions) error {
	rdb := redis.NewClient(&redis.Options{Addr: addr, ContextTimeoutEnabled: true})
	defer func() { _ = rdb.Close() }()
	shared, err := layers.NewRedis(ctx, rdb, layers.RedisOptions{})
	if err != nil {
		return err
	}
	defer func() { _ = shared.Close() }()
	cache, err := tiercache.New(tiercache.Options[int64, string]{Name: "users", Shared: shared, LoadMany: load})
	if err != nil {
		return err
	}
	defer func() { _ = cache.Close() }()

	progress, end := bar(o.Total)
	if !term.IsTerminal(int(os.Stderr.Fd())) { //nolint:gosec // a file descriptor
		progress, end = lines(time.Second)
	}
	o.Progress = progress
	report, err := cache.Warm(ctx, numbers(users), o)
	end()
	fmt.Printf("\n%d of %d in %v (%.0f keys a second, paused for %v)\n",
		report.Done, report.Total, report.Took.Round(time.Millisecond), report.Rate(), report.Paused.Round(time.Millisecond))
	if report.Done < report.Total {
		fmt.Printf("go on with -skip %d\n", report.Done)
	}
	return err
}

// bar draws the progress in a terminal.
func bar(total uint64) (progress func(tiercache.WarmReport), end func()) {
	bar := progressbar.Default(int64(total), "warming") //nolint:gosec // a number of rows
	return func(r tiercache.WarmReport) {
		bar.Describe(said(r))
		_ = bar.Set64(int64(r.Done)) //nolint:gosec // as above
	}, func() { _ = bar.Exit() }
}

// lines tells the progress in a log, one line in so long.
func lines(every time.Duration) (progress func(tiercache.WarmReport), end func()) {
	var told time.Time
	return func(r tiercache.WarmReport) {
		if now := time.Now(); now.Sub(told) >= every {
			told = now
			fmt.Fprintf(os.Stderr, "%d of %d, %.0f keys a second; %s\n", r.Done, r.Total, r.Rate(), said(r))
		}
	}, func() {}
}

func said(r tiercache.WarmReport) string {
	return fmt.Sprintf("warming: %d loaded, %d fresh, %d failed", r.Loaded, r.Fresh, r.Failed)
}

// numbers are the users' numbers in order: SELECT id FROM users WHERE id > … ORDER BY id LIMIT 1000, page after page.
func numbers(users int64) iter.Seq[int64] {
	return func(yield func(int64) bool) {
		for id := range users {
			if !yield(id + 1) {
				return
			}
		}
	}
}

// load stands for SELECT id, name FROM users WHERE id = ANY(…), which takes its time.
func load(ctx context.Context, ids []int64) (map[int64]string, error) {
	select {
	case <-time.After(5 * time.Millisecond):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	rows := make(map[int64]string, len(ids))
	for _, id := range ids {
		rows[id] = fmt.Sprint("user ", id)
	}
	return rows, nil
}
