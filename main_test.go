package tiercache_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/tiercache/tiercache/internal/redistest"
)

func TestMain(m *testing.M) {
	if spec := os.Getenv(cacheWorker); spec != "" {
		if err := runCacheWorker(spec); err != nil {
			fmt.Fprintln(os.Stderr, "a process of the fleet:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	redistest.Main(m)
}
