package rebuild

import (
	"testing"
	"time"

	"github.com/tiercache/tiercache/internal/redistest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

// pass lets so much of a bubble's virtual time go by.
func pass(d time.Duration) { <-time.After(d) }
