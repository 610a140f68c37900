package bloom

import (
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A key that either the new filter or the one before it lets pass, passes for a minute; then the new one's word counts, and the old one's
// memory is given back. What the new one itself lacks can be asked at once. Broken by: Absent without passedBefore; passedBefore without
// its end; Lacks asking the predecessor.
func TestBothFiltersAreAskedForAMinuteAfterTheSwap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := &memoryStore{}
		for _, st := range []Store{nil, st} {
			g := newTestGuard(t)
			build := func(rows ...string) {
				_, err := g.Build(t.Context(), rowsOf(rows...), BuildOptions{}, st)
				require.NoError(t, err)
			}
			build("a")
			require.True(t, g.Absent("b"))
			alone := g.Stats().Bytes
			build("b")
			wait := func(d time.Duration) {
				time.Sleep(d)
				if st != nil {
					require.NoError(t, g.CatchUp(t.Context(), st))
				}
			}
			wait(swapGrace - time.Second)
			require.False(t, g.Absent("a"))
			require.False(t, g.Absent("b"))
			require.True(t, g.Absent("c"))
			require.True(t, g.Lacks("a"))
			require.False(t, g.Lacks("b"))
			require.Equal(t, 2*alone, g.Stats().Bytes)
			wait(2 * time.Second)
			require.True(t, g.Absent("a"))
			require.False(t, g.Absent("b"))
			require.Equal(t, alone, g.Stats().Bytes)
			require.Nil(t, g.belief.Load().before.Load())
		}
	})
}

// Refute doubts a filter that lacks a row, for good, and no other. Broken by: Refute without MayContain; without refuseLocked.
func TestRefutedFilterIsDoubted(t *testing.T) {
	g := newTestGuard(t)
	require.False(t, g.Refute("a"), "nothing to refute")
	st := stored(t, "a")
	require.NoError(t, g.Adopt(t.Context(), st))
	require.False(t, g.Refute("a"))
	require.True(t, g.Absent("none"))
	require.True(t, g.Refute("b"))
	require.Equal(t, Doubted, g.State())
	require.False(t, g.Refute("b"), "it was")
	require.ErrorIs(t, g.Adopt(t.Context(), st), ErrDoubted)
}

// Due says why a new filter should be built: overfull, too high a rate for what is asked here, made for fewer rows than are asked for here, a day
// old, doubted; and nothing while all is well. Broken by: each case of Due; oldAt without the generation (the adopter's is then a day from now).
func TestDueSaysWhyANewFilterShouldBeBuilt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := &memoryStore{}
		builder, err := NewGuard(Options{Capacity: 1000})
		require.NoError(t, err)
		require.Empty(t, builder.Due(), "unbuilt")
		_, err = builder.Build(t.Context(), rowsOf("a"), BuildOptions{}, st)
		require.NoError(t, err)
		due := func(o Options) string {
			g, err := NewGuard(o)
			require.NoError(t, err)
			require.NoError(t, g.Adopt(t.Context(), st))
			return g.Due()
		}
		require.Empty(t, builder.Due())
		require.Equal(t, DueSmall, due(Options{Capacity: 2000}))
		time.Sleep(maxAge*9/10 - time.Minute)
		require.Empty(t, builder.Due())
		require.Empty(t, due(Options{Capacity: 1000}))
		time.Sleep(maxAge/5 + 2*time.Minute)
		require.Equal(t, DueOld, builder.Due())
		require.Equal(t, DueOld, due(Options{Capacity: 1000}))

		for i := range 900 {
			builder.Add(strconv.Itoa(i))
		}
		require.NotEqual(t, DueOverfull, builder.Due())
		_, err = builder.Build(t.Context(), func(yield func(string, error) bool) {
			for i := range 900 {
				if !yield(strconv.Itoa(i), nil) {
					return
				}
			}
		}, BuildOptions{}, st)
		require.NoError(t, err)
		require.Empty(t, builder.Due(), "900 rows of 1,000")
		require.Equal(t, DueRate, due(Options{Capacity: 2000, FalsePositiveRate: 0.001}))
		for i := range 400 {
			builder.Add("more " + strconv.Itoa(i))
		}
		require.Equal(t, DueOverfull, builder.Due())
		builder.Doubt()
		require.Equal(t, DueDoubted, builder.Due())
	})
}
