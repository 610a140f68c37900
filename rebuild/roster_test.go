package rebuild

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRosterTakesNobodyAfterClose(t *testing.T) {
	// Who joins after close gets ErrClosed: its context would never end. Leaving twice counts once.
	w := newRoster()
	ctx, leave, err := w.join(t.Context())
	require.NoError(t, err)
	over, cancel := context.WithCancel(t.Context())
	cancel()
	require.Equal(t, 1, w.close(over))
	require.Equal(t, ErrClosed, context.Cause(ctx))
	_, _, err = w.join(t.Context())
	require.Equal(t, ErrClosed, err)
	leave()
	leave()
	require.Zero(t, w.close(t.Context()))
}
