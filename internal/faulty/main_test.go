package faulty

import (
	"testing"

	"github.com/tiercache/tiercache/internal/redistest"
)

func TestMain(m *testing.M) { redistest.Main(m) }
