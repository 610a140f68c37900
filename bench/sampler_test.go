package bench

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A sampler's steps say what grew in each, at the rate of the time that it lasted, and together all that grew until a last step that is too
// short to say anything.
//
// Broken by: readings in the place of their differences; rates over the step asked for; no last step.
func TestSamplerSaysWhatGrew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int64
		n.Store(1000)
		s := startSampler(time.Second, func() []float64 {
			if n.Load() == 1010 {
				time.Sleep(500 * time.Millisecond) // a machine that is busy elsewhere
			}
			return []float64{float64(n.Load()), 0}
		})
		time.Sleep(1100 * time.Millisecond)
		n.Add(10)
		time.Sleep(time.Second)
		n.Add(30)
		time.Sleep(1400 * time.Millisecond)
		n.Add(5)
		time.Sleep(100 * time.Millisecond)
		steps := s.stop()
		var grown, rates []float64
		for _, step := range steps {
			require.Zero(t, step.grown[1])
			grown, rates = append(grown, step.grown[0]), append(rates, step.rate(0))
		}
		require.Equal(t, []float64{0, 40, 0, 5}, grown)
		require.InDeltaSlice(t, []float64{0, 40 / 1.5, 0, 5 / 0.6}, rates, 1e-9)
	})
}
