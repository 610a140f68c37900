package layers

import (
	"testing"

	"github.com/tiercache/tiercache/internal/redistest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

// len counts what stands in the table.
func (t *table) len() (n int) {
	for _, q := range t {
		for ; q != nil; q = q.next {
			n++
		}
	}
	return n
}
