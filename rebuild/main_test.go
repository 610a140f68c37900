package rebuild

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/tiercache/tiercache/internal/redistest"
)

func TestMain(m *testing.M) {
	workAsLockProcess()
	redistest.Main(m)
}

// workAsLockProcess makes this process one of the lock fleet, for as long as it lives, if it was started for that.
func workAsLockProcess() {
	addresses := os.Getenv(lockWorker)
	if addresses == "" {
		return
	}
	if err := runLockWorker(addresses); err != nil {
		fmt.Fprintln(os.Stderr, "a process of the lock fleet:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// pass lets so much of a bubble's virtual time go by.
func pass(d time.Duration) { <-time.After(d) }
