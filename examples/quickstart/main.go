// Quickstart shows what a cache does for a database, with nothing to install: a SQLite table of 100,000 products, four caches that
// play four processes of a service, and between them a Redis-protocol server embedded in this program (or a real one: -redis).
//
//	go run ./examples/quickstart
//	go run ./examples/quickstart -redis 127.0.0.1:6379 -dsn products.db
//
// Where to read: cache.go has all that a service needs of the library; story.go is what happens here, step by step; the rest is the
// database, the clock and the table that this program prints.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	os.Exit(start())
}

// start returns the exit code: 0, 1 after an error, 2 for bad flags, 130 after Ctrl-C. It is not part of main so that what it defers runs.
func start() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	o, err := parseFlags(os.Args[1:], os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	}
	r, err := run(ctx, o)
	switch {
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "quickstart: interrupted; everything is closed")
		return 130
	case err != nil:
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		return 1
	}
	fmt.Print(r)
	return 0
}

// parseFlags returns the size of the real run with what the flags change. It has told stderr about every error it returns.
func parseFlags(args []string, stderr io.Writer) (options, error) {
	o := options{rows: 100_000, callers: 200, hotRequests: 5, absentRequests: 10, progress: stderr}
	f := flag.NewFlagSet("quickstart", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&o.redisAddr, "redis", "", "`ADDR` (host:port) of a Redis server to use instead of the embedded one;\nwhat the run leaves there is deleted at its end")
	f.StringVar(&o.databaseFile, "dsn", "", "SQLite `FILE` with a products table; built if the file is new or empty, and kept\n(default: a temporary file)")
	if err := f.Parse(args); err != nil {
		return options{}, err
	}
	if f.NArg() > 0 {
		err := fmt.Errorf("unexpected argument %q: quickstart takes flags only", f.Arg(0))
		_, _ = fmt.Fprintln(stderr, err)
		f.Usage()
		return options{}, err
	}
	return o, nil
}
