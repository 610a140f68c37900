package breaker

import (
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pass lets so much of a bubble's virtual time go by.
func pass(d time.Duration) { <-time.After(d) }
