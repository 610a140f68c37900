package rebuild_test

import (
	"testing"

	"github.com/tiercache/tiercache/rebuild"
	"github.com/tiercache/tiercache/rebuild/backendtest"
)

// Property: the model that the tests of the locks stand on is a Backend like any other.
// Broken by: memBackend.acquire, `!c.Ordered || n.passesNobody(c)`.
func TestModelBackendConforms(t *testing.T) {
	t.Parallel()
	backendtest.Run(t, func(*testing.T) backendtest.Subject {
		b, forget, deafen, pause, leftover := rebuild.NewMemBackend()
		return backendtest.Subject{Backend: b, Forget: forget, Deafen: deafen, Pause: pause, Leftover: leftover}
	})
}
