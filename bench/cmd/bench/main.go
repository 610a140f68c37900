// Bench runs the benchmark suite and prints ratios of one interleaved run, each beside its budget.
//
//	go run ./bench/cmd/bench                         all scenarios; results also in bench/results
//	go run ./bench/cmd/bench -quick                  the same with few short rounds: to see that it works
//	go run ./bench/cmd/bench -scenarios memory,cold  some of them
//	go run ./bench/cmd/bench -scenarios traces -traces DIR  hit ratios on the recorded traces in DIR
//	go run ./bench/cmd/bench -redraw FILE.json       page and pictures of a run again
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/tiercache/tiercache/bench"
)

func main() {
	os.Exit(start())
}

// start returns the exit code: 0 also with budgets missed, 1 after an error, 2 for bad flags, 130 after Ctrl-C. It is not part of main so
// that what it defers runs.
func start() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(os.Args) > 1 && os.Args[1] == bench.WorkerFlag {
		// A Ctrl-C reaches the workers too; they end when the suite closes their input.
		if err := bench.Work(context.WithoutCancel(ctx), os.Args[2:], os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "bench worker:", err)
			return 1
		}
		return 0
	}

	o := bench.Options{Log: os.Stdout}
	var names, redraw, img string
	flag.BoolVar(&o.Quick, "quick", false, "few short rounds and small tables: to see that the suite works")
	flag.StringVar(&names, "scenarios", "", "which ones, `NAMES` with commas between (default: all but traces): "+strings.Join(bench.Names(), ", "))
	flag.StringVar(&o.Out, "out", defaultOut(), "`DIR` for the result files; empty: none")
	flag.StringVar(&o.Traces, "traces", "", "`DIR` of recorded traces for the scenario traces; empty: made ones")
	flag.StringVar(&redraw, "redraw", "", "draw the page and pictures of this result `FILE` (JSON) again, and run nothing")
	flag.StringVar(&img, "img", "", "with -redraw: `DIR` for the pictures that the README shows; empty: none")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "bench: unexpected argument %q\n", flag.Arg(0))
		flag.Usage()
		return 2
	}
	if redraw != "" {
		path, err := bench.Redraw(redraw, img)
		if err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			return 1
		}
		fmt.Println("written to", path)
		return 0
	}
	if names != "" {
		o.Scenarios = strings.Split(names, ",")
	}
	switch _, err := bench.Run(ctx, o); {
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "bench: interrupted; no results written")
		return 130
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	return 0
}

// defaultOut is bench/results from the repository's root, results from bench itself.
func defaultOut() string {
	if _, err := os.Stat(filepath.Join("bench", "go.mod")); err == nil {
		return filepath.Join("bench", "results")
	}
	return "results"
}
