package tiercache_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/tiercache/tiercache/internal/redistest"
)

func TestMain(m *testing.M) {
	workAsCacheProcess()
	redistest.Main(m)
}

// workAsCacheProcess makes this process one of a fleet, for as long as it lives, if it was started for that.
func workAsCacheProcess() {
	spec := os.Getenv(cacheWorker)
	if spec == "" {
		return
	}
	if err := runCacheWorker(spec); err != nil {
		fmt.Fprintln(os.Stderr, "a process of the fleet:", err)
		os.Exit(1)
	}
	os.Exit(0)
}
