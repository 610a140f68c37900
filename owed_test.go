package tiercache

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache/layers"
)

// What is owed is given back at once, a second later and three seconds after that; then it is forgotten. It is bounded: the newest are kept.
// Broken by: addPaid returning at once; take without `d.due.After(now)`; add without its last line, or without DeleteFunc.
func TestWhatIsOwedIsGivenBackAgain(t *testing.T) {
	var o owed
	now := time.Now()
	lease := layers.Lease{ID: "k"}
	o.add(debt{lease: lease})
	for paid, pause := range []time.Duration{0, time.Second, 3 * time.Second} {
		if pause > 0 {
			require.Empty(t, o.take(now.Add(pause-1)), "after %d times", paid)
		}
		now = now.Add(pause)
		due := o.take(now)
		require.Len(t, due, 1, "after %d times", paid)
		require.Equal(t, lease, due[0].lease)
		require.Equal(t, paid, due[0].paid)
		o.addPaid(now, paid+1, due[0].lease)
	}
	require.Empty(t, o.take(now.Add(time.Hour)))

	o.addPaid(now, 1, lease)
	o.add(debt{lease: lease}) // it could not be given back
	require.Equal(t, []debt{{lease: lease}}, o.take(now))
	require.Empty(t, o.take(now.Add(time.Hour)), "owed twice")

	for range maxOwed {
		o.add(debt{lease: layers.Lease{Token: layers.NewToken()}})
	}
	o.add(debt{lease: lease})
	due := o.take(now)
	require.Len(t, due, maxOwed)
	require.Equal(t, lease, due[maxOwed-1].lease)
}
