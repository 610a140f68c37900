package tiercache_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"testing"

	"github.com/tiercache/tiercache/internal/filterlife"
	"github.com/tiercache/tiercache/internal/redistest"
)

func TestMain(m *testing.M) {
	workAsCacheProcess()
	redistest.Main(m)
}

// workAsCacheProcess makes this process one of a fleet, for as long as it lives, if it was started for that.
func workAsCacheProcess() {
	run := runCacheWorker
	spec := os.Getenv(cacheWorker)
	if spec == "" {
		spec = os.Getenv(filterWorker)
		run = func(spec string) error {
			return filterlife.Work(context.Background(), spec, json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout))
		}
	}
	if spec == "" {
		return
	}
	if err := run(spec); err != nil {
		fmt.Fprintln(os.Stderr, "a process of the fleet:", err)
		os.Exit(1)
	}
	os.Exit(0)
}
