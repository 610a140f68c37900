package rebuild

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/tiercache/tiercache/internal/redistest"
)

func TestMain(m *testing.M) {
	if addresses := os.Getenv(lockWorker); addresses != "" {
		if err := runLockWorker(addresses); err != nil {
			fmt.Fprintln(os.Stderr, "a process of the lock fleet:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	redistest.Main(m)
}

// pass lets so much of a bubble's virtual time go by.
func pass(d time.Duration) { <-time.After(d) }
