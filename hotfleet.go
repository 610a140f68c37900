package tiercache

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/tiercache/tiercache/layers"
	"github.com/tiercache/tiercache/rebuild"
)

const (
	fleetTells = 20     // keys that a process tells the fleet of, a second. Chosen; not tuned
	fleetTold  = 20.0   // reads a second from which on it does: a fleet of a hundred has 2,000 then
	fleetHears = 256    // keys that it is told of: no more can be hot
	fleetLeast = 1500.0 // reads a second of the fleet, below which a key is of no account: half of what makes it hot
	fleetShows = 20     // keys that FleetHotKeys returns if it is not told how many
	fleetMost  = 1000   // and at most
)

// FleetHotKey is a key that is read often in the processes of the fleet together.
type FleetHotKey struct {
	// Key is the key's string form, as KeyString gives it. Of one over 200 bytes it is "%h" and the SHA-256 in hexadecimal, as in Redis.
	Key  string
	Rate float64 // reads a second, of late, as far as the processes tell
}

// FleetHotKeys returns the n keys that all processes with this Name read most, first the most; n of zero or less: 20; 1,000 at most.
//
// Each process in which some keys are read 20 times a second or more tells Redis of the first twenty of these, once a second, by one script, and
// hears which keys the fleet reads 3,000 times a second: these are hot in each process that reads them, as HotKeys says. In Redis
// that is two sorted sets of at most a thousand keys that end after four seconds. While Redis cannot be asked each process judges by its own
// reads; then FleetHotKeys returns an error.
//
// It is one round trip. Without Shared this process is the fleet, and nobody is asked. It may be called concurrently. Keys are not hashed, any
// more than they are in Redis' own key names: mind where they are shown.
func (c *Cache[K, V]) FleetHotKeys(ctx context.Context, n int) ([]FleetHotKey, error) {
	if err := c.usable(ctx); err != nil {
		return nil, err
	}
	if n <= 0 {
		n = fleetShows
	}
	n = min(n, fleetMost)
	if err := ctx.Err(); err != nil { // the client sends some commands of a context that has ended
		return nil, fmt.Errorf("tiercache: hot keys of the fleet: %w", err)
	}
	if c.shared == nil {
		var keys []FleetHotKey
		for _, k := range c.hot.Top(n) {
			keys = append(keys, FleetHotKey{Key: layers.HotName(k.ID), Rate: k.Rate})
		}
		return keys, nil
	}
	rates, err := c.shared.TellHot(ctx, nil, 0, n)
	if err != nil {
		if ctx.Err() == nil {
			c.sharedFailed("hot", err)
		}
		return nil, fmt.Errorf("tiercache: hot keys of the fleet: %w", err)
	}
	keys := make([]FleetHotKey, len(rates))
	for i, k := range rates {
		keys[i] = FleetHotKey{Key: k.ID, Rate: k.Rate}
	}
	return keys, nil
}

// hotFleet is what this process says and hears of the fleet's hot keys. One telling at a time is under way.
type hotFleet struct {
	ctx     context.Context //nolint:containedctx // of the tellings, which nobody waits for
	cancel  context.CancelFunc
	telling atomic.Bool
	tells   sync.WaitGroup
}

func (f *hotFleet) begin() { f.ctx, f.cancel = context.WithCancel(context.Background()) }

// end cancels the telling that is under way and waits for it. None begins any more: the HotKeys is closed.
func (f *hotFleet) end() {
	f.cancel()
	f.tells.Wait()
}

// Window tells the fleet of the keys that are read most here, and has those be hot that the fleet reads most. Nothing is said while nothing is
// worth it, and then nothing is heard.
func (h *hotCare[K, V]) Window(top []rebuild.HotKey[K]) {
	c := h.c
	if c.shared == nil {
		return
	}
	var told []layers.HotRate
	ids := make(map[string]string) // of names, where these are others
	for _, k := range top {
		if len(told) < fleetTells && k.Rate >= fleetTold {
			told = append(told, layers.HotRate{ID: k.ID, Rate: k.Rate})
		}
		if name := layers.HotName(k.ID); name != k.ID {
			ids[name] = k.ID
		}
	}
	if len(told) == 0 {
		c.hot.Fleet(nil)
		return
	}
	if !h.fleet.telling.CompareAndSwap(false, true) {
		return // Redis is slow: what it says next is as good
	}
	h.fleet.tells.Go(func() {
		defer h.fleet.telling.Store(false)
		rates, err := c.shared.TellHot(h.fleet.ctx, told, fleetLeast, fleetHears)
		if err != nil {
			c.hot.Fleet(nil)
			if h.fleet.ctx.Err() == nil {
				c.sharedFailed("hot", err)
			}
			return
		}
		fleet := make(map[string]float64, len(rates))
		for _, k := range rates {
			if id, known := ids[k.ID]; known {
				fleet[id] = k.Rate
			} else {
				fleet[k.ID] = k.Rate
			}
		}
		c.hot.Fleet(fleet)
	})
}
