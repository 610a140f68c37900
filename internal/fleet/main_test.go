package fleet

import (
	"runtime/debug"
	"testing"

	"github.com/redis/go-redis/v9/logging"

	"github.com/tiercache/tiercache/internal/redistest"
)

func TestMain(m *testing.M) {
	logging.Disable()       // a client that cannot dial says so, and here they often cannot
	debug.SetGCPercent(400) // runs are short and leave much behind
	redistest.Main(m)
}
